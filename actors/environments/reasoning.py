"""`reasoning-gym`: puzzles that the package of that name makes and scores (arXiv 2505.24760), as many as are wanted.

    environment: {name: reasoning-gym, options: {dataset: chain_sum, config: {min_terms: 3}}}

The package is an extra, and runs in processes of its own (reasoning_worker.py): it scores some answers by sympy,
which may compute for hours, and draws some puzzles from random numbers that a process has in common.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from actors import door
from actors.config import DataSettings
from actors.door import EpisodeFailure
from actors.environments import extras
from actors.environments.base import OneAnswer, Verdict
from actors.environments.files import held_out
from actors.environments.killable import Killable, Lost
from protocols import metrics
from protocols.errors import SettingError

log = logging.getLogger(__name__)
NAME = "reasoning-gym"
TRAIN, TEST = 1000, 200  # tasks, where data.train_size and data.test_size do not say
AT_ONCE, MAKING_S = 10, 60.0  # puzzles that are asked for at once: the slowest kinds take a second each
SCORING_S, QUEUE_S, PROCESSES = 12.0, 15.0, 2  # a process that is new makes its puzzles first
USED_UP = 200  # puzzles in a row that were there before: a kind that has no more of them
ASK = "\nGive the final answer between <answer> and </answer>."
ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class ReasoningGym(OneAnswer):
    """The reward is the package's score of what stands in the last <answer>, often with a part for what is nearly
    right; 1 is a success.

    `dataset` is the package's name of a kind of puzzle, `config` its settings, `seed` another series of puzzles, `ask`
    what follows a question. A question is for testing by its own text: no split holds one of the other's.
    """

    longest_s = QUEUE_S + SCORING_S

    def __init__(
        self, feedback: str = "binary", dataset: str = "", config: dict | None = None, seed: int = 0, ask: str = ASK
    ):
        super().__init__(feedback)
        self._kind, self._ask = _kind(dataset, config, seed), ask
        next(_puzzles(self._kind))

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> list[dict]:
        return cls.tasks_with({}, data, split)

    @classmethod
    def tasks_with(cls, options: Mapping[str, Any], data: DataSettings, split: str) -> list[dict]:
        kind = _kind(options.get("dataset", ""), options.get("config"), options.get("seed", 0))
        wanted = (data.train_size or TRAIN) if split == "train" else (data.test_size or TEST)
        found: list[dict] = []
        for number, question, answer in _puzzles(kind):
            if held_out(question) == (split == "test"):
                identity = f"{NAME}/{kind[0]}/{number}"
                found.append({"id": identity, "number": number, "question": question, "answer": answer})
            if len(found) == wanted:
                break
        return found

    def question(self, task: dict) -> str:
        return task["question"] + self._ask

    def judge(self, task: dict, text: str) -> Verdict:
        if not (said := ANSWER.findall(text)):
            return Verdict(0.0)
        answer = said[-1].strip()
        try:
            about = {"number": task["number"], "question": task["question"], "answer": answer}
            found = _workers().ask("a score", {"of": self._kind, "score": about}, SCORING_S)
        except Lost as lost:
            return self._unscored(answer, f"gave up: it {lost}")
        if "raised" in found:  # the package scores its own answers; what it raises at is one that it cannot read
            return self._unscored(answer, f"raised {found['raised']}")
        if isinstance(found["value"], str):
            raise EpisodeFailure("returned", found["value"])
        return Verdict(door.judged(NAME, found["value"]).reward, answer)

    def reference(self, task: dict) -> str | None:
        return None if task["answer"] is None else f"<answer>{task['answer']}</answer>"

    def _unscored(self, answer: str, why: str) -> Verdict:
        metrics.ENVIRONMENT_ERRORS.labels(kind="unchecked").inc()
        if self._kind[0] not in _said:
            _said.add(self._kind[0])
            log.warning("%s %s at %r, which counts as wrong; logged once, and counted", self._kind[0], why, answer[:80])
        return Verdict(0.0, answer)


_said: set[str] = set()  # kinds of puzzles whose scoring has failed


def _kind(dataset: str, config: dict | None, seed: int) -> tuple[str, str, int]:
    extras.need(NAME, "reasoning_gym")
    if not isinstance(dataset, str) or not dataset:
        raise SettingError("environment.options.dataset", "it names no kind of puzzle", "Such as chain_sum")
    return dataset, json.dumps(config or {}, sort_keys=True), seed


def _puzzles(kind: tuple[str, str, int]) -> Iterator[tuple[int, str, str | None]]:
    """Number, question and answer of each; none twice. Raises SettingError where there cannot be any."""
    seen: set[str] = set()
    first, again = 0, 0
    while puzzles := _made(*kind, first):
        for number, (question, answer) in enumerate(puzzles, first):
            again = again + 1 if question in seen else 0
            if again == 0:
                seen.add(question)
                yield number, question, answer
        if again >= USED_UP:
            return
        first += AT_ONCE


@lru_cache(8)
def _made(dataset: str, config: str, seed: int, first: int) -> list[tuple[str, str | None]]:
    kind, cure = (dataset, config, seed), "See the package's list of datasets, and their configs"
    try:
        found = _workers().ask("puzzles", {"of": kind, "make": [first, first + AT_ONCE]}, MAKING_S)
    except Lost as lost:
        problem = f"{dataset} of reasoning-gym made no {AT_ONCE} puzzles in {MAKING_S:g} s: it {lost}"
        raise SettingError("environment.options.config", problem, "Have it make easier ones") from None
    except RuntimeError as error:
        raise SettingError("environment.name", f"reasoning-gym cannot be loaded: {error}", cure) from None
    if "raised" in found:
        raise SettingError("environment.options.dataset", f"{dataset!r} cannot be made: {found['raised']}", cure)
    return [tuple(one) for one in found["value"]]


@lru_cache(None)
def _workers() -> Killable:
    """One for all environments of this process."""
    program = Path(__file__).with_name("reasoning_worker.py")
    orphan_s = MAKING_S * (os.cpu_count() or 1)
    return Killable(program, [str(orphan_s)], processes=PROCESSES, queue_s=QUEUE_S, first={})
