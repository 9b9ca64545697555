"""A graded mark of a model, for tasks that nothing else can check (AgentEvolver, arXiv 2511.10395).

not relevant 0 | goal missed 0 to 40 | 41 to 59 never | goal reached 60 to 100        runaway repetition: at most 20
"""

from __future__ import annotations

import json
import re
from typing import Any

BEST, MISSED, REACHED = 100, 40, 60
MARK = re.compile(r"<reward>\s*([0-9]{1,3})\s*</reward>")

ASK = """\
You are to mark how well a task was done.

Task:
{task}

{reference}

What was done:
{text}

Mark it in this order:
1. Has it to do with the task at all? If not, the mark is 0, and you are done.
2. Does it repeat itself, the same three times or more without need? Then the mark is at most 20.
3. Was the goal of the task reached? Then the mark is from 60 to 100, else from 0 to 40. No mark lies between.
4. Within that range take off for errors and for what was not needed.

Give your reasons in a few words. Then end with the mark, a whole number, in this form:
<reward>75</reward>
"""
KNOWN = "One way that solves it is known. Others that solve it count as much:\n{wanted}"
UNKNOWN = "No way that solves it is known."


def prompt(task: str, wanted: Any, text: str) -> str:
    """What the judge reads; `wanted` is a reference solution, None where there is none."""
    shown = wanted if isinstance(wanted, str) else json.dumps(wanted)
    reference = UNKNOWN if wanted is None else KNOWN.format(wanted=shown)
    return ASK.format(task=task, reference=reference, text=text)


def mark(answer: str) -> int | None:
    """The mark that an answer ends with; None where it holds none, or one that no mark may be."""
    found = MARK.findall(answer)
    value = int(found[-1]) if found else -1
    return value if 0 <= value <= MISSED or REACHED <= value <= BEST else None
