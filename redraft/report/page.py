"""The report of a run: one HTML file without a network, made from nothing but the run's folder, also while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from redraft import records
from redraft.records import at, duration
from redraft.report import dialogues, tables
from redraft.report import html as page
from redraft.report.headline import headline

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
ORIGIN = {"began": "began", "machine": "machine", "Redraft": "version"}

POINTS = 1000  # of a curve, or up to twice as many: a page with each of 5,000 steps had 4 MB


def write_report(run_dir: Path) -> Path:
    """Writes report.html into the run's folder and returns its path. Files that are missing leave their part out."""
    run_dir = Path(run_dir)
    recipe_text = records.text(run_dir / "recipe.yaml")
    recipe = records.mapping(recipe_text)
    summary = records.json_object(run_dir / "summary.json")
    evaluations = records.lines(run_dir / "evaluations.jsonl")
    steps = records.steps(run_dir)
    name = str(summary.get("name") or recipe.get("name") or run_dir.resolve().name)
    first, last = records.first(evaluations), records.last(evaluations)
    last_name = f"step {last['step']}" if last and last["label"] != "after" else "after"
    body = [
        _header(name, headline(first, last), recipe, summary, steps, records.json_object(run_dir / "run.json")),
        _findings(records.findings(run_dir)),
        _results(first, last, last_name, recipe),
        _checkpoints(evaluations),
        dialogues.section(dialogues.pairs(run_dir), last_name),
        _plots(first, last, last_name, evaluations, steps[:: max(1, len(steps) // POINTS)]),
        _recipe(recipe_text),
    ]
    path = run_dir / "report.html"
    page.write(path, name, body)
    return path


def relative(path: Path) -> Path:
    """The path as people read it: from the current folder, where it lies in that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _header(name: str, came: str, recipe: dict, summary: dict, steps: Sequence[dict], run: dict) -> str:
    """`came` is the headline, `run` what run.json says: where and when the run began."""
    state = str(summary.get("state", "running or interrupted"))
    done = steps[-1]["step"] if steps else summary.get("steps", 0)
    seconds = summary.get("seconds") or (steps[-1].get("time_s") if steps else None)
    facts = [("steps", f"{done} of {recipe['steps']}" if "steps" in recipe else f"{done}")]
    facts += [("wall time", duration(seconds))] if seconds else []
    facts += [("model", _model(recipe, summary))] if recipe.get("model") else []
    facts += [(label, str(run[key])) for label, key in ORIGIN.items() if run.get(key)]
    facts += [(label, _plain(value)) for label, key in FACTS.items() if (value := at(recipe, key)) is not None]
    listed = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts)
    error = f'<p class="error">{escape(str(summary["error"]))}</p>' if summary.get("error") else ""
    badge = f'<span class="state {escape(state.split()[0])}">{escape(state)}</span>'
    told = f'<p class="headline">{escape(came)}</p>' if came else ""
    return f'<header><h1>{escape(name)} {badge}</h1>{told}<p class="lead">{LEAD}</p>{error}<dl>{listed}</dl></header>'


def _findings(found: Sequence[dict]) -> str:
    """Causes why the run could not learn, and when they were seen."""
    if not found:
        return ""
    rows = "".join(
        f'<tr><th>{escape(one["problem"])}</th><td class="meaning">{escape(one["cure"])}</td><td>{_when(one)}</td></tr>'
        for one in found
    )
    head = "<th>what was seen</th><th>what helps</th><th>when</th>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<section><h2>Why it may not learn</h2>{table}</section>"


def _when(finding: dict) -> str:
    until = finding.get("until_s")
    lasted = "on" if until is None else f"to {duration(until)}"
    return f"step {finding['step']}, from {duration(finding['since_s'])} {lasted}"


def _model(recipe: dict, summary: dict) -> str:
    model = recipe["model"]
    make = model.get("make")
    made = f"made here: {make.get('layers')} layers of {make.get('hidden')}" if make else ""
    kind = made or str(model.get("pretrained") or model.get("path"))
    kind = f"{kind}, {model['dtype']}" if "dtype" in model else kind
    return ", ".join(filter(None, (kind, records.adapter(recipe, summary))))


def _plain(value) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _results(first: dict | None, last: dict | None, last_name: str, recipe: dict) -> str:
    rows = tables.rows(first, last)
    if not rows:
        return "<section><h2>Results</h2><p>There is no evaluation yet.</p></section>"
    remarks = tables.remarks(first, last, str(at(recipe, "environment.feedback")))
    told = "".join(f'<p class="remark">{escape(remark)}</p>' for remark in remarks)
    heads = ["", "before", last_name, "change"] if first and last else ["", "before" if first else last_name]
    shown, section = [], "sampled"
    for row in rows:
        if row.section != section:
            section = row.section
            title = escape(tables.heading(section))
            shown.append(f'<tr class="part"><th colspan="{len(heads) + 1}">{title}</th></tr>')
        shown.append(_row(row, bool(first), bool(last)))
    head = "".join(f"<th>{escape(text)}</th>" for text in heads) + "<th>what it is</th>"
    known = last or first or {}
    how = "" if tables.acts(known) else " Evaluation plays every turn and never stops at a right answer."
    return (
        f'<section><h2>Results</h2><p class="how">On {known["n"]} test tasks, ± one standard error.{how}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(shown)}</tbody>"
        f"</table>{told}</section>"
    )


def _checkpoints(evaluations: Sequence[dict]) -> str:
    """What `redraft eval` has found, in the order in which it was asked; "" where it was not."""
    asked = [found for found in evaluations if found["label"] == "eval"]
    if not asked:
        return ""
    figures = ("success",) if tables.acts(asked[0]) else ("turns", "first answer", "last answer")
    head = "".join(f"<th>{text}</th>" for text in ("checkpoint", "tasks", *figures, f"greedy: {figures[-1]}"))
    rows = "".join(_checkpoint(found) for found in asked)
    how = "Each by <code>redraft eval</code>, with the settings that it was given; ± one standard error."
    return (
        f'<section class="plain"><h2>Evaluations of checkpoints</h2><p class="how">{how}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _checkpoint(found: dict) -> str:
    main = tables.main(found)
    figures = [main.of(found), main.of(found.get("greedy"))]
    cells = [str(found["n"])]
    if not tables.acts(found):
        cells.append(str(found["turns"]))
        figures.insert(0, tables.names(found)[0].of(found))
    cells += map(tables.shown, figures)
    return f"<tr><th>step {found['step']}</th>{''.join(f'<td>{escape(text)}</td>' for text in cells)}</tr>"


def _row(row: tables.Row, first: bool, last: bool) -> str:
    cells = [tables.shown(row.before)] * first + [tables.shown(row.after)] * last
    columns = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    if first and last:
        change, error = row.change
        clear = change is not None and error is not None and abs(change) > 2 * error
        columns += f'<td class="{"clear" if clear else "unclear"}">{escape(tables.shown(row.change, "+"))}</td>'
    return f'<tr><th>{escape(row.label)}</th>{columns}<td class="meaning">{escape(row.meaning)}</td></tr>'


def _plots(first, last, last_name: str, evaluations: Sequence[dict], steps: Sequence[dict]) -> str:
    if not (first or last or steps):
        return ""
    from redraft.report import plots as figures  # matplotlib is slow to import

    measured = sorted({e["step"]: e for e in evaluations}.values(), key=lambda e: e["step"])
    known, drawn = last or first or {}, []
    acts = tables.acts(known)
    if acts:
        drawn.append(("Episodes", figures.outcomes(first, last, last_name), HOW["outcomes"]))
    elif known:
        drawn.append(("Accuracy by turn", figures.accuracy_by_turn(first, last, last_name), HOW["accuracy"]))
    if len(measured) > 2 and acts:
        drawn.append(("Success over training", figures.success_over_steps(measured), HOW["success"]))
    elif len(measured) > 2:
        drawn.append(("Accuracy over training", figures.accuracy_over_steps(measured), HOW["over_steps"]))
    if steps:
        title, reward = ("Reward", figures.reward) if acts else ("Reward by turn", figures.reward_by_turn)
        drawn += [
            (title, reward(steps), HOW["reward"]),
            ("Responses", figures.responses(steps), HOW["responses"]),
            ("Staleness", figures.staleness(steps), HOW["staleness"]),
            ("Where the learner's time went", figures.learner_time(steps), HOW["time"]),
            ("Generation", figures.generation(steps), HOW["generation"]),
            ("Trainer against sampler", figures.mismatch(steps), HOW["mismatch"]),
            ("Optimisation", figures.optimisation(steps), HOW["optimisation"]),
        ]
    return f"<section><h2>Plots</h2>{page.plots(drawn)}</section>"


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
    "outcomes": "Success after an error is the share of successes among the episodes in which an action was refused: "
    "an agent that only avoids errors raises success without raising it. Bars are one standard error.",
    "success": "The same test tasks at every evaluation. Bars are one standard error.",
    "reward": "Training tasks, sampled as they came, so it is noisier than the evaluation and of other tasks.",
    "responses": "Look here first where a run does not learn. Responses that are cut at sampling.max_tokens seldom "
    "hold an answer: raise it, or ask for shorter ones. Where nothing can be parsed, the model does not keep to the "
    "form that the question asks for.",
    "staleness": "How many steps older the weights that sampled were than those that learned. "
    "It is never above the recipe's bound; always 0 would mean that actors and learner take turns.",
    "time": "Much red: the learner waits for groups, so more or faster actors would help. "
    "Much blue: it is the bottleneck. Packing runs beside training and costs no time of its own.",
    "generation": "Tokens that all actors sampled in a second, as the controller counted them.",
    "optimisation": "Entropy that drops towards 0 early means that the model stops exploring; a gradient norm that "
    "explodes, that the learning rate is too high. Gaps are steps whose gradient was not finite, or that trained "
    "nothing.",
    "mismatch": "How far the log-probs of trainer and sampler differ on trained tokens: it grows with staleness and "
    "with coarser numbers, and a jump of the mean is a reason to doubt what the actors compute with.",
}
