"""What stands in the place of the learner's rank 0 where only the rest of a run is measured or tested."""

from __future__ import annotations

from benchmarks.scale_parts import Consumer
from redraft.control.workers import RankPart

NOT_ASKED = {  # of a rank without a GPU of its own, to actors on this machine that never rest
    "gpus",
    "rested",
    "seat",
    "serve_metrics",  # asked through `serves`
}


def test_a_consumer_answers_all_that_a_controller_asks_of_a_rank():
    def answers(part: type) -> set[str]:
        return {name for name in dir(part) if not name.startswith("_") and callable(getattr(part, name))}

    assert answers(RankPart) - answers(Consumer) == NOT_ASKED
