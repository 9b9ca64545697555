"""The benchmark of weights tells what they cost running generations from what everything costs them."""

import pytest

from benchmarks.weights_parts import token_gap


def test_the_token_gap_is_the_longest_wait_while_weights_come_beyond_the_usual_one():
    usual, slow, loading = [0.01] * 50, [0.3], [0.02, 0.07, 0.015]
    times = [0.0]
    for wait in (*usual, *slow, *usual, *loading, *usual):
        times.append(times[-1] + wait)
    began = times[101] + 0.001  # within the first wait of those in which weights came
    found = token_gap(times, began, began + 0.1)
    assert found["token_gap_ms"] == pytest.approx(60) and found["usual_ms"] == pytest.approx(10)
