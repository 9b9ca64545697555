"""Replay is killed with kill -9, again and again, under load: nothing acknowledged is lost, nothing is used twice.

Four producers stream groups whose every byte can be checked, two learners claim, check, commit and checkpoint, and the
service, and now and then a producer or a learner, is killed at random instants and started again. What each of them
did is in notes that outlive it; at the end all is drained and the notes are held against what replay has.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.replay_house import ANY, Notes, Process, client_of, endpoints_in, gid, problem_of, serve, turns_of
from support.waiting import until

PRODUCERS, LEARNERS = 4, 2
# What is killed. "run": learners and producers die, and the run is resumed from its last checkpoint, as one does.
PLAN = ("service", "service", "producer", "service", "service", "learner", "service", "run")


@dataclass
class Run:
    """A run under `place`, with what the test did to it."""

    place: Path
    generator: random.Random
    processes: dict[str, Process] = field(default_factory=dict)
    lives: Counter = field(default_factory=Counter)
    leases: Counter = field(default_factory=Counter)
    resumes: list[dict] = field(default_factory=list)  # of the test, in the form of notes
    kills: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self.endpoints = endpoints_in(self.place)
        self.producers = [f"producer{n}" for n in range(PRODUCERS)]
        self.learners = [f"learner{n}" for n in range(LEARNERS)]
        self.notes = {name: self.place / f"{name}.notes" for name in (*self.producers, *self.learners)}
        self.resuming = Notes(self.place / "test.notes")

    def start(self, name: str) -> None:
        self.lives[name] += 1
        if name == "service":
            self.processes[name] = serve(self.place, self.endpoints)
            return
        role, number = ("produce" if name in self.producers else "learn"), int(name[-1])
        spec = {
            "name": name,
            "notes": str(self.notes[name]),
            "endpoints": [self.endpoints.ingest, self.endpoints.serve],
            "seed": 1000 * number + self.lives[name],
        }
        if role == "produce":
            spec |= {"owner": number, "lease": self.leases[name], "ahead": 24}
        else:
            spec |= {"steps": str(self.place / "steps"), "step": self.next_step(number), "stride": LEARNERS}
        self.processes[name] = Process(role, spec, self.place / f"{name}.log").ready()

    def kill(self, kind: str) -> None:
        """Kills one process of this kind, or all but the service, and starts what it killed again."""
        victims = {
            "service": ["service"],
            "producer": [self.generator.choice(self.producers)],
            "learner": [self.generator.choice(self.learners)],
            "run": [*self.learners, *self.producers],
        }[kind]
        for name in victims:
            assert self.processes[name].running, f"{name} ended by itself:\n{self.processes[name].said()}"
            self.processes[name].kill()
            self.kills[name.rstrip("0123456789")] += 1
        self.settle([name for name in victims if name in self.learners])
        if kind == "run":
            self.resume(self.checkpointed())
        for name in victims:  # a producer plays again under a higher lease, or the very same play comes again
            self.leases[name] += kind == "run" or self.generator.random() < 0.5
            self.start(name)

    def read(self, names: list[str]) -> list[dict]:
        return [note | {"who": name} for name in names for note in Notes.read(self.notes[name])]

    def next_step(self, number: int) -> int:
        """Above all steps of this learner and of the last checkpoint; learners share no step."""
        noted = [note["step"] for note in self.read([self.learners[number]]) if "step" in note]
        last = max([*noted, self.checkpointed()])
        return last + 1 + (number - last - 1) % LEARNERS

    def checkpointed(self) -> int:
        return max((note["step"] for note in self.read(self.learners) if note["kind"] == "checkpoint"), default=0)

    def settle(self, dead: list[str]) -> None:
        """Commits again what a learner may have committed when it died: whether it had makes no difference."""
        with closing(client_of(self.endpoints, "controller")) as client:
            for name in dead:
                steps = {note["kind"]: note for note in self.read([name]) if note["kind"] in ("intent", "done")}
                if (last := steps.get("intent")) and last["step"] > steps.get("done", {"step": -1})["step"]:
                    client.commit([bytes.fromhex(group) for group in last["ids"]], last["step"])
                    Notes(self.notes[name]).add("done", step=last["step"], ids=last["ids"])

    def resume(self, step: int) -> None:
        with closing(client_of(self.endpoints, "controller")) as client:
            client.resume(step)
        self.resuming.add("resume", step=step)

    def progress(self) -> int:
        """How many acknowledgements are noted."""
        paths = [self.notes[name] for name in self.producers]
        return sum(path.read_bytes().count(b'"acknowledged"') for path in paths if path.exists())

    def wait_for_an_acknowledgement(self) -> None:
        """The worst instant is just after one. Looks without a pause, and not for long."""
        paths = [self.notes[name] for name in self.producers]
        before, until = [path.stat().st_size for path in paths], time.monotonic() + 1.0
        while [path.stat().st_size for path in paths] == before and time.monotonic() < until:
            continue

    def acknowledged(self) -> set[bytes]:
        notes = self.read(self.producers)
        return {gid(int(n["who"][-1]), n["number"]) for n in notes if n["kind"] == "acknowledged"}

    def begun(self) -> set[bytes]:
        return {gid(int(n["who"][-1]), n["number"]) for n in self.read(self.producers) if n["kind"] == "began"}

    def drain(self) -> list[bytes]:
        """Ends producers and learners in order, then takes what is left; checks every byte of it."""
        for names in (self.producers, self.learners):
            for name in names:
                self.processes[name].ask_to_end()
            for name in names:
                self.processes[name].finish(60)
        self.resume(max((note["step"] for note in self.read(self.learners) if "step" in note), default=0))
        left = []
        with closing(client_of(self.endpoints, "controller")) as client:
            while (ready := client.stats().ready) > 0:
                groups = client.claim(min(ready, 50), 10**6, ANY, 0.0).groups
                problems = [problem for group in groups if (problem := problem_of(group))]
                assert groups and not problems, problems or f"{ready} ready groups, but none is served"
                left += [group.id for group in groups]
            self.stats, self.known = client.stats(), client.known(sorted(self.begun()))
        return left

    def close(self) -> None:
        for process in self.processes.values():
            if process.running:
                process.kill()


def used_in_surviving_history(notes: list[dict]) -> tuple[dict[bytes, list[int]], list[str]]:
    """The steps that used each group, and what was served a second time although nothing was resumed between."""
    uses: dict[bytes, list[int]] = {}
    held, twice = set(), []
    for note in sorted(notes, key=lambda note: note["at"]):
        ids = [bytes.fromhex(group) for group in note.get("ids", ())]
        if note["kind"] == "resume":
            uses = {group: kept for group, steps in uses.items() if (kept := [s for s in steps if s <= note["step"]])}
            held = set(uses)
        elif note["kind"] == "claim":
            twice += [f"{group.hex()} to {note['who']} at step {note['step']}" for group in ids if group in held]
            held.update(ids)
        elif note["kind"] == "done":
            for group in ids:
                uses.setdefault(group, []).append(note["step"])
    return uses, twice


def storm(place: Path, kills: int, seed: int) -> None:
    """Runs under `kills` kills and checks all promises at the end."""
    run = Run(place, random.Random(seed))
    try:
        for name in ("service", *run.producers, *run.learners):
            run.start(name)
        for number in range(kills):
            before = run.progress()
            until(lambda before=before: run.progress() > before + 20, "acknowledgements after a kill", 30)
            threading.Event().wait(run.generator.random() * 0.4)  # the random instant, not a wait for anything
            if run.generator.random() < 0.8:
                run.wait_for_an_acknowledgement()
            run.kill(PLAN[number % len(PLAN)])
        left = run.drain()
        judge(run, left)
    finally:
        run.close()


def judge(run: Run, left: list[bytes]) -> None:
    notes = run.read(run.learners) + Notes.read(run.place / "test.notes")
    wrong = [note["problem"] for note in notes if note["kind"] == "wrong"]
    uses, twice = used_in_surviving_history(notes)
    acknowledged, begun = run.acknowledged(), run.begun()
    lost = acknowledged - set(uses) - set(left)
    used_twice = [group.hex() for group, steps in uses.items() if len(steps) > 1]
    used_twice += [group.hex() for group in left if group in uses]
    turns, turns_lost = (sum(map(turns_of, groups)) for groups in (acknowledged, lost))
    print(
        f"replay kills: {run.kills.total()} ({dict(run.kills)}), acknowledged turns: {turns}, "
        f"lost turns: {turns_lost}, duplicates served: {len(used_twice) + len(twice)}"
    )
    assert not lost, f"acknowledged but neither used nor held: {sorted(group.hex() for group in lost)[:5]}"
    assert not used_twice, f"used twice in the surviving history: {used_twice[:5]}"
    assert not twice, f"served while held or used: {twice[:5]}"
    assert not wrong, wrong[:5]
    assert acknowledged == begun, f"{len(begun - acknowledged)} groups were begun and never acknowledged"
    assert set(uses) | set(left) == begun and len(left) == len(set(left))
    assert run.known == begun, f"{len(begun - run.known)} groups are not known to replay"
    stats = run.stats
    assert (stats.open, stats.ready, stats.dropped) == (0, 0, {})
    assert (stats.claimed, stats.trained_total) == (len(left), len(uses))


@pytest.fixture
def place():
    """A folder with a short path: ipc paths end at 107 characters."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        yield Path(folder)


def test_a_few_kills_lose_nothing_and_serve_nothing_twice(place):
    storm(place, kills=len(PLAN), seed=1)


@pytest.mark.prove
def test_many_kills_lose_nothing_and_serve_nothing_twice(place):
    """50 of the service, and more than 100 in all."""
    storm(place, kills=10 * len(PLAN), seed=11)
