"""The processes that the chaos tests of replay start and kill: `replay_process.py ROLE SPEC`, SPEC being JSON.

    serve    a replay service                       verify   what services on some folders hold
    produce  streams groups, notes what replay acknowledged
    learn    claims, checks, commits and checkpoints, notes what it did

Notes are lines appended with one `os.write` each: they are in the page cache when it returns, so they outlive kill -9.
Each process ends when its standard input ends, so none outlives its test.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import sys
import threading
from pathlib import Path

from protocols.errors import RedraftError
from replay.config import Endpoints, ReplaySettings
from replay.server.service import Service
from support.replay_house import ANY, Notes, add, client_of, endpoints_in, gid, problem_of, producer_of, rows_of

WAIT_S = 60.0  # no wait of a producer or learner is longer
PACE_S = 0.003  # that a producer rests after some groups, so that learners keep up with it


def end_of_input() -> threading.Event:
    """Is set when the test closes our standard input, or dies."""
    ended = threading.Event()
    threading.Thread(target=lambda: (os.read(sys.stdin.fileno(), 1), ended.set()), daemon=True).start()
    return ended


def serve(spec: dict) -> None:
    service = Service(spec["folder"], Endpoints(*spec["endpoints"]), ReplaySettings(**spec["settings"]), "run")
    ended = end_of_input()
    service.start()
    print("ready", flush=True)
    while service.alive and not ended.wait(0.1):
        pass
    service.stop()


def produce(spec: dict) -> None:
    asyncio.run(_produce(spec, Notes(spec["notes"]), end_of_input()))


async def _produce(spec: dict, notes: Notes, ended: threading.Event) -> None:
    """Plays first what an earlier one began and had no acknowledgement for, then new groups, until input ends."""
    earlier = Notes.read(spec["notes"])
    began = [note["number"] for note in earlier if note["kind"] == "began"]
    acknowledged = {note["number"] for note in earlier if note["kind"] == "acknowledged"}
    again = sorted(set(began) - acknowledged)
    producer, shard = producer_of(spec["name"]), spec["endpoints"][0]
    number, waiting = max(began, default=-1) + 1, set()
    generator = random.Random(spec["seed"])
    print("ready", flush=True)
    while again or not ended.is_set():
        some = [again.pop(0) for _ in range(min(4, len(again)))]
        while len(some) < 4 and not ended.is_set():
            notes.add("began", number=number)
            some.append(number)
            number += 1
        for item in _interleaved([rows_of(gid(spec["owner"], each), spec["lease"]) for each in some], generator):
            await producer.room(shard, WAIT_S)
            done = add(producer, item, shard)
            if done is not None:
                waiting.add(future := asyncio.wrap_future(done))
                future.add_done_callback(waiting.discard)
                done.add_done_callback(_noting(notes, int.from_bytes(item.group[8:], "big"), item.lease))
        await asyncio.sleep(PACE_S)
        while len(waiting) > spec["ahead"]:
            await asyncio.wait(waiting, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
    producer.close(WAIT_S)


def _noting(notes: Notes, number: int, lease: int):
    return lambda done: notes.add("acknowledged", number=number, lease=lease) if done.exception() is None else None


def _interleaved(plays: list[list], generator: random.Random):
    """The rows of several plays, each in its order."""
    while plays := [rows for rows in plays if rows]:
        yield generator.choice(plays).pop(0)


class Steps:
    """The last step that each learner is done with, for all to see: a checkpoint covers no step under way."""

    def __init__(self, folder: str, name: str):
        self._folder = Path(folder)
        self._folder.mkdir(exist_ok=True)
        self._mine = os.open(self._folder / name, os.O_RDWR | os.O_CREAT, 0o600)

    def done(self, step: int) -> None:
        os.pwrite(self._mine, step.to_bytes(8, "big"), 0)

    def of_all(self) -> list[int]:
        return [int.from_bytes(path.read_bytes(), "big") for path in self._folder.iterdir()]


def learn(spec: dict) -> None:
    """Claims, checks and commits, step after step; now and then checkpoints what all learners are done with."""
    notes, ended, steps = Notes(spec["notes"]), end_of_input(), Steps(spec["steps"], spec["name"])
    client = client_of(Endpoints(*spec["endpoints"]), spec["name"], WAIT_S)
    generator, step = random.Random(spec["seed"]), spec["step"]
    print("ready", flush=True)
    while not ended.is_set():
        groups = client.claim(generator.randint(1, 48), step, ANY, 0.2).groups
        if not groups:
            continue
        ids = [group.id.hex() for group in groups]
        notes.add("claim", step=step, ids=ids)
        for problem in filter(None, map(problem_of, groups)):
            notes.add("wrong", problem=problem)
        notes.add("intent", step=step, ids=ids)
        try:
            client.commit([group.id for group in groups], step)
            notes.add("done", step=step, ids=ids)
        except RedraftError as error:
            notes.add("wrong", problem=str(error))
        steps.done(step)
        if generator.random() < 0.2 and len(steps.of_all()) == spec["stride"]:
            notes.add("checkpoint", step=(covered := min(steps.of_all())))
            client.checkpoint(covered)
        behind = max(steps.of_all()) - step
        step += spec["stride"] * (1 + max(behind, 0) // spec["stride"])
    client.close()


def verify(spec: dict) -> None:
    """Notes of each folder which of its groups are closed, which were not used and are served, and what is wrong."""
    notes = Notes(spec["notes"])
    for folder in map(Path, spec["folders"]):
        notes.add("opening", folder=str(folder))
        endpoints = endpoints_in(folder)
        with Service(folder / "spool", endpoints, ReplaySettings(), "run"):
            client = client_of(endpoints, "verifier")
            client.resume(ANY)  # gives back claims and undoes no use
            known = client.known([bytes.fromhex(group) for group in spec["groups"]])
            served, wrong = [], []
            while groups := client.claim(1, 0, ANY, 0.0).groups:
                served += [group.id.hex() for group in groups]
                wrong += filter(None, map(problem_of, groups))
            client.close()
            notes.add("held", folder=str(folder), known=[group.hex() for group in known], served=served, wrong=wrong)


if __name__ == "__main__":
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s")
    {"serve": serve, "produce": produce, "learn": learn, "verify": verify}[sys.argv[1]](json.loads(sys.argv[2]))
