"""The live view of a run: a small panel that renews itself on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise

from rich.console import Console, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from learner.responses import told

PLAIN_EVERY_S = 10.0
EVENTS = 4  # the newest that are shown
SHOWN = 2  # actors whose state is told one by one, and causes why a run cannot learn
PROBLEM = "cannot learn"
NO_DATA = "no data"
BARS = "▁▂▃▄▅▆▇█"
SPARKS = 40  # longest sparkline, in characters
COLORS = {"training": "green", "done": "green", "failed": "red", "stopping": "yellow"}


class LiveView:
    """Shows the newest status given to `update`: any of its keys may be missing. To be used as a context manager."""

    def __init__(self, console: Console, run: str, clock: Callable[[], float] = time.monotonic):
        self._console, self._run, self._clock = console, run, clock
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._pace = Pace()
        self._printed: tuple[str, str | None] = ("", None)  # state and newest event of the last plain line
        self._next_line = 0.0

    def __enter__(self) -> LiveView:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error) -> None:
        if self._live:
            self._live.stop()

    def update(self, status: dict) -> None:
        self._pace.see(status)
        if self._live:
            self._live.update(panel(self._run, status, self._pace.left_s(status)), refresh=True)
        else:
            self._print(status)

    def _print(self, status: dict) -> None:
        """A line every PLAIN_EVERY_S, and at once for a new state or new events."""
        events, last = status.get("events") or [], self._printed[1]
        state = status.get("state", "")
        first = len(events) - 1 if last is None else events.index(last) + 1 if last in events else 0
        for event in events[max(first, 0) :]:
            self._console.print(Text(event), soft_wrap=True)
        if state != self._printed[0] or self._clock() >= self._next_line:
            self._console.print(Text(line(self._run, status)), soft_wrap=True)
            self._next_line = self._clock() + PLAIN_EVERY_S
        self._printed = (state, events[-1] if events else last or "")


class Pace:
    """How long steps take, counted from where this view first saw the run train, so that start-up does not count."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def see(self, status: dict) -> None:
        if self._first is None and status.get("state") == "training":
            self._first = (status.get("elapsed_s", 0.0), status.get("step", 0))

    def left_s(self, status: dict) -> float | None:
        """Seconds until the last step; None before the first one was seen."""
        if self._first is None or status.get("state") != "training":
            return None
        seconds, steps = status.get("elapsed_s", 0.0) - self._first[0], status.get("step", 0) - self._first[1]
        return seconds / steps * (status.get("steps", 0) - status.get("step", 0)) if steps > 0 else None


def line(run: str, status: dict) -> str:
    """The status in one line, for logs and pipes."""
    progress = status.get("progress")
    parts = [f"{run}: {_state(status)}"]
    parts += [f"{progress[0]}/{progress[1]}"] if progress else []
    if "step" in status:
        parts.append(f"step {status['step']}/{status.get('steps', '?')}")
    causes = ", ".join(finding["cause"] for finding in status.get("findings") or ())
    parts += [f"{PROBLEM}: {causes}"] if causes else []
    left_out = ("mean reward", "replay", "metrics", PROBLEM)
    parts += [f"{label} {text}" for label, text in facts(status) if label not in left_out]
    return " | ".join(parts)


def title(run: str, status: dict) -> Text:
    state = status.get("state", "starting")
    text = Text.assemble((run, "bold"), "  ", (state, COLORS.get(state, "cyan")))
    if "version" in status:
        text.append(f"  version {status['version']}", "dim")
    return text


def panel(run: str, status: dict, left_s: float | None = None) -> RenderableType:
    """The status in at most 20 lines."""
    state = status.get("state", "starting")
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(style="dim", no_wrap=True, width=14)
    grid.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    grid.add_row(*progress(status, left_s))
    for label, text in facts(status):
        problem = label == PROBLEM
        grid.add_row(label, Text(text, style="red" if problem else "", no_wrap=not problem))
    if status.get("detail"):
        grid.add_row("now", Text(status["detail"], style="red" if state == "failed" else "", no_wrap=state != "failed"))
    for event in (status.get("events") or [])[-EVENTS:]:
        stamp, _, text = event.partition(" ")
        grid.add_row(stamp, Text(text, style="yellow"))
    return Panel(grid, title=title(run, status), title_align="left", border_style=COLORS.get(state, "cyan"))


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


def progress(status: dict, left_s: float | None) -> tuple[RenderableType, RenderableType]:
    """A bar over the tasks of an evaluation while there is one, else over steps."""
    done, total = status.get("progress") or (status.get("step", 0), status.get("steps", 0))
    label = "evaluation" if status.get("progress") else "steps"
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True)
    times = [clock(status["elapsed_s"])] if "elapsed_s" in status else []
    times += [f"{clock(left_s)} left"] if left_s is not None else []
    row.add_row(ProgressBar(max(total, 1), done), Text(f"{done}/{total}  {', '.join(times)}"))
    return label, row


def _state(status: dict) -> str:
    state, detail = status.get("state", "starting"), status.get("detail")
    return f"{state} ({detail})" if detail else state


def facts(status: dict) -> list[tuple[str, str]]:
    """(what, text) of all that the status knows, in the order in which it is shown."""
    found = [("adapter", status["adapter"])] if status.get("adapter") else []
    found += [(PROBLEM, text) for text in problems(status.get("findings") or ())]
    if status.get("trained_tokens") == 0 and not status.get("findings"):  # else the cause is said
        found.append(("trained", "no token of the last step's batch"))
    if status.get("reward_by_index"):
        found.append(("reward by turn", "  ".join(f"{reward:.3f}" for reward in status["reward_by_index"])))
    if history := status.get("reward_history"):
        newest = status.get("reward", history[-1])
        found.append(("mean reward", f"{NO_DATA if newest is None else f'{newest:.3f}'}  {sparkline(history)}"))
    if answers := told(status):
        found.append(("answers", answers))
    if "staleness_mean" in status:
        mean, most = status["staleness_mean"], status.get("staleness_max", 0)
        found.append(("staleness", NO_DATA if mean is None else f"{mean:.1f} mean, {most} most"))
    if "tokens_per_s" in status:
        turns = f", {status['turns_per_s']:,.0f} turns/s" if "turns_per_s" in status else ""
        found.append(("generation", f"{status['tokens_per_s']:,.0f} tokens/s{turns}"))
    found += [(f"{part} waits", text) for part, text in (status.get("waits") or {}).items() if text]
    found += [("actors", _actors(status["actors"], status.get("actors_target")))] if status.get("actors") else []
    found += [("replay", _replay(status["replay"]))] if status.get("replay") else []
    found += [("metrics", status["sd"])] if status.get("sd") else []
    return found


def problems(findings: Sequence[dict]) -> list[str]:
    """What is wrong and how to cure it, of the first few; of more their causes."""
    texts = [f"{finding['problem']} {finding['cure']}" for finding in findings[:SHOWN]]
    more = ", ".join(finding["cause"] for finding in findings[SHOWN:])
    return texts + ([f"and {more}"] if more else [])


def _actors(actors: Sequence[dict], target: int | None) -> str:
    ready = [actor for actor in actors if actor.get("state") == "ready"]
    versions = sorted({actor["version"] for actor in actors if actor.get("version") is not None})
    text = f"{len(ready)} of {target or len(actors)} ready"
    unusual = [actor for actor in actors if actor.get("state", "starting") not in ("ready", "starting")]
    text += "".join(f", {actor.get('name', 'an actor')}: {actor['state']}" for actor in unusual[:SHOWN])
    text += f" and {len(unusual) - SHOWN} more" if len(unusual) > SHOWN else ""
    text += f", {sum(actor.get('playing', 0) for actor in actors)} groups in play"
    text += f", {sum(actor.get('running', 0) for actor in actors)} requests running"
    if versions:
        text += f", version {versions[0]}" + (f" to {versions[-1]}" if len(versions) > 1 else "")
    return text


def _replay(stats: dict) -> str:
    text = ", ".join(f"{stats[key]:,} {key}" for key in ("open", "ready", "claimed", "used") if key in stats)
    text += f", {stats['bytes'] / 1e6:,.1f} MB" if "bytes" in stats else ""
    dropped = {reason: n for reason, n in (stats.get("dropped") or {}).items() if n}
    return text + "".join(f", {n:,} dropped ({reason})" for reason, n in dropped.items())


def clock(seconds: float) -> str:
    """ "4:05" or "1:02:03"."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def show_status(name: str, found: dict, console: Console) -> None:
    """What a run is doing, or how it ended, in a few lines."""
    if "summary" not in found:
        console.print(panel(name, found))
        return
    summary = found["summary"]
    console.print(f"{name}: {summary['state']} after {summary['steps']} steps, {summary['seconds']:.0f} s")
    if summary["error"]:
        console.print(summary["error"])
    show_findings(summary, console)


def show_findings(summary: dict, console: Console) -> None:
    """Causes why a run that has ended could not learn."""
    for finding in summary.get("findings") or ():
        lasted = "to the end" if finding["until_s"] is None else f"to {finding['until_s']:.0f} s"
        text = f"from {finding['since_s']:.0f} s {lasted}: {finding['problem']} {finding['cure']}"
        console.print(text, markup=False, soft_wrap=True)
