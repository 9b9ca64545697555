"""The benchmark of asynchrony reads the right steps, and both of its sides meet the same latencies."""

import numpy as np
import pytest

from benchmarks.async_gain import WARM, Plan, Result, stages, summary
from benchmarks.async_gain_parts import HEAVY_MEAN_S, SHORT_S, SlowSigns

PLAN = Plan(1, {"none": WARM + 2, "heavy": WARM + 3})


def lines(step_s: dict[str, float], wait_s: float) -> list[dict]:
    """metrics.jsonl of a run whose steps take so long by latency; the first ones of a stage take ten times as long."""
    found, now = [], 0.0
    for latency, count in PLAN.stages.items():
        for step in range(count):
            now += step_s[latency] * (10 if step < WARM else 1)
            found.append({"time_s": now, "seconds": {"wait": wait_s}, "staleness_mean": 1.0})
    return found


def test_the_first_steps_of_a_stage_do_not_count():
    found = stages(lines({"none": 1.0, "heavy": 6.0}, wait_s=0.4), PLAN)
    assert found["none"].step_s == pytest.approx(1.0) and found["heavy"].step_s == pytest.approx(6.0)


def test_overlap_is_ideal_when_a_step_takes_as_long_as_the_longer_phase_alone():
    sync = Result(0.5, stages(lines({"none": 1.0, "heavy": 6.0}, wait_s=0.4), PLAN))
    other = Result(0.48, stages(lines({"none": 0.75, "heavy": 2.0}, wait_s=0.0), PLAN))
    result = summary({"sync": [sync], "async": [other]})
    assert result["ideal_ratio"] == pytest.approx(0.6 / 0.75) and result["heavy_tail_speedup"] == pytest.approx(3.0)
    assert result["accuracy"]["difference"] == pytest.approx(-0.02)


def test_latencies_follow_the_place_of_a_group_and_nothing_else():
    def drawn(place: int) -> float:
        made.reset(seed=7 + place, options={"task": {"digits": "7128", "target": 12, "id": "a"}})
        return made._latency_s()

    made = SlowSigns(stages=[[0, "none"], [10, "short"], [20, "heavy"]], first_seed=7)
    assert drawn(9) == 0.0 and drawn(10) == SHORT_S and drawn(19) == SHORT_S
    heavy = [drawn(place) for place in range(20, 2020)]
    assert heavy == [drawn(place) for place in range(20, 2020)]
    assert np.mean(heavy) == pytest.approx(HEAVY_MEAN_S, rel=0.1) and np.quantile(heavy, 0.99) > 2.5
