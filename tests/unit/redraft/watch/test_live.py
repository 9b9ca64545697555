"""What the live view promises: the facts that people look for, in a small panel, whatever is known so far."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from protocols.replay_stats import ReplayStats
from protocols.reports import ActorStatus, BatchReport, FitReport, RunStatus, StepLine, StepReport
from protocols.responses import Responses
from redraft.watch.live import LiveView, clock, line, panel, sparkline
from redraft.watch.story import PHASES, Story


def stepped(**batch) -> StepLine:
    """A step whose batch is that of STATUS, but for `batch`."""
    known = {
        "reward": 0.573,
        "reward_by_index": [0.512, 0.634],
        "success_by_index": [0.512, 0.634],
        "staleness_mean": 0.8,
        "staleness_max": 2,
    }
    fit = FitReport(trained_tokens=900)
    return StepLine(StepReport(57, 57, fit, batch=BatchReport(**known | batch), max_staleness=3))


STATUS = RunStatus(
    run="quickstart",
    state="training",
    step=57,
    steps=100,
    elapsed_s=151.0,
    reward_history=(0.1, 0.2, 0.4, 0.573),
    tokens_per_s=3612.4,
    turns_per_s=431.0,
    waits={"learner": "groups 1.2 s/step"},
    actors=(
        ActorStatus("actor-0", "ready", 57, playing=180, running=150),
        ActorStatus("actor-1", "starting"),
    ),
    actors_target=2,
    replay=ReplayStats(open=12, ready=40, claimed=128, used=4096, bytes=2_500_000, dropped={"stale": 3}),
    events=tuple(f"12:03:0{n} actor-1 replaced: reason {n}" for n in range(6)),
    last=stepped(),
)
FACTS = [name for name in RunStatus.__slots__ if name not in ("run", "actors_target")]


def drawn(status: RunStatus, left_s: float | None = None, width: int = 100) -> list[str]:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(panel("quickstart", status, left_s))
    return console.export_text().splitlines()


def test_the_panel_shows_progress_rewards_staleness_speed_and_what_each_part_waits_for():
    text = "\n".join(drawn(STATUS, left_s=114))
    for fact in (
        "quickstart  training  version 57",
        "57/100  2:31, 1:54 left",
        "0.512  0.634",
        "0.573  ▁▂▅█",
        "0.8 mean, 2 most",
        "3,612 tokens/s, 431 turns/s",
        "learner waits",
        "groups 1.2 s/step",
        "1 of 2 ready, 180 groups in play, 150 requests running, version 57",
        "12 open, 40 ready, 128 claimed, 4,096 used, 2.5 MB, 3 dropped (stale)",
        "12:03:05",
        "actor-1 replaced: reason 5",
    ):
        assert fact in text, fact
    assert "reason 1" not in text


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_panel_stays_small(width):
    lines = drawn(STATUS, left_s=1.0, width=width)
    assert len(lines) <= 20
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("known", range(len(FACTS)))
def test_any_fact_may_not_be_known_yet(known):
    status = RunStatus("quickstart", **{name: getattr(STATUS, name) for name in FACTS[:known]})
    assert drawn(status)
    assert line("quickstart", status)


def test_an_evaluation_has_its_own_progress_and_speed():
    status = RunStatus("quickstart", state="evaluating", detail="before", progress=(120, 500), tokens_per_s=1234.5)
    text = "\n".join(drawn(status))
    assert "evaluation" in text and "120/500" in text and "before" in text
    assert "1,234 tokens/s" in text and "turns/s" not in text
    assert "120/500" in line("quickstart", status) and "1,234 tokens/s" in line("quickstart", status)


def test_the_answers_of_the_last_batch_are_told_by_role():
    responses = Responses(
        cut_share={"attempt": 0.73, "reflection": 0.0},
        unparsed_share={"attempt": 0.97},
        response_tokens={
            "attempt": {"mean": 210.4, "p50": 256.0, "max": 256},
            "reflection": {"mean": 40.0, "p50": 40.0, "max": 60},
        },
    )
    status = replace(STATUS, last=stepped(responses=responses))
    expected = "attempt 73% cut, 97% unparsed, 210 tokens (most 256); reflection 0% cut, 40 tokens (most 60)"
    assert expected in line("quickstart", status)
    assert len(drawn(status)) <= 20


def test_figures_over_nothing_are_no_data_and_never_0():
    status = replace(STATUS, last=StepLine(StepReport(57, 57)))
    text = "\n".join(drawn(status))
    assert "no data  ▁▂▅█" in text and "staleness       no data" in text and "answers" not in text
    assert "no token of the last step's batch" in text


def test_text_in_square_brackets_is_shown_and_not_taken_for_markup():
    text = "\n".join(
        drawn(RunStatus("x", state="failed", detail="learner.ranks [bold]: no", events=("12:00:00 [red]x[/red]",)))
    )
    assert "[bold]" in text and "[red]x[/red]" in text


def test_without_a_terminal_there_is_a_line_now_and_then_and_at_once_for_news():
    out, now = io.StringIO(), [0.0]
    with LiveView(Console(file=out, width=400), "quickstart", clock=lambda: now[0]) as view:
        for second in range(0, 31):
            now[0] = float(second)
            view.update(replace(STATUS, step=second))
        view.update(replace(STATUS, state="done", events=("12:09:00 stopped",)))
    lines = out.getvalue().splitlines()
    assert [text for text in lines if "replaced" in text] == ["12:03:05 actor-1 replaced: reason 5"]
    assert sum("training | step" in text for text in lines) == 4
    assert lines[-2:][0] == "12:09:00 stopped" and "done" in lines[-1]
    assert lines[0] == f" 0:00  {PHASES['training']}"
    assert "learner waits groups 1.2 s/step" in lines[2] and "staleness 0.8 mean, 2 most, bound 3" in lines[2]


def test_on_a_terminal_the_time_left_counts_from_the_first_step_seen():
    out = io.StringIO()
    with LiveView(Console(file=out, force_terminal=True, width=100), "quickstart") as view:
        view.update(replace(STATUS, step=50, elapsed_s=100.0))
        view.update(replace(STATUS, step=60, elapsed_s=120.0))
    assert "1:20 left" in out.getvalue()


def test_a_sparkline_averages_what_it_cannot_show():
    assert sparkline([]) == ""
    assert sparkline([0.5]) == "▁"
    assert sparkline([0, 7]) == "▁█"
    assert sparkline(range(200), width=8) == "▁▂▃▄▅▆▇█"


def test_clock_times():
    assert [clock(5), clock(245), clock(3723)] == ["0:05", "4:05", "1:02:03"]


def test_a_fleet_that_is_not_as_it_should_be_says_what_is_missing():
    ready, leaving = ActorStatus("actor-0", "ready"), ActorStatus("actor-1", "draining")
    waiting = [ActorStatus(f"actor-{n}", "waiting for resources") for n in (2, 3, 4)]
    text = "\n".join(drawn(RunStatus("x", actors=(ready, leaving), actors_target=1)))
    assert "1 of 1 ready, actor-1: draining" in text
    text = line("quickstart", RunStatus("x", actors=(ready, *waiting), actors_target=4))
    assert "1 of 4 ready, actor-2: waiting for resources, actor-3: waiting for resources and 1 more" in text


def test_each_phase_is_told_once_with_what_it_is_for_and_the_time_since_the_command_began():
    out, now = io.StringIO(), [0.0]
    console = Console(file=out, width=400)
    story = Story(console, lambda: now[0])
    now[0] = 65.0
    with LiveView(console, "quickstart", story, clock=lambda: now[0]) as view:
        for state in ("starting", "starting", "evaluating", "training", "training", "ending", "done"):
            view.update(RunStatus("x", state=state))
    told = [text for text in out.getvalue().splitlines() if text.startswith(" 1:05  ")]
    assert [text.removeprefix(" 1:05  ") for text in told] == [
        PHASES[state] for state in ("starting", "evaluating", "training", "ending")
    ]


def test_while_parts_start_each_that_comes_is_told_at_once():
    out = io.StringIO()
    with LiveView(Console(file=out, width=400), "quickstart", clock=lambda: 0.0) as view:
        for missing in ("replay, learner rank 0", "learner rank 0", "learner rank 0", "actor-0: weights"):
            view.update(RunStatus("x", detail=f"waiting for {missing}"))
    told = [text.partition(" | ")[0] for text in out.getvalue().splitlines() if "waiting for" in text]
    assert told == [
        "quickstart: starting (waiting for replay, learner rank 0)",
        "quickstart: starting (waiting for learner rank 0)",
        "quickstart: starting (waiting for actor-0: weights)",
    ]
