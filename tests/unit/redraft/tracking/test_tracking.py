"""What trackers are told is what metrics.jsonl says, also over a resume, and no tracker can hold back a run."""

from __future__ import annotations

import resource
import struct
import sys
import threading
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from support.places import ROOT
from support.waiting import deadline_s, until
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from protocols import metrics
from protocols.errors import SettingError
from protocols.evaluation import AnswerFigures, EvaluationSummary, Figure
from protocols.reports import BatchReport, FitReport, StepLine, StepReport
from redraft import recipe as recipes
from redraft.control.status import Status
from redraft.run import Run
from redraft.tracking import backends as tracker_kinds
from redraft.tracking import queue as trackers
from redraft.tracking.queue import Trackers

QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
DEADLINE_S = 30.0
FOUND = EvaluationSummary(
    n=4,
    turns=2,
    k=1,
    sampled=AnswerFigures(accuracy_by_turn=(Figure(0.25), Figure(0.5))),
    greedy=AnswerFigures(any_turn=Figure(0.5, 0.125)),
)


def report(step: int, incarnation: int = 0) -> StepReport:
    """The learner's, of one step; numbers that float32 keeps."""
    return StepReport(
        step=step,
        version=incarnation * 1_000_000 + step,
        fit=FitReport(loss=step + incarnation / 2, entropy=float("nan")),
        gradient_norm=None if step == 2 else 0.5,
        batch=BatchReport(
            reward=0.25,
            reward_by_index=[0.125, 0.375],
            staleness_counts={"0": 3, "2": 1},
            trained_turns={"attempt": 16},
        ),
        seconds={"wait": 0.5, "train": 1.5},
    )


@pytest.fixture
def run(tmp_path) -> Run:
    return Run(tmp_path, "0123456789abcdef", "no/model")


def live(run: Run, steps: range, incarnation: int = 0, tracking: str = "{}", said: list | None = None, state="done"):
    """One incarnation of a run, as its controller has it: goes on from before the first of `steps`."""
    recipe = recipes.load(QUICKSTART, [f"tracking={tracking}"])
    status = Status(run, recipe)
    told = Trackers(run, recipe, lambda text, once: said.append((once, text)))
    told.start(steps[0] - 1)
    for step in steps:
        told.step(status.step_done(report(step, incarnation)))
    return told


def events(path: Path) -> list[Event]:
    """Of one event file, up to where it is torn, each record checked."""
    data, found, place = path.read_bytes(), [], 0
    while place < len(data):
        head = data[place : place + 8]
        (length,) = struct.unpack("<Q", head.ljust(8, b"\0"))
        if place + 16 + length > len(data):
            break
        body = data[place + 12 : place + 12 + length]
        assert struct.unpack_from("<I", data, place + 8)[0] == masked_crc32c(head)
        assert struct.unpack_from("<I", data, place + 12 + length)[0] == masked_crc32c(body)
        found.append(Event.FromString(body))
        place += 16 + length
    return found


def shown(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of RUN/tensorboard: numbers by name and step. A start hides what was told before."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for path in sorted((folder / "tensorboard").glob("*")):
        for event in events(path):
            if event.session_log.status == SessionLog.START:
                for name, points in found.items():
                    found[name] = {step: value for step, value in points.items() if step < event.step}
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    assert event.step not in found[value.tag], "told twice"
                    found[value.tag][event.step] = value.simple_value
    return found


def test_tensorboard_shows_the_numbers_of_metrics_jsonl_also_of_steps_that_are_played_again(run):
    live(run, range(1, 6)).close("failed")
    told = live(run, range(4, 8), incarnation=1)
    told.evaluation(7, FOUND)
    told.close("done")
    found = shown(run.folder)
    newest = {line["step"]: line for line in run.lines("metrics.jsonl")}
    assert len(run.lines("metrics.jsonl")) == 9 and sorted(newest) == [*range(1, 8)]
    for name, number in {
        "learner/loss": lambda line: line["loss"],
        "run/version": lambda line: line["version"],
        "reward/mean": lambda line: line["reward"],
        "reward/turn_2": lambda line: line["reward_by_index"][1],
        "staleness/groups/2": lambda line: line["staleness_counts"]["2"],
        "batch/trained_turns/attempt": lambda line: line["trained_turns"]["attempt"],
        "seconds/train": lambda line: line["seconds"]["train"],
        "run/time_s": lambda line: line["time_s"],
    }.items():
        assert found[name] == pytest.approx({step: number(line) for step, line in newest.items()}), name
    assert sorted(found["learner/gradient_norm"]) == [1, 3, 4, 5, 6, 7], "what is not known is left out"
    assert found["evaluation/accuracy/turn_2"] == {7: 0.5} and found["evaluation/greedy/se/any_turn"] == {7: 0.125}
    assert not {"learner/entropy", "learner/step", "learner/wait_reason", "evaluation/fix_rate"} & set(found)


def test_tensorboard_shows_only_the_second_play_of_steps_that_a_learner_went_back_over(run):
    told = live(run, range(1, 6))
    for step in (4, 5, 6):
        told.step(StepLine(report(step, 1), time_s=100.0 + step))
    told.close("done")
    assert shown(run.folder)["run/version"] == {1: 1, 2: 2, 3: 3, 4: 1_000_004, 5: 1_000_005, 6: 1_000_006}


def test_tensorboard_has_the_recipe_as_text(run):
    live(run, range(1, 2)).close("done")
    [path] = (run.folder / "tensorboard").iterdir()
    [text] = [
        value.tensor.string_val[0] for event in events(path) for value in event.summary.value if value.tensor.dtype
    ]
    assert yaml.safe_load(text.decode().strip("`").removeprefix("yaml"))["name"] == "quickstart"


def test_a_disk_that_is_full_costs_lines_that_are_counted_and_said_once_and_later_ones_are_kept(run):
    said: list = []
    before = lost("tensorboard")
    told = live(run, range(1, 3), said=said)
    until(lambda: 2 in shown(run.folder)["learner/loss"], "two steps are told")
    [first] = (run.folder / "tensorboard").iterdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # amid a record, and then at the beginning of a file
        for step, room in ((3, first.stat().st_size + 50), (4, 100)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            told.step(StepLine(report(step)))
            until(lambda step=step: lost("tensorboard") == before + step - 2, "the lost line is counted")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    told.step(StepLine(report(5)))
    told.close("done")
    assert "File too large" in said[0][1] and {once for once, _ in said} == {"tracker tensorboard"}
    torn, second = sorted((run.folder / "tensorboard").iterdir())
    assert torn == first and 2 in [event.step for event in events(torn)]
    assert [event.step for event in events(second)] == [0, 3, 2, 5], "its version, start, recipe, line"


def lost(tracker: str) -> float:
    return metrics.TRACKER_LOST.labels(tracker=tracker)._value.get()


def test_a_tracker_that_hangs_holds_back_neither_the_run_nor_its_end(run, monkeypatch):
    hangs, ended, said = threading.Event(), [], []
    monkeypatch.setitem(tracker_kinds.KINDS, "wandb", lambda *_: ended.append(hangs.wait(deadline_s(60))))
    monkeypatch.setattr(trackers, "LONGEST", 3)
    monkeypatch.setattr(trackers, "FLUSH_S", 0.2)
    before = lost("wandb")
    told = live(run, range(1, 11), tracking="{wandb: {project: mine}}", said=said)
    assert lost("wandb") == before + 7, "what does not fit into the queue is counted"
    told.close("done")
    assert not ended, "the run's end waited for the tracker"
    assert {once for once, _ in said} >= {"tracker wandb"}
    hangs.set()


def test_the_others_go_on_in_their_own_run_and_are_told_no_step_twice(run, monkeypatch):
    """Doubles of the two packages, which are not installed here; both were tried for real, see the commit."""
    stand_in = ThirdParty()
    monkeypatch.setitem(sys.modules, "wandb", stand_in.wandb())
    for name, module in stand_in.mlflow().items():
        monkeypatch.setitem(sys.modules, name, module)
    both = "{wandb: {project: mine, entity: us}, mlflow: {experiment: mine, uri: 'sqlite:///here.db'}}"
    live(run, range(1, 6), tracking=both).close("failed")
    told = live(run, range(4, 8), incarnation=1, tracking=both)
    told.evaluation(5, FOUND)
    told.close("done")
    assert [started["id"] for started in stand_in.started] == [run.id, run.id]
    assert stand_in.started[0]["config"]["steps"] == 160 and stand_in.started[0]["resume"] == "allow"
    assert stand_in.made == 1, "the run of MLflow is made once"
    for tracker in ("wandb", "mlflow"):
        assert stand_in.steps[tracker] == [*range(1, 8), 5], "the run may be ahead of an evaluation"
    assert stand_in.axes == {"evaluation/*": "evaluation/step"}
    assert stand_in.ends == {"wandb": [1, 0], "mlflow": ["FAILED", "FINISHED"]}


class ThirdParty:
    """The calls that wandb 0.31 and mlflow 3.17 take, written down."""

    def __init__(self):
        self.started, self.made, self.axes = [], 0, {}
        self.steps, self.ends = defaultdict(list), defaultdict(list)

    def wandb(self):
        def init(**settings):
            self.started.append(settings)
            return SimpleNamespace(
                define_metric=lambda name, step_metric: self.axes.update({name: step_metric}),
                log=lambda values, step=None, commit=None: self.steps["wandb"].append(
                    step if commit is None else values["evaluation/step"]
                ),
                finish=lambda exit_code: self.ends["wandb"].append(exit_code),
            )

        return SimpleNamespace(init=init, Settings=dict)

    def mlflow(self) -> dict:
        def create_run(experiment, run_name, tags):
            self.made += 1
            return SimpleNamespace(info=SimpleNamespace(run_id="made"))

        def log_batch(run, metrics=(), params=()):
            assert run == "made"
            self.steps["mlflow"] += sorted({step for _, _, _, step in metrics})

        client = SimpleNamespace(
            get_experiment_by_name=lambda name: None,
            create_experiment=lambda name: "7",
            create_run=create_run,
            update_run=lambda run, status: None,
            log_text=lambda run, text, file: None,
            log_batch=log_batch,
            set_terminated=lambda run, status: self.ends["mlflow"].append(status),
        )
        return {
            "mlflow": SimpleNamespace(),
            "mlflow.tracking": SimpleNamespace(MlflowClient=lambda tracking_uri: client),
            "mlflow.entities": SimpleNamespace(Metric=lambda *made: made, Param=lambda *made: made),
        }


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = recipes.load(QUICKSTART, ["tracking={mlflow: {experiment: mine}}"]).tracking
    with pytest.raises(SettingError, match=r"tracking\.mlflow: .*pip install mlflow"):
        trackers.check(asked)


def test_passwords_are_refused_in_a_recipe_and_left_out_of_what_is_said(run, monkeypatch):
    with pytest.raises(SettingError, match=r"tracking\.mlflow\.uri: .*MLFLOW_TRACKING_PASSWORD"):
        recipes.load(QUICKSTART, ["tracking={mlflow: {experiment: mine, uri: 'https://me:secret@host'}}"])

    def fails(*_):
        raise OSError("no answer of https://me:secret@host/api")

    said: list = []
    monkeypatch.setitem(tracker_kinds.KINDS, "tensorboard", fails)
    live(run, range(1, 2), said=said).close("done")
    assert said[0][1].endswith("no answer of https://host/api")
