"""What an actor counts of its play, and what it sees of a chat template that was not applied."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from actors.engines import Completion
from actors.group import GroupWriter
from actors.rendering import Renderer
from actors.tally import Tally, foreign_ids, untemplated
from protocols.turns import LOGPROBS, TOKENS, Lease, Role, Stop
from redraft.models.make import build_tokenizer

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"""
GROUPS = Tally(responses=Counter(retry=8), groups=8, low=-1.0, high=0.5, failure="KeyError: 1", broken=1)


def written(
    stop: Stop, tokens: list[int], reward: float, role: Role = Role.ATTEMPT, **extra
) -> tuple[GroupWriter, Tally]:
    tally, foreign = Tally(), frozenset({7})
    sink = lambda item, lease, spread: tally.turn(item, foreign) if hasattr(item, "role") else None  # noqa: E731
    writer = GroupWriter(Lease(bytes(16), 1, 0, {"id": "t"}, 0), sink)
    ids = np.array(tokens, TOKENS)
    completion = Completion(ids, np.zeros(len(ids), LOGPROBS), ((0, 0),), stop, 1.0)
    writer.turn(role, -1, np.array([1], TOKENS), completion, episode=0, index=0, reward=reward, extra=extra)
    return writer, tally


def test_a_tally_counts_what_was_cut_not_parsed_and_foreign_by_role():
    writer, tally = written(Stop.LENGTH, [3, 7, 4], 0.0, parsed=False, success=False)
    tally.group(writer)
    assert (tally.responses, tally.cut, tally.unparsed) == (Counter(attempt=1), Counter(attempt=1), Counter(attempt=1))
    assert (tally.foreign, tally.groups, tally.flat, tally.low, tally.high) == (1, 1, 1, 0.0, 0.0)


def test_answers_after_the_first_of_an_episode_are_counted_apart():
    tally = Tally()
    sink = lambda item, lease, spread: tally.turn(item)  # noqa: E731
    writer = GroupWriter(Lease(bytes(16), 1, 0, {"id": "t"}, 0), sink)
    for index, parsed in enumerate((True, False, True, False)):
        completion = Completion(np.array([3], TOKENS), np.zeros(1, LOGPROBS), ((0, 0),), Stop.END, 1.0)
        facts = {"episode": 0, "index": index, "reward": 0.0, "extra": {"parsed": parsed}}
        writer.turn(Role.ATTEMPT, index - 1, np.array([1], TOKENS), completion, **facts)
    assert (tally.parsed, tally.unparsed) == (Counter(attempt=2), Counter(attempt=2))
    assert (tally.later_parsed, tally.later_unparsed) == (1, 2)


def test_what_the_model_did_not_sample_is_not_counted():
    _, tally = written(Stop.AUTHORED, [3, 7], 1.0)
    assert tally.empty


def test_a_group_whose_episodes_all_broke_is_neither_flat_nor_of_any_score():
    tally = Tally()
    sink = lambda item, lease, spread: tally.turn(item)  # noqa: E731
    writer = GroupWriter(Lease(bytes(16), 1, 0, {"id": "t"}, 0), sink)
    writer.error(0, "ConnectError: no route", "raised")
    writer.error(1, "the teacher at x cannot be reached", "teacher")
    writer.error(2, "KeyError: 'a'", "raised")
    tally.group(writer)
    assert (tally.episodes, tally.broken, tally.unreached) == (3, 3, 2)
    assert (tally.groups, tally.flat, tally.scores) == (0, 0, 0)


@pytest.mark.parametrize("later", [Tally(), GROUPS])
def test_tallies_add_up(later):
    total = Tally(responses=Counter(attempt=32), groups=4, low=0.0, high=1.0)
    total.add(later)
    assert total.groups == 4 + later.groups and total.low == min(0.0, later.low) and total.high == 1.0
    assert total.responses.total() == 32 + later.responses.total()


# What is seen of a chat template.


def renderer(template: str | None = None, end: str | None = None, extra: str = "<|im_start|>") -> Renderer:
    tokenizer = build_tokenizer("bytes", 256)
    tokenizer.add_special_tokens({"additional_special_tokens": [extra, "<|im_end|>"]})
    if end:
        tokenizer.eos_token = end
    tokenizer.chat_template = template
    return Renderer(tokenizer)


def test_a_chat_model_is_known_by_its_end_token_or_its_name_where_it_has_no_template():
    ends = renderer(end="<|im_end|>")
    assert untemplated(ends, Path("models/seven")) == "its answers end with <|im_end|>, as those of chat models do"
    base = renderer()
    for name in ("Tiny-1B-Instruct", "tiny-chat-v2", "tiny-2b-it"):
        assert untemplated(base, Path(f"models/{name}")) == f"it is called {name}, as chat models are"
    hub = Path("hub/models--some--Tiny-1B-Instruct/snapshots/0123abcd")
    assert untemplated(base, hub).startswith("it is called models--some--Tiny-1B-Instruct")
    for name in ("Tiny-1B", "chatter", "transit", "italian-1b"):
        assert untemplated(base, Path(f"my-chats/{name}")) == ""
    assert untemplated(renderer(CHATML, end="<|im_end|>"), Path("Tiny-1B-Instruct")) == ""


def test_control_tokens_are_foreign_where_the_template_does_not_know_them():
    known = renderer(CHATML)
    assert foreign_ids(known) == frozenset()
    other = renderer(CHATML, extra="<start_of_turn>")
    assert foreign_ids(other) == {other.tokenizer.convert_tokens_to_ids("<start_of_turn>")}
    none = renderer(end="<|im_end|>")
    assert none.tokenizer.convert_tokens_to_ids("<|im_start|>") in foreign_ids(none)
    assert none.tokenizer.convert_tokens_to_ids("<|im_end|>") not in foreign_ids(none)
