"""What the chaos tests of replay share: payloads that can be checked byte by byte, services in their own process."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np

from protocols.turns import Close, Group, Lease, Role, Turn
from replay.client import Client, Producer
from replay.config import Endpoints
from replay.keys import ClientKeys
from support import processes
from support.waiting import deadline_s

ANY = 2**30  # a staleness that nothing exceeds
HERE = Path(__file__).resolve().parent
PROCESS = HERE / "replay_process.py"
LARGE = 4000  # tokens of a turn that needs pages of its own in the spool


def gid(owner: int, number: int) -> bytes:
    """Ids of different owners share no prefix: a flipped byte never leads from one to another."""
    return hashlib.blake2b(b"owner %d" % owner, digest_size=8).digest() + number.to_bytes(8, "big")


def number_of(group: bytes) -> int:
    return int.from_bytes(group[8:], "big")


def turns_of(group: bytes) -> int:
    return 1 + hashlib.blake2b(group, digest_size=1).digest()[0] % 6


def turn_of(group: bytes, number: int, lease: int = 0) -> Turn:
    """The payload follows from group and turn alone: whoever gets it can tell whether any byte is wrong."""
    seed = group + number.to_bytes(4, "big")
    draw = int.from_bytes(hashlib.blake2b(seed, digest_size=8).digest(), "big")
    size = LARGE if draw % 61 == 0 else 1 + draw % 251
    noise = np.frombuffer(hashlib.shake_128(seed).digest(8 * size), "<u4")
    response = (noise[:size] % 150_000).astype(np.int32)
    logprobs = -(noise[size:] / np.float32(2**28)).astype(np.float32)
    logprobs[0] = np.nan
    return Turn(
        group=group,
        lease=lease,
        turn=number,
        parent=number - 1,
        prompt=response[: draw % 17],
        response=response,
        logprobs=logprobs,
        versions=((0, 0),),
        role=Role.ATTEMPT,
        index=number,
        after=number - 1,
        reward=float(draw % 1000),
        extra={"number": number, "draw": draw % 2**63},
    )


def rows_of(group: bytes, lease: int = 0) -> list[Turn | Close]:
    count = turns_of(group)
    return [*(turn_of(group, number, lease) for number in range(count)), Close(group, lease, count)]


def problem_of(group: Group) -> str:
    """What differs between a served group and what was played: "" when every byte is right."""
    if len(group.turns) != turns_of(group.id):
        return f"group {group.id.hex()} has {len(group.turns)} turns, not {turns_of(group.id)}"
    for number, got in enumerate(group.turns):
        sent = turn_of(group.id, number, got.lease)
        for field in fields(Turn):
            if _bytes(getattr(got, field.name)) != _bytes(getattr(sent, field.name)):
                return f"group {group.id.hex()} turn {number}: {field.name} differs"
    return ""


def _bytes(value):
    return (value.dtype, value.tobytes()) if isinstance(value, np.ndarray) else value


# -- the replay API, in one place


def endpoints_in(folder: Path) -> Endpoints:
    return Endpoints(f"ipc://{folder}/s/i", f"ipc://{folder}/s/s")


def producer_of(name: str, keys: ClientKeys | None = None) -> Producer:
    return Producer(name, keys)


def client_of(endpoints: Endpoints, name: str, timeout_s: float = 30.0, keys: ClientKeys | None = None) -> Client:
    return Client([endpoints], name, keys, deadline_s(timeout_s))


def add(producer: Producer, item: Turn | Close, shard: str):
    """Adds a row; the future of a close row."""
    lease = Lease(item.group, item.lease, number_of(item.group), {}, 0, shard)
    return producer.add(item, lease, 1.0 if isinstance(item, Close) else 0.0)


def play(producer: Producer, group: bytes, shard: str, lease: int = 0):
    """Adds a whole group; the future of its close row."""
    for item in rows_of(group, lease):
        done = add(producer, item, shard)
    return done


# -- processes


class Notes:
    """An append-only file of JSON lines. A line that a kill cut short is left out."""

    def __init__(self, path: str | Path):
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        end = os.lseek(self._file, 0, os.SEEK_END)
        if end and os.pread(self._file, 1, end - 1) != b"\n":
            os.write(self._file, b"\n")

    def add(self, kind: str, **fields) -> None:
        line = json.dumps({"kind": kind, "at": time.monotonic(), **fields}).encode() + b"\n"
        assert os.write(self._file, line) == len(line)

    @staticmethod
    def read(path: str | Path) -> list[dict]:
        found = []
        for line in Path(path).read_bytes().split(b"\n") if Path(path).exists() else []:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found


class Process:
    """A role of `replay_process.py` in its own process; it ends by itself when this one does."""

    def __init__(self, role: str, spec: dict, log: Path, environment: dict | None = None):
        self.role, self.log = role, log
        self._log = log.open("ab")
        self.popen = processes.start(
            [sys.executable, str(PROCESS), role, json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))} | (environment or {}),
        )

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    def ready(self) -> Process:
        """Returns when it says that it is ready."""
        said = self.popen.stdout.readline()
        assert said == b"ready\n", f"{self.role} did not start:\n{self.said()}"
        return self

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        self.popen.send_signal(signal.SIGKILL)
        self._end()

    def ask_to_end(self) -> None:
        """Closes its standard input: a service stops, producers and learners finish what they began."""
        self.popen.stdin.close()

    def finish(self, seconds: float) -> None:
        """Waits for an end asked for before; fails with what the process said unless it ended well."""
        try:
            code = self.popen.wait(deadline_s(seconds))
        except subprocess.TimeoutExpired as late:
            self.kill()
            raise AssertionError(f"{self.role} did not end within {late.timeout:.0f} s:\n{self.said()}") from None
        self._end()
        assert code == 0, f"{self.role} ended with {code}:\n{self.said()}"

    def _end(self) -> None:
        self.popen.wait()
        self.popen.stdout.close()
        self.popen.stdin.close()
        self._log.close()


def serve(folder: Path, endpoints: Endpoints, environment: dict | None = None, **settings) -> Process:
    """A service on `folder`/spool that is ready; its log is `folder`/service.log."""
    spec = {"folder": str(folder / "spool"), "endpoints": [endpoints.ingest, endpoints.serve], "settings": settings}
    process = Process("serve", spec, folder / "service.log", environment)
    try:
        return process.ready()
    except BaseException:
        process.kill()
        raise


def held_in(place: Path, folders: list[Path], groups: set[bytes]) -> dict[Path, dict | None]:
    """What a service on each folder has, None where it cannot start: LMDB may even crash on a torn file."""
    notes, found = place / "verify.notes", {}
    while left := [folder for folder in folders if folder not in found]:
        spec = {"folders": [str(f) for f in left], "groups": [g.hex() for g in groups], "notes": str(notes)}
        process = Process("verify", spec, place / "verify.log")
        process.popen.wait(deadline_s(60))
        process.kill()
        read = Notes.read(notes)
        found |= {Path(note["folder"]): note for note in read if note["kind"] == "held"}
        opened = [Path(note["folder"]) for note in read if note["kind"] == "opening"]
        found |= {folder: None for folder in opened if folder not in found}
    return found
