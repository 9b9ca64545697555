"""The model card of an exported model: what it is, how well it does, how it was made. Front matter as the Hub wants."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from redraft import records
from redraft.records import at, duration
from redraft.report import tables
from redraft.report.page import FACTS

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PRETRAINED = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Hub names of the models that `model.pretrained` fetches in another form."""


def write(run_dir: Path, recipe: Mapping[str, Any], checkpoint: Path, adapter: bool, revision: str) -> str:
    """The card of the model in `checkpoint` of the run in `run_dir`, as Markdown with YAML front matter. `revision` is
    that of the start model on the Hub, "" where it came from elsewhere."""
    from learner.checkpoint import step_of

    step, name = step_of(checkpoint), run_dir.name
    base = base_of(recipe, revision)
    parts = [
        _front_matter(base, adapter),
        f"# {name}",
        _opening(recipe, base, name, step, adapter),
        _usage(adapter),
        "## Evaluation",
        _evaluation(run_dir, recipe, step),
        "## How it was made",
        _making(run_dir, recipe, step),
        f"The recipe:\n\n```yaml\n{records.text(run_dir / 'recipe.yaml').strip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def base_of(recipe: Mapping[str, Any], revision: str) -> str | None:
    """The Hub's name of the start model; None where it has none: a model that was made, or a local folder."""
    if pretrained := at(recipe, "model.pretrained"):
        return PRETRAINED.get(pretrained)
    path = at(recipe, "model.path") or ""
    return path if revision and HUB_NAME.fullmatch(path) else None


def _front_matter(base: str | None, adapter: bool) -> str:
    facts: dict = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if base is not None:
        facts |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    facts["tags"] = ["redraft", "reinforcement-learning", "self-correction"]
    return f"---\n{yaml.safe_dump(facts, sort_keys=False).strip()}\n---"


def _opening(recipe: Mapping[str, Any], base: str | None, name: str, step: int, adapter: bool) -> str:
    start = f"[{base}](https://huggingface.co/{base})" if base else _unnamed(recipe)
    start += " in the 4-bit form that pip carries, unpacked," if at(recipe, "model.pretrained") else ""
    kind = "A low-rank adapter for" if adapter else "Trained from"
    version = importlib.metadata.version("redraft")
    return f"{kind} {start} with Redraft {version}: step {step} of the run `{name}`."


def _unnamed(recipe: Mapping[str, Any]) -> str:
    if at(recipe, "model.make"):
        layers, hidden = at(recipe, "model.make.layers"), at(recipe, "model.make.hidden")
        return f"a small model that the recipe made ({layers} layers of {hidden})"
    return f"a local model (`{Path(str(at(recipe, 'model.path'))).name}`)"


def _usage(adapter: bool) -> str:
    if adapter:
        return "Load it with PEFT, or serve it: `vllm serve BASE --enable-lora --lora-modules NAME=FOLDER`."
    return "An ordinary transformers folder. To serve it: `vllm serve FOLDER`."


def _evaluation(run_dir: Path, recipe: Mapping[str, Any], step: int) -> str:
    """The figures before any training, and the newest of this very step, with standard errors."""
    evaluations = records.evaluations(run_dir)
    first, reached = evaluations.first, evaluations.of_step(step) if step else None
    before, after = first and first.summary, reached and reached.summary
    known = after or before
    if known is None:
        return "It was not evaluated."
    played = " and ".join(f"`{one.get('name')}`" for one in records.played(recipe)) or "an unknown task"
    told = [f"On {known.n} test tasks of {played}; ± is one standard error."]
    if after is None:
        told.append(f"Step {step} was not evaluated: these are the figures of the start model.")
    heads = [""] + ["before"] * (before is not None) + ["after", "change"] * (after is not None)
    lines = [f"| {' | '.join([*heads, 'meaning'])} |", "|" + "---|" * (len(heads) + 1)]
    for row in tables.rows(before, after):
        figures = [tables.shown(row.before)] * (before is not None)
        figures += [tables.shown(row.after), tables.shown(row.change, "+")] if after is not None else []
        apart = row.section != "sampled"
        label = f"{tables.heading(row.section)}: {row.label}" if apart else row.label
        lines.append(f"| {' | '.join([label, *figures, row.meaning])} |")
    remarks = tables.remarks(before, after, records.feedback(recipe))
    return "\n\n".join([*told, "\n".join(lines), *remarks])


def _making(run_dir: Path, recipe: Mapping[str, Any], step: int) -> str:
    steps = [line for line in records.steps(records.step_lines(run_dir)) if line.report.step <= step]
    facts = [("steps", f"{step} of {recipe['steps']}" if "steps" in recipe else str(step))]
    if steps and steps[-1].time_s:
        facts.append(("wall time", duration(steps[-1].time_s)))
    facts += [(label, str(value)) for label, key in FACTS.items() if (value := at(recipe, key)) is not None]
    return "\n".join(["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in facts)])
