"""The learner's ranks get room together or not at all, on one node where one can hold them, and give it back."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from support.waiting import deadline_s, until

from learner.config import LearnerSettings
from protocols.errors import DeadlineError
from redraft.control import cluster as _before_ray  # noqa: F401  (sets what Ray reads when it is imported)
from redraft.control import placement, places
from redraft.control.workers import needs

pytestmark = pytest.mark.ray
SMALL, LARGE = 2.0, 4.0  # GPUs of the two nodes, which exist for Ray alone


@pytest.fixture(scope="module")
def cluster():
    import ray
    from ray._private.authentication.authentication_token_setup import ensure_token_if_auth_enabled
    from ray.cluster_utils import Cluster

    ensure_token_if_auth_enabled()
    head = {"num_cpus": 4, "num_gpus": int(SMALL), "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=head)
    made.add_node(num_cpus=4, num_gpus=int(LARGE))
    ray.init(address=made.address, namespace="redraft", log_to_driver=False, logging_level=logging.ERROR)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def gang(cluster):
    """Makes gangs of so many ranks of a GPU each; all room is back when the test is over."""
    made = []

    def make(ranks: int) -> placement.Gang:
        made.append(placement.gang(LearnerSettings(ranks=ranks, gpus=1, cpus=0.5)))
        return made[-1]

    yield make
    for one in made:
        one.remove()
    until(lambda: gpus() == SMALL + LARGE, lambda: f"the nodes' GPUs free again: {places.free_of_nodes()}")


def gpus() -> float:
    """That are free."""
    return sum(node.get("GPU", 0.0) for node in places.free_of_nodes())


def nodes_of(one: placement.Gang, ranks: int) -> list[str]:
    """Where processes start that ask for what a rank does, in the order of ranks."""
    import ray

    class Seat:  # not at the top: workers do not find this file
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    part, options = ray.remote(Seat), needs(LearnerSettings(ranks=ranks, gpus=1, cpus=0.5))
    started = [part.options(**options, scheduling_strategy=seat).remote() for seat in one.seats()]
    found = ray.get([process.node.remote() for process in started], timeout=deadline_s(30))
    for process in started:
        ray.kill(process)
    return found


def nothing(_: str) -> None:
    raise AssertionError("there is room, so that nothing is missing")


def test_ranks_that_fit_on_one_node_are_on_one_node(gang):
    one = gang(3)
    one.wait(deadline_s(20), nothing)
    assert len(set(nodes_of(one, 3))) == 1 and gpus() == SMALL + LARGE - 3


def test_ranks_of_several_nodes_fill_them_and_neighbours_are_on_one(gang):
    one = gang(6)
    one.wait(deadline_s(20), nothing)
    nodes = nodes_of(one, 6)
    assert sorted(nodes.count(node) for node in set(nodes)) == [2, 4]
    assert sum(before != after for before, after in zip(nodes, nodes[1:], strict=False)) == 1


def test_no_rank_has_room_while_one_lacks_it_and_what_is_missing_is_said_until_it_is_there(gang):
    holder, one, said = gang(3), gang(4), []
    holder.wait(deadline_s(20), nothing)
    free = gpus()

    def meanwhile(missing: str) -> None:
        said.append((missing, gpus()))
        if len(said) == 2:
            holder.remove()

    one.wait(deadline_s(60), meanwhile)
    assert said[0] == ("4 GPU for 4 ranks, of which 3 are free", free) == (said[1][0], said[1][1])
    assert len(nodes_of(one, 4)) == 4


def test_who_gets_no_room_in_time_is_told_what_is_missing_and_holds_nothing(gang):
    one = gang(7)
    with pytest.raises(DeadlineError, match="room for the learner's ranks: 7 GPU for 7 ranks, of which 6 are free"):
        one.wait(1.0, lambda _: None)
    one.remove()
    assert gpus() == SMALL + LARGE


def test_one_rank_on_a_cpu_reserves_nothing():
    assert placement.gang(LearnerSettings()) is None
    assert placement.gang(LearnerSettings(ranks=2)) is not None and placement.gang(LearnerSettings(gpus=0.5))


def test_room_is_asked_for_before_any_rank_starts_stays_when_ranks_do_and_is_given_back_in_the_end(gang, monkeypatch):
    from contextlib import ExitStack

    from redraft.control import ranks, workers

    started: list[list] = []
    monkeypatch.setattr(workers, "start_ranks", lambda *given: started.append(given[-1]) or [])
    learner = LearnerSettings(ranks=2, gpus=1, cpus=0.5)
    recipe, shards = SimpleNamespace(learner=learner, start_s=deadline_s(20)), SimpleNamespace(endpoints=(), keys=None)
    with ExitStack() as closing:
        room = ranks.Ranks(None, recipe, shards, closing)
        room.start(lambda _: None)
        assert len(started[0]) == 2 and gpus() == SMALL + LARGE - 2
        room.kill()
        room.start(lambda _: None)
        assert len(started[1]) == 2 and gpus() == SMALL + LARGE - 2, "those that come after them find the same room"
