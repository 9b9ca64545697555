"""Ranks that wait for a command wait for as long as rank 0 lives, whatever that waits for."""

from __future__ import annotations

import multiprocessing
import time
from datetime import timedelta
from multiprocessing.connection import Connection

from support.ports import free_port
from support.waiting import deadline_s

from learner.ranks.lead import POLL_S, Waits

LIMIT_S = deadline_s(3 * POLL_S)  # of their group: shorter than the wait


def rank(number: int, port: int, told: Connection) -> None:
    import torch.distributed as dist

    from learner.ranks.commands import Commands

    place = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=place, rank=number, world_size=2, timeout=timedelta(seconds=60))
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=LIMIT_S))
    assert group is not None
    commands, waits = Commands(group, 2, lambda kind, payload: None), Waits()
    if number:
        told.send(commands.follow())
        return
    ends = time.monotonic() + 2 * LIMIT_S
    assert waits._until(lambda: time.monotonic() > ends, 4 * LIMIT_S, commands.wait)
    commands.end("done")


def test_they_hear_of_a_wait_that_is_longer_than_their_groups_limit():
    context, port = multiprocessing.get_context("spawn"), free_port()
    receiver, sender = context.Pipe(duplex=False)
    ranks = [context.Process(target=rank, args=(number, port, sender)) for number in range(2)]
    for process in ranks:
        process.start()
    sender.close()
    try:
        assert receiver.poll(deadline_s(90)) and receiver.recv() == "done"
    finally:
        for process in ranks:
            process.join(deadline_s(30))
            process.kill()
