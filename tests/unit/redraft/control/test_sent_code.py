"""An actor and a rank load the user's own parts from what they were sent: their node may lack the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors import environments
from actors.config import EnvironmentSettings
from protocols import own_code

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


def test_an_actor_makes_the_environment_that_it_was_sent():
    from actors.actor import Actor
    from actors.contract import Spec

    lacking = dict.fromkeys(field for field in Spec.__dataclass_fields__ if field != "code")
    Actor(Spec(**lacking, code={"mine.py": SOURCE}), "actor-0", files=None)  # pyright: ignore[reportArgumentType]
    environment = environments.make(EnvironmentSettings(name="mine.py:Mine"))
    environment.reset(seed=0, options={"task": {"id": "train"}})
    assert environment.step("yes")[1] == 1


def test_a_rank_finds_the_credit_that_it_was_sent():
    from learner.credit_config import OwnCredit
    from learner.credits import find
    from learner.ranks.rank import Rank, RankSpec

    lacking = dict.fromkeys(field for field in RankSpec.__dataclass_fields__ if field != "code")
    Rank(RankSpec(**lacking | {"shards": ()}, code={"mine.py": "def worth(batch, settings):\n    return []\n"}))  # pyright: ignore[reportArgumentType]
    assert find(OwnCredit(name="mine.py:worth"))([], None) == []
