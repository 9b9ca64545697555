"""Corrected trajectories: a bad branch up to its first error, a revision, then a good branch (arXiv 2501.11425).

    bad    a -> b -> c -> end, worth 0                bad prefix     a -> b          not trained
    good   a -> d -> e -> end, worth 1                revision       "I was wrong"   trained
                                                      good suffix    d -> e          trained

`verbatim` copies what the environment said on the good branch, although the bad actions may have changed its state;
`replayed` plays the good actions after the bad ones and keeps the trajectory only if it still ends well. Where words
alone would be the one answer that is asked for, the revision and the first good action are one message.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random
from typing import Any

from actors import messages
from actors.door import EpisodeFailure, Outcome
from actors.environment_pool import Playing
from actors.messages import Question
from actors.rollout_config import SearchSettings
from actors.rollouts import Stage
from actors.rollouts.tree import Node, pairs, shared, worth
from protocols.turns import Role

THOUGHTS = (
    "Thought: That was a mistake. I have to go about this in another way.",
    "Thought: This does not bring me closer to the goal. I should change my plan.",
    "Thought: I see that I went wrong here. I will correct it.",
)
REVISIONS = tuple(f"{thought}\nAction: wait" for thought in THOUGHTS)
QUESTION = (
    "A task, and what was done for it so far:\n{history}\n\nThe next action was:\n{action}\nIt led to:\n{observation}"
    "\n\nWas this action good for the task? Give your reasons, then end with one word: Good, Bad or Uncertain."
)


@dataclass(frozen=True, slots=True)
class Move:
    """One action of the new branch: its node in the tree (None: the revision), what came of it."""

    node: Node | None
    outcome: Outcome
    observation: Question


async def corrected(stage: Stage[SearchSettings], environment: Playing, root: Node, alpha: float, rng: Random) -> int:
    """Writes up to `pairs` corrected trajectories of a tree as episodes 1, 2, ..., each from another first error.

    Returns how many there are.
    """
    left: set[Node] = set()
    made = 0
    for good, bad in pairs(root, alpha, stage.settings.beta, rng):
        if made == stage.settings.pairs:
            break
        since = shared(good, bad)
        error = await _first_error(stage, bad.path(), since)
        if error is None or error in left:
            continue
        left.add(error)
        suffix = good.path()[since:]
        parted = suffix[0].before
        sentences = THOUGHTS if environment.asks_once else REVISIONS
        text = await environment.revision([node.action for node in suffix], rng) or rng.choice(sentences)
        if environment.asks_once:  # words alone would be its one answer: they go before the call, in one message
            text, suffix = f"{text}\n{suffix[0].action}", suffix[1:]
        elif len(suffix) > 1 and suffix[0].action == text:  # the good branch begins with these words: once is enough
            suffix = suffix[1:]
        if stage.settings.splice == "replayed":
            moves = await _replayed(environment, error, suffix, text)
        else:
            moves = await _verbatim(environment, parted, suffix, text)
        if moves is not None and worth(moves[-1].outcome) > alpha:
            made += 1
            _write(error, text, moves, made, error.depth - since)
    return made


async def _first_error(stage: Stage[SearchSettings], bad: list[Node], since: int) -> Node | None:
    """The node of the bad branch after which it is left; None where no error is seen."""
    if stage.settings.cut == "end":
        return bad[-1]
    for node in bad[since:]:
        if stage.settings.judge == "environment":
            if node.outcome.refused:
                return node
        elif await _judged_bad(stage, node):
            return node
    return None


async def _judged_bad(stage: Stage[SearchSettings], node: Node) -> bool:
    """Whether the model that acted calls its action bad."""
    path = node.path()
    start = messages.asked(path[0].before.observation)
    history = "\n".join([start, *(f"{n.action}\n{messages.asked(n.observation)}" for n in path[:-1])])
    question = QUESTION.format(history=history, action=node.action, observation=messages.asked(node.observation))
    sampling = stage.sampling.model_copy(update={"max_tokens": stage.settings.judge_tokens})
    try:
        completion = await stage.generate(stage.renderer.first(question), Role.REFLECTION, sampling)
    except EpisodeFailure as failure:  # the history does not fit: nothing is known of this action
        stage.failed(failure)
        return False
    verdicts = re.findall(r"\b(good|bad|uncertain)\b", stage.renderer.text(completion.ids).lower())
    return bool(verdicts) and verdicts[-1] == "bad"


async def _replayed(environment: Playing, error: Node, suffix: list[Node], text: str) -> list[Move] | None:
    """The good actions played after the bad prefix; None where the episode ends before they are done."""
    if error.ended:
        return None
    await environment.restore(error.state)
    moves = [Move(None, await environment.step(text), environment.observation)]
    for node in suffix:
        if moves[-1].outcome.over:
            return None
        moves.append(Move(node, await environment.step(node.action), environment.observation))
    return moves


async def _verbatim(environment: Playing, parted: Node, suffix: list[Node], text: str) -> list[Move]:
    """The good actions with what the environment said to them on their own branch, from where it began."""
    await environment.restore(parted.state)
    revision = Move(None, await environment.step(text), environment.observation)
    return [revision, *(Move(node, node.outcome, node.observation) for node in suffix)]


def _write(error: Node, text: str, moves: list[Move], episode: int, length: int) -> None:
    """A new branch below the first error; `length` is how many actions after the branches parted that error was."""
    dialogue = error.dialogue.branch(episode)
    observation = error.observation
    for position, move in enumerate(moves):
        dialogue.hear(observation)
        if move.node is None:
            dialogue.author(Role.REVISION, text)
        else:
            dialogue.repeat(Role.ACTION, move.node.dialogue.last.completion.ids)
        facts: dict[str, Any] = {"revision_length": length} if move.node is None else {}
        dialogue.score(error.depth + position, move.outcome, **facts)
        observation = move.observation
