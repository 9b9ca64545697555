"""The page of `redraft compare`: tables and plots of several runs, by environment, in one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from protocols.errors import SettingError
from redraft.report import html as page
from redraft.report.compare import Pooled, PooledRuns, note, sections, shown


def write_page(entries: Sequence[PooledRuns], path: Path) -> None:
    """Writes the page. Raises SettingError where it cannot be written."""
    title = "Comparison of runs"
    body = [f'<header><h1>{title}</h1><p class="lead">{LEAD}</p></header>']
    body += [_section(environment, found) for environment, found in sections(entries).items()]
    try:
        page.write(path, title, body)
    except OSError as error:
        problem = f"{path} cannot be written: {error.strerror}"
        raise SettingError("--out", problem, "Name a file in a folder that exists") from None


def _section(environment: str, entries: Sequence[PooledRuns]) -> str:
    heads = "".join(f"<th>{head}</th>" for head in ("run", "figure", "before", "after", "change"))
    body = "".join(_entry(entry) for entry in entries)
    return (
        f'<section class="compare"><h2>{escape(environment)}</h2><p class="how">{escape(note(entries))}</p>'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>{_plots(environment, entries)}</section>"
    )


def _entry(entry: PooledRuns) -> str:
    found = entry.rows()
    facts = "<br>".join(escape(fact) for fact in entry.facts())
    head = f'<th class="run" rowspan="{max(1, len(found))}">{escape(entry.label)}<div class="how">{facts}</div></th>'
    if not found:
        return f'<tr class="first">{head}<td class="figure">-</td><td>-</td><td>-</td><td>-</td></tr>'
    cells = [
        f'<td class="figure">{escape(row.label)}</td><td>{escape(shown(row.before))}</td>'
        f'<td>{escape(shown(row.after))}</td><td class="{_clear(row.change)}">{escape(shown(row.change, "+"))}</td>'
        for row in found
    ]
    return f'<tr class="first">{head}{cells[0]}</tr>' + "".join(f"<tr>{cell}</tr>" for cell in cells[1:])


def _clear(change: Pooled) -> str:
    """Whether the change is larger than two of its standard errors."""
    return "clear" if change.value is not None and 0 < 2 * change.widest < abs(change.value) else "unclear"


def _plots(environment: str, entries: Sequence[PooledRuns]) -> str:
    from redraft.report import compare_plots as plots  # matplotlib is slow to import

    if not any(entry.main() for entry in entries):
        return ""
    drawn = []
    if any(entry.by_turn("before") or entry.by_turn("after") for entry in entries):
        drawn.append(("Accuracy by turn", plots.accuracy_by_turn(entries, environment), HOW["turns"]))
    drawn.append(("Before and after", plots.main_figure(entries, environment), HOW["main"]))
    drawn.append(("Against generations", plots.by_generations(entries, environment), HOW["generations"]))
    return page.plots(drawn)


LEAD = (
    "Runs of Redraft beside each other. Figures of different environments stand in sections of their own, since they "
    "cannot be compared; runs that differ in nothing but their seeds are one line."
)
BARS = "Bars are one standard error: that within a run, or that over seeds where it is larger."
HOW = {
    "turns": f"Solid: after training; dotted: before it. {BARS}",
    "main": f"Right at the last turn, or the share of episodes that succeed. {BARS}",
    "generations": "Responses sampled for training up to each evaluation; those of evaluations do not count. Each run "
    "is a line of its own. Bars are one standard error within the run.",
}
