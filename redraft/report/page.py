"""The report of a run: one HTML file without a network, made from nothing but the run's folder, also while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from protocols.evaluation import EvaluationLine, EvaluationSummary
from protocols.reports import Finding, RunEnded, StepLine
from redraft import records
from redraft.records import GOES_ON, Evaluations, at, duration
from redraft.report import dialogues, tables
from redraft.report import html as page
from redraft.report.headline import headline

# Keys of the recipe that say what a run was, in the order in which people ask.
FACTS = {
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
ORIGIN = {"machine": "machine", "Redraft": "version"}

POINTS = 1000  # of a curve, or up to twice as many: a page with each of 5,000 steps had 4 MB


def write_report(run_dir: Path) -> Path:
    """Writes report.html into the run's folder and returns its path. Files that are missing leave their part out."""
    run_dir = Path(run_dir)
    recipe, ended = records.recipe(run_dir), records.ended(run_dir)
    evaluations = records.evaluations(run_dir)
    steps = records.steps(records.step_lines(run_dir))
    name = ended.name if ended else str(at(recipe, "name") or run_dir.resolve().name)
    shown = Shown.of(evaluations)
    came = headline(shown.first, shown.last)
    body = [
        _header(name, came, recipe, ended, steps, records.json_object(run_dir / "run.json")),
        _findings(records.findings(run_dir)),
        _results(shown, records.feedback(recipe)),
        _checkpoints(evaluations.lines),
        dialogues.section(dialogues.pairs(run_dir), shown.last_name),
        _plots(shown, evaluations.alike, steps[:: max(1, len(steps) // POINTS)]),
        _recipe(records.text(run_dir / "recipe.yaml")),
    ]
    path = run_dir / "report.html"
    page.write(path, name, body)
    return path


@dataclass(frozen=True, slots=True)
class Shown:
    """The two evaluations of which a report shows every figure, and what the later one is called."""

    first: EvaluationSummary | None
    last: EvaluationSummary | None
    last_name: str = "after"

    @classmethod
    def of(cls, evaluations: Evaluations) -> Shown:
        first, last = evaluations.first, evaluations.last
        name = f"step {last.step}" if last and last.label != "after" else "after"
        return cls(first and first.summary, last and last.summary, name)

    @property
    def known(self) -> EvaluationSummary | None:
        return self.last or self.first


def relative(path: Path) -> Path:
    """The path as people read it: from the current folder, where it lies in that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _header(
    name: str,
    came: str,
    recipe: Mapping[str, Any],
    ended: RunEnded | None,
    steps: Sequence[StepLine],
    run: Mapping[str, Any],
) -> str:
    """`came` is the headline, `run` what run.json says: where and when the run began."""
    state = ended.state if ended else GOES_ON
    done = steps[-1].report.step if steps else ended.steps if ended else 0
    seconds = (ended.seconds if ended else 0.0) or (steps[-1].time_s if steps else 0.0)
    facts = [("steps", f"{done} of {recipe['steps']}" if "steps" in recipe else f"{done}")]
    facts += [("ended early", ended.early)] if ended and ended.early else []
    facts += [("wall time", duration(seconds))] if seconds else []
    facts += [("model", _model(recipe, ended and ended.trained_parameters))] if at(recipe, "model") else []
    facts += [("began", _time(run["began"]))] if at(run, "began") else []
    facts += [(label, str(run[key])) for label, key in ORIGIN.items() if at(run, key)]
    if played := records.played(recipe):
        facts += [("environment", " and ".join(str(one.get("label") or one.get("name")) for one in played))]
        facts += [("feedback", records.feedback(recipe))]
    facts += [(label, _plain(value)) for label, key in FACTS.items() if (value := at(recipe, key)) is not None]
    listed = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in facts)
    error = f'<p class="error">{escape(ended.error)}</p>' if ended and ended.error else ""
    badge = f'<span class="state {escape(state.split()[0])}">{escape(state)}</span>'
    told = f'<p class="headline">{escape(came)}</p>' if came else ""
    return f'<header><h1>{escape(name)} {badge}</h1>{told}<p class="lead">{LEAD}</p>{error}<dl>{listed}</dl></header>'


def _time(iso: str) -> str:
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M %Z}"


def _findings(found: Sequence[Finding]) -> str:
    """Causes why the run could not learn, and when they were seen."""
    if not found:
        return ""
    rows = "".join(
        f'<tr><th>{escape(one.problem)}</th><td class="meaning">{escape(one.cure)}</td><td>{_when(one)}</td></tr>'
        for one in found
    )
    head = "<th>what was seen</th><th>what helps</th><th>when</th>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<section><h2>Why it may not learn</h2>{table}</section>"


def _when(finding: Finding) -> str:
    lasted = "on" if finding.until_s is None else f"to {duration(finding.until_s)}"
    return f"step {finding.step}, from {duration(finding.since_s)} {lasted}"


def _model(recipe: Mapping[str, Any], trained: int | None) -> str:
    """Its kind, its numbers, and an adapter of so many trained parameters."""
    made = f"made here: {at(recipe, 'model.make.layers')} layers of {at(recipe, 'model.make.hidden')}"
    kind = made if at(recipe, "model.make") else str(at(recipe, "model.pretrained") or at(recipe, "model.path"))
    return ", ".join(filter(None, (kind, at(recipe, "model.dtype"), records.adapter(recipe, trained))))


def _plain(value) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _results(shown: Shown, feedback: str) -> str:
    first, last, known = shown.first, shown.last, shown.known
    rows = tables.rows(first, last)
    if known is None or not rows:
        return "<section><h2>Results</h2><p>There is no evaluation yet.</p></section>"
    told = "".join(f'<p class="remark">{escape(remark)}</p>' for remark in tables.remarks(first, last, feedback))
    name = shown.last_name
    heads = ["", "before", name, "change"] if first and last else ["", "before" if first else name]
    lines, section = [], "sampled"
    for row in rows:
        if row.section != section:
            section = row.section
            title = escape(tables.heading(section))
            lines.append(f'<tr class="part"><th colspan="{len(heads) + 1}">{title}</th></tr>')
        lines.append(_row(row, bool(first), bool(last)))
    head = "".join(f"<th>{escape(text)}</th>" for text in heads) + "<th>what it is</th>"
    how = "" if known.kind == "actions" else " Evaluation plays every turn and never stops at a right answer."
    return (
        f'<section><h2>Results</h2><p class="how">On {known.n} test tasks, ± one standard error.{how}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        f"</table>{told}</section>"
    )


def _checkpoints(evaluations: Sequence[EvaluationLine]) -> str:
    """What evaluations in the course of training and `redraft eval` have found, in the order in which they were played;
    "" where there were none."""
    asked = [line for line in evaluations if line.label in ("during", "eval")]
    if not asked:
        return ""
    figures = ("success",) if asked[0].summary.kind == "actions" else ("turns", "first answer", "last answer")
    head = "".join(
        f"<th>{text}</th>"
        for text in ("checkpoint", "tasks", *figures, f"greedy: {figures[-1]}", "broke off", "otherwise than the run")
    )
    rows = "".join(_checkpoint(line) for line in asked)
    how = "In the course of training, or by <code>redraft eval</code> with what it was told; ± one standard error."
    return (
        f'<section class="plain"><h2>Evaluations of checkpoints</h2><p class="how">{how}</p>'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></section>"
    )


def _checkpoint(line: EvaluationLine) -> str:
    summary, main = line.summary, tables.main(line.summary)
    figures = [main.of(summary.sampled), main.of(summary.greedy)]
    cells = [str(summary.n)]
    if summary.kind == "answers":
        cells.append(str(summary.turns))
        figures.insert(0, tables.names(summary)[0].of(summary.sampled))
    cells += map(tables.shown, figures)
    cells += [f"{summary.errors} of {summary.episodes}" if summary.errors else "", " ".join(line.overrides)]
    return f"<tr><th>step {line.step}</th>{''.join(f'<td>{escape(text)}</td>' for text in cells)}</tr>"


def _row(row: tables.ResultRow, first: bool, last: bool) -> str:
    cells = [tables.shown(row.before)] * first + [tables.shown(row.after)] * last
    columns = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    if first and last:
        change, error = row.change
        clear = change is not None and error is not None and abs(change) > 2 * error
        columns += f'<td class="{"clear" if clear else "unclear"}">{escape(tables.shown(row.change, "+"))}</td>'
    return f'<tr><th>{escape(row.label)}</th>{columns}<td class="meaning">{escape(row.meaning)}</td></tr>'


def _plots(shown: Shown, evaluations: Sequence[EvaluationLine], steps: Sequence[StepLine]) -> str:
    known = shown.known
    if not (known or steps):
        return ""
    from redraft.report import plots  # matplotlib is slow to import

    measured = sorted({line.step: line for line in evaluations}.values(), key=lambda line: line.step)
    two, drawn = (shown.first, shown.last, shown.last_name), []
    acts = known is not None and known.kind == "actions"
    if acts:
        drawn.append(("Episodes", plots.outcomes(*two), HOW["outcomes"]))
    elif known:
        drawn.append(("Accuracy by turn", plots.accuracy_by_turn(*two), HOW["accuracy"]))
    if len(measured) > 2 and acts:
        drawn.append(("Success over training", plots.success_over_steps(measured), HOW["success"]))
    elif len(measured) > 2:
        drawn.append(("Accuracy over training", plots.accuracy_over_steps(measured), HOW["over_steps"]))
    if steps:
        title, reward = ("Reward", plots.reward) if acts else ("Reward by turn", plots.reward_by_turn)
        drawn.append((title, reward(steps), HOW["reward"]))
        if any(line.report.batch.reward_parts for line in steps):
            drawn.append(("Parts of the reward", plots.reward_parts(steps), HOW["parts"]))
        drawn += [
            ("Responses", plots.responses(steps), HOW["responses"]),
            ("Staleness", plots.staleness(steps), HOW["staleness"]),
            ("Where the learner's time went", plots.learner_time(steps), HOW["time"]),
            ("Generation", plots.generation(steps), HOW["generation"]),
            ("Trainer against sampler", plots.mismatch(steps), HOW["mismatch"]),
            ("Optimisation", plots.optimisation(steps), HOW["optimisation"]),
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
    "parts": "What the reward is made of, as your function names it. Where one part rises while others fall, it is "
    "paid too well.",
    "responses": "Look here first where a run does not learn. Responses that are cut at sampling.max_tokens seldom "
    "hold an answer: raise it, or ask for shorter ones. Where nothing can be parsed, the model does not keep to the "
    "form that the question asks for.",
    "staleness": "How many steps older the weights that sampled were than those that learned. "
    "It is never above the bound under which they were played; always 0 would mean that actors and learner take turns.",
    "time": "Much red: the learner waits for groups, so more or faster actors would help. "
    "Much blue: it is the bottleneck. Packing runs beside training and costs no time of its own.",
    "generation": "Tokens that all actors sampled in a second, as the controller counted them.",
    "optimisation": "Entropy that drops towards 0 early means that the model stops exploring; a gradient norm that "
    "explodes, that the learning rate is too high. Gaps are steps whose gradient was not finite, or that trained "
    "nothing.",
    "mismatch": "How far the log-probs of trainer and sampler differ on trained tokens: it grows with staleness and "
    "with coarser numbers, and a jump of the mean is a reason to doubt what the actors compute with.",
}
