"""What `redraft top` promises: the parts and what they wait for on 80 columns by 24 lines, whatever is known."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.places import ROOT
from support.waiting import deadline_s
from textual.app import App
from textual.widgets import DataTable
from tokenizers import Tokenizer, decoders, models

from actors.contract import Report
from learner.config import RecordSettings
from learner.transcripts import transcript
from learner.transcripts.store import TranscriptStore
from protocols.replay_stats import ReplayStats
from protocols.reports import ActorStatus, BatchReport, RunEnded, RunStatus, StepReport
from protocols.turns import LOGPROBS, TOKENS, Role, Turn
from redraft import recipe as recipes
from redraft.control.fleet import Member
from redraft.control.status import Status
from redraft.logs import printable
from redraft.run import Run
from redraft.watch import top
from redraft.watch.newest_turns import NewestTurns
from redraft.watch.top import Look, Top, now, parts

DEADLINE_S = 30.0
STATS = ReplayStats(open=12, ready=40, claimed=128, used=4096, bytes=2_500_000, dropped={"stale": 3})
STEP = StepReport(
    step=57,
    version=57,
    batch=BatchReport(reward=0.573, reward_by_index=[0.512, 0.634], staleness_mean=0.8, staleness_max=2),
    wait_reason="groups",
    seconds={"wait": 1.2},
)


@pytest.fixture
def run(tmp_path) -> Run:
    (tmp_path / "quickstart").mkdir()
    return Run(tmp_path / "quickstart", "0123456789abcdef", str(tmp_path / "model"))


@pytest.fixture
def status(run) -> RunStatus:
    """The snapshot of a run that trains, with an actor that plays, one that has nothing to play and one that starts."""
    made = Status(run, recipes.load(ROOT / "recipes" / "quickstart.yaml"))
    made.phase("training")
    reports = {
        "actor-0": Report("ready", 56, playing=180, running=150, node="alpha"),
        "actor-1": Report("ready", 57, node="beta"),
        "actor-2": Report("starting"),
    }
    members = {n: Member(name, None, 0.0, 0.0, report) for n, (name, report) in enumerate(reports.items())}
    made.fleet(members, 3, 181)
    made.replay(STATS)
    made.step_done(STEP)
    made.replaced(2, "its process died")
    return made.snapshot()


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(top, "EVERY_S", 0.25)


class Looks:
    """In the place of the process that asks the controller: shows `look`, and keeps whether it was told to stop."""

    def __init__(self, look: Look | Callable[[], Look]):
        self.now, self.stopped, self.closed = look, 0, threading.Event()

    def look(self) -> Look:
        return self.now() if callable(self.now) else self.now

    def stop(self) -> None:
        self.stopped += 1

    def close(self) -> None:
        self.closed.set()


def on_screen(app: App) -> str:
    width, height = app.size
    return "\n".join("".join(part.text for part in app.screen._compositor.render_strips()[y]) for y in range(height))


def watched(run: Run, look, script=None, size=(80, 24)) -> str:
    """The screen of a view that has shown `look`, after `script(pilot, looks)`."""

    async def play() -> str:
        looks = look if isinstance(look, Looks) else Looks(look)
        app = Top(run, looks)
        async with app.run_test(size=size, notifications=True) as pilot:
            await until(pilot, lambda: "connecting" not in on_screen(app))
            if script is not None:
                await script(pilot, looks)
            await pilot.pause()
            seen = on_screen(app)
        assert looks.closed.is_set()
        return seen

    return asyncio.run(play())


async def until(pilot, condition) -> None:
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < deadline_s(DEADLINE_S), on_screen(pilot.app)
        await pilot.pause(0.01)


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_a_small_terminal_shows_each_part_and_what_it_waits_for(run, status, size):
    facts = (
        "quickstart  training  version 57",
        "57/160",
        "181 leases out",
        "12 open, 40 ready, 128 claimed",
        "180 groups, 150 requests",
        "alpha",
        "0.512  0.634",
        "0.573",
        "groups 1.2 s/step",
        "1 for a lease (staleness), 1 for verified weights",
        "actor-2 replaced",
        "Stop the run",
    )

    async def painted(pilot, looks):
        await until(pilot, lambda: all(fact in on_screen(pilot.app) for fact in facts))

    watched(run, Look(status), painted, size=size)


def test_a_part_that_is_not_ready_is_marked(run, status):
    rows = [line for line in watched(run, Look(status)).splitlines() if "actor-" in line and "replaced" not in line]
    assert ["! starting" in row for row in rows] == [False, False, True], rows
    full = watched(run, Look(replace(status, replay=replace(STATS, full=True))))
    assert "! disk full" in full and "1 for a lease (full disk)" in full
    starting = watched(run, Look(RunStatus("quickstart", detail="replay, learner, actors")))
    assert starting.count("! starting") == 3 and "replay, learner, actors" in starting


def test_any_fact_may_not_be_known_yet(run, status):
    names = RunStatus.__slots__
    for known in range(1, len(names)):
        partly = RunStatus(**{name: getattr(status, name) for name in names[:known]})
        assert parts(partly) and now(partly)
    nothing = replace(status, actors=(ActorStatus("actor-0"),), replay=None, waits={}, events=())
    assert "quickstart  training" in watched(run, Look(nothing))


def test_a_run_that_cannot_be_reached_is_asked_again_and_what_was_known_stays(run, status):
    async def lose(pilot, looks):
        looks.now = Look(None, "quickstart is not running")
        await until(pilot, lambda: "not reached since" in on_screen(pilot.app))

    seen = watched(run, Look(status), lose)
    assert "actor-0" in seen and "0.512  0.634" in seen

    async def find(pilot, looks):
        looks.now = Look(status)
        await until(pilot, lambda: "actor-0" in on_screen(pilot.app))

    assert "not reached" not in watched(run, Look(None, "quickstart is not running"), find)


def test_a_run_that_has_ended_says_how_and_stays(run, status):
    failed = RunEnded("quickstart", "failed", steps=57, seconds=245.0, error="learner.ranks [bold]: no")

    async def end(pilot, looks):
        looks.now = Look(failed)
        await until(pilot, lambda: "ended after 57 steps, 4:05" in on_screen(pilot.app))

    seen = watched(run, Look(status), end)
    assert "quickstart  failed" in seen and "learner.ranks [bold]: no" in seen and "actor-0" not in seen


def test_stopping_is_asked_first(run, status):
    async def press(pilot, looks):
        for key, expected in (("n", 0), ("escape", 0), ("y", 1)):
            await pilot.press("s")
            await until(pilot, lambda: "Stop quickstart?" in on_screen(pilot.app))
            assert looks.stopped == 0
            await pilot.press(key)
            await until(pilot, lambda expected=expected: looks.stopped == expected)
        await until(pilot, lambda: "quickstart is stopping" in on_screen(pilot.app))

    watched(run, Look(status), press)


def test_a_run_that_does_not_answer_freezes_nothing_and_is_left_at_once(run, status):
    hangs, ended = threading.Event(), []

    def hang() -> Look:
        ended.append(hangs.wait(deadline_s(DEADLINE_S)))
        return Look(status)

    async def leave(pilot, looks):
        looks.close = lambda: (looks.closed.set(), hangs.set())  # as the end of the process that asks
        looks.now = hang
        await pilot.press("question_mark")
        await until(pilot, lambda: "this page" in on_screen(pilot.app))
        await pilot.press("escape", "tab", "tab", "q")

    watched(run, Look(status), leave)
    assert False not in ended, "leaving did not wait for the answer"


def test_a_pause_holds_the_view_still(run, status):
    async def pause(pilot, looks):
        await pilot.press("p")
        pilot.app.show(Look(replace(status, step=58)))
        await pilot.pause()
        await until(pilot, lambda: "paused" in on_screen(pilot.app))
        assert "57/160" in on_screen(pilot.app)
        await pilot.press("p")
        pilot.app.show(Look(replace(status, step=58)))
        await until(pilot, lambda: "58/160" in on_screen(pilot.app) and "paused" not in on_screen(pilot.app))

    watched(run, Look(status), pause)


def test_panels_are_reached_with_tab_and_moved_in_with_arrows(run, status):
    many = tuple(replace(status.actors[0], name=f"actor-{n}") for n in range(30))

    async def move(pilot, looks):
        table = pilot.app.query_one(DataTable)
        await until(pilot, lambda: table.has_focus)
        await pilot.press("ctrl+end", "up")
        pilot.app.show(Look(replace(status, actors=many)))
        await until(pilot, lambda: table.cursor_row == 31 and "actor-28" in on_screen(pilot.app))
        await pilot.press("tab")
        await until(pilot, lambda: pilot.app.query_one("#now").has_focus)

    watched(run, Look(replace(status, actors=many)), move)


def test_the_newest_turns_are_shown_as_text(run, status):
    Path(run.model).mkdir()
    characters().save(f"{run.model}/tokenizer.json")
    newest = NewestTurns(run)
    assert newest.read() == []
    store = TranscriptStore(run.folder, RecordSettings())
    for step in (1, 2):
        write_turns(store, step)
        assert newest.read()[0].step == step
    seen = watched(run, Look(status, turns=newest.read()), size=(120, 40))
    assert "signs/1  step 1  version 1" in seen and seen.index("signs/2") < seen.index("signs/1")
    assert "attempt 1      0.00  7128>12  7+1-2-8" in seen and "attempt 2      1.00  ?-14  7-1-2+8" in seen


def test_what_a_terminal_would_obey_is_not_written_to_it(run, status):
    assert printable("a\x1b]52;c;eA==\x1b\\b\x07\nc\u202e") == "a\ufffd]52;c;eA==\ufffd\\b\ufffd\nc\ufffd"
    told = Status(run, recipes.load(ROOT / "recipes" / "quickstart.yaml"))
    told.event("an episode ended: \x1b[2Jgone")
    assert "\x1b" not in told.last_event and told.last_event.endswith("[2Jgone")


def write_turns(store: TranscriptStore, step: int) -> None:
    ids = characters().encode
    turns = [
        Turn(
            bytes(16),
            1,
            number,
            number - 1,
            np.array(ids(told).ids, TOKENS),
            np.array(ids(said).ids, TOKENS),
            np.zeros(len(said), LOGPROBS),
            ((0, step),),
            Role.ATTEMPT,
            index=number,
            reward=float(number),
        )
        for number, (told, said) in enumerate([("7128>12\n", "7+1-2-8\n"), ("?-14\n", "7-1-2+8\n")])
    ]
    head = {"group": "ab" * 16, "task": f"signs/{step}", "picked": "stride"} | transcript.head(turns)
    store.write(step, step, [(head, [transcript.told(turn) for turn in turns])])


def characters() -> Tokenizer:
    """A token a character, as in models.build_tokenizer."""
    tokenizer = Tokenizer(models.BPE(vocab={text: n for n, text in enumerate("0123456789+->?\n")}, merges=[]))
    tokenizer.decoder = decoders.Fuse()
    return tokenizer
