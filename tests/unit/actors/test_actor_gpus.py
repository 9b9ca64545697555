"""An actor reports the GPUs that it was given, with each word of its own."""

from types import SimpleNamespace

from actors.actor import Actor
from protocols.nvml import Gpu

GPU = Gpu("Card", 80 << 30, 61 << 30, 0.87, 610.0, 3)


def test_each_report_has_what_the_gpus_do_now_and_nothing_where_there_are_none():
    playing = Actor(None, "actor-0", None)
    assert playing._take_report().gpus == ()
    playing._gpus = SimpleNamespace(newest=(GPU,))
    assert [playing._take_report().gpus for _ in range(2)] == [(GPU,), (GPU,)]
    playing._gpus.newest = ()
    assert playing._take_report().gpus == ()
