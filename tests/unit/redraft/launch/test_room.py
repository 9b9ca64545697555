"""GPUs that no node has are refused before anything waits for them."""

from __future__ import annotations

import pytest
from support.places import RECIPES

from redraft import recipe as recipes
from redraft.launch import room


def asked(*overrides: str) -> recipes.Recipe:
    return recipes.load(RECIPES / "quickstart.yaml", overrides)


@pytest.mark.parametrize(
    ("overrides", "nodes", "said"),
    [
        (["learner.gpus=1"], [0, 0], "learner.gpus: 1 is asked for, and no node has a GPU. Set it to 0"),
        (["actors.gpus=1"], [], "actors.gpus: 1 is asked for, and no node has a GPU. Set it to 0"),
        (["actors.gpus=4"], [2, 2], "actors.gpus: 4 is asked for, and no node has more than 2. Set it to 2"),
        (
            ["actors.gpus=4", "actors.engine.tensor_parallel=4"],
            [2, 2],
            "no node has more than 2: an engine runs on one node. Set it to 2, and actors.engine.tensor_parallel, or",
        ),
        (["learner.gpus=1", "learner.ranks=4"], [2, 1], "fit on the 3 GPUs there are. Set learner.ranks=3,"),
        (
            ["learner.gpus=1", "actors.gpus=1"],
            [1],
            "actors.gpus: ranks take so many of the 1 GPUs .* finds 1. Set learner.gpus=0.5 actors.gpus=0.5, so that",
        ),
        (
            ["learner.gpus=1", "learner.ranks=4", "actors.gpus=1"],
            [4],
            "Set learner.gpus=0.6 actors.gpus=0.4, so that .* or learner.ranks=3",
        ),
        (
            ["learner.gpus=0.5", "actors.gpus=2"],
            [2],
            "actors.gpus: ranks take so many.* Set learner.gpus=0.5 actors.gpus=0.5",
        ),
    ],
)
def test_what_no_node_has_is_named_with_its_cure(overrides, nodes, said):
    problem = room.lacking(asked(*overrides), nodes)
    assert problem is not None
    with pytest.raises(type(problem), match=said):
        raise problem


@pytest.mark.parametrize(
    ("overrides", "nodes"),
    [
        ([], [0]),
        (["learner.gpus=0.5", "actors.gpus=0.5"], [1]),
        (["learner.gpus=1", "learner.ranks=3", "actors.gpus=4"], [4, 4]),
        (["learner.gpus=0.6", "actors.gpus=0.5"], [2]),
        (["learner.gpus=1", "actors.gpus=1", "actors.count=8"], [2]),  # the other seven wait, and one plays
        (["learner.gpus=8", "steps=0"], [0]),
    ],
)
def test_what_has_room_starts(overrides, nodes):
    assert room.lacking(asked(*overrides), nodes) is None
