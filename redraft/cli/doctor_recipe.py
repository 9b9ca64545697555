"""`redraft doctor RECIPE`: whether a run of this recipe could learn, seen on twenty tasks before it starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from protocols import own_code
from redraft.cli import doctor_graph, doctor_play
from redraft.cli.doctor_findings import Finding, findings
from redraft.cli.doctor_page import write_page
from redraft.cli.doctor_play import Played
from redraft.launch import fits, preflight
from redraft.models import make as models
from redraft.recipe import Recipe
from redraft.watch.viewer.words import Words

STYLES = {"heard": "dim", "trained": "green", "said": "yellow", "special": "reverse"}
LEGEND = "green: trained; yellow: said by the model, not trained; dim: heard; | between tokens"


def examine(recipe: Recipe, cache: Path, seconds: float, html: Path | None, console: Console) -> bool:
    """Prints what was found and two dialogues; False where the run would learn nothing, or the wrong thing."""
    own_code.install(own_code.read(recipe.model_dump(mode="json")))
    recipe = preflight.with_facts(recipe)
    preflight.check_environment(recipe)
    if recipe.steps:
        preflight.check_learner(recipe)
    model = models.prepare(recipe.model, recipe.environment, cache, lambda line: console.print(line, highlight=False))
    fits.check(model, recipe)
    played = asyncio.run(_looked(recipe, model, seconds, console))
    doctor_play.train(recipe, played)
    found = findings(recipe, played)
    words, dialogues = Words([model]), doctor_play.chosen(played)
    for task, turns in dialogues:
        _show(task, turns, words, console)
    if dialogues:
        console.print(Text(LEGEND, "dim"))
    _tell(recipe, played, found, console)
    if html is not None:
        write_page(html, recipe, played, found, dialogues, words)
        console.print(str(html), soft_wrap=True, highlight=False)
    return not any(finding.serious for finding in found)


async def _looked(recipe: Recipe, model: Path, seconds: float, console: Console) -> Played:
    logging.getLogger("redraft").setLevel(logging.ERROR)  # what goes wrong is among the findings
    if not console.is_terminal:
        return await doctor_play.look(recipe, model, seconds, _steps(console))
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=1)
        return await doctor_play.look(
            recipe, model, seconds, lambda what, n, of: progress.update(bar, description=what, completed=n, total=of)
        )


def _steps(console: Console) -> Callable[[str, int, int], None]:
    """Where there is no terminal each kind of work is said once."""
    said: set[str] = set()

    def tell(what: str, n: int, of: int) -> None:
        if what not in said:
            said.add(what)
            console.print(f"{what}{f', {of} tasks' if of > 1 else ''}", highlight=False)

    return tell


def _show(task: str, turns: list[dict], words: Words, console: Console) -> None:
    console.print()
    console.print(Text(f"task {task}", "bold"))
    for line in doctor_graph.lines(turns):
        console.print(Text(line), soft_wrap=True)
    for turn in turns:
        console.print(Text(facts(turn, words)))
        for label, ids, weights in (("heard", turn["prompt"], None), ("said", turn["response"], turn["weights"] or [])):
            if ids:
                console.print(Text.assemble((f"  {label:5} ", "bold"), *_pieces(ids, weights, words)), soft_wrap=False)


def facts(turn: dict, words: Words) -> str:
    """What a turn is, in a line: where its answer ends, and how much of it is trained."""
    trained = sum(weight > 0 for weight in turn["weights"] or ())
    last = words.spell(turn["response"])[-1:]
    ends = {"length": "cut at sampling.max_tokens", "end": f"ends with {spelled(last[0] if last else '')}"}
    parts = [
        turn["role"],
        f"reward {turn['reward']}",
        f"advantage {turn['advantage']}" if turn["advantage"] is not None else "",
        f"{trained} of {len(turn['response'])} tokens are trained",
        ends.get(turn["stop"], "not sampled"),
        "a new prompt" if turn["parent"] < 0 and turn["after"] >= 0 else "",
    ]
    return " · ".join(filter(None, parts))


def kinds(ids: list[int], weights: list[float] | None, words: Words) -> list[tuple[str, str, bool]]:
    """(text, kind, whether it is a control token) of each token; `weights` None: it was heard."""
    special = set(words.special(ids))
    found = []
    for place, word in enumerate(words.spell(ids)):
        trained = weights is not None and place < len(weights) and weights[place] > 0
        kind = "heard" if weights is None else "trained" if trained else "said"
        found.append((spelled(word), kind, place in special))
    return found


def spelled(word: str | None) -> str:
    """A token's text in one line; a dot where it is a part of a character."""
    return "·" if word is None else word.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")


def _pieces(ids: list[int], weights: list[float] | None, words: Words) -> list[tuple[str, str]]:
    pieces: list[tuple[str, str]] = []
    for text, kind, special in kinds(ids, weights, words):
        pieces += [(text, f"{STYLES[kind]} {STYLES['special']}" if special else STYLES[kind]), ("|", "dim")]
    return pieces[:-1]


def _tell(recipe: Recipe, played: Played, found: list[Finding], console: Console) -> None:
    console.print()
    for line in summary(recipe, played):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    for finding in found:
        mark = Text("wrong ", "bold red") if finding.serious else Text("note  ", "yellow")
        console.print(Text.assemble(mark, finding.what, ". ", (finding.cure, "dim")), soft_wrap=True)
    if not found:
        console.print(Text("ok    nothing was found that would keep this run from learning", "green"))


def summary(recipe: Recipe, played: Played) -> list[str]:
    """What was looked at, in lines."""
    from protocols.turns import ASIDES, Role, sampled_tokens

    attempts = [turn for turn in played.turns if turn.role not in (Role.ERROR, *ASIDES)]
    tokens = sum(map(sampled_tokens, played.turns))
    right = sum(bool(turn.extra.get("success")) for turn in attempts)
    varied = sum(spread > 0 for spread in played.spreads)
    given = sum(one.right is not None for one in played.scored)
    lines = [
        f"{len(played.groups)} of {played.asked} tasks were played in {played.seconds:.0f} s: {len(attempts)} answers, "
        f"{right} of them right, {tokens} tokens; in {varied} groups answers are paid differently",
    ]
    if not given:
        lines.append(f"{recipe.played} gives no reference answers: only empty ones were scored")
    return lines
