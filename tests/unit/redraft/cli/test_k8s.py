"""`redraft k8s` says to helm and kubectl what it should; both are stubs here that write down what they are told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protocols.errors import RedraftError, SettingError
from redraft.cli import k8s
from redraft.cli.main import app

STUB = """#!/usr/bin/env python3
import json, os, pathlib, sys
words = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
for word in words:
    if word.startswith("--from-file="):
        path = pathlib.Path(word.removeprefix("--from-file="))
        words[words.index(word)] = f"--from-file={path.name} of {len(path.read_bytes()) > 0}"
with open(os.environ["TOLD"], "a") as out:
    print(json.dumps(words), file=out)
if "secret" in words and "get" in words:
    print("secret/there" if words[5] in os.environ.get("SECRETS", "").split() else "")
if any(word.startswith("jsonpath") for word in words):
    print(os.environ.get("HEADS", "exp-1-abcde-head-xyz exp-1"))
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that runs `redraft k8s` and returns the commands that helm and kubectl were given."""
    for name in ("helm", "kubectl"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told.jsonl"))
    (tmp_path / "mine.yaml").write_text("run: exp-2\n")

    def run(*arguments: str) -> list[str]:
        ended = CliRunner().invoke(app, ["k8s", *arguments])
        if isinstance(ended.exception, RedraftError):
            raise ended.exception
        assert ended.exit_code == 0, ended.output
        lines = (tmp_path / "told.jsonl").read_text().splitlines()
        return [" ".join(json.loads(line)) for line in lines]

    return run


def test_start_makes_the_keys_once_and_installs_the_chart_with_the_value_files(told, tmp_path, monkeypatch):
    values = str(tmp_path / "mine.yaml")
    install = f"helm upgrade --install exp-1 {k8s.CHART} --namespace redraft --values {values}"
    *_, replay, peer, last = told("start", "exp-1", values)
    create = "kubectl --namespace redraft create secret generic"
    replay_keys = ("server.key_secret", "client.key", "metrics.token")
    peer_keys = ("server.key", "client.key_secret", "metrics.token")
    for made, kind, files in ((replay, "replay", replay_keys), (peer, "peer", peer_keys)):
        given = " ".join(f"--from-file={file} of True" for file in files)
        assert made == f"{create} exp-1-{kind}-keys {given}"
    assert last == install
    monkeypatch.setenv("SECRETS", "exp-1-replay-keys exp-1-peer-keys")
    (tmp_path / "told.jsonl").unlink()
    commands = told("start", "exp-1", values)
    assert commands[-1] == install and not [command for command in commands if "create" in command]


def test_half_of_the_keys_is_refused_before_anything_is_installed(told, tmp_path, monkeypatch):
    monkeypatch.setenv("SECRETS", "exp-1-peer-keys")
    with pytest.raises(SettingError, match="only exp-1-peer-keys is there"):
        told("start", "exp-1", str(tmp_path / "mine.yaml"))
    assert "helm" not in (tmp_path / "told.jsonl").read_text()


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["status", "exp-1"], "redraft status exp-1"),
        (["stop", "exp-1"], "redraft stop exp-1"),
        (["scale", "exp-1", "12"], "redraft scale exp-1 12"),
        (["logs", "exp-1", "learner-0"], "tail -n 200 -F /srv/redraft/runs/exp-1/logs/learner-0.log"),
    ],
)
def test_all_else_is_said_to_the_command_in_the_head(told, arguments, command):
    last = told(*arguments, "--namespace", "mine")[-1]
    assert last == f"kubectl --namespace mine exec exp-1-abcde-head-xyz --container ray-head -- {command}"


def test_the_run_is_the_one_that_the_head_is_of(told, monkeypatch):
    monkeypatch.setenv("HEADS", "exp-1-head sixteen")
    assert told("stop", "exp-1")[-1].endswith("-- redraft stop sixteen")


def test_what_is_not_there_or_fails_is_said_in_one_line(told, tmp_path, monkeypatch):
    with pytest.raises(SettingError, match="there is no file nothing.yaml"):
        told("start", "exp-1", "nothing.yaml")
    monkeypatch.setenv("HEADS", "")
    with pytest.raises(RedraftError, match="exp-1 has no head in the namespace redraft"):
        told("status", "exp-1")
    monkeypatch.setenv("CODE", "1")
    with pytest.raises(RedraftError, match="kubectl --namespace .* exit code 1"):
        told("status", "exp-1")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SettingError, match="there is no kubectl on the PATH"):
        told("stop", "exp-1")
