"""Rendering: what is appended turn by turn is what the template would have rendered, and nothing is tokenised twice."""

from __future__ import annotations

import numpy as np
import pytest

from actors.rendering import Renderer, check_tokenizer
from protocols.errors import SettingError
from redraft.models import build_tokenizer

CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"""
STRIPS_THINKING = CHATML.replace("m.content +", "m.content.split('</think>')[-1].lstrip('\n') +")
OPENS_THINKING = CHATML.replace("assistant\n'", "assistant\n<think>\n\n</think>\n\n'")
UPPER = CHATML.replace("m.content +", "(m.content | upper if m.role == 'user' else m.content) +")
NO_END = "{%- for m in messages %}{{ '### ' + m.role + ': ' + m.content + '\n' }}{%- endfor %}{{ '### assistant: ' }}"


def plain(kind: str = "characters"):
    return build_tokenizer(kind, 256)


def chat(template: str):
    tokenizer = plain("bytes")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def played(renderer: Renderer, dialogue: list[str], ended: bool) -> list[int]:
    """Ids of a dialogue question, answer, question, ... rendered piece by piece, up to the next generation."""
    ids = list(renderer.first(dialogue[0]))
    for answer, question in zip(dialogue[1::2], dialogue[2::2], strict=True):
        ids += renderer.tokenizer.encode(answer, add_special_tokens=False) + [renderer.end] * ended
        ids += list(renderer.next(question, ended))
    return ids


def test_without_a_template_a_dialogue_is_plain_concatenation():
    tokenizer = plain()
    renderer = Renderer(tokenizer)
    dialogue = ["7128>6\n", "7+1-2-8", "?-8\n", "28", "", "7-1-2+8", "?0\n"]
    expected = tokenizer.encode("7128>6\n7+1-2-8\n?-8\n28\n7-1-2+8\n?0\n", add_special_tokens=False)
    assert renderer.end == tokenizer.encode("\n", add_special_tokens=False)[0]
    for ended in (True, False):
        assert played(renderer, dialogue, ended) == expected
    assert len(renderer.next("", ended=True)) == 0
    assert list(renderer.next("", ended=False)) == [renderer.end]
    assert (
        renderer.first("7").dtype == renderer.next("", ended=True).dtype == renderer.next("", False).dtype == np.int32
    )


def test_a_history_without_a_template_renders_as_it_was_played():
    renderer = Renderer(plain())
    assert list(renderer.first("?0\n", [("7>1\n", "7+1"), ("?x\n", "7-1\n")])) == played(
        renderer, ["7>1\n", "7+1", "?x\n", "7-1", "?0\n"], ended=True
    )


@pytest.mark.parametrize("ended", [True, False])
def test_with_a_template_the_pieces_join_to_what_the_template_renders(ended):
    tokenizer = chat(CHATML)
    renderer = Renderer(tokenizer)
    dialogue = ["Wie viele Äpfel?", "<think>\nhm\n</think>\n\n18", "Nein, 再试。", "17", "And {{ again }}"]
    roles = ["user", "assistant"]
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(dialogue)]
    whole = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert played(renderer, dialogue, ended) == tokenizer.encode(whole, add_special_tokens=False)
    assert renderer.end == tokenizer.convert_tokens_to_ids("<|im_end|>") != tokenizer.eos_token_id


@pytest.mark.parametrize("template", [STRIPS_THINKING, OPENS_THINKING])
def test_a_template_that_rewrites_history_is_refused_unless_each_prompt_is_a_new_root(template):
    with pytest.raises(SettingError, match=r"^model: .*rewrites"):
        Renderer(chat(template))
    renderer = Renderer(chat(template), on_rewrite="new_root")
    assert renderer.rewrites and renderer.end == renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    with pytest.raises(ValueError):
        renderer.next("again", ended=True)
    text = renderer.tokenizer.decode(renderer.first("again", [("q", "<think>\nhm\n</think>\n\n18")]))
    assert text.startswith("<|im_start|>user\nq<|im_end|>") and "again" in text
    assert ("hm" in text) == (template == OPENS_THINKING)


@pytest.mark.parametrize(("template", "problem"), [(NO_END, "special token"), (UPPER, "alters")])
def test_a_template_whose_pieces_cannot_be_found_is_refused(template, problem):
    with pytest.raises(SettingError, match=f"^model: .*{problem}"):
        Renderer(chat(template))


@pytest.mark.parametrize(("tokenizer", "said"), [(plain(), "7+1-2-8"), (plain("bytes"), "Ä 18 再  \n")])
def test_a_response_reads_back_without_its_end_token(tokenizer, said):
    renderer = Renderer(tokenizer)
    ids = tokenizer.encode(said, add_special_tokens=False)
    assert renderer.text(np.array([*ids, renderer.end], np.int32)) == said
    assert renderer.text(ids) == said
    assert renderer.text([]) == renderer.text([renderer.end]) == ""


def test_a_character_that_the_tokenizer_lacks_is_an_error_and_not_a_gap():
    with pytest.raises(SettingError, match="cannot spell 'Use 3'"):
        Renderer(plain()).first("Use 3")


@pytest.mark.parametrize("missing", ["eos_token", "pad_token"])
def test_a_tokenizer_without_eos_or_pad_is_refused(missing):
    tokenizer = plain()
    setattr(tokenizer, missing, None)
    with pytest.raises(SettingError, match=rf"^model\.path: .*{missing}"):
        check_tokenizer(tokenizer)
