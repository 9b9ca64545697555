"""Who asks for more actors than there is room for is told so at once."""

from __future__ import annotations

import math

import pytest

from protocols.errors import SettingError
from redraft.control.cluster import ROOM, local_cpus
from redraft.control.places import Scaled, answer, demand, fitting
from redraft.recipe import build

NEED = {"CPU": 2.0, "GPU": 0.5, "actor": 0.0}


@pytest.mark.parametrize(
    ("free", "fit"),
    [
        ([], 0),
        ([{"CPU": 8.0, "GPU": 1.0}], 2),
        ([{"CPU": 3.0, "GPU": 8.0}, {"CPU": 3.0, "GPU": 8.0}], 2),
        ([{"CPU": 8.0}], 0),
        ([{"CPU": 5.999999999, "GPU": 4.0}], 3),
    ],
)
def test_an_actor_fits_where_one_node_has_all_that_it_needs(free, fit):
    assert fitting(NEED, free) == fit
    assert fitting(demand({"num_cpus": 0, "num_gpus": 0.0, "resources": {}}), free) == math.inf


@pytest.mark.parametrize(
    ("scaled", "words"), [(True, "wait for nodes, which Ray is asked for"), (False, "wait for nodes to join")]
)
def test_where_nodes_may_join_the_rest_waits_and_that_is_said(scaled, words):
    said = answer(2, 8, 3, NEED, True, scaled)
    assert said == Scaled(2, f"there is room for 3 actors of 2 CPU, 0.5 GPU each; the others {words}")
    assert answer(2, 3, 3, NEED, True, scaled) == Scaled(2)


def test_where_none_can_join_it_is_refused_but_fewer_than_before_never_is():
    with pytest.raises(
        SettingError, match="N: 8 actors are too many: .* for 3 actors of 2 CPU, 0.5 GPU .* a smaller actors.gpus"
    ):
        answer(2, 8, 3, NEED, False, False)
    assert answer(9, 8, 3, NEED, False, False) == Scaled(9)
    with pytest.raises(SettingError, match="a smaller actors.cpus, or a larger actors.count"):
        answer(2, 8, 3, {"CPU": 2}, False, False)


def test_a_ray_that_is_started_for_a_run_has_room_for_more_actors_than_it_begins_with():
    values = {"name": "x", "steps": 0, "model": {"make": {}}, "environment": {"name": "signs"}}
    recipe = build(values | {"actors": {"count": 2, "cpus": 0.3}})
    learner = recipe.learner.ranks * recipe.learner.cpus
    assert local_cpus(recipe, 1) == math.ceil(ROOM * 2 * 0.3 + learner)
    assert local_cpus(recipe, 64) == 64
    sized = build(values | {"actors": {"count": 1, "autoscale": {"max": 12}}})
    assert local_cpus(sized, 1) == math.ceil(12 + learner)
