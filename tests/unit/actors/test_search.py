"""The tree search: UCT's choice, pairs of good and bad ends, and what a corrected trajectory is made of."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
from support.rollout_house import House, Speaker
from support.tokenizers import Newlines

from actors.door import Outcome
from actors.environments.minicraft import Minicraft
from actors.rollout_config import SearchSettings
from actors.rollouts.tree import Node, backpropagate, choose, ends, pairs, shared, uct, worth
from protocols.turns import Role, Stop
from redraft.models.make import build_tokenizer

TASK = {"id": "minicraft/test/0", "base": "abdfh", "recipes": ["dhc", "fab"], "good": 1}
BAD, GOOD = ["+d", "+h", "+c"] + ["*1"] * 5, ["+f", "+a", "+b", "*2"]


def node(parent: Node | None, action: str = "", reward: float | None = None) -> Node:
    """A node as the search makes it; with `reward` it ends the episode."""
    ended = reward is not None
    outcome = None if parent is None else Outcome(reward or 0.0, bool(reward), action, ended, False, 0.0)
    number = node.count = getattr(node, "count", 0) + 1
    dialogue = SimpleNamespace(last=SimpleNamespace(turn=number))
    depth = parent.depth + 1 if parent else 0
    made = Node(dialogue, None, "", parent, action, outcome, depth, ended, closed=ended)
    if parent:
        parent.children.append(made)
    return made


def visited(made: Node, visits: int, total: float) -> Node:
    made.visits, made.total = visits, total
    return made


def test_uct_on_a_worked_tree():
    root = visited(node(None), 10, 5.0)
    one, other = visited(node(root, "a"), 4, 2.0), visited(node(root, "b"), 5, 3.0)
    assert uct(0.5, 4, 10, 0.25) == pytest.approx(0.689678, abs=1e-6)  # .5 + .25 sqrt(ln 10 / 4)
    assert uct(0.6, 5, 10, 0.25) == pytest.approx(0.769653, abs=1e-6)  # .6 + .25 sqrt(ln 10 / 5)
    assert choose(root, 0.25, Random(0)) is other
    assert choose(root, 2.0, Random(0)) is one, "more exploration prefers the one that was seen less"
    fresh = node(root, "c")
    assert choose(root, 0.25, Random(0)) is fresh, "an unvisited child comes first"
    fresh.closed = other.closed = True
    assert choose(root, 0.25, Random(0)) is one, "an end is not chosen"
    one.closed = True
    assert choose(root, 0.25, Random(0)) is None


def test_ties_are_broken_at_random():
    root = visited(node(None), 4, 2.0)
    twins = [visited(node(root, action), 2, 1.0) for action in "ab"]
    assert {id(choose(root, 0.25, Random(seed))) for seed in range(20)} == set(map(id, twins))


def test_a_score_goes_up_the_whole_path_and_a_negative_one_counts_as_nothing():
    root = node(None)
    end = node(node(root, "a"), "b", reward=1.0)
    backpropagate(end, end.score)
    lost = node(root.children[0], "c", reward=-1.0)
    backpropagate(lost, lost.score)
    assert (root.visits, root.value) == (2, 0.5) and root.children[0].value == 0.5 and lost.score == 0.0


def test_an_end_is_worth_the_score_so_far_where_the_environment_tells_one():
    def end(reward: float, score: float | None) -> float:
        return worth(Outcome(reward, False, None, True, False, 0.0, score=score))

    assert (end(0.1, 0.8), end(0.8, None), end(0.5, -1.0), end(-1.0, None)) == (0.8, 0.8, 0.0, 0.0)


def test_pairs_are_a_better_and_a_worse_end_that_share_the_longest_way():
    root = visited(node(None), 4, 2.0)
    left, right = node(root, "l"), node(root, "r")
    near_good, bad = node(left, "g", reward=0.9), node(left, "b", reward=0.2)
    far_good = node(right, "g", reward=1.0)
    assert ends(root) == [near_good, bad, far_good] and shared(near_good, bad) == 1 and shared(far_good, bad) == 0
    assert list(pairs(root, 0.5, 0.3, Random(0))) == [(near_good, bad)]
    assert list(pairs(root, 0.95, 0.3, Random(0))) == [(far_good, bad)], "above alpha"
    assert list(pairs(root, 0.5, 0.75, Random(0))) == [(far_good, bad)], "better by more than beta"
    assert list(pairs(root, 0.5, 0.9, Random(0))) == []
    assert list(pairs(visited(root, 4, 0.0), 0.5, 0.3, Random(0))) == [], "a tree whose root is worth nothing"


def two_ways(prompt: str) -> str:
    """A policy that begins with one recipe or the other, turn about, and then follows it."""
    actions = [line for line in prompt.splitlines()[1:] if line[0] in "+*@"]
    if not actions:
        two_ways.count = getattr(two_ways, "count", 0) + 1
        return (BAD if two_ways.count % 2 else GOOD)[0]
    way = BAD if actions[0] == BAD[0] else GOOD
    return way[len(actions)]


def search(**changes) -> House:
    two_ways.count = 0
    settings = SearchSettings(**{"simulations": 4, "expansions": 2, "turns": 8, "exploration": 1.0} | changes)
    return House(settings, two_ways, Minicraft, TASK)


def replayed(actions: list[str]) -> list[tuple[str, float]]:
    """What the real environment says to these actions."""
    environment = Minicraft()
    environment.reset(seed=0, options={"task": TASK})
    return [environment.step(action)[:2] for action in actions]


def path(house: House, turn) -> list:
    found = [turn]
    while found[-1].parent >= 0:
        found.append(house.turns[found[-1].parent])
    return found[::-1]


def test_every_action_of_the_tree_is_a_turn_that_the_environment_answers_so_again():
    house = search(pairs=0)
    assert house.asked == 2 * 11, "two samples at each node: the root, seven on the bad way, three on the good one"
    assert len(house.turns) == len(BAD) + len(GOOD), "equal actions are one"
    leaves = [turn for turn in house.turns if turn.terminated]
    assert sorted(turn.reward for turn in leaves) == [0.0, 1.0]
    for leaf in leaves:
        turns = path(house, leaf)
        actions = [house.text(turn).strip() for turn in turns]
        said = [answer for answer, _ in replayed(actions)]
        assert [house.tokenizer.decode(turn.prompt) for turn in turns[1:]] == said[:-1]
        assert [turn.reward for turn in turns] == [reward for _, reward in replayed(actions)]
    assert house.close.extra["root"] == [2, 0.5], "each end once: a closed branch is not descended again"
    assert house.spread == 1.0


def spliced(house: House) -> list:
    """The corrected trajectory's path."""
    revision = next(turn for turn in house.turns if turn.role is Role.REVISION)
    last = max((turn for turn in house.turns if turn.episode == revision.episode), key=lambda turn: turn.turn)
    return path(house, last)


def test_a_replayed_trajectory_goes_on_after_the_first_error_and_really_succeeds():
    house = search(splice="replayed")
    turns = spliced(house)
    actions = [house.text(turn).strip() for turn in turns]
    assert actions == ["+d", "+h", "+c", "@2", "+f", "+a", "+b", "*2"], "the refused action stays in the prefix"
    assert [turn.role for turn in turns] == [Role.ACTION] * 3 + [Role.REVISION] + [Role.ACTION] * 4
    assert [turn.stop is Stop.AUTHORED for turn in turns] == [False] * 3 + [True] * 5
    assert np.isnan(np.concatenate([turn.logprobs for turn in turns[3:]])).all()
    said = replayed(actions)
    assert [house.tokenizer.decode(turn.prompt) for turn in turns[1:]] == [answer for answer, _ in said][:-1]
    assert turns[-1].reward == said[-1][1] == 1.0 and turns[-1].terminated
    assert turns[3].extra["revision_length"] == 3


def test_a_verbatim_trajectory_copies_what_was_said_on_the_good_branch():
    turns = spliced(search(splice="verbatim"))
    assert len(turns) == 8 and turns[-1].reward == 1.0


def test_direct_revision_goes_on_after_the_end_of_the_bad_branch():
    house = search(cut="end", splice="verbatim")
    turns = spliced(house)
    actions = [house.text(turn).strip() for turn in turns]
    assert actions == [*BAD, "@2", *GOOD] and turns[8].extra["revision_length"] == 8


def test_what_does_not_succeed_when_it_is_played_again_is_not_kept():
    """The first error comes so late that the eight steps are over before the good actions are done."""
    late = ["+d", "+h", "+d", "+h", "+c", "*1", "*1", "*1"]

    def says(prompt: str) -> str:
        actions = [line for line in prompt.splitlines()[1:] if line[0] in "+*@"]
        if not actions:
            says.count += 1
            return (late if says.count % 2 else GOOD)[0]
        return (late if actions[0] == "+d" else GOOD)[len(actions)]

    says.count = 0
    settings = {"simulations": 4, "expansions": 2, "turns": 8}
    house = House(SearchSettings(**settings), says, Minicraft, TASK)
    assert not [turn for turn in house.turns if turn.role is Role.REVISION]
    kept = House(SearchSettings(**settings, splice="verbatim"), says, Minicraft, TASK)
    assert [turn for turn in kept.turns if turn.role is Role.REVISION], "only playing it again shows that"


def test_a_thought_with_which_the_good_branch_begins_is_not_said_twice():
    def thinks(prompt: str) -> str:
        actions = [line for line in prompt.splitlines()[1:] if line[0] in "+*@"]
        if not actions:
            thinks.count += 1
            return "+d" if thinks.count % 2 else "@2"
        return (BAD if actions[0] == "+d" else ["@2", *GOOD])[len(actions)]

    thinks.count = 0
    house = House(SearchSettings(simulations=4, expansions=2, turns=8), thinks, Minicraft, TASK)
    actions = [house.text(turn).strip() for turn in spliced(house)]
    assert actions == ["+d", "+h", "+c", "@2", *GOOD]


def test_the_model_itself_may_judge_where_it_first_went_wrong():
    def judges(prompt: str) -> str:
        if "Was this action good" not in prompt:
            return two_ways(prompt)
        action = prompt.split("The next action was:\n")[1].split("\n")[0]
        return "it takes what cannot be used. Bad" if action == "+h" else "this is not Bad but Good"

    two_ways.count = 0
    settings = SearchSettings(simulations=4, expansions=2, turns=8, judge="actor")
    house = House(settings, judges, Minicraft, TASK, tokenizer=Newlines(build_tokenizer("bytes", 4096)))
    actions = [house.text(turn).strip() for turn in spliced(house)]
    assert actions[:4] == ["+d", "+h", "@2", "+f"], "judged in order, and left at the first Bad"


def test_demonstrations_are_added_to_a_tree_with_something_to_train():
    house = search(demonstrations=4)
    roots = [turn for turn in house.turns if turn.parent == -1 and turn.extra.get("demonstration")]
    assert len(roots) == 4
    assert all(np.isnan(turn.logprobs).all() for turn in house.turns if turn.extra.get("demonstration"))
    ends_of = [t for t in house.turns if t.extra.get("demonstration") and t.terminated]
    assert len(ends_of) == 4 and all(turn.reward == 1.0 for turn in ends_of), "each is imitated, whatever it reached"


def test_alpha_rises_with_the_step_of_the_weights_that_search():
    settings = SearchSettings(alpha={0: 0.2, 40: 0.5})
    assert [settings.alpha_at(step) for step in (0, 39, 40, 400)] == [0.2, 0.2, 0.5, 0.5]


def test_a_trees_success_is_the_share_of_its_ends():
    assert search(demonstrations=3).success == 0.5, "one end of two; corrections and demonstrations do not count"


def test_a_judgement_that_does_not_fit_leaves_the_rest_of_the_tree():
    settings = SearchSettings(simulations=4, expansions=2, turns=8, judge="actor")
    two_ways.count = 0
    tokenizer = Newlines(build_tokenizer("bytes", 4096))
    engine = Speaker(tokenizer, two_ways, longest=120)
    house = House(settings, engine, Minicraft, TASK, tokenizer=tokenizer)
    assert [failure.kind for failure in house.failures] == ["too_long"] * len(house.failures) and house.failures
    assert Role.ERROR not in [turn.role for turn in house.turns] and house.close.extra["alpha"] == 0.0
