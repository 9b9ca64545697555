"""A run folder as a run leaves it, made without training: its history, checkpoints, evaluations and spool."""

from __future__ import annotations

from pathlib import Path

from learner import checkpoint
from learner.journal import Journal, packed
from protocols.evaluation import AnswerFigures, EvaluationLine, EvaluationSummary, Figure
from protocols.reports import BatchReport, RunEnded, StepLine, StepReport
from protocols.turns import Group
from protocols.weights import version_of
from redraft.check import folder as folder_of
from redraft.recipe import Recipe, build
from redraft.run import Run
from replay.config import ReplaySettings
from replay.server.store import Store
from replay.tools import verify
from support.spool_house import do, put, turns_of

BATCH = 2
RECIPE = {
    "name": "r",
    "steps": 9,
    "model": {"dtype": "float32", "make": {"seed": 0}},
    "environment": {"name": "signs", "feedback": "residual"},
    "rollout": {"name": "retry", "turns": 2, "episodes": 2},
    "sampling": {"max_tokens": 8},
    "learner": {"batch_groups": BATCH, "checkpoint_every": 2},
}


def read_here(monkeypatch) -> None:
    """Spools are read in this process: one of its own is for pages that end it, and takes a second to start."""
    for module in (folder_of, verify):
        monkeypatch.setattr(module, "apart", lambda work, *arguments: work(*arguments))


def group_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def line(step: int, incarnation: int = 0, **facts) -> StepLine:
    report = StepReport(step=step, version=version_of(incarnation, step), batch=BatchReport(groups=BATCH))
    return StepLine(report, **{"time_s": float(step), **facts})


def kept_run(folder: Path, steps: int = 4, covered: int = 4, ended: str = "done") -> tuple[Run, Recipe]:
    """The folder of a run of so many steps, whose newest checkpoint is of step `covered`; two groups more are open.
    What the checkpoint before covered, replay has forgotten."""
    folder.mkdir(parents=True)
    run, recipe = Run(folder, "run", "model"), build(RECIPE)
    run.save()
    (folder / "recipe.yaml").write_text(recipe.dump())
    for step in range(1, steps + 1):
        run.append("metrics.jsonl", line(step).to_json())
    figures = AnswerFigures(accuracy_by_turn=(Figure(0.5, 0.1),))
    for label, step in (("before", 0), ("after", steps)):
        summary = EvaluationSummary(n=10, turns=1, k=1, sampled=figures)
        run.append("evaluations.jsonl", EvaluationLine(label, step, step, 1.0, summary).to_json())
    checkpoint.next_incarnation(folder)
    for step in (covered - 2, covered):
        written(run, step)
    filled(run, recipe, steps, forgotten=covered - 2)
    if ended:
        run.write("summary.json", RunEnded("r", ended, steps=steps, checkpoint=covered).to_json())
    return run, recipe


def written(run: Run, step: int, incarnation: int = 0) -> Path:
    """A checkpoint of that step, with a file in the place of a model."""
    aside = checkpoint.begin(run.folder, step)
    (aside / "model").mkdir()
    (aside / "model" / "model.safetensors").write_bytes(bytes(100))
    cursor = {"position": step * BATCH}
    return checkpoint.finish(aside, checkpoint.RunState(run.id, step, incarnation, cursor, 1, 0), keep=9)


def filled(run: Run, recipe: Recipe, steps: int, forgotten: int) -> None:
    """A spool in which each step used a batch of groups, in the order of their leases."""
    store = Store(run.spool(0), run.id, ReplaySettings())
    for number in range((steps + 1) * BATCH):
        group, step = group_of(number), number // BATCH + 1
        items = turns_of(group)
        put(store, *(items if step <= steps else items[1:]), order=number)
        if step <= steps:
            do(store, "claim", group, b"learner", 1)
            do(store, "commit", group, step)
        if step <= forgotten:
            do(store, "forget", group)
    store.close()
    for step in range(1, steps + 1):
        journalled(run, step, [group_of((step - 1) * BATCH + number) for number in range(BATCH)])


def journalled(run: Run, step: int, groups: list[bytes], incarnation: int = 0) -> None:
    """The journal's file of a step that trained these groups."""
    made = []
    for group in groups:
        *turns, close = turns_of(group)
        made.append(Group(group, 1, tuple(turns), close.extra))
    Journal(run.folder, 9, 1).write(step, version_of(incarnation, step), "0" * 32, packed(made, None))
