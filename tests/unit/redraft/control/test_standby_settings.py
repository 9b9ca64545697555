"""What is asked of processes that stand by, and where none can."""

import json
import os
import subprocess
import sys

import pytest
from support.places import PYTHONPATH
from support.processes import start as started

from actors.config import ActorSettings, EngineSettings
from learner.config import LearnerSettings
from redraft import processes
from redraft.control import standby
from redraft.control.workers import ActorPart, RankPart

IMPORTED = """
import sys
from redraft.control import standby
standby.prepare()
print(*sorted({"torch", "deepspeed", "vllm"} & set(sys.modules)))
"""


@pytest.mark.parametrize("kind", [ActorSettings, LearnerSettings])
def test_none_stands_by_where_a_part_has_a_gpu_and_the_error_says_why_and_what_to_do(kind):
    with pytest.raises(ValueError, match=r"standby: true cannot be had with gpus=1: .*Leave standby out"):
        kind(standby=True, gpus=1)
    assert kind(standby=True).standby


def test_none_stands_by_for_ranks_that_are_never_started_anew():
    with pytest.raises(ValueError, match=r"standby: true does nothing with restarts: 0.*Leave one of them out"):
        LearnerSettings(standby=True, restarts=0)


def test_a_part_is_known_by_its_class_its_run_and_what_it_needs():
    small, large = (EngineSettings(max_length=length) for length in (64, 128))
    asked = [(ActorPart, "a", small), (ActorPart, "b", small), (ActorPart, "a", large), (RankPart, "a", None)]
    said = [standby.variables(*one)[standby.VARIABLE] for one in asked]
    assert len(set(said)) == len(said)
    assert json.loads(said[0]) == {"part": "ActorPart", "run": "a", "engine": small.model_dump(mode="json")}


def test_a_rank_to_be_imports_what_ranks_do_and_an_actor_of_a_script_nothing():
    scripted = EngineSettings(name="scripted")
    found = []
    for variables in (standby.variables(RankPart, "a"), standby.variables(ActorPart, "a", scripted)):
        environment = os.environ | variables | {"PYTHONPATH": PYTHONPATH}
        found.append(subprocess.run([sys.executable, "-c", IMPORTED], env=environment, capture_output=True, text=True))
    assert [one.stdout.splitlines()[-1].split() for one in found] == [["deepspeed", "torch"], []]


def test_processes_are_told_apart_by_when_they_began_and_by_what_their_environment_said():
    me = os.getpid()
    child = started([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"MINE": "a=b"})
    assert processes.began(child.pid) > processes.began(me) > 0
    assert processes.variable(child.pid, "MINE") == "a=b" and processes.variable(child.pid, "MIN") is None
    child.communicate()
    assert processes.began(child.pid) == 0 and processes.variable(child.pid, "MINE") is None
