"""Episodes that are told experience: played with it, written as if they had not been told, by scored log-probs."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest
from support.rollout_house import House

from actors import experience
from actors.door import EpisodeFailure
from actors.environments.base import Played
from actors.environments.minicraft import Minicraft
from actors.episode_config import ExperienceSettings
from actors.rollout_config import ActSettings, AttemptSettings, RetrySettings
from actors.rollouts import Helpers
from actors.weights import Proved
from learner.batches.batch import prepare, report_of
from learner.config import LearnerSettings
from protocols.errors import SettingError
from protocols.turns import Group, Role
from redraft import recipe as recipes
from redraft.models.make import build_tokenizer

TASK = {"id": "minicraft/0", "base": "abdfh", "recipes": ["dhc", "fab"], "good": 1}
QUESTION = "abdfh;1dhc;2fab>\n"
OTHER = "abdfg;1dhc;2fag>\n"
ACTIONS = ["+f", "+a", "+b", "*2"]
TOKENIZER = build_tokenizer("characters", 4096)


def settings(path, **changes) -> ExperienceSettings:
    return ExperienceSettings(**{"path": str(path), "top": 1, "template": "{experience};"} | changes)


def lesson(content: str, task: str = QUESTION, when: str = "") -> dict:
    return {"when_to_use": when, "content": content, "task": task}


@pytest.fixture
def file(tmp_path):
    experience.write(tmp_path / "pool.jsonl", [lesson("@1", OTHER), lesson("@2")])
    return tmp_path / "pool.jsonl"


class Scorer:
    """Log-probs that tell the ids they are of: minus the place of each, plus a thousandth of its id."""

    def __init__(self):
        self.version, self.scored = 7, []

    async def rescore(self, ids):
        self.scored.append(TOKENIZER.decode(ids))
        return (-np.arange(1, len(ids)) + ids[1:] / 1000).astype(np.float32), self.version


def play(rollout, helpers, task=TASK, **named) -> House:
    def says(prompt: str) -> str:
        return ACTIONS[prompt.count("\n.\n")] if "\n." in prompt else ACTIONS[0]

    return House(rollout, says, Minicraft, task, tokenizer=TOKENIZER, helpers=helpers, **named)


def test_it_is_played_with_experience_and_written_without_by_scored_log_probs(file):
    scorer = Scorer()
    rollout = ActSettings(turns=8, experience=settings(file, share=1.0))
    house = play(rollout, Helpers(experience.Pool(rollout.experience), scorer.rescore))
    assert house.prompts[0] == "@2;" + QUESTION and all(prompt.startswith("@2;") for prompt in house.prompts)
    assert [house.text(turn) for turn in house.turns] == [f"{action}\n" for action in ACTIONS]
    assert house.context(house.turns[0]) == QUESTION and "@2" not in house.context(house.turns[-1])
    [scored] = scorer.scored
    assert scored == house.context(house.turns[-1]) + house.text(house.turns[-1]), "the very ids that are trained on"
    start = 0
    for turn in house.turns:
        start += len(turn.prompt)
        places = np.arange(start, start + len(turn.response))
        np.testing.assert_allclose(turn.logprobs, -places + turn.response / 1000, rtol=1e-6)
        start += len(turn.response)
    assert all(turn.extra["navigated"] and turn.versions == ((0, 7),) for turn in house.turns)
    assert house.turns[-1].reward == 1.0 and house.turns[-1].terminated


def test_its_share_of_a_groups_episodes_is_told_and_the_others_are_as_they_were_sampled(file):
    scorer = Scorer()
    rollout = ActSettings(turns=8, episodes=8, experience=settings(file))
    helpers = Helpers(experience.Pool(rollout.experience), scorer.rescore)
    house = play(rollout, helpers)
    told = {turn.episode for turn in house.turns if turn.extra.get("navigated")}
    assert len(told) == 4 and len(scorer.scored) == 4
    assert all((turn.episode in told) == (turn.versions == ((0, 7),)) for turn in house.turns)
    assert {house.context(turn) for turn in house.turns if turn.parent < 0} == {QUESTION}
    others = {turn.episode for turn in play(rollout, helpers, seed=5).turns if turn.extra.get("navigated")}
    assert len(others) == 4 and others != told


def test_what_they_do_says_nothing_of_how_good_the_model_is(file):
    rollout = ActSettings(turns=8, episodes=2, experience=settings(file, share=1.0))
    house = play(rollout, Helpers(experience.Pool(rollout.experience), Scorer().rescore))
    assert house.success is None
    report = report_of([Group(bytes(16), 0, tuple(house.turns))], 0)
    assert report.reward is None and report.navigated_share == 1.0


def test_where_no_experience_shares_a_word_with_the_question_nothing_is_told(tmp_path):
    experience.write(tmp_path / "pool.jsonl", [lesson("@1", "something else")])
    rollout = ActSettings(turns=8, experience=settings(tmp_path / "pool.jsonl", share=1.0))
    house = play(rollout, Helpers(experience.Pool(rollout.experience), Scorer().rescore))
    assert house.prompts[0] == QUESTION and not any("navigated" in turn.extra for turn in house.turns)


def test_an_episode_that_breaks_off_is_written_without_experience_too(file):
    class Breaks(Minicraft):
        def act(self, text):
            if self._steps == 2:
                raise RuntimeError("it broke")
            return super().act(text)

    rollout = ActSettings(turns=8, experience=settings(file, share=1.0))
    helpers = Helpers(experience.Pool(rollout.experience), Scorer().rescore)
    house = House(rollout, lambda prompt: "+f", Breaks, TASK, tokenizer=TOKENIZER, helpers=helpers)
    assert [turn.role for turn in house.turns] == [Role.ACTION, Role.ACTION, Role.ERROR]
    assert house.context(house.turns[0]) == QUESTION and isinstance(house.failures[0], EpisodeFailure)


def test_answers_that_are_tried_again_are_told_too_and_evaluations_are_not(file):
    for rollout in (AttemptSettings(experience=settings(file)), RetrySettings(experience=settings(file))):
        assert getattr(rollout.tested(2, 1), "experience", None) is None
        assert getattr(rollout.tested(None, 1), "experience", None) is None
    assert getattr(ActSettings(experience=settings(file)).tested(None, 1), "experience", None) is None
    rollout = RetrySettings(turns=2, experience=settings(file, share=1.0))
    house = play(rollout, Helpers(experience.Pool(rollout.experience), Scorer().rescore))
    assert [turn.parent for turn in house.turns] == [-1, 0] and house.prompts[1].startswith("@2;")


def test_the_loss_knows_their_tokens(file):
    rollout = ActSettings(turns=8, episodes=2, experience=settings(file))
    house = play(rollout, Helpers(experience.Pool(rollout.experience), Scorer().rescore))
    turns = tuple(replace(turn, reward=float(turn.episode)) for turn in house.turns)
    batch = prepare([Group(bytes(16), 0, turns)], 0, LearnerSettings(batch_groups=1))
    marked = np.concatenate([micro.navigated for micro in batch.micros[0]])
    told = sum(len(turn.response) for turn in turns if turn.extra.get("navigated"))
    assert marked.sum() == told > 0 and len(marked) == sum(len(turn.response) for turn in turns)


def test_an_upper_clip_for_them_is_refused_where_there_are_none(values):
    values["learner"] = {"objective": {"name": "grpo", "correction": "none", "clip_high_navigated": 0.6}}
    recipes.build(values)
    del values["rollout"]["experience"]
    with pytest.raises(SettingError, match="no episode is told"):
        recipes.build(values)


def test_log_probs_are_of_one_version_also_when_weights_land_meanwhile():
    class Landing:
        version, scored = 4, 0

        async def score(self, ids):
            self.scored += 1
            if self.scored == 1:  # as `apply` does while this waits
                proved._begun += 1
                self.version = 5
            return np.full(len(ids) - 1, float(self.version), np.float32)

    engine = Landing()
    proved = Proved(engine)
    logprobs, version = asyncio.run(proved.scored(np.zeros(3, np.int32)))
    assert version == 5 and logprobs.tolist() == [5.0, 5.0] and engine.scored == 2


def test_the_pool_finds_what_shares_most_words_and_keeps_to_top(tmp_path):
    known = [lesson("look first", "find the red key", "a key is lost"), lesson("ask", "open a door", "")]
    experience.write(tmp_path / "pool.jsonl", known)
    pool = experience.Pool(settings(tmp_path / "pool.jsonl", top=3, template="Known:\n{experience}\n"))
    assert pool.told("Where is the red key?") == "Known:\na key is lost: look first\n"
    assert [one["content"] for one in pool.find("open the door with the red key")] == ["look first", "ask"]
    assert pool.find("") == [] and pool.told("nothing alike") == ""


def test_a_refreshed_pool_keeps_what_it_had_and_takes_nothing_twice_or_without_content():
    known = [lesson("Take the shovel before you dig a hole.")]
    new = [
        lesson("take the shovel, before you dig a hole"),
        lesson("Leave the shovel where it is."),
        lesson("   "),
        lesson("x" * 3000),
        lesson("Take the shovel before you dig a hole.", OTHER),
    ]
    assert experience.merged(known, new) == [known[0], new[1], new[4]]


@pytest.mark.parametrize("line", ["no json", "[1]", json.dumps({"content": "x"}), json.dumps(lesson(""))])
def test_a_file_that_is_no_pool_is_refused(tmp_path, line):
    (tmp_path / "pool.jsonl").write_text(line + "\n")
    with pytest.raises(SettingError, match=r"experience\.path"):
        experience.read(tmp_path / "pool.jsonl")


def test_minicraft_says_which_recipe_its_episodes_showed():
    def played(*steps, success=False):
        return Played(tuple(steps), float(success), success)

    crafted = played(("+f", "."), ("*2", ""), success=True)
    refused = played(("+d", "."), ("+c", "!"), ("+h", ""))
    assert Minicraft().lesson(TASK, [refused, crafted]) == [{"when_to_use": "", "content": "@2"}]
    assert Minicraft().lesson(TASK, [refused]) == [{"when_to_use": "", "content": "@2"}]
    assert Minicraft().lesson(TASK, [played(("+d", "."), ("*1", "!"))]) == []


@pytest.fixture
def values(file) -> dict:
    return {
        "name": "x",
        "steps": 2,
        "model": {"make": {}},
        "environment": {"name": "minicraft"},
        "rollout": {"name": "act", "turns": 8, "episodes": 4, "experience": {"path": str(file)}},
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sampling": {"temperature": 0.9}}, "temperature 1"),
        ({"sampling": {"top_p": 0.9}}, "temperature 1"),
        ({"steps": 0}, "never reads it"),
        ({"model": {"make": {}, "on_rewrite": "new_root"}}, "leave one out"),
        ({"rollout": {"name": "act", "episodes": 2, "experience": {"path": "p", "share": 0.1}}}, "no episode"),
        ({"rollout": {"name": "act", "experience": {"path": "p", "template": "none"}}}, "must hold"),
        (
            {
                "rollout": {"name": "retry", "episodes": 4, "best_of": 2, "experience": {"path": "p"}},
                "learner": {"credit": {"name": "raw"}},
            },
            "one dialogue",
        ),
    ],
)
def test_a_recipe_in_which_it_cannot_act_is_refused(values, changes, problem):
    assert recipes.build(values).rollout.experience is not None
    with pytest.raises(SettingError, match=problem):
        recipes.build(values | changes)
