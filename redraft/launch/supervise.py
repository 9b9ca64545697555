"""`redraft train --restarts N`: resumes a run after faults of processes, machines or the network, not after mistakes.

The run is a child process, since Ray may abort the process that is connected to a cluster which dies. What the child's
end means:

    exit code             what ended it                                             then
    --------------------  --------------------------------------------------------  --------------------------------
    0                     it is done, or a person stopped it                        the same
    2                     a setting, a file or a model that cannot work             the same: again it would not work
    70                    an error that nobody foresaw                              the same
    75, 1, or a signal    a fault; 1 is how Ray ends a process without its cluster  wait, then resume
    any, after SIGINT,    whoever started the supervisor wants it to end            the same; a signal becomes 75, and
    SIGTERM or SIGHUP                                                               after the last two what is no end
    none: SIGINT between  a person wants it to end while it waits to resume         0
    two processes

Faults are counted in a row: a checkpoint between two of them begins the count anew. The waits double. Each restart is a
line of restarts.jsonl in the run folder.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial

from protocols import run_folder
from protocols.errors import BUG, FAULT, MISTAKE, FaultError
from redraft import records
from redraft import run as runs

FIRST_PAUSE_S, LONGEST_PAUSE_S = 2.0, 300.0
"""Before the first restart in a row, and the most: a machine that reboots takes minutes."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Supervisor:
    """Runs `redraft COMMAND FLAGS` until it ends by itself, or by more than `restarts` faults in a row.

    `name` is the run's. Flags say how the first process begins (--again, say); the next ones resume.
    """

    PROGRAM = (sys.executable, "-m", "redraft")

    def __init__(self, command: Sequence[str], flags: Sequence[str], name: str, restarts: int):
        self._command, self._flags, self._name, self._restarts = list(command), list(flags), name, restarts
        self._mine = ""  # the identity of the run that it watches, once that has begun
        self._child: subprocess.Popen | None = None
        self._told, self._signals = threading.Event(), set[int]()
        self._passed = set[int]()  # those of which the child has heard

    def run(self) -> int:
        """Returns the exit code. Signals go on to the child, whose process group is its own. Raises SettingError where
        the name has become another run's meanwhile."""
        for number in SIGNALS:
            signal.signal(number, self._pass_on)
        before, faults = runs.identity(self._name), 0
        while True:
            kept, summary = self._kept(), self._summary()
            code = self._run_once(before)
            if self._told.is_set() or code in (0, MISTAKE, BUG):
                known = code in (0, MISTAKE, BUG) or (code > 0 and self._signals == {signal.SIGINT})
                return code if known else FAULT
            self._look(before)
            if self._summary() != summary and self._summary().get("state") == "done":
                return 0  # only its process did not end as it should
            faults = 1 if self._kept() > kept else faults + 1
            why = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
            if faults > self._restarts:
                raise FaultError(f"{self._name}: {faults} faults in a row without a new checkpoint; the last: {why}")
            self._pause(faults, why)
            if self._told.is_set():
                return self._ended()
            self._look(before)

    def _run_once(self, before: str) -> int:
        """Runs the command; `before` is the identity of the run that had the name when the first process began."""
        begun = runs.identity(self._name) not in ("", before)
        flags = ["--resume"] if begun else self._flags
        arguments = [*self.PROGRAM, *self._command, *flags]
        if self._told.is_set():
            return self._ended()
        self._passed.clear()
        self._child = subprocess.Popen(arguments, process_group=0, preexec_fn=partial(_end_with, os.getpid()))
        for number in tuple(self._signals):  # that came while there was nobody to tell
            if number not in self._passed:
                self._child.send_signal(number)
        return self._child.wait()

    def _look(self, before: str) -> None:
        """Learns which run is its own, and from then on whether its name is still that run's."""
        if self._mine:
            run_folder.check(runs.RUNS / self._name, self._mine)
        elif (found := runs.identity(self._name)) not in ("", before) or "--again" not in self._flags:
            self._mine = found

    def _pause(self, faults: int, why: str) -> None:
        """Says what happened and waits; a signal ends the wait."""
        pause_s = min(FIRST_PAUSE_S * 2 ** (faults - 1), LONGEST_PAUSE_S)
        checkpoint = runs.newest_step(runs.RUNS / self._name)
        said = f"a fault ({why}); the run is resumed in {pause_s:g} s, restart {faults} of {self._restarts} in a row"
        print(f"redraft: {self._name}: {said}", file=sys.stderr, flush=True)
        if runs.begun(self._name):
            line = {"at": time.time(), "why": why, "checkpoint": checkpoint, "pause_s": pause_s}
            try:
                runs.find(self._name).append("restarts.jsonl", line)
            except OSError as error:  # a full disk, which may be the fault
                print(f"redraft: {self._name}: restarts.jsonl is not written: {error}", file=sys.stderr, flush=True)
        self._told.wait(pause_s)

    def _ended(self) -> int:
        """The exit code of who was told to end while nothing ran: a person's Ctrl-C stops a run."""
        if self._signals != {signal.SIGINT}:
            return FAULT
        print(f"redraft: {self._name}: stopped; go on with --resume", file=sys.stderr, flush=True)
        return 0

    def _kept(self) -> int:
        """The step of the newest checkpoint; -1 before the first."""
        newest = runs.newest_step(runs.RUNS / self._name)
        return -1 if newest is None else newest

    def _summary(self) -> dict:
        """How the run has ended last; empty while it goes on."""
        return records.json_object(runs.RUNS / self._name / "summary.json")

    def _pass_on(self, number: int, frame: object) -> None:
        self._signals.add(number)
        self._told.set()
        if self._child is not None and self._child.poll() is None:
            self._passed.add(number)
            self._child.send_signal(number)


def _end_with(supervisor: int) -> None:
    """The kernel sends this process, a child of the supervisor, SIGTERM when that ends, however it ends."""
    ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGTERM)
    if os.getppid() != supervisor:  # it ended before it could be watched
        os.kill(os.getpid(), signal.SIGTERM)
