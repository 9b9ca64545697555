"""The invariants of a run that a folder can show, one function each: steps use whole groups once, none is skipped,
versions never repeat, replay forgets only what a checkpoint covers.

    before a run is resumed    steps after the newest checkpoint are a future that the resume undoes: they are compared
                               where they were told, and may be ahead of what was told
    after it has ended         nothing is ahead of the newest checkpoint
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from learner import checkpoint
from learner import journal as batches
from protocols.errors import RedraftError
from protocols.reports import StepLine
from protocols.weights import INCARNATION, step_of
from redraft import records
from redraft.check.folder import History, decided, left_over, texts, trained
from replay.tools.verify import Corruption, Progress, verify


@dataclass(frozen=True, slots=True)
class Checked:
    """One invariant: what was looked at, in a few words, and what breaks it."""

    name: str
    seen: str
    problems: tuple[str, ...]

    def __str__(self) -> str:
        for first in self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            return f"BROKEN  {self.name}: {first}{more}"
        return f"ok      {self.name}: {self.seen}"


Invariant = Callable[[History], Checked]


def files(history: History) -> Checked:
    """Every file can be read; JSON is strict. Lines that a death tore are told: every reader leaves them out."""
    found = list(texts(history.run))
    folder = history.run.folder
    problems = [f"{path.relative_to(folder)}: {text.problem}" for path, text in found if text.problem]
    torn, left = sum(text.torn for _, text in found), left_over(history.run)
    told = f"{len(found)} files, {torn} torn lines that readers leave out"
    return Checked("files", f"{told}, {left} left half written" if left else told, tuple(problems))


def steps(history: History) -> Checked:
    """Steps 1 to n have a line each; none is behind the newest checkpoint, nor ahead of it where the run has ended, but
    for one that was told to stop when it had lost the steps after it."""
    told = {line.report.step for line in history.steps}
    wanted = range(1, max(history.last, history.covered) + 1)
    problems = [f"step {step} has no line" for step in wanted if step not in told]
    ended = records.ended(history.run.folder)
    if ended is not None and ended.state in ("done", "stopped"):
        lost = ended.state == "stopped" and ended.steps < history.last  # a future, which a resume undoes
        if ended.steps != history.last and not lost:
            problems.append(f"summary.json says {ended.steps} steps, metrics.jsonl {history.last}")
        if history.covered != ended.steps:
            problems.append(f"the run has ended at step {ended.steps}, its newest checkpoint is of {history.covered}")
    return Checked("steps", f"1 to {history.last}, each once", tuple(problems))


def versions(history: History) -> Checked:
    """Versions never repeat and rise in the order in which they were written; none is of an unknown incarnation."""
    rounds = history.recipe.learner.rounds
    problems = []
    for before, line in _pairs(history.written):
        old, new = before.report.version, line.report.version
        if new < old or (new == old and (rounds is None or line.report.step <= before.report.step)):
            problems.append(f"step {line.report.step} published version {new} after version {old}")
    for line in history.written:
        version, step = line.report.version, line.report.step
        if step_of(version) > step or (rounds is None and step_of(version) != step):
            problems.append(f"step {step} published version {version}, which is of step {step_of(version)}")
    newest = max((line.report.version // INCARNATION for line in history.written), default=0)
    newest = max(newest, history.state.get("incarnation", 0))
    told = records.text(history.run.checkpoints / "incarnation")
    if history.written and (not told.isdigit() or int(told) < newest):
        problems.append(f"checkpoints/incarnation says {told!r}, and there was incarnation {newest}")
    last = history.steps[-1].report.version if history.steps else 0
    return Checked("versions", f"rise to {last}, incarnations {newest + 1}", tuple(problems))


def figures(history: History) -> Checked:
    """What is kept of the figures rises with the steps: time; and each step trained a whole batch."""
    wanted, problems = history.recipe.learner.batch_groups, []
    for before, line in _pairs(history.steps):
        if line.time_s < before.time_s:
            problems.append(f"step {line.report.step} ended at {line.time_s:g} s, before step {before.report.step}")
    problems += [
        f"step {line.report.step} trained {line.report.batch.groups} groups where a batch has {wanted}"
        for line in history.steps
        if line.report.batch.groups != wanted
    ]
    return Checked("figures", f"time rises, each batch has {wanted} groups", tuple(problems))


def checkpoints(history: History) -> Checked:
    """Every file of each is as it was written; each is of this run and of the step that its name says."""
    found, problems = sorted(history.run.checkpoints.glob("step-*")), []
    for folder in found:
        try:
            checkpoint.check(folder)
        except RedraftError as error:
            problems.append(str(error))
            continue
        state = records.json_object(folder / "state.json")
        if state.get("run_id") != history.run.id:
            problems.append(f"{folder.name} is of run {state.get('run_id')}, not {history.run.id}")
        if state.get("step") != checkpoint.step_of(folder):
            problems.append(f"{folder.name} holds step {state.get('step')}")
    return Checked("checkpoints", f"{len(found)} whole, the newest of step {history.covered}", tuple(problems))


def evaluations(history: History) -> Checked:
    """Each line says which evaluation it is, of which step and version, over how many tasks; none is of a step that
    was never done."""
    lines = records.lines(history.run.folder / "evaluations.jsonl")
    done = max([history.covered, *(line.report.step for line in history.written)])
    problems = []
    for number, line in enumerate(lines, 1):
        label, step, version = (line.get(key) for key in ("label", "step", "version"))
        if not label or not isinstance(step, int) or not isinstance(version, int) or not line.get("n"):
            problems.append(f"line {number} does not say its label, step, version and number of tasks")
        elif not 0 <= step_of(version) <= step <= done:
            problems.append(f"line {number} ({label}) is of step {step}, version {version}; {done} steps were done")
    return Checked("evaluations", f"{len(lines)} lines, each marked", tuple(problems))


def spool(history: History) -> Checked:
    """Every byte of each shard is as it was written, and closed groups are whole (`redraft replay verify`)."""
    problems: list[str] = []
    groups = rows = 0
    for shard in range(history.run.shards):
        at = Progress(history.run.spool(shard))
        for found in verify(history.run.spool(shard), history.run.id):
            if isinstance(found, Corruption):
                problems.append(str(found))
            else:
                at = found
        groups, rows = groups + at.groups, rows + at.rows
    return Checked("spool", f"{history.run.shards} shards, {groups} groups and {rows} rows are whole", tuple(problems))


def groups(history: History) -> Checked:
    """Each step used a batch of groups; none was used more often than it may be, nor twice by one step, and no group
    is in two shards."""
    uses, most = history.uses, history.recipe.replay.max_uses
    told = {line.report.step: line.report.batch.groups for line in history.steps}
    problems = [
        f"step {step} trained {told[step]} groups, and replay knows {uses[step]} that it used"
        for step in told
        if uses[step] != told[step]
    ]
    ended = records.ended(history.run.folder)
    ahead = [step for step in uses if step > history.last]
    if ahead and ended is not None and ended.state in ("done", "stopped"):
        problems.append(f"groups were used by step {min(ahead)}, after the last step")
    where: Counter[bytes] = Counter()
    for kept in history.groups:
        if len(set(kept.uses)) != len(kept.uses) or len(kept.uses) > most:
            problems.append(f"group {kept.group.hex()} was used by steps {kept.uses}; replay.max_uses is {most}")
        where[kept.group] += bool(kept.uses)
    problems += [f"group {group.hex()} was used in {times} shards" for group, times in where.items() if times > 1]
    return Checked("groups", f"{uses.total()} uses by {len(uses)} steps, each group at most {most}", tuple(problems))


def forgotten(history: History) -> Checked:
    """Replay forgot what was trained only where a checkpoint covers the step that used it."""
    found = [kept for kept in history.groups if trained(kept)]
    problems = [
        f"group {kept.group.hex()} is forgotten, was used by step {max(kept.uses)}, and the newest checkpoint is of "
        f"step {history.covered}"
        for kept in found
        if kept.uses and max(kept.uses) > history.covered
    ]
    return Checked("forgotten", f"{len(found)} groups, all covered by a checkpoint", tuple(problems))


def skipped(history: History) -> Checked:
    """All groups that were leased before the place from which a resumed run would lease are known to replay: closed,
    or given up. A curriculum orders its tasks anew when a run is resumed, so there places cannot be counted."""
    place = history.state.get("cursor", {}).get("position", 0)
    if history.recipe.curriculum is not None:
        return Checked("skipped", "not counted with a curriculum", ())
    known = len({kept.group for kept in history.groups if decided(kept)})
    if known < place:
        problem = f"{place} groups were leased before the newest checkpoint, and replay knows {known}"
        return Checked("skipped", "", (problem,))
    return Checked("skipped", f"none of the {place} groups before the newest checkpoint", ())


def journal(history: History) -> Checked:
    """What the journal holds of a step is what the step's line and replay say of it: its version and its groups. A step
    that the disk did not take is left out, and told."""
    problems, there = [], [step for step in batches.steps(history.run.folder) if step <= history.last]
    versions = {line.report.step: line.report.version for line in history.steps}
    for step in there:
        try:
            entry = batches.read(history.run.folder, step)
        except RedraftError as error:
            problems.append(str(error))
            continue
        if entry.step != step or entry.version != versions.get(step):
            problems.append(f"step {step} has version {entry.version} in the journal, {versions.get(step)} in its line")
        ids = [group.id for group in entry.groups]
        if history.used and (len(set(ids)) != len(ids) or set(ids) != history.used.get(step)):
            problems.append(f"step {step} trained other groups by the journal than replay knows that it used")
    lacking = f", {history.last - len(there)} steps lack theirs" if 0 < len(there) < history.last else ""
    return Checked("journal", f"{len(there)} steps agree{lacking}" if there else "none is kept", tuple(problems))


IN_FOLDER: Sequence[Invariant] = (files, steps, versions, figures, checkpoints, evaluations)
IN_SPOOL: Sequence[Invariant] = (spool, groups, forgotten, skipped, journal)


def checked(history: History) -> Iterator[Checked]:
    """Each invariant in turn; those of the spool where the run has one of its own."""
    yield from (invariant(history) for invariant in IN_FOLDER)
    if history.run.shards:
        yield from (invariant(history) for invariant in IN_SPOOL)


def _pairs(lines: Sequence[StepLine]) -> Iterable[tuple[StepLine, StepLine]]:
    return zip(lines, lines[1:], strict=False)
