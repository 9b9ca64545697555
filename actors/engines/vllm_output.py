"""What vLLM's processes write while an engine starts and afterwards: how far it is, and why it ended.

They write to the outputs that they inherit. So these lead to a file while they are started, which has no name and ends
with them.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile

PREFIX = re.compile(r"^(\([^)]*pid=\d+[^)]*\)\s*)?((ERROR|WARNING|INFO|DEBUG) \d\d-\d\d [\d:]+ \[[^]]*\]\s?)?")
CAUSE = re.compile(r"^([\w.]*(Error|Exception|Interrupt|Exit|Fault)|Fatal Python error)\b")
GENERIC = re.compile(r"root cause|initialization failed|failed to start", re.IGNORECASE)
PHASES = {
    "Starting to load model": "loading weights",
    "Model loading took": "compiling",
    "Available KV cache memory": "capturing graphs",
    "Graph capturing finished": "warming up",
}
"""What the line says that begins so, and what is done after it."""
CURES = {
    "No available memory for the cache blocks": "Raise actors.engine.gpu_memory",
    "is needed, which is larger than the available KV cache memory": (
        "Raise actors.engine.gpu_memory, or lower actors.engine.max_length"
    ),
    "is less than desired GPU memory utilization": (
        "Lower actors.engine.gpu_memory, or end what else uses the GPU: `redraft plan` says what the learner takes"
    ),
    "out of memory": "Lower actors.engine.gpu_memory or actors.engine.max_running",
}
"""What helps where the line that says why it ended has these words: vLLM names settings of its own."""
KEPT_BYTES = 1 << 18
"""Of the end of what was written: more is not looked at."""
LAST = 40
"""Lines for a log."""


class Output:
    """Inside `with`, processes that start write here. It reads what they have written by then, also later."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("ab+")  # open for as long as the engine lives
        self._own: list[int] = []

    def __enter__(self) -> Output:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self._own = [os.dup(1), os.dup(2)]
        os.dup2(self._file.fileno(), 1)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *_) -> None:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        for number, own in zip((1, 2), self._own, strict=True):
            os.dup2(own, number)
            os.close(own)

    def lines(self) -> list[str]:
        """Without what vLLM puts before each, and without empty ones."""
        size = os.fstat(self._file.fileno()).st_size
        text = os.pread(self._file.fileno(), KEPT_BYTES, max(0, size - KEPT_BYTES)).decode(errors="replace")
        found = (PREFIX.sub("", line).rstrip() for line in text.splitlines())
        return [line for line in found if line.strip()]

    @property
    def phase(self) -> str:
        """What is done now, "" before anything is known."""
        known = [phase for line in self.lines() for begins, phase in PHASES.items() if line.startswith(begins)]
        return known[-1] if known else ""

    @property
    def cause(self) -> str:
        """The line that says why it ended, and what helps where that is known."""
        said = (self.end.splitlines() or ["it wrote nothing"])[-1].strip()
        cure = next((cure for words, cure in CURES.items() if words in said), "")
        return f"{said.rstrip('.')}. {cure}" if cure else said

    @property
    def end(self) -> str:
        """The last lines down to that: to the first error that is no mere consequence, where there is one."""
        lines = self.lines()
        errors = (n for n, line in enumerate(lines) if CAUSE.match(line) and not GENERIC.search(line))
        until = next(errors, len(lines) - 1) + 1
        return "\n".join(lines[max(0, until - LAST) : until])
