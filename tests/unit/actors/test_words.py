"""words: what counts as one short sentence with the given words, what is said to an answer, and what a test asks."""

from __future__ import annotations

import pytest
from support.rollout_house import House

from actors import environments
from actors.config import DataSettings, EnvironmentSettings
from actors.environments.base import Cut
from actors.environments.words import KNOWN, Words
from actors.rollout_config import AttemptSettings, RetrySettings
from protocols.errors import SettingError
from redraft.models.make import build_tokenizer

TASK = {"id": "words/test/0", "words": ["river", "lamp", "goat"]}
ASKED = "Make one short and simple sentence with the words river and lamp."


def begun(feedback: str = "residual", **options) -> Words:
    environment = environments.make(EnvironmentSettings(name="words", feedback=feedback, options=options))
    environment.reset(seed=0, options={"task": TASK})
    return environment


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("The lamp lit the river.", 1.0),
        ('He said: "A LAMP by the River!"\n', 1.0),
        ("The lamps lit the river.", 0.15),  # another word
        ("The lamp lit the river", 0.3),  # no end
        ("I saw a lamp. It lit the river.", 0.3),
        ("- lamp\n- river.", 0.3),
        ("The lamp lit the river " + "and the goat " * 8 + "too.", 0.3),
        (Cut("The lamp lit the river."), 0.3),
        ("It was dark.", 0.0),
        ("", -1.0),
        ("42 ...", -1.0),
    ],
)
def test_only_one_whole_short_sentence_with_all_words_is_right(text, reward):
    _, found, terminated, truncated, info = begun().step(text)
    assert found == pytest.approx(reward) and info["success"] == (reward == 1)
    assert not terminated and not truncated and (info["answer"] is None) == (reward == -1)


def test_feedback_names_what_is_missing_and_asks_again_for_a_right_answer():
    environment = begun()
    said = {
        "It lit the river.": f"The word lamp is missing. {ASKED}",
        "It was dark.": f"The words river and lamp are missing. {ASKED}",
        "The lamp lit it. So did the river.": f"That is not one sentence. {ASKED}",
        Cut("The lamp lit the river and"): f"That is too long. {ASKED}",
        "The lamp lit the river.": "That is right. Write the same sentence again.",
    }
    assert {text: environment.step(text)[0] for text in said} == said


def test_binary_feedback_tells_right_from_wrong_and_blank_feedback_nothing():
    right, wrong = "The lamp lit the river.", "It lit the river."
    binary, blank = begun("binary"), begun("blank")
    assert binary.step(right)[0] != binary.step(wrong)[0] and "lamp is missing" not in binary.step(wrong)[0]
    assert blank.step(right)[0] == blank.step(wrong)[0] == blank.step("")[0]


def test_the_number_of_words_is_an_option():
    assert begun(words=1).question(TASK).endswith("with the word river.")
    assert begun(words=3).question(TASK).endswith("with the words river, lamp and goat.")
    with pytest.raises(SettingError, match=r"^environment\.options\.words"):
        begun(words=0)


def test_training_and_test_have_no_word_in_common_and_no_pair_twice():
    splits = {split: Words.tasks(DataSettings(), split) for split in ("train", "test")}
    words = {split: {word for task in tasks for word in task["words"]} for split, tasks in splits.items()}
    assert not words["train"] & words["test"] and words["train"] | words["test"] == set(KNOWN)
    for tasks in splits.values():
        assert len({tuple(task["words"][:2]) for task in tasks}) == len({task["id"] for task in tasks}) == len(tasks)
        assert all(len(set(task["words"])) == len(task["words"]) for task in tasks)
    assert Words.tasks(DataSettings(test_size=7), "test") == splits["test"][:7]


def test_an_answer_that_ran_into_its_longest_length_is_told_to_the_environment_as_cut():
    tokenizer, text = build_tokenizer("bytes", 4096), "The lamp lit the river."
    settings = RetrySettings(turns=2)
    house = House(settings, lambda prompt: text, "words", TASK, tokenizer=tokenizer, max_tokens=len(text))
    assert [turn.reward for turn in house.turns] == pytest.approx([0.3, 0.3])
    house = House(AttemptSettings(), lambda prompt: text, "words", TASK, tokenizer=tokenizer, max_tokens=len(text) + 1)
    assert [turn.reward for turn in house.turns] == [1.0]
