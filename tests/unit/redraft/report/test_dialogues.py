"""Dialogues before and after: the same tasks side by side, in the words that were said."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from support.rollout_house import House

from actors.rendering import Renderer
from actors.rollout_config import RetrySettings
from learner.transcripts.store import write_evaluation
from protocols.turns import Turn
from redraft.models.make import build_tokenizer
from redraft.report import dialogues

TASKS = [{"id": f"signs/{n}", "digits": "7128", "target": 12} for n in range(3)]
RIGHT, WRONG = "7-1-2+8", "7+1-2-8"
CHAT = (
    "{% for message in messages %}<bos>{{ message['role'] }}: {{ message['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<bos>assistant: {% endif %}"
)


def played(tokenizer, *answers: str) -> list[Turn]:
    left = iter(answers)
    settings = RetrySettings(turns=len(answers))
    return House(settings, lambda prompt: next(left), "signs", TASKS[0], tokenizer=tokenizer).turns


def run_with(folder: Path, tokenizer, before: list, after: list) -> Path:
    tokenizer.save_pretrained(folder / "model")
    (folder / "run.json").write_text(json.dumps({"id": "0", "model": str(folder / "model")}))
    lines = []
    for label, step, turns in (("before", 0, before), ("after", 4, after)):
        facts = {"label": label, "step": step, "version": step}
        write_evaluation(folder, facts, TASKS[: len(turns)], turns)
        lines.append(json.dumps(facts) + "\n")
    (folder / "evaluations.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(params=["plain", "chat"])
def tokenizer(request):
    if request.param == "plain":
        return build_tokenizer("characters", 4096)
    made = build_tokenizer("bytes", 4096)
    made.add_special_tokens({"bos_token": "<bos>"})
    made.chat_template = CHAT
    return made


def test_messages_are_what_was_asked_said_and_heard(tmp_path, tokenizer):
    assert Renderer(tokenizer).end == tokenizer.eos_token_id
    before, after = played(tokenizer, WRONG, WRONG), played(tokenizer, WRONG, RIGHT)
    [pair] = dialogues.pairs(run_with(tmp_path, tokenizer, [before], [after]))
    assert pair.question == "7128>12"
    assert [message.text for message in pair.after] == [WRONG, "?x", RIGHT]
    assert [message.who for message in pair.after] == ["attempt", "", "attempt"]
    assert pair.ended() == ("w", "r")


def test_the_terminal_shows_one_that_came_right_and_counts_those_that_went_wrong(tmp_path, tokenizer):
    wrong, right = played(tokenizer, WRONG, WRONG), played(tokenizer, WRONG, RIGHT)
    found = dialogues.pairs(run_with(tmp_path, tokenizer, [right, wrong, right], [wrong, right, right]))
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(dialogues.example(found))
    text = " ".join(console.export_text().split())
    assert f"{RIGHT} [right]" in text and "came right in 1 and went wrong in 1" in text
    assert dialogues.example([]) is None


def test_the_terminal_shows_a_question_as_it_stands(tmp_path):
    said = [dialogues.Message("", "x", "")]
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(dialogues.example([dialogues.Pair("match [a-z]+ in [/bin/sh] [/INST]", said, said)]))
    assert "match [a-z]+ in [/bin/sh] [/INST]" in console.export_text()


def test_the_page_shows_them_and_they_cannot_become_markup(tmp_path):
    tokenizer = build_tokenizer("bytes", 4096)
    turns = played(tokenizer, "<script>alert(1)</script>", WRONG)
    page = dialogues.section(dialogues.pairs(run_with(tmp_path, tokenizer, [turns], [turns])), "after")
    assert "<h2>Answers</h2>" in page and "&lt;script&gt;alert(1)" in page and "<script" not in page


def test_without_both_evaluations_or_a_tokenizer_there_are_none(tmp_path):
    tokenizer = build_tokenizer("characters", 4096)
    turns = played(tokenizer, WRONG, RIGHT)
    folder = run_with(tmp_path, tokenizer, [turns], [turns])
    assert len(dialogues.pairs(folder)) == 1
    (folder / "model" / "tokenizer.json").unlink()
    assert dialogues.pairs(folder) == []
    (folder / "evaluations.jsonl").unlink()
    assert dialogues.pairs(folder) == []
