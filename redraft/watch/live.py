"""The live view of a run: a small panel that renews itself on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from learner.batches.responses import told
from protocols.replay_stats import ReplayStats
from protocols.reports import ActorStatus, Finding, GpuStatus, RunEnded, RunStatus
from redraft.watch.story import Story

PLAIN_EVERY_S = 10.0
EVENTS = 4  # the newest that are shown
SHOWN = 2  # actors whose state is told one by one, their GPUs, and causes why a run cannot learn
PROBLEM = "cannot learn"
NO_DATA = "no data"
BARS = "▁▂▃▄▅▆▇█"
SPARKS = 40  # longest sparkline, in characters
STARTS = ("starting", "restarting")  # states in which what is waited for is shown
COLORS = {"training": "green", "done": "green", "failed": "red", "stopping": "yellow"}


class LiveView:
    """Shows the newest status given to `update`, and above it what each phase is for, as `story` tells it. To be used
    as a context manager."""

    def __init__(
        self, console: Console, run: str, story: Story | None = None, clock: Callable[[], float] = time.monotonic
    ):
        self._console, self._run, self._clock = console, run, clock
        self._story = story or Story(console, clock)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._pace = Pace()
        self._printed: tuple[str, str | None] = ("", None)  # what went on, and the newest event, last time
        self._next_line = 0.0

    def __enter__(self) -> LiveView:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error) -> None:
        if self._live:
            self._live.stop()

    def update(self, status: RunStatus) -> None:
        self._pace.see(status)
        self._story.phase(status.state)
        if self._live:
            self._live.update(panel(self._run, status, self._pace.left_s(status)), refresh=True)
        else:
            self._print(status)

    def _print(self, status: RunStatus) -> None:
        """A line every PLAIN_EVERY_S, and at once for a new state, new events, or when another part is missing."""
        events, last = status.events, self._printed[1]
        now = f"{status.state} {status.detail}" if status.state in STARTS else status.state
        first = len(events) - 1 if last is None else events.index(last) + 1 if last in events else 0
        for event in events[max(first, 0) :]:
            self._console.print(Text(event), soft_wrap=True)
        if now != self._printed[0] or self._clock() >= self._next_line:
            self._console.print(Text(line(self._run, status)), soft_wrap=True)
            self._next_line = self._clock() + PLAIN_EVERY_S
        self._printed = (now, events[-1] if events else last or "")


class Pace:
    """How long steps take, counted from where this view first saw the run train, so that start-up does not count."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def see(self, status: RunStatus) -> None:
        if self._first is None and status.state == "training":
            self._first = (status.elapsed_s, status.step)

    def left_s(self, status: RunStatus) -> float | None:
        """Seconds until the last step; None before the first one was seen."""
        if self._first is None or status.state != "training":
            return None
        seconds, steps = status.elapsed_s - self._first[0], status.step - self._first[1]
        return seconds / steps * (status.steps - status.step) if steps > 0 else None


def line(run: str, status: RunStatus) -> str:
    """The status in one line, for logs and pipes."""
    parts = [f"{run}: {status.state} ({status.detail})" if status.detail else f"{run}: {status.state}"]
    parts += ["{}/{}".format(*status.progress)] if status.progress else []
    parts.append(f"step {status.step}/{status.steps}")
    causes = ", ".join(finding.cause for finding in status.findings)
    parts += [f"{PROBLEM}: {causes}"] if causes else []
    left_out = ("mean reward", "replay", "metrics", PROBLEM)
    parts += [f"{label} {text}" for label, text in facts(status) if label not in left_out]
    return " | ".join(parts)


def title(run: str, state: str, version: int | None = None) -> Text:
    """The run and its state; `version` is that of the newest weights, where there are some."""
    text = Text.assemble((run, "bold"), "  ", (state, COLORS.get(state, "cyan")))
    if version is not None:
        text.append(f"  version {version}", "dim")
    return text


def version_of(status: RunStatus) -> int | None:
    return None if status.last is None else status.last.report.version


def panel(run: str, status: RunStatus, left_s: float | None = None) -> RenderableType:
    """The status in at most 20 lines."""
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(style="dim", no_wrap=True, width=14)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_row(*progress(status, left_s))
    for label, text in facts(status):
        problem = label == PROBLEM
        grid.add_row(label, Text(text, style="red" if problem else "", no_wrap=not problem))
    if status.detail:
        failed = status.state == "failed"
        grid.add_row("now", Text(status.detail, style="red" if failed else "", no_wrap=not failed))
    for event in status.events[-EVENTS:]:
        stamp, _, text = event.partition(" ")
        grid.add_row(stamp, Text(text, style="yellow"))
    heading = title(run, status.state, version_of(status))
    return Panel(grid, title=heading, title_align="left", border_style=COLORS.get(status.state, "cyan"))


def sparkline(values: Sequence[float], width: int = SPARKS) -> str:
    """One bar a value between the smallest and the largest; more values than `width` are averaged in stretches."""
    if not values:
        return ""
    count = min(width, len(values))
    edges = [n * len(values) // count for n in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    if high == low:
        return BARS[0] * count
    return "".join(BARS[round((mean - low) / (high - low) * (len(BARS) - 1))] for mean in means)


def progress(status: RunStatus, left_s: float | None) -> tuple[RenderableType, RenderableType]:
    """A bar over the tasks of an evaluation while there is one, else over steps."""
    done, total = status.progress or (status.step, status.steps)
    label = "evaluation" if status.progress else "steps"
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    times = [clock(status.elapsed_s)]
    times += [f"{clock(left_s)} left"] if left_s is not None else []
    row.add_row(ProgressBar(max(total, 1), done), Text(f"{done}/{total}  {', '.join(times)}"))
    return label, row


def facts(status: RunStatus) -> list[tuple[str, str]]:
    """(what, text) of all that the status knows, in the order in which it is shown."""
    found = [("adapter", status.adapter)] if status.adapter else []
    found += [(PROBLEM, text) for text in problems(status.findings)]
    found += _of_last_step(status)
    if status.tokens_per_s is not None:
        turns = "" if status.turns_per_s is None else f", {status.turns_per_s:,.0f} turns/s"
        found.append(("generation", f"{status.tokens_per_s:,.0f} tokens/s{turns}"))
    found += [(f"{part} waits", text) for part, text in status.waits.items() if text]
    found += [("actors", _actors(status.actors, status.actors_target))] if status.actors else []
    found += [("GPUs", _gpus(status.gpus))] if status.gpus else []
    found += [("replay", _replay(status.replay))] if status.replay else []
    found += [("metrics", status.sd)] if status.sd else []
    return found


def _of_last_step(status: RunStatus) -> list[tuple[str, str]]:
    """What the newest step says: nothing before there is one."""
    if status.last is None:
        return []
    report, batch = status.last.report, status.last.report.batch
    found = []
    if report.fit.trained_tokens == 0 and not status.findings:  # else the cause is said
        found.append(("trained", "no token of the last step's batch"))
    if batch.reward_by_index:
        found.append(("reward by turn", "  ".join(f"{reward:.3f}" for reward in batch.reward_by_index)))
    newest = NO_DATA if batch.reward is None else f"{batch.reward:.3f}"
    found.append(("mean reward", f"{newest}  {sparkline(status.reward_history)}"))
    if answers := told(batch.responses):
        found.append(("answers", answers))
    mean = batch.staleness_mean
    bound = "" if report.max_staleness is None else f", bound {report.max_staleness}"
    found.append(("staleness", (NO_DATA if mean is None else f"{mean:.1f} mean, {batch.staleness_max} most") + bound))
    return found


def problems(findings: Sequence[Finding]) -> list[str]:
    """What is wrong and how to cure it, of the first few; of more their causes."""
    more = ", ".join(finding.cause for finding in findings[SHOWN:])
    return [finding.text for finding in findings[:SHOWN]] + ([f"and {more}"] if more else [])


def _actors(actors: Sequence[ActorStatus], target: int) -> str:
    versions = sorted({actor.version for actor in actors if actor.version is not None})
    text = f"{sum(actor.state == 'ready' for actor in actors)} of {target} ready"
    unusual = [actor for actor in actors if actor.state not in ("ready", "starting")]
    text += "".join(f", {actor.name}: {actor.state}" for actor in unusual[:SHOWN])
    text += f" and {len(unusual) - SHOWN} more" if len(unusual) > SHOWN else ""
    text += f", {sum(actor.playing for actor in actors)} groups in play"
    text += f", {sum(actor.running for actor in actors)} requests running"
    if versions:
        text += f", version {versions[0]}" + (f" to {versions[-1]}" if len(versions) > 1 else "")
    return text


def gpu_text(gpu: GpuStatus) -> str:
    """ "87% busy, 61 of 80 GB, 610 W": what it tells of these."""
    busy = [] if gpu.busy is None else [f"{gpu.busy:.0%} busy"]
    watts = [] if gpu.watts is None else [f"{gpu.watts:.0f} W"]
    return ", ".join([*busy, f"{gpu.used_bytes / 1e9:.0f} of {gpu.bytes / 1e9:.0f} GB", *watts])


def _gpus(gpus: Sequence[GpuStatus]) -> str:
    text = "; ".join(f"{gpu.name}: {gpu_text(gpu)}" for gpu in gpus[:SHOWN])
    return text + (f" and {len(gpus) - SHOWN} more" if len(gpus) > SHOWN else "")


def _replay(stats: ReplayStats) -> str:
    text = f"{stats.open:,} open, {stats.ready:,} ready, {stats.claimed:,} claimed, {stats.used:,} used"
    text += f", {stats.bytes / 1e6:,.1f} MB"
    return text + "".join(f", {n:,} dropped ({reason})" for reason, n in stats.dropped.items() if n)


def clock(seconds: float) -> str:
    """ "4:05" or "1:02:03"."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def show_status(name: str, found: RunStatus | RunEnded, console: Console, folder: Path) -> None:
    """What the run in a folder is doing, or how it ended and how to go on, in a few lines."""
    if isinstance(found, RunStatus):
        console.print(panel(name, found))
        return
    console.print(f"{name}: {found.state} after {found.steps} steps, {found.seconds:.0f} s")
    if found.error:
        console.print(found.error, markup=False, soft_wrap=True)
    show_findings(found.findings, console)
    if found.state != "done":
        kept = (
            "there is no checkpoint yet" if found.checkpoint is None else f"newest checkpoint: step {found.checkpoint}"
        )
        said = f"{kept}. Go on with: {resuming(found.name, folder)}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)


def resuming(name: str, folder: Path) -> str:
    """The command that goes on with a run, whose folder this is."""
    return f"redraft train {folder / 'recipe.yaml'} --run {name} --resume"


def show_findings(findings: Sequence[Finding], console: Console) -> None:
    """Causes why a run that has ended could not learn."""
    for finding in findings:
        lasted = "to the end" if finding.until_s is None else f"to {finding.until_s:.0f} s"
        text = f"from {finding.since_s:.0f} s {lasted}: {finding.text}"
        console.print(text, markup=False, soft_wrap=True)
