"""What a run's folder says, also while it is written: files and lines that are missing or half written are left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml


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
    return _decoded(text(path).splitlines())


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


def steps(run_dir: Path) -> list[dict]:
    """metrics.jsonl, one line a step, rising. A resumed run plays steps again: what came after its checkpoint is
    gone."""
    kept: list[dict] = []
    for line in lines(run_dir / "metrics.jsonl"):
        while kept and kept[-1]["step"] >= line["step"]:
            kept.pop()
        kept.append(line)
    return kept


def findings(run_dir: Path) -> list[dict]:
    """findings.jsonl: causes why the run could not learn, as they began; those that have ended have `until_s`."""
    found: dict[tuple, dict] = {}
    for line in lines(run_dir / "findings.jsonl"):
        found[line["cause"], line["since_s"]] = line
    return list(found.values())


def first(evaluations: Sequence[dict]) -> dict | None:
    """The evaluation before any training."""
    return next((found for found in evaluations if found["step"] == 0), None)


def last(evaluations: Sequence[dict]) -> dict | None:
    """The newest one after training, else the newest of the latest checkpoint that was evaluated; None before any."""
    trained = [found for found in evaluations if found["step"] > 0]
    after = [found for found in trained if found["label"] == "after"]
    return after[-1] if after else max(reversed(trained), key=lambda found: found["step"], default=None)


def at(recipe: dict, key: str):
    """The value of a dotted key, None where there is none."""
    value = recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def adapter(recipe: dict, summary: dict) -> str:
    """What was trained in place of all weights, in a few words; "" where all were."""
    rank, trained = at(recipe, "model.lora.rank"), summary.get("trained_parameters")
    size = f", {trained:,} parameters" if trained else ""
    return f"LoRA of rank {rank}{size}" if rank else ""


def duration(seconds: float) -> str:
    """ "4 min 3 s" or "1 h 2 min"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
