"""A Ray that cannot be joined or started is refused in a line, before anything else is done."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from support.places import PYTHONPATH, RECIPES
from support.waiting import deadline_s

from protocols.errors import FaultError, SettingError
from redraft.control import cluster


@pytest.fixture
def nobody():
    """An address at which nobody listens, and nobody else will while the test goes on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(cluster, "REACH_S", 0.2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_a_head_that_takes_no_connection_is_named_with_the_cure(nobody, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    with pytest.raises(SettingError, match=f"RAY_ADDRESS: {nobody} took no connection .*unset RAY_ADDRESS"):
        cluster.check()


def test_of_a_run_that_is_resumed_it_is_a_fault_since_the_head_may_come_again(nobody, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    with pytest.raises(FaultError, match=nobody):
        cluster.check(resume=True)


def test_a_head_that_comes_up_meanwhile_is_found(nobody, monkeypatch):
    monkeypatch.setattr(cluster, "REACH_S", deadline_s(20))
    tries: list[tuple] = []
    connect = socket.create_connection

    def late(address, timeout):
        tries.append(address)
        return connect(address if len(tries) > 1 else ("127.0.0.1", int(nobody.rpartition(":")[2])), timeout)

    monkeypatch.setattr(cluster.socket, "create_connection", late)
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    with socket.create_server(("127.0.0.1", 0)) as head:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{head.getsockname()[1]}")
        cluster.check()
    assert len(tries) == 2


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ray://127.0.0.1:10001", "client protocol"),
        ("somewhere", "'somewhere' is not HOST:PORT"),
        ("127.0.0.1:http", "is not HOST:PORT"),
        ("127.0.0.1:99999", "took no connection"),
        ("no-such-host.invalid:6379", "took no connection"),
    ],
)
def test_what_is_no_address_of_a_head_is_refused_in_a_line(address, words, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(SettingError, match="RAY_ADDRESS: ") as refused:
        cluster.check()
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
def test_a_folder_too_long_for_rays_sockets_is_refused_and_the_longest_that_fits_is_not(variable, monkeypatch):
    most = cluster.SOCKET_BYTES - len(cluster.SOCKETS)
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv(variable, "/" + "x" * (most - 1))
    cluster.check()
    monkeypatch.setenv(variable, "/" + "x" * most)
    with pytest.raises(SettingError, match=f"{variable}: .* room for a folder of {most}. Set RAY_TMPDIR"):
        cluster.check()


@pytest.mark.parametrize("address", ["", "local"])
def test_without_an_address_ray_is_started_here(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert cluster.joined() == ""


def test_a_command_says_so_in_one_line_before_it_makes_a_model(nobody, tmp_path):
    command = [sys.executable, "-m", "redraft", "train", str(RECIPES / "quickstart.yaml")]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH, "RAY_ADDRESS": "ray://" + nobody}
    ended = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=deadline_s(60), env=environment
    )
    assert ended.returncode == 2 and "Traceback" not in ended.stderr, ended
    assert ended.stderr.strip().splitlines()[-1].startswith("redraft: RAY_ADDRESS: ray://")
    assert not (tmp_path / ".cache").exists() and not (tmp_path / "runs" / "quickstart").exists()


@pytest.mark.parametrize("kind", [RuntimeError, Exception, OSError])
def test_a_ray_that_does_not_start_is_started_again_once_and_then_told_in_a_line(kind, monkeypatch):
    tries: list[dict] = []

    def broken(**arguments) -> None:
        tries.append(arguments)
        raise kind("The current node timed out during startup.\nThis could happen because\nof load")

    import ray

    from redraft import recipe

    monkeypatch.setattr(ray, "init", broken)
    with pytest.raises(FaultError, match="did not start here in 2 tries: The current node timed out") as told:
        with cluster.ray_for(recipe.load(RECIPES / "quickstart.yaml")):
            raise AssertionError("there is no Ray")
    assert len(tries) == 2 and "\n" not in str(told.value)
    assert tries[0]["address"] == "local"


def test_a_call_of_ray_that_hangs_ends_the_command_with_a_line_and_the_code_of_a_fault():
    code = (
        "import threading\nfrom redraft.control import cluster\ncluster._bounded(threading.Event().wait, 0.1, 'said')"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": PYTHONPATH}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s(60), env=environment)
    assert (ended.returncode, ended.stderr.strip()) == (75, "said")
