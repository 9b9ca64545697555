"""A version that is evaluated stays until actors have it, and no deadline runs out while tasks are played."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from support.waiting import until

from learner.batches.prefetch import Prefetch
from learner.bound import Bound
from learner.config import LearnerSettings
from learner.ranks import lead
from learner.ranks.lead import Lead, Waits
from learner.ranks.progress import Progress
from protocols.errors import DeadlineError
from protocols.replay_stats import ReplayStats


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    """What the controller says to an announcement is there without Ray."""
    monkeypatch.setattr(lead, "ray", SimpleNamespace(get=lambda answer, timeout: answer))


def leading(waits: Waits, evaluated: bool, limit_s: float) -> Lead:
    made = object.__new__(Lead)
    made._settings = LearnerSettings(claim_deadline_s=limit_s)
    made._publisher, made._progress = SimpleNamespace(announced=evaluated), Progress(0, 8, 7)
    made._waits, made._stopping = waits, threading.Event()
    made._commands, made._ended = SimpleNamespace(wait=lambda: None), threading.Event()
    return made


def test_the_next_version_waits_until_actors_have_the_one_that_is_evaluated():
    waits, seconds = Waits(), {}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(leading(waits, True, 60.0)._let_actors_take, seconds)
        waits.arrived(6)
        assert not waiting.done()
        waits.arrived(7)
        waiting.result(60)
    assert seconds["wait"] >= 0.0
    leading(waits, True, 0.01)._let_actors_take(seconds)


def test_one_that_is_not_evaluated_is_not_waited_for():
    seconds: dict[str, float] = {}
    leading(Waits(), False, 0.01)._let_actors_take(seconds)
    assert seconds == {}


def test_actors_that_never_take_it_end_the_wait_and_a_run_that_ends_does_too():
    with pytest.raises(DeadlineError, match="actors, to take the weights that are evaluated"):
        leading(Waits(), True, 0.01)._let_actors_take({})
    ending = leading(Waits(), True, 60.0)
    ending._stopping.set()
    ending._let_actors_take({})


@pytest.mark.parametrize(
    ("by_its_recipe", "from_base", "told"), [(True, False, [8]), (True, True, []), (False, False, [])]
)
def test_a_run_that_its_recipe_ends_amid_a_round_publishes_what_it_trained_last(by_its_recipe, from_base, told):
    published, made = [], leading(Waits(), False, 60.0)
    made._settings = LearnerSettings(rounds={"steps": 16, "from_base": from_base}, max_staleness=15)
    made._publisher.publish = lambda seconds: published.append(made._progress.step)
    made._prefetch, made._bound = SimpleNamespace(start=lambda *_: None), Bound(1, 1)
    made._rests, made._evaluated, made._saved = False, False, 8
    made._stopping.set()
    if by_its_recipe:
        made._ended.set()
    assert made.run(20) == "stopped" and published == told


def test_an_evaluation_counts_towards_no_deadline_of_the_learner():
    waits = Waits()
    waits.hold("evaluation", 0)
    client = SimpleNamespace(close=lambda: None, release=lambda ids: None, claims=0)

    def claim(count, step, staleness, wait_s):
        client.claims += 1
        if client.claims == 20:
            waits.hold("groups", 1)
        return SimpleNamespace(groups=[], stats=ReplayStats(), reason="groups")

    client.claim = claim
    prefetch = Prefetch(client, LearnerSettings(claim_deadline_s=0.01), 0, waits.evaluating)
    prefetch.start(0, 1)
    until(lambda: prefetch.ready(0.1), "the claim has ended", 60)
    assert client.claims > 20, "the deadline began to run when the evaluation was over"
    with pytest.raises(DeadlineError, match="too few groups are ready"):
        prefetch.take()
    prefetch.close()
