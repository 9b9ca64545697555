"""Samplers that choose: shares and importance weights on one shard and over several, and priorities from the learner's
advantages to its next batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from support.shard_house import ANY, House, a_house, gid, numbers
from support.waiting import deadline_s
from test_learner_ranks import BATCH, groups, settings

from learner.batches.batch import Batch, prepare
from learner.batches.prefetch import Prefetch
from protocols.turns import Close, Group
from replay.client.shares import shard_of

SIZES = (24, 10, 4)  # groups of each shard: as uneven as chance can make them
SHARED = [n for shard, size in enumerate(SIZES) for n in [n for n in range(200) if shard_of(gid(n), 3) == shard][:size]]
PRIORITIES = {n: (0.2, 1.0, 5.0)[shard_of(gid(n), 3)] * (1 + n % 3) for n in SHARED}  # the fewer, the weightier


@pytest.fixture
def house(request) -> Iterator[House]:
    with a_house(**getattr(request, "param", {})) as made:
        yield made


def masses(exponent: float) -> dict[int, float]:
    """The chance of each group."""
    mass = {n: PRIORITIES[n] ** exponent for n in SHARED}
    return {n: value / sum(mass.values()) for n, value in mass.items()}


def played_once(house: House) -> None:
    """All groups are there, were used once and got their priorities."""
    for done in [house.play(number, turns=1) for number in SHARED]:
        done.result(deadline_s(10))
    used = numbers(house.claim(len(SHARED), 1).groups)
    house.client.commit([gid(number) for number in used], 1, [PRIORITIES[number] for number in used])


def draw(house: House, claims: int, count: int) -> Iterator[tuple[list[int], np.ndarray]]:
    """Groups and weights of many claims, each given back."""
    for _ in range(claims):
        claim = house.claim(count)
        assert len({group.id for group in claim.groups}) == count
        yield numbers(claim.groups), claim.weights
        house.client.release([group.id for group in claim.groups])


def check_shares(picked: Counter, chances: dict[int, float]) -> None:
    """Chi-square of the counts, by group and by shard: below its mean by five standard deviations more."""
    by_shard, expected = Counter(), Counter()
    for number, chance in chances.items():
        by_shard[shard_of(gid(number), 3)] += picked[number]
        expected[shard_of(gid(number), 3)] += chance * picked.total()
    groups = sum((picked[n] - c * picked.total()) ** 2 / (c * picked.total()) for n, c in chances.items())
    shards = sum((by_shard[shard] - count) ** 2 / count for shard, count in expected.items())
    print(
        f"shards {dict(sorted(by_shard.items()))}, expected {[round(expected[s]) for s in sorted(expected)]}; ", end=""
    )
    print(f"chi-square {groups:.0f} of {len(chances)} groups, {shards:.1f} of 3 shards")
    assert groups < len(chances) + 5 * np.sqrt(2 * len(chances))
    assert shards < 3 + 5 * np.sqrt(6)


@pytest.mark.parametrize("house", [{"sampler": "uniform", "max_uses": 9}], indirect=True)
def test_uniform_over_shards_gives_every_group_the_same_chance(house):
    played_once(house)
    picked: Counter = Counter()
    for chosen, weights in draw(house, 400, 3):
        picked.update(chosen)
        assert weights.tolist() == [1.0] * 3
    check_shares(picked, {number: 1 / len(SHARED) for number in SHARED})


PRIORITISED = {"sampler": "prioritised", "max_uses": 9, "priority_exponent": 0.8}


@pytest.mark.parametrize("house", [PRIORITISED], indirect=True)
def test_prioritised_over_shards_picks_in_proportion_to_mass(house):
    played_once(house)
    picked = Counter(number for (number,), _ in draw(house, 800, 1))
    check_shares(picked, masses(0.8))


@pytest.mark.parametrize(
    "house",
    [PRIORITISED | {"shards": shards, "importance_exponent": beta} for shards in (1, 3) for beta in (0.5, 1.0)],
    indirect=True,
)
def test_importance_weights_over_shards_are_those_of_a_single_one(house):
    played_once(house)
    beta = house.settings.importance_exponent
    bias = {number: (chance * len(SHARED)) ** -beta for number, chance in masses(0.8).items()}
    across = 0
    for chosen, weights in draw(house, 40, 8):
        expected = np.array([bias[number] for number in chosen])
        np.testing.assert_allclose(weights, expected / expected.max(), rtol=1e-5)
        across += len({shard_of(gid(number), 3) for number in chosen}) > 1
    assert across > 10, "groups of several places came together"


@pytest.mark.parametrize(
    "house", [PRIORITISED | {"shards": shards, "importance_exponent": 1.0} for shards in (1, 3)], indirect=True
)
def test_with_exponent_one_the_weighted_mean_of_picks_is_the_plain_mean(house):
    """Before weights are scaled to at most 1, a single pick's expected weight x value is the mean value."""
    played_once(house)
    values = {number: PRIORITIES[number] + number % 7 for number in SHARED}  # what is picked more is larger
    wanted, plain = {"step": 0, "max_staleness": ANY}, []
    weighted = []
    for _ in range(1000):
        if len(house.endpoints) == 1:
            claim = house.client._claim(house.client._links[0], 0.0, 1.0, count=1, **wanted)
        else:
            claim = house.client._claim_shared(1, wanted)
        (number,) = numbers(claim.groups)
        plain.append(values[number])
        weighted.append(float(claim.weights[0]) * values[number])
        house.client.release([gid(number)])
    mean = np.mean(list(values.values()))
    error = np.std(weighted) / np.sqrt(len(weighted))
    print(f"mean {mean:.2f}; of picks {np.mean(plain):.2f}, weighted {np.mean(weighted):.2f} +- {error:.2f}")
    assert abs(np.mean(weighted) - mean) < 4 * error < 0.5 * abs(np.mean(plain) - mean)


# -- end to end: three uses, exponents as they are by default

THRICE = {"shards": 1, "sampler": "prioritised", "max_uses": 3}
COUNT = 40


def weights_of(chosen: list[int], priorities: dict[int, float], exponent: float = 0.6, beta: float = 0.4) -> np.ndarray:
    """As Schaul et al. have them: (N P(i))^-beta, by the largest of the batch."""
    mass = np.array([priorities[number] for number in priorities]) ** exponent
    chance = dict(zip(priorities, mass / mass.sum(), strict=True))
    weights = np.array([(len(priorities) * chance[number]) ** -beta for number in chosen])
    return weights / weights.max()


def use_all(house: House, step: int, priorities: dict[int, float]) -> None:
    used = numbers(house.claim(len(priorities), step).groups)
    house.client.commit([gid(number) for number in used], step, [priorities[number] for number in used])


def check_favour(house: House, priorities: dict[int, float]) -> None:
    """Claims follow these priorities, and their weights are right."""
    picked: Counter = Counter()
    for chosen, weights in draw(house, 300, 4):
        picked.update(chosen)
        np.testing.assert_allclose(weights, weights_of(chosen, priorities), rtol=1e-5)
    ranked = sorted(priorities, key=priorities.get)
    low, high = (sum(picked[number] for number in part) for part in (ranked[: COUNT // 2], ranked[COUNT // 2 :]))
    mass = np.array([priorities[number] ** 0.6 for number in ranked])
    expected = mass[COUNT // 2 :].sum() / mass.sum()
    print(f"upper half: {high / (low + high):.3f} of the picks, {expected:.3f} of the mass")
    assert abs(high / (low + high) - expected) < 0.05


@pytest.mark.parametrize("house", [THRICE, THRICE | {"shards": 3}], indirect=True)
def test_later_claims_favour_what_the_learner_found_worth_another_look(house):
    house.fill(COUNT)
    for _, weights in draw(house, 20, 4):
        assert weights.tolist() == [1.0] * 4, "nothing is known of any"
    priorities = {number: 0.1 + 0.05 * number**1.5 for number in range(COUNT)}
    use_all(house, 1, priorities)
    check_favour(house, priorities)
    priorities = {number: priorities[COUNT - 1 - number] for number in range(COUNT)}
    use_all(house, 2, priorities)
    check_favour(house, priorities)
    house.restart()
    check_favour(house, priorities)
    use_all(house, 3, priorities)
    assert house.claim(1, 3).groups == [] and house.client.stats().used == COUNT, "three uses and no more"


@pytest.mark.parametrize("house", [THRICE], indirect=True)
def test_a_group_that_was_not_used_yet_has_the_largest_priority_seen(house):
    house.fill(COUNT)
    priorities = {number: 1.0 + number for number in range(COUNT)}
    use_all(house, 1, priorities)
    for number in range(COUNT, COUNT + 8):
        house.play(number).result(deadline_s(10))
        priorities[number] = float(COUNT)
    for chosen, weights in draw(house, 50, 8):
        np.testing.assert_allclose(weights, weights_of(chosen, priorities), rtol=1e-5)


@pytest.mark.parametrize("house", [THRICE], indirect=True)
def test_a_group_of_priority_zero_is_hardly_ever_picked_again(house):
    house.fill(COUNT)
    use_all(house, 1, {number: float(number % 2) for number in range(COUNT)})
    picked = Counter(number % 2 for chosen, _ in draw(house, 50, 4) for number in chosen)
    assert picked[0] < 0.05 * picked.total(), f"{picked[0]} of {picked.total()} picks have no priority"


@pytest.mark.parametrize("house", [THRICE], indirect=True)
def test_a_restart_keeps_the_priority_of_groups_that_were_not_used_yet(house):
    for number in range(COUNT, 2 * COUNT):
        house.play(number).result(deadline_s(10))
    priorities = {number: 10.0 + number for number in range(COUNT, 2 * COUNT)}
    use_all(house, 1, priorities)
    for number in range(8):
        house.play(number).result(deadline_s(10))
        priorities[number] = 10.0 + 2 * COUNT - 1
    house.restart()
    for chosen, weights in draw(house, 50, 8):
        np.testing.assert_allclose(weights, weights_of(chosen, priorities), rtol=1e-5)


def with_uneven_rewards(group: Group) -> Group:
    random = np.random.default_rng(int.from_bytes(group.id, "big"))
    return replace(group, turns=tuple(replace(turn, reward=float(random.random() ** 3)) for turn in group.turns))


@pytest.mark.parametrize("house", [THRICE | {"max_uses": 9, "shards": shards} for shards in (1, 3)], indirect=True)
def test_advantages_become_priorities_and_weights_reach_the_loss(house):
    """The learner's own prefetch: what it commits decides what it gets, and scales what that counts."""
    made = {group.id: with_uneven_rewards(group) for group in groups(4 * BATCH)}
    for order, group in enumerate(made.values()):
        lease = house.lease(order)
        for turn in group.turns:
            house.producer.add(turn, lease)
        house.producer.add(Close(group.id, 0, len(group.turns)), lease, 1.0).result(deadline_s(10))
    choice, priorities, lightest = settings(credit={"name": "raw"}), dict.fromkeys(made, 1.0), []
    with closing(Prefetch(house.client_of("learner"), choice)) as prefetch:
        for step in range(8):
            prefetch.start(step, choice.max_staleness)
            batch = prefetch.take()
            weights = weights_of(batch.ids, priorities)
            check_batch(batch, prepare([made[group] for group in batch.ids], step, choice, weights.astype(np.float32)))
            house.client.commit(batch.ids, step + 1, batch.priorities)
            priorities |= dict(zip(batch.ids, batch.priorities, strict=True))
            lightest.append(weights.min())
    print(f"the lightest group of each batch weighs {np.round(lightest, 2)}")
    assert lightest[0] == 1.0 > 0.8 > min(lightest)


def check_batch(got: Batch, expected: Batch) -> None:
    for one, other in zip(got.micros[0], expected.micros[0], strict=True):
        np.testing.assert_array_equal(one.targets, other.targets)
        np.testing.assert_allclose(one.coefficients, other.coefficients, rtol=1e-5)
