"""KubeRay's job on a real Ray head: asked for over REST, with the head's token, it trains."""

import json
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from support.ray_nodes import RayNodes
from support.waiting import deadline_s, until
from test_run import RECIPE

from redraft import records

pytestmark = [pytest.mark.ray, pytest.mark.prove]


@pytest.fixture
def short():
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Jobs:
    """Ray's REST API as KubeRay's operator asks it."""

    def __init__(self, nodes: RayNodes, token: str):
        self._url, self._token = f"http://127.0.0.1:{nodes.dashboard_port}/api/jobs/", token

    def submit(self, entrypoint: str, name: str) -> dict:
        return self._ask("", json.dumps({"entrypoint": entrypoint, "submission_id": name}).encode())

    def stop(self, name: str) -> None:
        self._ask(f"{name}/stop", b"")

    def of(self, name: str) -> dict:
        return self._ask(name)

    def logs(self, name: str) -> str:
        return self._ask(f"{name}/logs")["logs"]

    def _ask(self, what: str, data: bytes | None = None) -> dict:
        headers = {"x-ray-authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        asked = urllib.request.Request(self._url + what, data, headers)
        with urllib.request.urlopen(asked, timeout=deadline_s(30)) as answer:
            return json.load(answer)


def history(run: Path) -> list[int]:
    return [line.report.step for line in records.steps(records.step_lines(run))]


def test_the_job_trains_by_its_bare_command_where_the_head_was_started_and_only_with_the_token(short):
    (short / "recipe.yaml").write_text(yaml.safe_dump(RECIPE | {"steps": 3}))
    nodes = RayNodes(short, {"RAY_JOB_STOP_WAIT_TIME_S": "600"})
    jobs = Jobs(nodes, nodes.token)
    with pytest.raises(urllib.error.HTTPError, match="403|401"):
        Jobs(nodes, "another").of("job")
    redraft = shutil.which("redraft", path=nodes.environment["PATH"])
    assert redraft, "the command that the entrypoint names is on the head's PATH"
    jobs.submit(f"redraft train {short / 'recipe.yaml'} --resume-if-begun metrics.port=0", "job")

    def over() -> str:
        state = jobs.of("job")["status"]
        return state if state in ("SUCCEEDED", "FAILED", "STOPPED") else ""

    assert until(over, lambda: jobs.logs("job")[-3000:], 300) == "SUCCEEDED", jobs.logs("job")[-3000:]
    kept = short / "runs" / "tiny"
    assert json.loads((kept / "summary.json").read_text())["state"] == "done" and history(kept) == [1, 2, 3]
    command = f"redraft train {short / 'recipe.yaml'} steps=9999 --run long --resume-if-begun --restarts 5"
    jobs.submit(command, "long")
    until(lambda: len(history(short / "runs" / "long")) >= 3, lambda: jobs.logs("long")[-3000:], 240)
    jobs.stop("long")  # as KubeRay does when its RayJob is deleted
    until(lambda: jobs.of("long")["status"] == "STOPPED", lambda: jobs.logs("long")[-3000:], 120)
    ended = json.loads((short / "runs" / "long" / "summary.json").read_text())
    assert (ended["state"], ended["try_again"]) == ("stopped", True)
    assert ended["checkpoint"] == ended["steps"] == len(history(short / "runs" / "long")), "no step was lost"
    jobs.submit(f"redraft train {short / 'missing.yaml'}", "mistake")
    assert until(lambda: jobs.of("mistake")["status"] == "FAILED", "a mistake fails", 60)
    assert "missing.yaml" in jobs.logs("mistake")
