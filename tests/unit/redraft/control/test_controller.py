"""A controller answers from its first moment on, also while its parts start and when they have ended."""

from __future__ import annotations

import json
import socket
from types import SimpleNamespace

import pytest
from support.places import RECIPES

from protocols.checksum import Sums
from protocols.errors import SettingError
from protocols.evaluation import ActionFigures, EvaluationSummary, Figure
from protocols.reports import LearnerEnded, StepReport
from protocols.weights import Bucket, Probe, WeightRef
from redraft import recipe as recipes
from redraft.control import controller as controllers
from redraft.control.controller import CALLS_AT_ONCE, Controller
from redraft.control.exchange import Announced
from redraft.run import Run


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path, "0123456789abcdef", "no/model")


def controller(run: Run, *overrides: str) -> Controller:
    (run.folder / "logs").mkdir()
    return Controller(run, recipes.load(RECIPES / "quickstart.yaml", overrides), resume=False)


def weights(version: int) -> WeightRef:
    return WeightRef(version, 4, Sums(), (Bucket(1, Sums(version)),), Probe((1, 2), (-1.0,), 0.1))


def test_before_its_parts_are_up_it_says_what_it_knows_and_refuses_what_it_cannot_do_yet(run):
    made = controller(run)
    assert (made.status().state, made.status().steps) == ("starting", 160)
    assert made.cursor() == {"position": 0} and list(made._state.processes()) == []
    with pytest.raises(SettingError, match="RUN: has no actors now. Wait until it trains"):
        made.scale(3)
    with pytest.raises(SettingError, match="RUN: is not training. Wait until it trains"):
        made.add_shard()


def test_a_step_that_is_told_then_is_kept(run):
    made = controller(run)
    made.step_done(StepReport(step=1, version=1))
    assert made.status().step == 1 and run.lines("metrics.jsonl")[0]["version"] == 1


def test_weights_whose_announcement_was_overtaken_do_not_take_the_place_of_newer_ones(run):
    made = controller(run)
    for version in (5, 7, 6):
        made.announce(weights(version))
    assert made._announced.version == 7


def test_steps_that_are_told_out_of_order_are_kept_in_order(run):
    made = controller(run)
    for step in (1, 3, 4, 2, 5):
        made.step_done(StepReport(step=step, version=step))
    assert [line["step"] for line in run.lines("metrics.jsonl")] == [1, 2, 3, 4, 5] and made.status().step == 5


def test_steps_go_on_without_one_whose_report_was_lost(run):
    made = controller(run)
    told = [1, *range(3, 3 + CALLS_AT_ONCE)]
    for step in told:
        made.step_done(StepReport(step=step, version=step))
    assert [line["step"] for line in run.lines("metrics.jsonl")] == told


def test_steps_whose_reports_still_wait_when_the_run_ends_are_kept(run):
    with socket.socket() as taken:  # so that it ends at once
        taken.bind(("127.0.0.1", 0))
        made = controller(run, f"metrics.port={taken.getsockname()[1]}")
        for step in (1, 3, 4):
            made.step_done(StepReport(step=step, version=step))
        made.run()
    assert [line["step"] for line in run.lines("metrics.jsonl")] == [1, 3, 4]
    assert json.loads((run.folder / "summary.json").read_text())["steps"] == 4


def test_a_run_that_is_told_to_end_in_its_last_evaluation_can_go_on_with_it(run, monkeypatch):
    made = controller(run)

    def advance() -> bool:
        made.stop(try_again=True)
        return False

    sitting = SimpleNamespace(exam=SimpleNamespace(advance=advance))
    examiner = SimpleNamespace(begin=lambda *_: sitting, exchange=SimpleNamespace(tick=lambda _: None))
    asked = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(current_actor=None))
    monkeypatch.setattr(controllers, "ray", asked)
    monkeypatch.setattr(controllers, "Examiner", lambda *_: examiner)
    ranks = SimpleNamespace(announce=lambda *_: None)
    parts = SimpleNamespace(ranks=ranks, step=160, fleet=SimpleNamespace(begin=lambda: None))
    exchange = SimpleNamespace(parts=parts, tick=lambda _: None, arrived=None)
    monkeypatch.setattr(made, "_until", lambda *_: None)
    before = EvaluationSummary(n=9, turns=9, k=1, sampled=ActionFigures(success=Figure(0.25, 0.1)))
    monkeypatch.setattr(made, "_before", lambda: before)
    monkeypatch.setattr(made, "_learn", lambda *_: (LearnerEnded(160, "done"), ""))
    monkeypatch.setattr(controllers, "Course", lambda *_: SimpleNamespace(judge=lambda *_: None))
    made._announced.newest = weights(160)
    end = made._train_and_evaluate(exchange)
    assert (end.state, end.try_again, end.after) == ("stopped", True, None)


def test_a_run_that_is_stopped_before_it_trains_says_so(run):
    made = controller(run)
    made.stop()
    assert made.status().state == "stopping"


def test_a_run_that_cannot_start_says_why_in_its_summary(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        end = controller(run, f"metrics.port={taken.getsockname()[1]}").run()
    written = json.loads((run.folder / "summary.json").read_text())
    assert end.state == written["state"] == "failed" and end.error == written["error"]
    assert end.error.startswith("metrics.port: port ")
    assert (written["steps"], written["generations"], written["findings"]) == (0, 0, [])


def test_an_actor_is_sent_weights_that_it_lacks_and_the_trial_with_its_first():
    announced = Announced()
    assert announced.orders(None) == (None, None)
    announced.trial, announced.newest = weights(-1), weights(4)
    assert announced.orders(None) == (announced.newest, announced.trial)
    assert announced.orders(3) == (announced.newest, None) and announced.orders(4) == (None, None)
