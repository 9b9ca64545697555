"""A search tree over the actions of an episode, with the choice and the values of UCT (arXiv 2501.11425)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

from actors.door import Outcome
from actors.messages import Question
from actors.rollouts.dialogue import Dialogue

UNDONE = Outcome(0.0, False, None, terminated=False, truncated=False, seconds=0.0)
"""Of the root, to which no action led."""


@dataclass(slots=True, eq=False)
class Node:
    """A state of the episode: the dialogue up to it and the environment's snapshot. The root has no action."""

    dialogue: Dialogue
    state: Any
    observation: Question
    parent: Node | None = None
    action: str = ""
    outcome: Outcome = UNDONE
    depth: int = 0
    ended: bool = False
    """The episode ends here: the environment says so, or it is as deep as the tree may be."""
    closed: bool = False
    """Not to be chosen again: it has ended, or all below it has."""
    children: list[Node] = field(default_factory=list)
    expanded: bool = False
    visits: int = 0
    total: float = 0.0

    @property
    def value(self) -> float:
        """Q: the mean score of the descents that came through here."""
        return self.total / self.visits if self.visits else 0.0

    @property
    def score(self) -> float:
        """Of an end: what it is worth."""
        return worth(self.outcome)

    def path(self) -> list[Node]:
        """From the first action to this one."""
        found: list[Node] = []
        node: Node = self
        while node.parent is not None:
            found.append(node)
            node = node.parent
        return found[::-1]

    @property
    def before(self) -> Node:
        """The state from which its action was taken. Raises ValueError for the root."""
        if self.parent is None:
            raise ValueError("nothing comes before the root")
        return self.parent

    def below(self) -> Iterator[Node]:
        """This node and all under it, parents first."""
        yield self
        for child in self.children:
            yield from child.below()


def worth(outcome: Outcome) -> float:
    """Of an episode's last action: the environment's score so far where it tells one, else the reward of that action; a
    negative one counts as 0."""
    return max(0.0, outcome.reward if outcome.score is None else outcome.score)


def choose(node: Node, exploration: float, rng: Random) -> Node | None:
    """The child to descend to: an unvisited one first, else the largest Q/n + c sqrt(ln N / n), ties at random.

    Closed children are not chosen; None where no other is left.
    """
    open_ones = [child for child in node.children if not child.closed]
    if not open_ones:
        return None
    fresh = [child for child in open_ones if not child.visits]
    if fresh:
        return rng.choice(fresh)
    bounds = [uct(child.value, child.visits, node.visits, exploration) for child in open_ones]
    best = max(bounds)
    return rng.choice([child for child, bound in zip(open_ones, bounds, strict=True) if bound == best])


def uct(value: float, visits: int, parent_visits: int, exploration: float) -> float:
    return value + exploration * math.sqrt(math.log(parent_visits) / visits)


def backpropagate(node: Node, score: float) -> None:
    """One descent that ended with `score` came through this node and all above it."""
    above: Node | None = node
    while above is not None:
        above.visits += 1
        above.total += score
        above = above.parent


def ends(root: Node) -> list[Node]:
    """The ends of all episodes of the tree, in the order in which they were written."""
    return sorted((node for node in root.below() if node.ended), key=lambda node: node.dialogue.last.turn)


def pairs(root: Node, alpha: float, beta: float, rng: Random) -> Iterator[tuple[Node, Node]]:
    """The (good, bad) ends of one tree in random order: good > alpha, good - bad > beta, each bad one once.

    The good one is that which shares the longest way with the bad one, ties at random. A tree whose root is worth
    nothing has none.
    """
    found = ends(root) if root.value > 0 else []
    for bad in rng.sample(found, len(found)):
        better = [good for good in found if good.score > alpha and good.score - bad.score > beta]
        if better:
            yield max(better, key=lambda good: (shared(good, bad), rng.random())), bad


def shared(one: Node, other: Node) -> int:
    """How many first actions two nodes have in common."""
    return sum(a is b for a, b in zip(one.path(), other.path(), strict=False))
