"""Each cause why a run cannot learn is named, with its cure, from figures; healthy figures name none."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.contract import Report
from actors.tally import Tally
from protocols.reports import StepReport
from redraft import recipe as recipes
from redraft.diagnosis.causes import CAUSES, HOLD_S, Diagnosis
from redraft.diagnosis.evidence import ALPHA, RecentPlay, beyond, overlap

RECIPE = {
    "name": "watched",
    "steps": 100,
    "model": {"path": "some/model"},
    "environment": {"name": "signs"},
    "rollout": {"name": "attempt", "episodes": 8},
    "sampling": {"max_tokens": 64},
    "actors": {"groups": 16},
    "learner": {"batch_groups": 8},
}


def recipe(**changes) -> recipes.Recipe:
    return recipes.build(RECIPE | changes)


def play(groups: int = 40, answers: int = 8, right: float = 0.4, **counts) -> Tally:
    """The tally of a healthy stretch of play, but for `counts`."""
    total = groups * answers
    healthy = {
        "responses": Counter(attempt=total),
        "cut": Counter(attempt=total // 10),
        "parsed": Counter(attempt=total - total // 10),
        "unparsed": Counter(attempt=total // 10),
        "groups": groups,
        "flat": groups // 4,
        "flat_right": groups // 4 * right,
        "right": groups * right,
        "tokens": 25 * total,
        "nats": 12.5 * total,
        "scores": total,
        "low": 0.0,
        "high": 1.0,
        "episodes": total,
    }
    return Tally(**healthy | counts)


def step(number: int, **figures) -> StepReport:
    """A learner's report of a healthy step, but for `figures`."""
    healthy = {
        "step": number,
        "version": number,
        "groups": 8,
        "trained_tokens": 3000,
        "masked_share": 0.01,
        "gradient_norm": 0.3,
        "lr": 1e-5,
    }
    return StepReport.from_json(healthy | figures)


class Watched:
    """A diagnosis that is told of a run, second after second: one step each."""

    def __init__(self, noise: float = 1e-6, **changes):
        self.diagnosis = Diagnosis(recipe(**changes))
        self.now_s, self.step = 0.0, 0
        self.publish()
        self.actor(0, noise)

    def publish(self, version: int = 0, digest: str | None = None, moved: float = 0.0) -> None:
        logprobs = np.full(31, -3.0) - moved
        self.diagnosis.published(version, digest or f"digest {version}", logprobs, self.now_s)

    def actor(self, version: int | None = 0, difference: float = 1e-6, **facts) -> None:
        report = Report("ready", version, difference, pid=1, **facts)
        self.diagnosis.fleet({"actor-0": report}, self.now_s)

    def second(
        self, tally: Tally | None = None, follows: bool = True, digest: str | None = None, **figures
    ) -> set[str]:
        """One more second, with a step; the causes that are found then."""
        self.now_s, self.step = self.now_s + 1, self.step + 1
        self.diagnosis.played("actor-0", Report("ready", tally=play() if tally is None else tally))
        self.publish(self.step, digest, moved=0.01 * self.step)
        self.diagnosis.stepped(step(self.step, **figures))
        self.actor(self.step if follows else 0)
        self.diagnosis.look(self.now_s)
        return set(self.diagnosis.findings)

    def text(self, cause: str) -> str:
        return self.diagnosis.findings[cause].text


BROKEN = {
    "answers_cut": dict(cut=Counter(attempt=310)),
    "answers_unparsed": dict(parsed=Counter(attempt=5), unparsed=Counter(attempt=315)),
    "reward_constant": dict(low=0.0, high=0.0, flat=0),
    "groups_flat": dict(flat=40, flat_right=0.0),
    "episodes_broken": dict(broken=320, failure="ValueError: no such file"),
    "endpoint_down": dict(broken=320, unreached=320, failure="ConnectError: refused"),
    "template_missing": dict(foreign=300),
}
SAID = {
    "answers_cut": (
        "310 of 320 attempt responses (97 %) were cut at sampling.max_tokens=64",
        "Raise sampling.max_tokens",
    ),
    "answers_unparsed": ("In 315 of 320 answers (98 %) signs could find nothing to judge", "redraft view RUN"),
    "reward_constant": ("All 320 scores of 40 groups are the same (0)", "easier tasks"),
    "groups_flat": ("40 of 40 groups worth nothing to the learner: all their answers scored the same (right: 0 %)",),
    "episodes_broken": ("all 320 episodes ended with an error, the last with: ValueError", "Correct the environment"),
    "endpoint_down": ("all 320 episodes ended because an endpoint", "See that what the environment calls runs"),
    "template_missing": ("300 of 320 responses (94 %) hold control tokens", "chat_template.jinja"),
}


@pytest.mark.parametrize("cause", BROKEN)
def test_what_play_shows_is_named_after_the_first_batch_with_the_figures_and_the_cure(cause):
    run = Watched()
    expected = {cause} | ({"episodes_broken"} if cause == "endpoint_down" else set())
    assert run.second(play(**BROKEN[cause])) == expected
    for part in SAID[cause]:
        assert part in run.text(cause)


def test_answers_of_which_only_the_first_can_be_judged_are_named_although_most_can():
    run = Watched()
    tally = play(parsed=Counter(attempt=200), unparsed=Counter(attempt=120), later_parsed=1, later_unparsed=119)
    assert run.second(tally) == {"answers_unparsed"}
    said = run.text("answers_unparsed")
    assert "In 119 of 120 answers after the first of their episode (99 %) signs could find nothing" in said
    assert "set rollout.reflect as the model learned it" in said


STEPS = {
    "nothing_trained": dict(trained_tokens=0, gradient_norm=None, masked_share=None),
    "weights_frozen": dict(gradient_norm=0.0),
}


@pytest.mark.parametrize("cause", STEPS)
def test_what_one_step_shows_is_named_at_that_step(cause):
    run = Watched()
    assert run.second() == set()
    assert run.second(**STEPS[cause]) == {cause}
    assert run.text(cause).startswith("Step 2 trained")


def test_tokens_that_are_nearly_all_masked_are_named():
    run = Watched()
    assert run.second(masked_share=1.0) == {"nothing_trained"}
    assert "masked 100 % of its 3000 tokens" in run.text("nothing_trained")


def test_a_rate_of_zero_is_named():
    run = Watched()
    assert run.second(lr=0.0) == {"weights_frozen"}
    assert "learning rate of 0" in run.text("weights_frozen")


def test_weights_that_a_step_left_as_they_were_are_named_and_a_step_that_trained_nothing_is_not_blamed_for_them():
    run = Watched()
    assert run.second(digest="same") == set()
    assert run.second(digest="same") == {"weights_frozen"}
    assert "Version 2 is version 1 bit for bit, although step 2 trained 3000 tokens" in run.text("weights_frozen")
    other = Watched()
    other.second(digest="same")
    assert other.second(digest="same", **STEPS["nothing_trained"]) == {"nothing_trained"}


def test_weights_that_are_published_after_rounds_only_are_not_frozen_within_one():
    run = Watched()
    run.second()
    for number in range(2, 6):
        run.diagnosis.stepped(step(number, version=1))
        run.diagnosis.look(run.now_s)
    assert not run.diagnosis.findings


def test_an_actor_that_keeps_its_version_is_named_after_half_a_minute():
    run = Watched()
    found = [run.second(follows=False) for _ in range(33)]
    assert found[:29] == [set()] * 29 and found[-1] == {"weights_not_arriving"}
    assert "actor-0 still plays with version 0" in run.text("weights_not_arriving")


def test_loads_that_take_long_from_the_first_on_are_waited_for():
    run = Watched()
    run.diagnosis.fleet({"actor-1": Report("ready", None, pid=1)}, 0.0)
    run.diagnosis.fleet({"actor-1": Report("ready", 0, 1e-6, pid=1)}, 40.0)
    run.now_s = 50.0
    run.publish(1)
    run.diagnosis.fleet({"actor-1": Report("ready", 0, 1e-6, pid=1)}, 100.0)
    assert run.diagnosis.look(100.0) == ([], [])


@pytest.mark.parametrize("noise", [1e-6, 0.04])
def test_an_actor_that_computes_with_the_base_whatever_version_it_names_is_named(noise):
    run = Watched(noise)
    for version in range(1, 9):  # training moves the log-probs of the probe by 0.05 a version
        run.now_s += 1
        run.publish(version, moved=0.05 * version)
        run.actor(version, 0.05 * version + noise)
        run.diagnosis.look(run.now_s)
    assert set(run.diagnosis.findings) == {"weights_not_arriving"}
    assert "computes with older weights" in run.text("weights_not_arriving")


@pytest.mark.parametrize("noise", [1e-6, 0.04])
def test_an_actor_that_follows_within_the_noise_is_not_named(noise):
    run = Watched(noise)
    for version in range(1, 40):
        run.now_s += 1
        run.publish(version, moved=0.05 * version)
        run.actor(version, noise * (1 + 0.5 * (version % 3)))
        assert run.diagnosis.look(run.now_s) == ([], [])


def test_weights_that_an_actor_refuses_are_named_until_it_has_some():
    run = Watched()
    refusal = Report("failed", error="version 0: its probe differs", weights_refused=True)
    run.diagnosis.played("actor-0", refusal)
    run.diagnosis.fleet({"actor-0": Report("starting")}, 1.0)
    [finding], _ = run.diagnosis.look(1.0)
    assert finding.problem == "actor-0 does not take over the learner's weights: version 0: its probe differs."
    run.actor(0)
    assert [ended.until_s for ended in run.diagnosis.look(1.0 + 2 * HOLD_S)[1]] == [1.0]


def test_what_an_actor_refused_that_has_left_is_named_no_longer():
    run = Watched()
    run.diagnosis.played("actor-3", Report("failed", error="version 0: its probe differs", weights_refused=True))
    run.diagnosis.fleet({"actor-3": Report("starting")}, 1.0)
    assert len(run.diagnosis.look(1.0)[0]) == 1
    run.diagnosis.fleet({}, 2.0)
    assert len(run.diagnosis.look(2.0 + 2 * HOLD_S)[1]) == 1


def test_an_actor_that_is_replaced_does_not_count_as_one_that_keeps_its_version():
    run = Watched()
    run.publish(1)
    run.diagnosis.fleet({"actor-0": Report("starting")}, 5.0)
    assert run.diagnosis.look(100.0) == ([], [])


def test_a_chat_model_without_a_template_is_named_before_anything_is_played():
    run = Watched()
    run.diagnosis.played("actor-0", Report("ready", untemplated="its answers end with <|im_end|>"))
    [finding], _ = run.diagnosis.look(0.5)
    assert finding.cause == "template_missing" and "but its answers end with <|im_end|>" in finding.problem


def test_entropy_that_falls_to_nothing_while_answers_are_wrong_is_named_and_not_where_all_is_solved():
    run = Watched()
    assert run.second() == set()
    found = [run.second(play(nats=80.0)) for _ in range(6)]
    assert found[0] == set() and found[-1] == {"entropy_collapsed"}
    assert "from 0.5 to 0.01 nats a token, and 60 % of the answers are wrong" in run.text("entropy_collapsed")
    solved = Watched()
    solved.second()
    assert not any(solved.second(play(nats=80.0, right=0.98)) for _ in range(9))


def test_entropy_is_told_also_where_nothing_is_trained_any_more():
    run = Watched()
    run.second()
    found = [run.second(play(nats=80.0), **STEPS["nothing_trained"]) for _ in range(6)]
    assert found[-1] == {"entropy_collapsed", "nothing_trained"}


def test_a_test_task_that_is_a_training_task_under_another_name_is_named():
    run = Watched()
    training = [{"id": f"a{n}", "question": f"What is {n} + {n}?", "target": 2 * n} for n in range(50)]
    tests = [{"id": "b", "question": "what is  7 + 7?\n", "target": "14"}, {"id": "c", "question": "What is 99 + 1?"}]
    run.diagnosis.tasks(training, tests)
    [finding], _ = run.diagnosis.look(0.0)
    assert finding.problem.startswith("1 of 2 test tasks are also training tasks (b), so")


def test_the_same_question_is_found_whatever_stands_beside_it_and_the_same_answer_is_none():
    def row(number: int, question: str, answer: str) -> dict:
        system = {"role": "system", "content": "Be short."}
        asked = [system, {"role": "user", "content": question}]
        return {"id": str(number), "question": asked, "answer": answer, "row": {"idx": number, "question": question}}

    training = [row(n, f"{n} plus {n}?", str(2 * n)) for n in range(9)] + [row(9, "3 plus 3?", "6")]
    tests = [row(10, "3 plus 3?", "6"), row(11, "2 plus 4?", "6")]
    assert overlap(training, tests) == ["10"]


def test_tasks_without_a_question_of_their_own_are_compared_by_all_that_they_hold():
    training = [{"id": n, "digits": "1234", "target": n, "level": 1} for n in range(9)]
    tests = [{"id": "x", "digits": "1234", "target": n, "level": 2} for n in (3, 9)]
    assert overlap(training, tests) == ["x"]
    assert overlap(training, tests[1:]) == overlap([], tests) == overlap(training, []) == []


def test_an_evaluation_whose_episodes_all_broke_is_named_before_training():
    run = Watched()
    run.diagnosis.evaluated(Tally(episodes=100, broken=100, failure="ConnectionError: no judge"))
    [finding], _ = run.diagnosis.look(1.0)
    assert finding.cause == "episodes_broken"
    assert finding.problem == "all 100 episodes ended with an error, the last with: ConnectionError: no judge."


def test_groups_that_are_set_aside_are_told_as_what_they_are_with_the_cures():
    run = Watched(replay={"drop_flat": True}, learner={"batch_groups": 8, "credit": {"name": "raw"}})
    run.second(play(185, flat=183, flat_right=0.0))
    text = run.text("groups_flat")
    assert text.startswith("183 of 185 groups filtered: all their answers scored the same (right: 0 %).")
    for cure in (
        "easier tasks",
        "larger sampling.temperature or more rollout.episodes",
        "partial credit",
        "drop_flat: false",
    ):
        assert cure in text


def test_flat_groups_do_not_matter_to_a_credit_that_compares_over_the_batch():
    run = Watched(learner={"batch_groups": 8, "credit": {"name": "turnwise", "baseline": "batch"}})
    assert run.second(play(flat=40)) == set()


def test_tasks_that_are_solved_may_be_flat_until_next_to_none_is_left():
    run = Watched()
    assert run.second(play(200, flat=180, flat_right=180.0)) == set()
    assert run.second(play(300, flat=300, flat_right=300.0)) == {"groups_flat"}
    assert "harder tasks" in run.text("groups_flat")


def test_a_finding_keeps_the_time_at_which_it_began_and_ends_when_it_is_no_longer_seen():
    run = Watched()
    run.second()
    run.second(trained_tokens=0)
    began = run.diagnosis.findings["nothing_trained"]
    assert (began.since_s, began.step) == (2.0, 2)
    run.second(trained_tokens=0)
    assert run.diagnosis.findings["nothing_trained"].since_s == 2.0
    run.diagnosis.stepped(step(4))
    assert run.diagnosis.look(3.0 + HOLD_S) == ([], [])
    [ended] = run.diagnosis.look(3.1 + HOLD_S)[1]
    assert (ended.since_s, ended.until_s) == (2.0, 3.0) and not run.diagnosis.findings


def test_what_is_over_long_ago_counts_no_more():
    recent = RecentPlay(50)
    recent.add(play(40, cut=Counter(attempt=320)))
    for _ in range(3):
        recent.add(play(40))
    assert recent.total.groups <= 80 and recent.total.cut["attempt"] <= 64


def test_few_cases_prove_nothing():
    assert not beyond(30, 30, 0.8) and beyond(31, 31, 0.8)
    assert not beyond(9, 9, 0.5) and beyond(10, 10, 0.5)
    assert not beyond(0, 0, 0.5) and not beyond(80, 100, 0.8)


@pytest.mark.parametrize("total", [40, 400])
def test_a_share_at_its_limit_is_taken_for_more_once_in_a_thousand_times_at_most(total):
    shares = np.random.default_rng(0).binomial(total, 0.8, 20_000)
    assert np.mean([beyond(int(count), total, 0.8) for count in shares]) <= 1.5 * ALPHA


HEALTHY = st.tuples(
    st.floats(0, 0.6),  # cut
    st.floats(0, 0.6),  # unparsed
    st.floats(0.02, 0.98),  # right
    st.floats(0.15, 1),  # the entropy at the end, of that at the start
    st.floats(0, 0.1),  # broken
    st.integers(0, 2**31),
)


@given(HEALTHY)
@settings(max_examples=60, deadline=None)
def test_healthy_figures_name_nothing(drawn):
    cut, unparsed, right, last, broken, seed = drawn
    random, run = np.random.default_rng(seed), Watched()
    for second in range(40):
        wins = random.binomial(8, right, 16)
        flat = (wins == 0) | (wins == 8)
        tally = play(
            16,
            cut=Counter(attempt=int(random.binomial(128, cut))),
            unparsed=Counter(attempt=(lost := int(random.binomial(128, unparsed)))),
            parsed=Counter(attempt=128 - lost),
            flat=int(flat.sum()),
            flat_right=float((wins == 8).sum()),
            low=0.0 if wins.min() < 8 else 1.0,
            high=1.0 if wins.max() else 0.0,
            broken=int(random.binomial(128, broken)),
        )
        if 0.1 < right < 0.7:  # else groups of eight are mostly flat, which is to be told
            tally.right = float(wins.sum()) / 8
            tally.nats *= (1 + (last - 1) * second / 40) * random.uniform(0.9, 1.1)
            assert run.second(tally) == set()


def test_every_cause_has_a_test_here():
    named = {*BROKEN, *STEPS, "test_tasks_in_training", "weights_not_arriving", "entropy_collapsed"}
    assert named == set(CAUSES) and len(CAUSES) == 12
