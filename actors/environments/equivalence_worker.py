"""Says whether two LaTeX answers are the same mathematics: the process behind actors/environments/equivalence.py.

It is run by its path, so that it loads math-verify and nothing of this project. It says `"ready"`, and then `true` or
`false` to each JSON line [reference, answer]. Its input closes when its parent ends, and that ends it. A check that
computes for longer than the limit is ended by the kernel together with this process, whatever code it is stuck in.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from functools import lru_cache

MEMORY_BYTES = 2 << 30


def main(limit_s: float) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    from math_verify import LatexExtractionConfig, parse, verify

    @lru_cache(1000)  # a reference is compared with many answers, and answers come again
    def expression(latex: str):
        return parse(f"${latex}$", [LatexExtractionConfig()], parsing_timeout=None)  # pyright: ignore[reportArgumentType]  None turns its own timer off

    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        reference, answer = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, limit_s)  # seconds of computing; SIGPROF kills where nothing handles it
        try:
            same = verify(expression(reference), expression(answer), timeout_seconds=None)
        except Exception:  # RecursionError, MemoryError, and whatever sympy meets
            same = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(bool(same)), file=answers)


if __name__ == "__main__":
    main(float(sys.argv[1]))
