"""search: a tree search over actions, then corrected trajectories from its branches (Agent-R, arXiv 2501.11425).

Each simulation descends by UCT, samples `expansions` actions at every node that it meets for the first time, and goes
on to an end of the episode, whose score goes back up the path. Every action of the tree is a turn of the group; so is
every corrected trajectory, a new branch that begins with a revision. Many groups are searched at once by one actor, so
the engine's batch stays full although each tree grows step by step.
"""

from __future__ import annotations

import asyncio
from functools import partial
from random import Random

import numpy as np

from actors.door import EpisodeFailure, Outcome
from actors.environment_pool import Playing
from actors.rollout_config import SearchSettings
from actors.rollouts import Stage
from actors.rollouts.dialogue import Dialogue
from actors.rollouts.splice import corrected
from actors.rollouts.tree import Node, backpropagate, choose, ends
from protocols.turns import Role


async def play(stage: Stage[SearchSettings]) -> None:
    await stage.episode(0, partial(_episode, stage))


async def _episode(stage: Stage[SearchSettings], environment: Playing) -> None:
    rng = Random(stage.seed)
    root = await grow(stage, environment, rng)
    alpha = stage.settings.alpha_at(stage.step)
    made = await corrected(stage, environment, root, alpha, rng)
    found = ends(root)
    useful = made > 0 or any(end.score > alpha for end in found)
    if useful and stage.settings.demonstrations:
        await _demonstrate(stage, environment, made + 1, rng)
    stage.group.facts |= _searched(root) | {"alpha": alpha}
    if found:
        stage.group.successes = {0: sum(end.outcome.success for end in found) / len(found)}
    stage.group.compared = [0.0, float(useful)]


async def grow(stage: Stage[SearchSettings], environment: Playing, rng: Random) -> Node:
    """The root of a tree after `simulations` descents, or fewer where every branch has ended."""
    dialogue = Dialogue(stage, environment.observation, tools=environment.tools)
    root = Node(dialogue, await environment.snapshot(), environment.observation)
    for _ in range(stage.settings.simulations):
        while not root.closed and not await _descend(stage, environment, root, rng):
            pass
    return root


async def _descend(stage: Stage[SearchSettings], environment: Playing, root: Node, rng: Random) -> bool:
    """One descent; False where it only found that a branch, or all, is closed."""
    node, grown = root, False
    while True:
        if not node.expanded:
            await _expand(stage, environment, node)
            grown = True
        child = choose(node, stage.settings.exploration, rng)
        if child is None:
            node.closed = True
            return grown
        node = child


async def _expand(stage: Stage[SearchSettings], environment: Playing, node: Node) -> None:
    """Samples actions at a node; equal ones become one child. Children that end the episode send up their score."""
    node.expanded = True
    branches = [node.dialogue.branch(0) for _ in range(stage.settings.expansions)]
    for branch in branches if node.parent else ():
        branch.hear(node.observation)
    said = await asyncio.gather(*(branch.say(Role.ACTION) for branch in branches), return_exceptions=True)
    actions: dict[str, Dialogue] = {}
    for branch, action in zip(branches, said, strict=True):
        if isinstance(action, str):
            actions.setdefault(action, branch)
        elif not isinstance(action, EpisodeFailure):
            raise action
    if not actions:  # nothing fits after this node any more
        backpropagate(node, 0.0)
    for action, branch in actions.items():
        await environment.restore(node.state)
        outcome = await environment.step(action)
        ended = outcome.over or node.depth + 1 == stage.settings.turns
        branch.score(node.depth, outcome, ended)
        state = None if ended else await environment.snapshot()
        child = Node(branch, state, environment.observation, node, action, outcome, node.depth + 1, ended, closed=ended)
        node.children.append(child)
        if ended:
            backpropagate(child, child.score)


def _searched(root: Node) -> dict:
    """Visits and value of each action's node by its turn number, and those of the root."""
    nodes = {node.dialogue.last.turn: node for node in root.below() if node.parent}
    return {
        "visits": {str(turn): node.visits for turn, node in nodes.items()},
        "values": {str(turn): round(node.value, 4) for turn, node in nodes.items()},
        "root": [root.visits, round(root.value, 4)],
    }


async def _demonstrate(stage: Stage[SearchSettings], environment: Playing, episode: int, rng: Random) -> None:
    """Adds demonstrations of the environment as authored turns of episodes from `episode` on."""
    count, turns = stage.settings.demonstrations, stage.settings.turns
    generator = np.random.Generator(np.random.Philox(rng.getrandbits(63)))
    for number, pieces in enumerate(await environment.demonstrations(generator, count, turns)):
        (question, _), *rest = pieces
        dialogue = Dialogue(stage, question, episode + number, tools=environment.tools)
        actions, done = sum(mine for _, mine in rest), 0
        for text, mine in rest:
            if mine:
                dialogue.author(Role.ACTION, text)
                last = done + 1 == actions
                dialogue.score(done, Outcome(float(last), False, None, last, False, 0.0), demonstration=True)
                done += 1
            else:
                dialogue.hear(text)
