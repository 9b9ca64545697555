"""Where ranks meet: at one address, on the loopback where all of them are on one machine."""

import multiprocessing
import os
from multiprocessing.connection import Connection

import psutil
from support.ports import free_port
from support.waiting import deadline_s

from learner.ranks.trainer import join_ranks
from redraft.control.ranks import meeting


def test_ranks_of_one_node_meet_on_its_loopback_and_others_at_the_node_of_rank_0():
    assert meeting([("10.0.0.1", 4000), ("10.0.0.1", 4001)]) == ("127.0.0.1", 4000)
    assert meeting([("10.0.0.1", 4000), ("10.0.0.2", 4001)]) == ("10.0.0.1", 4000)


def joined(master: tuple[str, int], told: Connection) -> None:
    """The only rank: tells where it listens while it is joined."""
    import torch.distributed as dist

    join_ranks(0, 1, master, "cpu", deadline_s(60))
    found = psutil.Process(os.getpid()).net_connections("inet")
    told.send([tuple(one.laddr) for one in found if one.status == psutil.CONN_LISTEN])
    dist.destroy_process_group()


def test_the_store_of_the_ranks_listens_where_they_meet_and_nowhere_else():
    context, master = multiprocessing.get_context("spawn"), ("127.0.0.1", free_port())
    receiver, sender = context.Pipe(duplex=False)
    rank = context.Process(target=joined, args=(master, sender))
    rank.start()
    try:
        assert receiver.poll(deadline_s(60)), "it has joined"
        listening = receiver.recv()
    finally:
        rank.join(deadline_s(30))
        rank.kill()
    assert master in listening
    assert not [host for host, _ in listening if host in ("0.0.0.0", "::")]
