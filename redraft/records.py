"""What a run's folder says, also while it is written: files and lines that are missing or half written are left out."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from protocols.evaluation import EvaluationLine
from protocols.reports import Finding, RunEnded, StepLine

log = logging.getLogger("redraft.records")
_told: dict[Path, int] = {}  # lines that were told to be torn, by file
ALIKE = (
    "actors.",
    "evaluation.n=",
    "evaluation.greedy=",
    "learner.",
    "metrics.",
    "start_s=",
)
"""Overrides of `redraft eval` after which figures are of the same play as the run's own."""
GOES_ON = "running or interrupted"  # the state of a run that has not ended


def text(path: Path) -> str:
    """The file's text, "" where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def mapping(yaml_text: str) -> dict:
    """The mapping in this YAML, {} where it holds none."""
    try:
        found = yaml.safe_load(yaml_text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def json_object(path: Path) -> dict:
    found = _decoded([text(path)])
    return found[0] if found else {}


def lines(path: Path) -> list[dict]:
    """The maps of a file of JSON lines. Lines that are none are left out and, but for a last one that is being written,
    told in the log, once for as many as there are."""
    written = text(path).split("\n")
    found = _decoded(written)
    whole = len(found) - len(_decoded(written[-1:]))
    torn = sum(bool(line.strip()) for line in written[:-1]) - whole
    if torn and _told.get(path) != torn:
        _told[path] = torn
        log.warning("%s: %d lines are torn, and left out; said once", path, torn)
    return found


def _decoded(texts: Sequence[str]) -> list[dict]:
    found = []
    for one in texts:
        try:
            value = json.loads(one)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def step_lines(run_dir: Path) -> list[StepLine]:
    """metrics.jsonl as it was written, with the steps that a resumed run played again."""
    return [StepLine.from_json(line) for line in lines(run_dir / "metrics.jsonl")]


def steps(written: Sequence[StepLine]) -> list[StepLine]:
    """One line a step, rising. A resumed run plays steps again: what came after its checkpoint is gone."""
    kept: list[StepLine] = []
    for line in written:
        while kept and kept[-1].report.step >= line.report.step:
            kept.pop()
        kept.append(line)
    return kept


def findings(run_dir: Path) -> list[Finding]:
    """findings.jsonl: causes why the run could not learn, as they began; those that have ended have `until_s`."""
    told = [Finding(**line) for line in lines(run_dir / "findings.jsonl")]
    return list({(finding.cause, finding.since_s): finding for finding in told}.values())


def ended(run_dir: Path) -> RunEnded | None:
    """summary.json: how the run ended; None while it goes on, and where it was interrupted."""
    found = json_object(run_dir / "summary.json")
    return RunEnded.from_json(found) if found else None


@dataclass(frozen=True, slots=True)
class Evaluations:
    """evaluations.jsonl, in the order in which it was written."""

    lines: tuple[EvaluationLine, ...]

    @property
    def alike(self) -> list[EvaluationLine]:
        """Those that measure what the run does: `redraft eval` may have been told of another environment, say."""
        return [line for line in self.lines if all(one.startswith(ALIKE) for one in line.overrides)]

    @property
    def first(self) -> EvaluationLine | None:
        """The evaluation before any training."""
        return next((line for line in self.alike if line.step == 0), None)

    @property
    def last(self) -> EvaluationLine | None:
        """The newest one after training, else the newest of the latest checkpoint that was evaluated; None before
        any."""
        trained = [line for line in self.alike if line.step > 0]
        after = [line for line in trained if line.label == "after"]
        return after[-1] if after else max(reversed(trained), key=lambda line: line.step, default=None)

    def of_step(self, step: int) -> EvaluationLine | None:
        """The newest of the checkpoint after so many steps."""
        return next((line for line in reversed(self.alike) if line.step == step), None)

    @property
    def own(self) -> list[EvaluationLine]:
        """Those of the run itself, one a step, rising. A resumed run plays steps again: what came after its checkpoint
        is gone."""
        kept: list[EvaluationLine] = []
        for line in self.lines:
            if line.label == "eval":
                continue
            while kept and kept[-1].step >= line.step:
                kept.pop()
            kept.append(line)
        return kept


def evaluations(run_dir: Path) -> Evaluations:
    return Evaluations(tuple(EvaluationLine.from_json(line) for line in lines(run_dir / "evaluations.jsonl")))


def recipe(run_dir: Path) -> dict[str, Any]:
    """recipe.yaml as it stands, whatever version wrote it; see `at`."""
    return mapping(text(run_dir / "recipe.yaml"))


def at(recipe: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key, None where there is none."""
    value: Any = recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def played(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What its environments are, each with its data: one, or several; none where the recipe cannot be read."""
    several = recipe.get("environments")
    if isinstance(several, list) and several:
        return [one for one in several if isinstance(one, dict)]
    one = recipe.get("environment")
    return [one | {"data": recipe.get("data")}] if isinstance(one, dict) else []


def feedback(recipe: Mapping[str, Any]) -> str:
    """What its environments say to an answer, "" where that is not known."""
    return ", ".join(dict.fromkeys(str(one["feedback"]) for one in played(recipe) if one.get("feedback")))


def adapter(recipe: Mapping[str, Any], trained: int | None) -> str:
    """What was trained in place of all weights, of so many parameters, in a few words; "" where all were."""
    rank = at(recipe, "model.lora.rank")
    size = f", {trained:,} parameters" if trained else ""
    return f"LoRA of rank {rank}{size}" if rank else ""


def duration(seconds: float) -> str:
    """ "4 min 3 s" or "1 h 2 min"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
