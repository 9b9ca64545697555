"""What came of a run in one line, from the figures of its evaluations."""

from __future__ import annotations

from protocols.evaluation import EvaluationSummary
from redraft.report import tables


def headline(before: EvaluationSummary | None, after: EvaluationSummary | None) -> str:
    """ "last answer right: 9 % -> 77 % (first answer: 32 % -> 55 %)", or "success: 20 % -> 41 %" of many actions.

    One figure alone where there is one evaluation; "" where there is none. Better first answers are not correction, so
    a dialogue's first answer stands beside its last.
    """
    known = after or before
    if known is None:
        return ""
    main, given = tables.main(known), [summary for summary in (before, after) if summary]
    if known.kind == "actions":
        return f"{main.label}: {_change(main, given)}"
    if known.turns == 1:
        return f"answer right: {_change(main, given)}"
    return f"last answer right: {_change(main, given)} (first answer: {_change(tables.names(known)[0], given)})"


def _change(name: tables.Name, given: list[EvaluationSummary]) -> str:
    return " -> ".join(_percent(name.of(summary.sampled).value) for summary in given)


def _percent(share: float | None) -> str:
    return "no data" if share is None else f"{100 * share:.0f} %"
