"""Claims are kept as long as replay hears of their consumer, however long a step or a wait of it takes."""

from __future__ import annotations

import pytest
from support.shard_house import ANY, a_house, numbers
from support.waiting import deadline_s

from learner.batches.claims import Heard

LEASE_S = deadline_s(2.0)


@pytest.mark.parametrize("shards", [1, 2])
def test_a_batch_stays_its_learners_while_that_trains_for_longer_than_a_claim_lasts_and_no_longer(shards):
    with a_house(shards, claim_lease_s=LEASE_S) as house:
        house.fill(4)
        other = house.client_of("second")
        with Heard(house.client_of("learner")):
            assert len(house.claim(4, wait_s=10).groups) == 4
            assert other.claim(4, 0, ANY, 2 * LEASE_S).groups == []
        assert sorted(numbers(other.claim(4, 0, ANY, LEASE_S + deadline_s(20)).groups)) == [0, 1, 2, 3]


def test_a_service_that_is_down_for_a_while_does_not_end_it():
    with a_house(1, claim_lease_s=LEASE_S) as house:
        house.fill(1)
        with Heard(house.client_of("learner", timeout_s=1.0)):
            assert len(house.claim(wait_s=10).groups) == 1
            house.restart()
            assert house.client_of("second").claim(1, 0, ANY, 2 * LEASE_S).groups == []
