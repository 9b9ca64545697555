"""`redraft top RUN`: one run on the whole terminal, from 80 columns by 24 lines on.

A thread asks the controller once a second, in a process of its own (redraft.control.remote), and reads the newest
turns; the terminal only shows what it brings. A run that cannot be reached is asked again; one that has ended stays on
the screen.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group as Rows
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.message import Message
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Static

from protocols.errors import RedraftError
from protocols.replay_stats import ReplayStats
from protocols.reports import RunEnded, RunStatus
from redraft import records
from redraft.control.remote import Remote
from redraft.report.tables import table
from redraft.run import Run
from redraft.watch import live
from redraft.watch.newest_turns import NewestTurns, NewGroup

EVERY_S = 1.0
ASIDE = ("actors", "GPUs", "metrics")  # facts that are shown elsewhere
HELP = """q       leave; the run goes on
s       stop the run, after a question
p       pause this view, and go on
tab     next panel; arrows, page up and page down move in it
?       this page

A part that is not ready is marked with ! and its state.
Turns: what the model was told is dim, its answer is not."""


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the run has found. `status` is None when it could not be reached, and `problem` says why."""

    status: RunStatus | RunEnded | None
    problem: str = ""
    turns: Sequence[NewGroup] = ()


class Watcher:
    """Looks at a run. `look` and `stop` block, and belong into threads."""

    def __init__(self, run: Run):
        self._remote, self._turns = Remote(str(run.folder)), NewestTurns(run)

    def look(self) -> Look:
        turns = self._turns.read()
        try:
            return Look(self._remote.status(), turns=turns)
        except RedraftError as error:
            return Look(None, str(error), turns)

    def stop(self) -> None:
        self._remote.stop()

    def close(self) -> None:
        self._remote.close()


@dataclass(frozen=True, slots=True)
class Part:
    """A row of the table of parts."""

    name: str
    state: str
    ready: bool
    version: int | None = None
    doing: str = ""
    node: str = ""


def parts(status: RunStatus) -> list[Part]:
    """All parts of a run."""
    up, learns, version = status.state != "starting", status.state not in live.STARTS, live.version_of(status)
    leases, learning = f"{status.leases} leases out", f"step {status.step}/{status.steps}{_gpu(status, 'learner-0')}"
    found = [
        Part("controller", status.state, up and status.state != "failed", doing=leases),
        Part("learner", "ready" if learns else "starting", learns, version, learning),
        _replay(status.replay, up),
    ]
    for actor in status.actors:
        doing = f"{actor.playing} groups, {actor.running} requests{_gpu(status, actor.name)}"
        ready = actor.state == "ready" and actor.version is not None
        state = actor.state if ready or actor.state != "ready" else "no weights"
        found.append(Part(actor.name, state, ready, actor.version, doing, actor.node))
    return found


def _gpu(status: RunStatus, name: str) -> str:
    """What a process's first GPU does, after what the process does; "" where it has none."""
    found = [live.gpu_text(gpu) for gpu in status.gpus if gpu.name == name]
    return f", GPU {found[0]}" if found else ""


def _replay(stats: ReplayStats | None, up: bool) -> Part:
    if stats is None:
        return Part("replay", "ready" if up else "starting", up)
    doing = f"{stats.open:,} open, {stats.ready:,} ready, {stats.claimed:,} claimed"
    state = "disk full" if stats.full else "ready" if up else "starting"
    return Part("replay", state, up and not stats.full, doing=doing)


def now(status: RunStatus) -> Table:
    """Rewards, speed, and what learner and actors wait for."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, width=14)
    grid.add_column()
    rows = [(label, text) for label, text in live.facts(status) if label not in ASIDE]
    if waiting := _actors_wait(status):
        rows.append(("actors wait", waiting))
    for label, text in rows:
        grid.add_row(label, Text(text))
    return grid


def _actors_wait(status: RunStatus) -> str:
    """What actors that play nothing wait for, in words."""
    unready = [actor for actor in status.actors if actor.state == "starting" or actor.version is None]
    idle = [actor for actor in status.actors if actor.state == "ready" and actor not in unready and not actor.playing]
    found = []
    if idle and status.state == "training":
        full = status.replay is not None and status.replay.full
        found.append(f"{len(idle)} for a lease ({'full disk' if full else 'staleness'})")
    if unready:
        found.append(f"{len(unready)} for verified weights")
    return ", ".join(found)


def turns_text(groups: Sequence[NewGroup]) -> Text:
    """The newest groups, a line for each thing that was told or said."""
    text = Text()
    for group in groups:
        text.append(group.task, "bold cyan")
        text.append(f"  step {group.step}  version {group.version}\n", "cyan")
        for turn in group.turns:
            text.append(f"{turn.role} {turn.index + 1}".ljust(14), "dim")
            reward = "" if turn.reward is None else f"{turn.reward:.2f}"
            text.append(reward.rjust(5) + "  ", "green" if (turn.reward or 0) > 0 else "red")
            said = " ".join(turn.said.split())
            text.append(f"{said}  " if said else "", "dim")
            text.append(turn.text + "\n")
    return text


class Dialog(ModalScreen[bool]):
    """Some text; y answers yes, any of the other keys no."""

    BINDINGS = [("y", "answer(True)", "Yes"), ("n,escape,enter,q,question_mark", "answer(False)", "No")]

    def __init__(self, text: str):
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        yield Static(Text(self._text), id="dialog")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)


class Top(App[None]):
    """The view. `watcher` is asked in a thread until the view is left."""

    TITLE = "redraft top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS = [
        ("q", "leave", "Leave"),
        ("s", "stop", "Stop the run"),
        ("p", "pause", "Pause"),
        ("question_mark", "help", "Help"),
    ]
    CSS = """
    Screen { overflow: hidden; }
    #top { height: 1; }
    #title { width: 1fr; height: 1; padding: 0 1; }
    #paused { width: auto; padding: 0 1; background: $warning; color: $text; display: none; }
    #progress { height: 1; padding: 0 1; }
    #parts, #now, #turns, #events { border-top: solid $panel; border-title-color: $text-muted; padding: 0 1; }
    #parts:focus, #now:focus, #turns:focus, #events:focus { border-top: solid $primary; border-title-style: bold; }
    #parts { height: auto; max-height: 9; background: $background; }
    #now { height: auto; max-height: 50%; }
    #below { height: 1fr; }
    #turns { width: 3fr; }
    #events { width: 2fr; }
    #now Static, #turns Static, #events Static { height: auto; }
    Dialog { align: center middle; }
    #dialog { width: auto; max-width: 76; height: auto; border: round $primary; padding: 1 2; background: $surface; }
    """

    class Looked(Message):
        """From the thread: it has looked at the run."""

        def __init__(self, look: Look):
            super().__init__()
            self.look = look

    def __init__(self, run: Run, watcher: Watcher | None = None):
        super().__init__()
        self._run, self._watcher = run, watcher or Watcher(run)
        self._left = threading.Event()
        self._paused = False
        self._pace = live.Pace()
        self._reached = ""  # when, by the clock
        self._title_text = Text(run.name, "bold")

    def compose(self) -> ComposeResult:
        # Kept: a look may still come while the view closes, when they can no longer be found on the screen.
        self._headline = Static(Text(f"{self._run.name}  connecting", "bold"), id="title")
        self._mark = Static("paused", id="paused")
        self._progress = Static(id="progress")
        self._parts = DataTable(id="parts", cursor_type="row", zebra_stripes=True)
        self._texts = {name: Static() for name in ("now", "newest turns", "events")}
        with Horizontal(id="top"):
            yield self._headline
            yield self._mark
        yield self._progress
        yield self._parts
        yield self._panel("now", "now")
        with Horizontal(id="below"):
            yield self._panel("turns", "newest turns")
            yield self._panel("events", "events")
        yield Footer()

    def _panel(self, name: str, title: str) -> VerticalScroll:
        panel = VerticalScroll(self._texts[title], id=name)
        panel.border_title = title
        return panel

    def on_mount(self) -> None:
        self._parts.border_title = "parts"
        self._parts.add_columns("part", "state", "version", "doing", "node")
        self._watch()

    def on_unmount(self) -> None:
        self._left.set()
        self._watcher.close()

    @work(thread=True)
    def _watch(self) -> None:
        while not self._left.is_set():
            self.post_message(self.Looked(self._watcher.look()))
            self._left.wait(EVERY_S)

    def on_top_looked(self, message: Looked) -> None:
        self.show(message.look)

    def show(self, look: Look) -> None:
        """Puts a look on the screen, unless the view is paused."""
        if self._paused:
            return
        if look.status is None:
            since = f"not reached since {self._reached}" if self._reached else "not reached"
            self._title(Text(f"{since}, tried again every {EVERY_S:g} s: {look.problem}", "bold red"))
        elif isinstance(look.status, RunEnded):
            self._ended(look.status)
        else:
            self._going_on(look.status)
        turns = turns_text(look.turns) if look.turns else Text("none recorded yet", "dim")
        self._texts["newest turns"].update(turns)

    def _going_on(self, status: RunStatus) -> None:
        self._reached = time.strftime("%H:%M:%S")
        self._title_text = live.title(self._run.name, status.state, live.version_of(status))
        self._pace.see(status)
        self._title(Text(status.detail, "red" if status.state == "failed" else "dim"))
        bar = Table.grid(padding=(0, 2), expand=True)
        bar.add_column(style="dim")
        bar.add_column(ratio=1)
        bar.add_row(*live.progress(status, self._pace.left_s(status)))
        self._progress.update(bar)
        self._fill(parts(status))
        self._texts["now"].update(now(status))
        self._texts["events"].update(Text("\n".join(reversed(status.events)), "yellow"))

    def _ended(self, end: RunEnded) -> None:
        """How the run ended, and its results."""
        self._title_text = live.title(self._run.name, end.state)
        self._title(Text(f"ended after {end.steps} steps, {live.clock(end.seconds)}"))
        self._progress.update("")
        self._fill([])
        shown: list[RenderableType] = [Text(end.error, "red")] if end.error else []
        if end.before or end.after:
            shown.append(table(end.before, end.after, self._feedback(), self._texts["now"].size.width))
        self._texts["now"].update(Rows(*shown))

    def _feedback(self) -> str:
        return records.feedback(records.recipe(self._run.folder))

    def _title(self, text: Text) -> None:
        self._headline.update(Text.assemble(self._title_text, "  ", text))

    def _fill(self, rows: Sequence[Part]) -> None:
        """The table of parts; where the cursor is stays."""
        self._parts.display = bool(rows)
        row = self._parts.cursor_row
        self._parts.clear()
        for part in rows:
            state = Text(part.state, "green") if part.ready else Text(f"! {part.state}", "bold yellow")
            version = "" if part.version is None else str(part.version)
            self._parts.add_row(part.name, state, version, part.doing, part.node)
        self._parts.move_cursor(row=row)

    # Keys.

    def action_leave(self) -> None:
        self.exit()

    def action_help(self) -> None:
        self.push_screen(Dialog(HELP))

    def action_pause(self) -> None:
        self._paused = not self._paused
        self._mark.display = self._paused

    def action_stop(self) -> None:
        question = f"Stop {self._run.name}? It finishes its step, writes a checkpoint and ends."
        self.push_screen(Dialog(f"{question}\n\ny  stop it    n  let it go on"), self._stop_if)

    def _stop_if(self, yes: bool | None) -> None:
        if yes:
            self._stop()

    @work(thread=True)
    def _stop(self) -> None:
        try:
            self._watcher.stop()
        except RedraftError as error:
            self.notify(str(error), severity="error", markup=False)
        else:
            self.notify(f"{self._run.name} is stopping", markup=False)
