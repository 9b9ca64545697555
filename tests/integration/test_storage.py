"""A run that is copied to a store is killed, and goes on from there in an empty folder of another machine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import psutil
import pytest
import yaml
from support import processes
from support.places import PYTHONPATH
from support.run_house import interruptible
from support.s3_server import KEYS, S3Server
from support.waiting import deadline_s, until
from test_run import RECIPE

from redraft import records

pytestmark = [pytest.mark.ray, pytest.mark.prove]

GROUPS = RECIPE["learner"]["batch_groups"]
LONG = RECIPE | {"steps": 100_000, "evaluation": {"n": 2, "independent": 1, "greedy": False}}


class Machine:
    """A folder with nothing but the recipe, and a cache of its own."""

    def __init__(self, folder, url, environment):
        folder.mkdir()
        self.folder, self.run = folder, folder / "runs" / "tiny"
        (folder / "r.yaml").write_text(yaml.safe_dump(LONG | {"storage": {"url": url, "tries": 2}}))
        found = os.pathsep.join(filter(None, (PYTHONPATH, os.environ.get("PYTHONPATH"))))  # s3fs may lie elsewhere
        places = {"PYTHONPATH": found, "REDRAFT_CACHE": str(folder / "a cache of its own")}
        self.environment = os.environ | places | environment

    def redraft(self, *arguments):
        self.log = self.folder / f"said-{len(list(self.folder.glob('said-*')))}.txt"
        with open(self.log, "wb") as said:
            return processes.start(
                [sys.executable, "-m", "redraft", *arguments],
                cwd=self.folder,
                env=self.environment,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=interruptible,
            )

    def until_copied(self, process, step):
        def copied():
            assert process.poll() is None, self.log.read_text()[-3000:]
            said = records.text(self.run / "logs" / "storage.log")
            return any(int(found) >= step for found in re.findall(r"copy \d+: step (\d+)", said))

        until(copied, lambda: f"a copy of step {step}: {self.log.read_text()[-2000:]}", 240)

    def said(self, *arguments):
        process = self.redraft(*arguments)
        code = process.wait(deadline_s(120))
        return code, self.log.read_text()


def lose(process):
    """Kills a command with all of its processes, at once."""
    whole = psutil.Process(process.pid)
    lost = [whole, *whole.children(recursive=True)]
    for one in lost:
        one.suspend()  # so that none starts another, or ends kindly
    for one in lost:
        one.kill()
    process.wait(deadline_s(30))
    psutil.wait_procs(lost, deadline_s(30))


@pytest.fixture(params=["file", "s3"])
def store(request, tmp_path):
    """The URL, what its clients need in their environment, and what breaks it."""
    if request.param == "file":
        return f"file://{tmp_path}/bucket/runs", {}
    return "s3://bucket/runs", S3Server("bucket").environment


def test_steps_1_to_n_are_trained_once_each_though_the_first_machine_is_lost(tmp_path, store):
    url, environment = store
    first = Machine(tmp_path / "first", url, environment)
    begun = first.redraft("train", "r.yaml", "--resume-if-begun")
    first.until_copied(begun, 4)
    copied = len(records.step_lines(first.run))
    lose(begun)
    shutil.rmtree(first.folder)

    second = Machine(tmp_path / "second", url, environment)
    resumed = second.redraft("train", "r.yaml", "--resume")
    second.until_copied(resumed, copied + 4)
    resumed.send_signal(signal.SIGINT)
    assert resumed.wait(deadline_s(240)) == 0, second.log.read_text()[-3000:]
    history = [line.report.step for line in records.steps(records.step_lines(second.run))]
    assert history == list(range(1, len(history) + 1)) and len(history) >= copied + 4
    code, said = second.said("replay", "stats", "tiny", "--json")
    assert code == 0 and json.loads(said)["trained_total"] == GROUPS * len(history), "no group twice, none left out"

    code, said = second.said("train", "r.yaml")
    assert code == 2 and "Add --resume" in said
    shutil.rmtree(second.run)
    third = Machine(tmp_path / "third", url, environment)
    code, said = third.said("train", "r.yaml", f"steps={len(history)}", "--resume")
    assert code == 0 and "fetching" in said, said[-3000:]
    assert records.ended(third.run).state == "done"
    for file in [path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size < 1 << 24]:
        found = file.read_bytes()
        assert not any(secret.encode() in found for secret in KEYS.values()), f"{file} holds a key"
