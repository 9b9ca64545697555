"""What a command does, told as each phase of it begins: a line with the time since the command was started."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

PHASES = {
    "starting": "starting the parts: replay keeps what is played, the learner trains on it, actors play",
    "evaluating": "evaluation: the model as it is plays tasks, and nothing is trained",
    "training": "training: actors play tasks, the learner trains on what they played, its new weights go to the actors",
    "restarting": "a rank of the learner has died: all ranks start anew from the newest checkpoint, actors go on",
    "ending": "evaluation: the same test tasks, with what was learned",
    "stopping": "stopping: the step that is under way is finished and a checkpoint written",
}
"""What the states of a run are for."""


class Story:
    """`tell` prints a line. `phase` does so for a state of a run, when it is another one than before."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic):
        self._console, self._clock, self._began, self._state = console, clock, clock(), ""

    def tell(self, text: str) -> None:
        minutes, seconds = divmod(int(self._clock() - self._began), 60)
        self._console.print(Text.assemble((f"{minutes:2}:{seconds:02}  ", "dim"), text), soft_wrap=True)

    def phase(self, state: str) -> None:
        if state != self._state and state in PHASES:
            self.tell(PHASES[state])
        self._state = state
