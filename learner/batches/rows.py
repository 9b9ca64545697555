"""Rows: which sequences share one, so that little of it is padding."""

from __future__ import annotations

from collections.abc import Sequence


def check_fit(lengths: Sequence[int], row_tokens: int) -> None:
    if (longest := max(lengths, default=0)) > row_tokens:
        raise ValueError(f"a sequence of {longest} tokens does not fit a row of {row_tokens}")


def fill_rows(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Which sequences share a row, fullest rows first. ValueError on one that fits none.

    As many rows as first-fit decreasing needs, and these as even as it can fill them (MULTIFIT, Coffman, Garey and
    Johnson 1978): a micro-batch is as wide as its fullest row, so that evenness saves padding.
    """
    check_fit(lengths, row_tokens)
    rows = _first_fit(lengths, row_tokens)
    low, high = max(max(lengths, default=0), -(-sum(lengths) // max(1, len(rows)))), row_tokens
    while low < high:
        middle = (low + high) // 2
        shorter = _first_fit(lengths, middle)
        if len(shorter) <= len(rows):
            rows, high = shorter, middle
        else:
            low = middle + 1
    return rows


def _first_fit(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for item in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[item]
        row = next((row for row, left in enumerate(room) if left >= length), None)
        if row is None:
            rows.append([item])
            room.append(row_tokens - length)
        else:
            rows[row].append(item)
            room[row] -= length
    return [rows[row] for row in sorted(range(len(rows)), key=lambda row: room[row])]
