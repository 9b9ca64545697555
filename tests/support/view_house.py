"""What tests of the viewer share: a run folder with transcripts, written by the learner's own code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from learner.config import RecordSettings
from learner.transcripts import transcript
from learner.transcripts.store import TranscriptStore, write_evaluation
from protocols.turns import LOGPROBS, TOKENS, Role, Turn
from protocols.weights import version_of
from redraft.models.make import build_tokenizer
from redraft.run import Run, find

TOKENIZER = build_tokenizer("bytes", 4096)


def ids(text: str) -> np.ndarray:
    return np.array(TOKENIZER.encode(text), TOKENS)


def said(number: int, text: str, *, parent: int | None = None, question: str = "7 1 2 8 make 12?", **fields) -> Turn:
    """A turn that says `text`; it follows the one before it, unless `parent` says otherwise."""
    parent = number - 1 if parent is None else parent
    fields = {"after": parent, "role": Role.ATTEMPT, "versions": ((0, 3),)} | fields
    response = np.concatenate([ids(text), [TOKENIZER.eos_token_id]]).astype(TOKENS)
    logprobs = np.full(len(response), -0.5, LOGPROBS)
    return Turn(bytes(16), 1, number, parent, ids(question), response, logprobs, **fields)


def dialogue(marks: str, **fields) -> list[Turn]:
    """A path of answers, right (r) or wrong (w)."""
    return [said(n, f"answer {n}", extra={"success": one == "r"}, **fields) for n, one in enumerate(marks)]


def kept(task: str, turns: Sequence[Turn], advantage: float = 0.5) -> tuple[dict, list[dict]]:
    """A group as the learner samples it."""
    weights = [np.linspace(0.1, 3, len(turn.response), dtype=np.float32) for turn in turns]
    told = [transcript.told(turn, advantage, weight) for turn, weight in zip(turns, weights, strict=True)]
    return {"group": "ab" * 16, "task": task, "picked": "stride"} | transcript.head(turns), told


class RunFolder:
    """A run with a tokenizer; each incarnation of it has a TranscriptStore of its own."""

    def __init__(self, folder: Path, tokenizer: bool = True):
        self.folder = folder
        (folder / "model").mkdir(parents=True)
        if tokenizer:
            TOKENIZER.backend_tokenizer.save(str(folder / "model" / "tokenizer.json"))
        (folder / "run.json").write_text(json.dumps({"id": "0" * 32, "model": str(folder / "model")}))
        self._stores: dict[int, TranscriptStore] = {}

    @property
    def run(self) -> Run:
        return find(str(self.folder))

    def step(self, step: int, *groups: tuple[dict, list[dict]], incarnation: int = 0) -> None:
        store = self._stores.setdefault(incarnation, TranscriptStore(self.folder, RecordSettings()))
        store.write(step, version_of(incarnation, step), groups)

    def evaluation(self, label: str, step: int, tasks: Sequence[str], marks: str) -> None:
        facts = {"label": label, "step": step, "version": step}
        write_evaluation(self.folder, facts, [{"id": task} for task in tasks], [dialogue(marks)] * len(tasks))
