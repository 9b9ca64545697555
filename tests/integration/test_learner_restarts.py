"""A run whose learner loses ranks goes on by itself: actors keep their processes, each step is in its history once."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
import pytest
import yaml
from support import run_house
from support.ray_nodes import RayNodes, kill
from support.run_house import Command, leftovers
from support.waiting import until
from test_run import RECIPE

from protocols.weights import incarnation_of, step_of
from redraft import processes, records
from redraft.control import standby
from redraft.control.workers import RankPart

pytestmark = [pytest.mark.ray, pytest.mark.prove]

EVERY = 3  # steps between checkpoints
TWO_RANKS = RECIPE | {
    "steps": 24,
    "actors": RECIPE["actors"] | {"cpus": 0.25},
    "learner": RECIPE["learner"] | {"ranks": 2, "cpus": 0.25, "checkpoint_every": EVERY, "record": {"batches": True}},
}
STANDBY = TWO_RANKS | {"learner": TWO_RANKS["learner"] | {"standby": True}}
RANK, ACTOR = "ray::RankPart", "ray::ActorPart"


class Losing:
    """A run of these two ranks, whose processes descend from `roots`."""

    def __init__(self, folder: Path, recipe: dict, roots: Callable[[], Iterable[int]] = tuple):
        (folder / "two.yaml").write_text(yaml.safe_dump(recipe))
        self.steps, self.folder = recipe["steps"], folder / "runs" / "tiny"
        self.run = Command(folder, "train", "two.yaml")
        self._roots = lambda: [self.run.process.pid, *roots()]
        self.run.until(lambda: len(self.lines()) >= 2, 300)

    def lines(self) -> list[int]:
        """The steps of metrics.jsonl as they were written."""
        return self.run.steps("tiny")

    def told(self) -> list[dict]:
        return records.lines(self.folder / "restarts.jsonl")

    def parts(self, title: str, log: str = "") -> set[int]:
        """The pids of workers that Ray has named so, and that write a log of this name."""
        found = set()
        for child in (child for root in self._roots() for child in psutil.Process(root).children(recursive=True)):
            try:
                logs = [Path(file.path).name for file in child.open_files()]
                if title in " ".join(child.cmdline()) and any(log in name for name in logs):
                    found.add(child.pid)
            except psutil.Error:
                continue
        return found

    def standing_by(self) -> set[int]:
        """The pids of those that may become ranks."""
        children = psutil.Process(self.run.process.pid).children(recursive=True)
        return {
            child.pid
            for child in children
            if processes.title(child.pid) == standby.IDLE
            and RankPart.__name__ in (processes.variable(child.pid, standby.VARIABLE) or "")
        }

    def lose(self, what: str, take: Callable[[], object]) -> None:
        """Has something take a rank away when the last step has no checkpoint; returns when steps are done again."""
        before, written = len(self.told()), len(self.lines())
        self.run.until(lambda: len(self.lines()) > written and self.lines()[-1] % EVERY, 120)
        ranks, at, done = self.parts(RANK), time.monotonic(), self.lines()[-1]
        take()
        self.run.until(lambda: len(self.told()) > before, 120)
        noticed_s, lines = time.monotonic() - at, len(self.lines())
        self.run.until(lambda: len(self.lines()) > lines, 300)
        again_s, first = time.monotonic() - at, self.lines()[lines]
        until(lambda: not any(map(psutil.pid_exists, ranks)), "the ranks that were left are gone", 60)
        print(
            f"{what} lost after step {done}: noticed after {noticed_s:.1f} s, step {first} done after {again_s:.1f} s"
        )

    def lose_rank(self, rank: int) -> None:
        (victim,) = self.parts(RANK, f"learner-{rank}.log")
        self.lose(f"rank {rank}", psutil.Process(victim).kill)

    def ends_well(self) -> str:
        """What the command said; its folder holds each step once, and each group was trained once."""
        output = self.run.wait(600)
        assert self.run.process.returncode == 0 and self.run.summary("tiny")["state"] == "done", output[-3000:]
        kept = [line.report.step for line in records.steps(records.step_lines(self.folder))]
        assert kept == list(range(1, self.steps + 1))
        versions = [line["version"] for line in self.run.lines("tiny", "metrics.jsonl")]
        assert versions == sorted(versions) and step_of(versions[-1]) == self.steps
        assert 1 <= incarnation_of(versions[-1]) <= len(self.told()), "ranks that never came up made no incarnation"
        said = [line for line in output.splitlines() if "the learner goes back from step" in line]
        assert len(said) == len(self.told()), "each is said once"
        checked = Command(self.run.folder, "check", "tiny")
        assert checked.wait(120) and checked.process.returncode == 0, checked.log.read_text()
        stats = Command(self.run.folder, "replay", "stats", "tiny", "--json")
        assert json.loads(stats.wait(60))["trained_total"] == 16 * self.steps, "no group is missing, none came twice"
        return output


def test_ranks_that_are_killed_start_anew_and_the_run_ends_as_if_none_had_been(tmp_path):
    run = Losing(tmp_path, STANDBY)
    actors = run.parts(ACTOR)
    assert len(actors) == 1
    run.run.until(lambda: len(run.standing_by()) == 2, 120)
    waiting = run.standing_by()
    run.lose_rank(1)
    assert run.parts(RANK) == waiting, "both ranks are those that stood by"
    run.lose_rank(0)
    assert run.parts(ACTOR) == actors, "actors and their engines stay"
    output = run.ends_well()
    first, second = run.told()
    assert "learner rank 1 died" in first["why"] and "learner rank 0 died" in second["why"]
    assert all(line["part"] == "learner" and not (line["checkpoint"] or 0) % EVERY for line in (first, second))
    assert "replaced" not in output, "no actor failed for the weights of a learner that was gone"
    again = Command(run.run.folder, "replay", "train", "tiny")
    assert again.wait(600) and again.process.returncode == 0, again.log.read_text()[-3000:]
    print(again.log.read_text().splitlines()[-1])
    assert not leftovers()


def test_a_node_that_is_lost_with_a_rank_is_waited_for_and_the_command_goes_on(monkeypatch):
    def has(**resources: float) -> tuple[str, str]:
        return "--resources", json.dumps(resources)

    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        nodes = RayNodes(folder)
        stays, goes = nodes.join(*has(rank=1, play=1)), nodes.join(*has(rank=1))
        monkeypatch.setattr(run_house, "ENVIRONMENT", nodes.environment | {"RAY_ADDRESS": nodes.address})
        learner = TWO_RANKS["learner"] | {"resources": {"rank": 1}}
        actors = TWO_RANKS["actors"] | {"resources": {"play": 1}}
        run = Losing(folder, TWO_RANKS | {"learner": learner, "actors": actors}, lambda: [stays.pid])
        playing = run.parts(ACTOR)
        assert len(playing) == 1 and len(run.parts(RANK)) == 1, "the other rank is on the node that goes"

        def lose_node() -> None:
            kill(goes)
            nodes.join(*has(rank=1))

        run.lose("the node of a rank", lose_node)
        assert run.parts(ACTOR) == playing
        run.ends_well()
