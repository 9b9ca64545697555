"""What the learner says where no batch came: whose fault it was, by what replay has counted meanwhile."""

import pytest

from learner.batches.prefetch import _late
from learner.config import LearnerSettings
from protocols.replay_stats import ReplayStats
from replay.client import Claim


@pytest.mark.parametrize(
    ("dropped", "said"),
    [
        ({"flat": 30}, "for groups that are not flat (30 of 40 were filtered"),
        ({"broken": 30}, "for an environment that works (every episode of 30 of 40 groups broke off)"),
        ({"stale": 30}, "for actors: too few groups are ready"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_who_was_waited_for_is_named(dropped, said):
    before = ReplayStats(trained_total=10, dropped={"flat": 3, "broken": 3, "stale": 3})
    now = ReplayStats(
        trained_total=20, dropped={name: 3 + dropped.get(name, 0) for name in ("flat", "broken", "stale")}
    )
    claim = Claim([], "groups", now)
    assert said in str(_late(claim, LearnerSettings(), before))
