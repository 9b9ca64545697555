"""Asks a model which steps of an episode were good (ADCA-GRPO, arXiv 2511.10395): one call for each episode.

An answer that does not say so of every step, or none, leaves the steps without flags: credit attributing then takes
them for what the episode came to. The steps of an episode that is asked about again are not asked for again.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

from actors.door import EpisodeFailure
from actors.engines.teacher import Teacher
from actors.episode_config import StepJudgeSettings
from actors.messages import message
from protocols import metrics

Step = tuple[str, str]
"""What was done, and what was said to it."""
LONGEST = 2000  # characters that are shown of an action, and of what was said to it
KEPT = 4096  # episodes whose flags are remembered
VERDICT = re.compile(r"^\W*step\s+(\d+)\s+judg[e]?ment\W+(good|bad)\b", re.IGNORECASE | re.MULTILINE)
FORM = "Step 1 Judgment: GOOD"

ASK = """\
You are to say of each step of an agent's attempt at a task whether it was a good one.

The overall score of the attempt is {score:+.2f}: above 0 it succeeded, otherwise it failed.
{rule}
Look at each step by itself. Attempts in which all steps deserve the same judgement are rare: do not give all of them \
one label unless every single step earns it.

Task:
{task}

Steps:
{steps}

First think about each step in a few words. Then end with one line a step, {count} in all, in this form:
{form}
"""
SUCCEEDED = """\
GOOD is a step that brought the success nearer or made it possible. BAD is a step that was beside the point, done \
already, undone later, or harmful: success does not excuse it."""
FAILED = """\
GOOD is only a step that truly shortened the way to a solution. Everything else is BAD, and so is ending with a wrong \
result."""


def prompt_of(task: str, steps: Sequence[Step], worth: float) -> str:
    """What the judge reads; `worth` is the return of the episode, of which 0.5 counts as nothing."""
    score = 2 * (worth - 0.5)
    shown = [
        f"Step {number}\nAction: {action[:LONGEST]}\nObservation: {said[:LONGEST]}"
        for number, (action, said) in enumerate(steps, 1)
    ]
    rule = SUCCEEDED if score > 0 else FAILED
    told = {"score": score, "rule": rule, "task": task, "steps": "\n\n".join(shown), "count": len(steps), "form": FORM}
    return ASK.format(**told)


def flags_of(answer: str, steps: int) -> list[bool] | None:
    """What an answer says of so many steps, of each the last time; None where it leaves one out or knows more."""
    found = {int(number): verdict.lower() == "good" for number, verdict in VERDICT.findall(answer)}
    return [found[number] for number in sorted(found)] if sorted(found) == list(range(1, steps + 1)) else None


class StepJudge:
    """Raises SettingError where there is no key."""

    def __init__(self, settings: StepJudgeSettings):
        self._teacher = Teacher(settings)
        self._known: OrderedDict[str, list[bool]] = OrderedDict()

    async def __call__(self, task: str, steps: Sequence[Step], worth: float) -> list[bool] | None:
        """Whether each step was good; None where it does not say. Raises SettingError when no answer ever will come,
        TeacherBudget."""
        prompt = prompt_of(task, steps, worth)
        if (known := self._known.get(prompt)) is not None:
            return known
        try:
            flags = flags_of(await self._teacher.write([message("user", prompt)]), len(steps))
        except EpisodeFailure:
            metrics.STEP_JUDGEMENTS.labels(result="failed").inc()
            return None
        metrics.STEP_JUDGEMENTS.labels(result="unparsed" if flags is None else "judged").inc()
        if flags is not None:
            self._known[prompt] = flags
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
        return flags

    async def close(self) -> None:
        """Closes the connections; what is under way fails."""
        await self._teacher.close()
