"""An actor and a rank load the user's own parts from what they were sent: their node may lack the file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from actors import environments
from actors.config import EnvironmentSettings
from actors.contract import Spec
from learner.credit_config import OwnCredit
from learner.credits import find
from learner.ranks.rank import RankSpec
from protocols import own_code
from redraft.config import LogSettings
from redraft.control import workers

SOURCE = """
from actors.environments.base import OneAnswer, Verdict

class Mine(OneAnswer):
    @classmethod
    def tasks(cls, data, split):
        return [{"id": split}]
    def question(self, task):
        return "?"
    def judge(self, task, text):
        return Verdict(1.0, text)
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder without the file."""
    monkeypatch.chdir(tmp_path)
    own_code.install({})
    yield
    own_code.install({})


def test_the_process_of_an_actor_makes_the_environment_that_it_was_sent(monkeypatch, tmp_path):
    node = SimpleNamespace(get_node_id=lambda: "")
    monkeypatch.setattr(workers.ray, "get_runtime_context", lambda: node)
    monkeypatch.setattr(workers.ray.util, "get_node_ip_address", lambda: "")
    monkeypatch.setattr(workers.process_folder, "temporary", lambda run_id: tmp_path)  # not the tests' own
    monkeypatch.setattr(workers.logs, "to_file", lambda *arguments: None)
    lacking = dict.fromkeys(field for field in Spec.__dataclass_fields__ if field != "code")
    spec = Spec(**lacking, code={"mine.py": SOURCE})  # pyright: ignore[reportArgumentType]
    workers.ActorPart(str(tmp_path), "run", spec, "actor-0", LogSettings(), None)
    environment = environments.make(EnvironmentSettings(name="mine.py:Mine"))
    environment.reset(seed=0, options={"task": {"id": "train"}})
    assert environment.step("yes")[1] == 1


def test_the_process_of_a_rank_finds_the_credit_that_it_was_sent(monkeypatch):
    monkeypatch.setattr(workers.logs, "to_file", lambda *arguments: None)
    given = dict.fromkeys(field for field in RankSpec.__dataclass_fields__) | {"shards": ()}
    given["code"] = {"mine.py": "def worth(batch, settings):\n    return []\n"}
    workers.RankPart("run", RankSpec(**given), LogSettings(), None)  # pyright: ignore[reportArgumentType]
    assert find(OwnCredit(name="mine.py:worth"))([], None) == []
