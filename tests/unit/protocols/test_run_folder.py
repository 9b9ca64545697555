"""Nobody writes into a run folder that has become another run's: not the controller, the learner or an evaluation."""

from __future__ import annotations

import pytest

from learner import checkpoint
from protocols.errors import SettingError
from protocols.evaluation import AnswerFigures, EvaluationSummary
from redraft.control.evaluator import Occasion
from redraft.control.workers import ReplayPart
from redraft.run import Run
from replay.config import Endpoints, ReplaySettings


@pytest.fixture
def taken(tmp_path):
    """A run that was made at a path which is another run's by now."""
    mine, other = Run(tmp_path / "mine", "a", "model"), Run(tmp_path / "mine", "b", "model")
    mine.folder.mkdir()
    mine.save()
    checkpoint.finish(checkpoint.begin(mine.folder, 1), checkpoint.RunState("a", 1, 0, {}, 1, 1), 1)
    mine.folder.rename(tmp_path / "older")
    other.folder.mkdir()
    other.save()
    for step in (1, 2):
        checkpoint.finish(checkpoint.begin(other.folder, step), checkpoint.RunState("b", step, 0, {}, 1, 1), 2)
    return mine


def _checkpoint(run: Run) -> None:
    with checkpoint.writing(run.folder, "a", 9):
        pass


def _replay(run: Run) -> None:
    ReplayPart(run, 0, Endpoints("ipc:///nowhere/i", "ipc:///nowhere/s"), ReplaySettings(), "127.0.0.1", "text")


NOTHING = EvaluationSummary(n=1, turns=1, k=1, sampled=AnswerFigures())
WRITERS = {
    "a line": lambda run: run.append("metrics.jsonl", {"step": 1}),
    "a file": lambda run: run.write("summary.json", {"state": "done"}),
    "its facts": lambda run: run.save(),
    "a checkpoint": _checkpoint,
    "a checkpoint that was begun before": lambda run: checkpoint.finish(
        checkpoint.begin(run.folder, 9), checkpoint.RunState("a", 9, 0, {}, 1, 1), 1
    ),
    "an evaluation": lambda run: run.append("evaluations.jsonl", Occasion("after", 1, 1).line(0.0, NOTHING).to_json()),
    "a spool": _replay,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_writes_refuses_where_the_folder_is_another_runs_and_leaves_it_as_it_is(taken, write):
    def kept() -> dict[str, bytes]:
        files = (path for path in taken.folder.rglob("*") if path.is_file())
        return {str(path): path.read_bytes() for path in files if ".step-" not in str(path)}

    before = kept()
    with pytest.raises(SettingError, match="is the run b's now; nothing of the run a is written there"):
        write(taken)
    assert kept() == before and checkpoint.newest(taken.folder).name == "step-000002"


@pytest.mark.parametrize(("content", "word"), [(None, "is not there any more"), ("{", "does not say whose folder")])
def test_a_folder_that_is_gone_or_does_not_say_whose_it_is_is_not_written_to(tmp_path, content, word):
    run = Run(tmp_path / "mine", "a", "model")
    if content is not None:
        run.folder.mkdir()
        (run.folder / "run.json").write_text(content)
    with pytest.raises(SettingError, match=word):
        run.append("metrics.jsonl", {"step": 1})
    assert not (run.folder / "metrics.jsonl").exists()
