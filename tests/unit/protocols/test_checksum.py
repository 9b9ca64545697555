"""The sums of weights: the same for the same values, however an engine has arranged them, wherever they lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from protocols.checksum import CHUNK_BYTES, MODULUS, Sums, device_sums, element_sums, summed, sums_of, word_sums


@pytest.mark.parametrize("kind", [np.uint16, np.float16, np.float32])
def test_fusing_splitting_and_zero_padding_change_neither_and_transposing_not_those_of_elements(kind):
    random = np.random.default_rng(0)
    first, second = (random.integers(1, 1000, (8, 12)).astype(kind) for _ in range(2))
    words, elements = summed(map(word_sums, (first, second))), element_sums([first, second])
    for arranged in ([np.concatenate([second, first])], [first[:3], first[3:], second], [np.pad(first, 4), second]):
        assert summed(map(word_sums, arranged)) == words and element_sums(arranged) == elements
    assert element_sums([first.T, *second, np.zeros(7, kind)]) == elements


def test_words_are_those_of_eight_bytes_with_zeros_at_the_end_and_sums_wrap():
    assert word_sums(np.array([3, 2**63], "<u8")) == Sums(2**63 + 3, 9)
    assert word_sums(np.array([1, 2, 3], np.uint8)) == Sums(0x030201, 0x030201**2)
    assert word_sums(np.array([], np.float32)) == Sums()
    assert Sums(1, 2) - Sums(2, 3) == Sums(MODULUS - 1, MODULUS - 1)
    assert Sums.of(str(Sums(7, MODULUS - 1))) * 2 == Sums(14, MODULUS - 2)


@pytest.mark.parametrize("count", [1, 5, CHUNK_BYTES // 4, CHUNK_BYTES // 2 + 3])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.int64, torch.uint8, torch.bool])
def test_a_device_finds_the_sums_that_numpy_finds_and_a_copy_on_the_way_is_exact(kind, count):
    tensor = torch.randint(-100, 100, (count + 1,), generator=torch.Generator().manual_seed(count)).to(kind)[1:]
    data = tensor.view(torch.uint8)
    assert device_sums([data]) == sums_of(tensor) == word_sums(data.numpy())
    assert device_sums([tensor, tensor], "elements") == sums_of(tensor, "elements") * 2
    copy = np.empty(len(data), np.uint8)
    assert word_sums(data.numpy(), copy) == sums_of(tensor) and (copy == data.numpy()).all()


@pytest.mark.parametrize("sums", [word_sums, lambda array: element_sums([array])])
def test_one_changed_bit_changes_them_and_so_does_a_change_that_keeps_the_sum(sums):
    values = np.arange(100, dtype=np.float32)
    other = values.copy()
    other.view(np.uint32)[3] ^= 1
    assert sums(values) != sums(other)
    assert sums(np.array([1, 3], np.uint64)) != sums(np.array([2, 2], np.uint64))


def test_what_is_taken_out_of_sums_is_no_longer_in_them():
    first, second = (np.random.default_rng(seed).integers(0, 2**32, 1000, np.uint32) for seed in (0, 1))
    assert element_sums([first, second]) - element_sums([second]) == element_sums([first])
    assert word_sums(np.concatenate([first, second])) - word_sums(second) == word_sums(first)
