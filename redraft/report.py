"""The report of a run: one HTML file without a network, made from nothing but the run's folder, also while it runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

import yaml

from redraft import evaluation

# Keys of the recipe that say what a run was, in the order in which people ask.
FACTS = {
    "environment": "environment.name",
    "feedback": "environment.feedback",
    "rollout": "rollout.name",
    "turns": "rollout.turns",
    "episodes a group": "rollout.episodes",
    "reflections": "rollout.reflect",
    "credit": "learner.credit.name",
    "objective": "learner.objective.name",
    "groups a step": "learner.batch_groups",
    "staleness bound": "learner.max_staleness",
    "learning rate": "learner.optimizer.lr",
    "actors": "actors.count",
    "ranks": "learner.ranks",
    "ZeRO": "learner.zero",
    "seed": "seed",
}


def write_report(run_dir: Path) -> Path:
    """Writes report.html into the run's folder and returns its path. Files that are missing leave their part out."""
    run_dir = Path(run_dir)
    recipe_text = _text(run_dir / "recipe.yaml")
    recipe = _mapping(recipe_text)
    summary = _object(run_dir / "summary.json")
    evaluations = _lines(run_dir / "evaluations.jsonl")
    steps = _history(_lines(run_dir / "metrics.jsonl"))
    name = str(summary.get("name") or recipe.get("name") or run_dir.resolve().name)
    first = next((e for e in evaluations if e.get("label") == "before"), summary.get("before"))
    last, last_name = _last(evaluations, summary)
    body = [
        _header(name, recipe, summary, steps),
        _results(first, last, last_name, recipe),
        _plots(first, last, last_name, evaluations, steps),
        _recipe(recipe_text),
    ]
    page = PAGE.format(title=escape(name), style=CSS, body="\n".join(part for part in body if part))
    path, aside = run_dir / "report.html", run_dir / ".report.html.tmp"
    aside.write_text(page, encoding="utf-8")
    aside.rename(path)
    return path


# Reading -------------------------------------------------------------------------------------------------------------


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _mapping(text: str) -> dict:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}  # being written: the report shows the text as it is
    return found if isinstance(found, dict) else {}


def _object(path: Path) -> dict:
    lines = _decoded([_text(path)])
    return lines[0] if lines else {}


def _lines(path: Path) -> list[dict]:
    return _decoded(_text(path).splitlines())


def _decoded(texts: Sequence[str]) -> list[dict]:
    """The JSON objects among `texts`; one that is still being written is left out."""
    found = []
    for text in texts:
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _history(lines: Sequence[dict]) -> list[dict]:
    """One line a step, rising. A resumed run plays steps again: what came after its checkpoint is gone."""
    kept: list[dict] = []
    for line in lines:
        while kept and kept[-1]["step"] >= line["step"]:
            kept.pop()
        kept.append(line)
    return kept


def _last(evaluations: Sequence[dict], summary: dict) -> tuple[dict | None, str]:
    """The newest evaluation that is not the first, and its name."""
    for found in reversed(evaluations):
        if found.get("label") == "after":
            return found, "after"
    return summary.get("after"), "after"


# Writing -------------------------------------------------------------------------------------------------------------


def _header(name: str, recipe: dict, summary: dict, steps: Sequence[dict]) -> str:
    state = str(summary.get("state", "running or interrupted"))
    done = steps[-1]["step"] if steps else summary.get("steps", 0)
    seconds = summary.get("seconds") or (steps[-1].get("time_s") if steps else None)
    facts = [("steps", f"{done} of {recipe['steps']}" if "steps" in recipe else f"{done}")]
    facts += [("wall time", _duration(seconds))] if seconds else []
    facts += [("model", _model(recipe))] if recipe.get("model") else []
    facts += [(label, _plain(value)) for label, key in FACTS.items() if (value := _at(recipe, key)) is not None]
    listed = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts)
    error = f'<p class="error">{escape(str(summary["error"]))}</p>' if summary.get("error") else ""
    badge = f'<span class="state {escape(state.split()[0])}">{escape(state)}</span>'
    return f'<header><h1>{escape(name)} {badge}</h1><p class="lead">{LEAD}</p>{error}<dl>{listed}</dl></header>'


def _model(recipe: dict) -> str:
    model = recipe["model"]
    make = model.get("make")
    kind = f"made here: {make.get('layers')} layers of {make.get('hidden')}" if make else str(model.get("path"))
    return f"{kind}, {model['dtype']}" if "dtype" in model else kind


def _at(recipe: dict, key: str):
    value = recipe
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _plain(value) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def _results(first: dict | None, last: dict | None, last_name: str, recipe: dict) -> str:
    rows = evaluation.rows(first, last)
    if not rows:
        return "<section><h2>Results</h2><p>There is no evaluation yet.</p></section>"
    remarks = evaluation.remarks(first, last, str(_at(recipe, "environment.feedback")))
    told = "".join(f'<p class="remark">{escape(remark)}</p>' for remark in remarks)
    heads = ["", "before", last_name, "change"] if first and last else ["", "before" if first else last_name]
    shown, section = [], "sampled"
    for row in rows:
        if row.section != section:
            section = row.section
            shown.append(f'<tr class="part"><th colspan="{len(heads) + 1}">greedy (temperature 0)</th></tr>')
        shown.append(_row(row, bool(first), bool(last)))
    head = "".join(f"<th>{escape(text)}</th>" for text in heads) + "<th>what it is</th>"
    n = (last or first)["n"]
    return (
        f'<section><h2>Results</h2><p class="how">On {n} test tasks, ± one standard error. Evaluation plays every turn '
        f"and never stops at a right answer.</p><table><thead><tr>{head}</tr></thead><tbody>{''.join(shown)}</tbody>"
        f"</table>{told}</section>"
    )


def _row(row: evaluation.Row, first: bool, last: bool) -> str:
    cells = [evaluation.shown(row.before)] * first + [evaluation.shown(row.after)] * last
    columns = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    if first and last:
        change, error = row.change
        clear = change is not None and error is not None and abs(change) > 2 * error
        columns += f'<td class="{"clear" if clear else "unclear"}">{escape(evaluation.shown(row.change, "+"))}</td>'
    return f'<tr><th>{escape(row.label)}</th>{columns}<td class="meaning">{escape(row.meaning)}</td></tr>'


def _plots(first, last, last_name: str, evaluations: Sequence[dict], steps: Sequence[dict]) -> str:
    if not (first or last or steps):
        return ""
    from redraft import figures  # matplotlib is slow to import

    drawn = []
    if first or last:
        drawn.append(("Accuracy by turn", figures.accuracy_by_turn(first, last, last_name), HOW["accuracy"]))
    measured = sorted({e["step"]: e for e in evaluations}.values(), key=lambda e: e["step"])
    if len(measured) > 2:
        drawn.append(("Accuracy over training", figures.accuracy_over_steps(measured), HOW["over_steps"]))
    if steps:
        drawn += [
            ("Reward by turn", figures.reward_by_turn(steps), HOW["reward"]),
            ("Staleness", figures.staleness(steps), HOW["staleness"]),
            ("Where the learner's time went", figures.learner_time(steps), HOW["time"]),
            ("Generation", figures.generation(steps), HOW["generation"]),
            ("Trainer against sampler", figures.mismatch(steps), HOW["mismatch"]),
            ("Optimisation", figures.optimisation(steps), HOW["optimisation"]),
        ]
    cards = "".join(
        f'<figure><h3>{escape(title)}</h3>{svg}<figcaption class="how">{escape(how)}</figcaption></figure>'
        for title, svg, how in drawn
    )
    return f'<section><h2>Plots</h2><div class="plots">{cards}</div></section>'


def _recipe(text: str) -> str:
    if not text:
        return ""
    return f"<section><details><summary>The resolved recipe</summary><pre>{escape(text)}</pre></details></section>"


LEAD = (
    "A run of Redraft: actors let a language model answer tasks, in one or more turns; the environment scores every "
    "answer; a learner trains the model on the scored turns and sends its new weights back while the actors play on."
)

HOW = {
    "accuracy": "A line that rises says that retrying helps; a line that falls, that right answers are given up again. "
    "Bars are one standard error; dashed lines are played at temperature 0.",
    "over_steps": "The same test tasks at every evaluation: where the curves of late turns leave that of turn 1, "
    "the model has learned to use its further tries.",
    "reward": "Training tasks, sampled as they came, so it is noisier than the evaluation and of other tasks.",
    "staleness": "How many steps older the weights that sampled were than those that learned. "
    "It is never above the recipe's bound; always 0 would mean that actors and learner take turns.",
    "time": "Much red: the learner waits for groups, so more or faster actors would help. "
    "Much blue: it is the bottleneck. Packing runs beside training and costs no time of its own.",
    "generation": "Tokens that all actors sampled in a second, as the controller counted them.",
    "optimisation": "Entropy that drops towards 0 early means that the model stops exploring; a gradient norm that "
    "explodes, that the learning rate is too high. Gaps are steps whose gradient was not finite.",
    "mismatch": "How far the log-probs of trainer and sampler differ on trained tokens: it grows with staleness and "
    "with coarser numbers, and a jump of the mean is a reason to doubt what the actors compute with.",
}

CSS = """
:root { --ink: #0f172a; --soft: #64748b; --line: #e2e8f0; --blue: #2563eb; }
* { box-sizing: border-box; }
body { margin: 0; background: #f8fafc; color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 32px 24px 48px; }
header, section { background: #fff; border: 1px solid var(--line); border-radius: 12px;
  padding: 20px 24px; margin-bottom: 20px; }
h1 { margin: 0 0 8px; font-size: 26px; }
h2 { margin: 0 0 10px; font-size: 18px; }
h3 { margin: 0 0 4px; font-size: 15px; }
.state { font-size: 13px; font-weight: 600; vertical-align: middle; margin-left: 8px;
  padding: 3px 10px; border-radius: 999px; background: #e2e8f0; color: #475569; }
.state.done { background: #dcfce7; color: #166534; } .state.failed { background: #fee2e2; color: #991b1b; }
.lead { margin: 0 0 16px; color: var(--soft); max-width: 850px; }
.error { color: #991b1b; font-weight: 600; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(175px, 1fr)); gap: 10px 18px; margin: 0; }
dt { color: var(--soft); font-size: 12px; } dd { margin: 0; font-weight: 600; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child { text-align: left; font-weight: 600; }
thead th { color: var(--soft); font-size: 12px; font-weight: 600; }
td.meaning, thead th:last-child { text-align: left; color: var(--soft); white-space: normal; width: 40%; }
td.clear { font-weight: 700; } td.unclear { color: var(--soft); }
tr.part th { padding-top: 16px; color: var(--soft); font-size: 12px; text-align: left; }
.remark { margin: 12px 0 0; padding: 8px 14px; border-left: 3px solid #f59e0b; background: #fffbeb; }
.how { color: var(--soft); font-size: 13px; margin: 4px 0 10px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); gap: 26px 32px; }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; }
details summary { cursor: pointer; font-weight: 600; }
pre { overflow-x: auto; background: #f8fafc; border: 1px solid var(--line); border-radius: 8px;
  padding: 14px; font-size: 13px; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Redraft</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""
