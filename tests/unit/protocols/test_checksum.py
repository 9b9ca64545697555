"""The element checksum: the same for the same values, however an engine has arranged them."""

from __future__ import annotations

import numpy as np
import pytest

from protocols.checksum import element_checksum


@pytest.mark.parametrize("kind", [np.uint16, np.float16, np.float32])
def test_fusing_splitting_transposing_and_zero_padding_do_not_change_it(kind):
    random = np.random.default_rng(0)
    first, second = (random.integers(1, 1000, (8, 5)).astype(kind) for _ in range(2))
    plain = element_checksum([first, second])
    assert element_checksum([np.concatenate([second, first])]) == plain
    assert element_checksum([first.T, *second]) == plain
    assert element_checksum([np.pad(first, 3), second, np.zeros(7, kind)]) == plain


def test_one_changed_bit_changes_it():
    values = np.arange(100, dtype=np.float32)
    other = values.copy()
    other.view(np.uint32)[3] ^= 1
    assert element_checksum([values]) != element_checksum([other])


def test_a_change_that_keeps_the_sum_changes_the_squares():
    assert element_checksum([np.array([1, 3], np.uint16)]) != element_checksum([np.array([2, 2], np.uint16)])
