"""The page of `redraft doctor RECIPE --html FILE`: findings, and two dialogues token by token."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from redraft.cli import doctor_graph
from redraft.recipe import Recipe

if TYPE_CHECKING:
    from redraft.cli.doctor_findings import Finding
    from redraft.cli.doctor_play import Played
    from redraft.watch.viewer.words import Words

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.tokens { font: 14px/1.9 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: .3rem 0; }
.tokens span { border-right: 1px solid #8886; padding: .1em 0; }
.heard { opacity: .6; }
.trained { background: #2ca02c44; }
.said { background: #e6b40044; }
.special { font-weight: bold; }
.serious { color: #c0392b; }
p.facts { margin: 1rem 0 0; }
"""
LEGEND = (
    '<p class="tokens"><span class="heard">heard</span> <span class="trained">trained</span> '
    '<span class="said">said by the model, not trained</span> <span class="special">control token</span></p>'
)


def write_page(
    file: Path,
    recipe: Recipe,
    played: Played,
    found: list[Finding],
    dialogues: list[tuple[str, list[dict]]],
    words: Words,
) -> None:
    """Writes one HTML file that needs no other."""
    from redraft.cli.doctor_recipe import summary

    told = [f"<p>{escape(line)}</p>" for line in summary(recipe, played)]
    told += [
        f'<li class="{"serious" if one.serious else ""}">{escape(one.what)}. <em>{escape(one.cure)}</em></li>'
        for one in found
    ] or ["<p>Nothing was found that would keep this run from learning.</p>"]
    shown = [_dialogue(task, turns, words) for task, turns in dialogues]
    name = escape(recipe.name)
    file.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}: doctor</title><style>{STYLE}</style>'
        f"<h1>{name}</h1>{''.join(told)}{LEGEND}{''.join(shown)}</html>\n",
        encoding="utf-8",
    )


def _dialogue(task: str, turns: list[dict], words: Words) -> str:
    from redraft.cli.doctor_recipe import facts, kinds

    graph = escape("\n".join(doctor_graph.lines(turns)))
    parts = [f"<h2>task {escape(task)}</h2>", f"<pre>{graph}</pre>" if graph else ""]
    for turn in turns:
        parts.append(f'<p class="facts">{escape(facts(turn, words))}</p>')
        for ids, weights in ((turn["prompt"], None), (turn["response"], turn["weights"] or [])):
            tokens = "".join(
                f'<span class="{kind}{" special" if special else ""}">{escape(text)}</span>'
                for text, kind, special in kinds(ids, weights, words)
            )
            parts.append(f'<div class="tokens">{tokens}</div>' if tokens else "")
    return "".join(parts)
