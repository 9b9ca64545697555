"""What lasts is not walked through again, what is garbage goes, and the collector is as it was before."""

from __future__ import annotations

import gc
import weakref

import pytest

from protocols import heap


class Ring:
    """Only a collection frees it."""

    def __init__(self):
        self.me = self


@pytest.fixture(autouse=True)
def thawed():
    yield
    gc.unfreeze()


def test_nothing_is_collected_meanwhile_and_what_is_left_is_frozen():
    with heap.lasting():
        assert not gc.isenabled()
        kept, gone = Ring(), weakref.ref(Ring())
        assert gone() is not None
    assert gone() is None and gc.isenabled()
    assert gc.get_freeze_count() > 0
    assert not any(found is kept for found in gc.get_objects())


def test_an_error_inside_leaves_the_collector_on():
    with pytest.raises(ImportError), heap.lasting():
        raise ImportError
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with heap.lasting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
