"""A run opens the doors of docs/security.md and no other, tells its keys to nobody, and writes into its folder alone.

One run on one machine, with scripted engines; all that it started is looked at, and all that it wrote.
"""

from __future__ import annotations

import json
import re
import secrets
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support import places
from support.far_tasks import NAME as FAR
from support.storm_house import RECIPE
from support.waiting import deadline_s

from benchmarks.chaos_parts import NAME, Storm

pytestmark = [pytest.mark.ray, pytest.mark.prove]

KEYS = ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "MY_KEY")
ROW = re.compile(r"\| (?:any other )?`(?P<title>[\w:. ]+)` \| (?P<everywhere>\d*) *\| (?P<one>\d*) *\|")
EVERYWHERE = {"::", "0.0.0.0"}
IF_FREE = {"monitor.py", "dashboard.py"}  # always at the same port, which only the first Ray of a machine has


def doors() -> dict[str, tuple[int, int]]:
    """How many sockets a process may listen at everywhere and at one address, by how its command begins."""
    found = ROW.findall((places.ROOT / "docs" / "security.md").read_text())
    return {title: (int(everywhere or 0), int(one or 0)) for title, everywhere, one in found}


@pytest.fixture(scope="module")
def planted() -> dict[str, str]:
    return {name: f"planted{secrets.token_hex(16)}" for name in KEYS}


@pytest.fixture(scope="module")
def storm(planted) -> Iterator[Storm]:
    """A run that makes steps, with keys among its variables, and tasks that are named as files elsewhere."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="d", ignore_cleanup_errors=True) as folder:
        place = Path(folder)
        (place / "runs").mkdir()
        recipe = RECIPE | {"environment": {"name": "support.far_tasks:FarCoins"}}
        variables = planted | {"RAY_TMPDIR": str(place), "PYTHONPATH": places.PYTHONPATH}
        found = Storm(place, recipe, limit_s=deadline_s(200.0), variables=variables)
        try:
            found.start()
            yield found
        finally:
            found.close()


def listening(process: psutil.Process) -> list[tuple[str, int]]:
    found = [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
    return [(one.laddr.ip, one.laddr.port) for one in found]


def of(process: psutil.Process) -> str:
    """How the doors call a process: the longest title that is in the name of its program; "" if none."""
    words = process.cmdline()
    if words[1:3] == ["-m", "redraft"]:
        command = f"redraft {words[3]}"
    elif words and Path(words[0]).name.startswith("python"):
        command = next((word for word in words[1:] if not word.startswith("-")), "")
    else:
        command = words[0] if words else ""
    return max((title for title in doors() if title in command), key=len, default="")


def test_every_process_listens_where_the_docs_say_and_nowhere_else(storm):
    (run,) = storm.run.glob("run.json")
    with urllib.request.urlopen(json.loads(run.read_text())["sd"], timeout=deadline_s(10)) as answer:
        metrics = {target for entry in json.load(answer) for target in entry["targets"]}
    assert all(target.startswith("127.0.0.1:") for target in metrics)
    seen = Counter()
    for process in storm.family():
        title, there = of(process), listening(process)
        everywhere = sum(host in EVERYWHERE for host, _ in there)
        allowed = doors().get(title, (0, 0))
        assert everywhere <= allowed[0] and len(there) - everywhere <= allowed[1], (process.cmdline()[:4], there)
        seen[title] += bool(there)
        metrics -= {f"127.0.0.1:{port}" for _, port in there}  # one that is everywhere is here, too
    assert not metrics, "every target of /sd is such a socket"
    assert set(seen) - {""} - IF_FREE == set(doors()) - IF_FREE, "the docs list no door that is not there"


def test_the_sockets_of_replay_are_in_a_folder_that_only_their_user_enters(storm):
    (replay,) = storm.parts("replay")
    names = {one.laddr for one in replay.net_connections("unix") if one.laddr.endswith(("/ingest", "/serve"))}
    assert len(names) == 2
    for name in names:
        assert Path(name).parent.stat().st_mode & 0o077 == 0, name


def test_a_key_is_in_no_file_no_list_of_processes_and_no_error(storm, planted):
    told = [" ".join(process.cmdline()) for process in storm.family()]
    for arguments in (("eval", NAME, "environment.name=nothing"), ("status", NAME), ("runs", "--json")):
        answer = storm.command(*arguments)
        told += [answer.stdout, answer.stderr]
    storm.stop()
    assert storm.process.returncode == 0, storm.said()
    files = [path for path in storm.place.rglob("*") if path.is_file()]
    assert any("raylet" in path.name for path in files) and any(path.suffix == ".jsonl" for path in files)
    for name, key in planted.items():
        assert not [path for path in files if key.encode() in path.read_bytes()], name
        assert not [text for text in told if key in text], name


def test_tasks_that_are_named_as_files_elsewhere_are_written_nowhere_else(storm):
    assert any(FAR in path.read_text() for path in storm.run.rglob("*.jsonl")), "they were played"
    assert not list(storm.place.rglob(f"*{FAR}*"))
    assert not [above for above in (Path("/tmp"), Path("/"), Path.cwd()) if (above / FAR).exists()]
