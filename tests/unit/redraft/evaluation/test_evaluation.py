"""What an evaluation promises: the figures of its definitions, worked out by hand, and no claim beyond them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from actors.config import SamplingSettings
from actors.rollout_config import ActSettings, AttemptSettings, ReflectSettings, RetrySettings
from protocols.evaluation import AnswerFigures, EvaluationLine, EvaluationSummary, Kind
from protocols.turns import LOGPROBS, TOKENS, Role, Stop, Turn
from redraft.config import EvaluationSettings
from redraft.evaluation.episodes import Episode, Try, episodes, loops, majority
from redraft.evaluation.measures import plays, summarise
from redraft.report.tables import WITH_FEEDBACK, remarks, rows, table

RIGHT = "7"


def turn(number: int, role: Role, episode: int = 0, answer: str | None = None, terminated: bool = False) -> Turn:
    """A turn as an actor makes it; the answer "7" is right."""
    extra = {} if role is Role.ERROR else {"success": answer == RIGHT, "answer": answer}
    return made(number, role, extra, episode=episode, terminated=terminated)


def made(number: int, role: Role, extra: dict, ids: bytes = b"", authored: bool = False, **facts) -> Turn:
    """A turn whose response has these ids."""
    logprobs = np.full(len(ids), np.nan if authored else -1.0, LOGPROBS)
    response = np.array(list(ids), TOKENS)
    return Turn(
        bytes(16), 0, number, number - 1, np.empty(0, TOKENS), response, logprobs, (), role, extra=extra, **facts
    )  # fmt: skip


def episode(*answers: str | None) -> list[Turn]:
    return [turn(n, Role.ATTEMPT, answer=answer) for n, answer in enumerate(answers)]


def firsts(*answers: str | None) -> list[Turn]:
    """One first answer in each of several episodes."""
    return [turn(n, Role.ATTEMPT, episode=n, answer=answer) for n, answer in enumerate(answers)]


SAMPLED = [episode("7", "7", "1"), episode("1", "1", "7"), episode("2", "7", "7"), episode(None, None, "3")]
INDEPENDENT = [firsts("1", "1"), firsts("7", "7"), firsts("7", "3"), firsts("4", None)]


def figures(played: dict, turns: int, kind: Kind = "answers") -> dict:
    """The summary as files have it."""
    return summarise(played, turns, kind).to_json()


def test_accuracy_and_the_rates_of_keeping_fixing_and_repeating_are_those_worked_out_by_hand():
    found = figures({"sampled": SAMPLED}, turns=3)
    assert found["accuracy_by_turn"] == [1 / 4, 2 / 4, 2 / 4]
    # Right before a retry: task 0 twice, task 2 once; kept: task 0 once, task 2 once.
    assert found["keep_rate"] == pytest.approx(2 / 3)
    # Wrong before a retry: task 1 twice, task 2 once, task 3 twice; fixed: tasks 1 and 2 once each.
    assert found["fix_rate"] == pytest.approx(2 / 5)
    # Said again: task 1 once. Two unparsable answers are not the same answer.
    assert found["repeat_rate"] == pytest.approx(1 / 5)
    assert found["any_turn"] == 3 / 4
    assert found["majority_turns"] == 2 / 4  # tasks 0 and 2; task 1's majority is "1"
    assert found["errors"] == 0
    assert found["greedy"] is None


def test_independent_first_answers_count_the_episodes_own_first_answer_as_one_of_them():
    found = figures({"sampled": SAMPLED, "independent": INDEPENDENT}, turns=3)
    assert found["k"] == 3
    assert found["pass_k"] == 3 / 4
    assert found["majority_k"] == 1 / 4  # 7 1 1 -> 1; 1 7 7 -> 7; 2 7 3 -> 2, the first of equals; None 4 None -> 4
    # Of ordered pairs that begin wrong, the second is right in two of 4, 2 and 4 (tasks 0 to 2), and none of 6. Of
    # those that begin right, in two of 4 of task 1, and none of 2 of tasks 0 and 2.
    assert found["blind_fix"] == pytest.approx(6 / 16) and found["blind_keep"] == pytest.approx(2 / 8)
    alone = figures({"sampled": SAMPLED}, turns=3)
    assert "blind_fix" not in alone
    assert (alone["k"], alone["pass_k"]) == (1, alone["accuracy_by_turn"][0])


def test_standard_errors_take_each_task_as_one_cluster():
    se = figures({"sampled": SAMPLED}, turns=3)["se"]
    assert se["accuracy_by_turn"][0] == pytest.approx(math.sqrt(3 / 4 / 3 / 4))  # of a mean: sqrt(p (1-p) / (n-1))
    residuals = [1 - 2 * 2 / 3, 0, 1 - 2 / 3, 0]  # kept minus rate times right, a task
    assert se["keep_rate"] == pytest.approx(math.sqrt(sum(r * r for r in residuals) * 4 / 3) / 3)
    assert len(se["accuracy_by_turn"]) == 3


@pytest.mark.parametrize("answer", ["7", "1"])
def test_a_share_of_none_or_of_all_has_the_error_of_wilsons_interval_instead_of_none(answer):
    found = figures({"sampled": [episode(answer, answer)] * 49}, turns=2)
    (share, _), (error, _) = found["accuracy_by_turn"], found["se"]["accuracy_by_turn"]
    assert share == (answer == RIGHT) and error == pytest.approx(1 / 50)
    # The bound p of Wilson's interval is where the share is one standard error of p away: |share - p| = sqrt(p q / n).
    assert error == pytest.approx(math.sqrt(error * (1 - error) / 49))
    one = [episode("7" if answer == "1" else "1")] + [episode(answer)] * 48
    assert error == pytest.approx(figures({"sampled": one}, turns=1)["se"]["accuracy_by_turn"][0], rel=0.03)


def test_a_rate_of_none_counts_only_the_tasks_that_have_a_part_in_it():
    kept_never = [episode("7", "1")] * 9 + [episode("1", "1")] * 90
    found = figures({"sampled": kept_never}, turns=2)
    assert found["keep_rate"] == 0 and found["se"]["keep_rate"] == pytest.approx(1 / 10)


def test_a_count_that_never_varies_has_no_error():
    found = figures({"sampled": [actions("a", "b")] * 9}, 2, "actions")
    assert found["actions"] == 2 and found["se"]["actions"] == 0 and found["se"]["loops"]["1"] == 0


def test_an_evaluation_tells_how_many_answers_were_cut_or_not_parsed_in_each_pass():
    cut = made(0, Role.ATTEMPT, {"success": False, "answer": None, "parsed": False}, b"long", stop=Stop.LENGTH)
    right = made(0, Role.ATTEMPT, {"success": True, "answer": "7", "parsed": True}, b"ab")
    found = summarise({"sampled": [[cut], [right]], "greedy": [[right], [right]]}, turns=1)
    assert found.greedy is not None
    told, greedy = found.sampled.responses, found.greedy.responses
    assert (told.cut_share, told.unparsed_share) == ({"attempt": 0.5}, {"attempt": 0.5})
    assert told.response_tokens == {"attempt": {"mean": 3.0, "p50": 3.0, "max": 4}}
    assert (greedy.cut_share, greedy.unparsed_share) == ({"attempt": 0.0}, {"attempt": 0.0})
    before, after = (
        "Answers before: attempt 50% cut, 50% unparsed, 3 tokens (most 4).",
        "Answers after: attempt 50% cut",
    )
    said = remarks(found, found, "blank")
    assert before in said and any(remark.startswith(after) for remark in said)


def test_turns_of_one_task_that_always_agree_count_as_one_observation():
    many = figures({"sampled": [episode(*"111111111"), episode(*"121212121")] * 10}, turns=9)
    once = figures({"sampled": [episode(*"11"), episode(*"12")] * 10}, turns=2)
    assert many["repeat_rate"] == once["repeat_rate"] == 0.5
    assert many["se"]["repeat_rate"] == pytest.approx(once["se"]["repeat_rate"])
    assert many["se"]["repeat_rate"] > 0.1


def too_long(number: int, episode: int = 0) -> Turn:
    return replace(turn(number, Role.ERROR, episode), extra={"error": "no room", "kind": "too_long"})


def test_answers_for_which_there_was_no_room_count_as_wrong():
    found = figures({"sampled": [[*episode("7"), too_long(1)], [too_long(0)], episode("7", "7")]}, turns=2)
    assert found["accuracy_by_turn"] == [2 / 3, 1 / 3]
    assert found["errors"] == 0


def test_a_task_whose_episode_broke_off_is_counted_and_left_out_of_the_figures():
    broken = [*episode("7"), turn(1, Role.ERROR)]
    found = figures({"sampled": [broken, [turn(0, Role.ERROR)], episode("7", "1")]}, turns=2)
    assert found["accuracy_by_turn"] == [1, 0] and found["n"] == 3
    assert found["errors"] == 2
    none = figures({"sampled": [broken, broken]}, turns=2)
    assert none["accuracy_by_turn"] == [None, None] and none["keep_rate"] is None


def test_each_environment_of_several_has_the_figures_that_it_would_have_alone():
    labels = ["signs", "words", "signs", "words"]
    found = summarise({"sampled": SAMPLED}, 3, labels=labels)
    for label, own in (("signs", SAMPLED[::2]), ("words", SAMPLED[1::2])):
        assert found.environments[label].figures == summarise({"sampled": own}, 3).sampled
        assert (found.environments[label].n, found.environments[label].errors) == (2, 0)
    assert EvaluationSummary.from_json(json.loads(json.dumps(found.to_json()))) == found
    told = [row for row in rows(None, found) if row.section == "of words"]
    assert [row.after.value for row in told[:3]] == [0, 0, 0.5]
    broken = summarise({"sampled": [*SAMPLED[:3], [turn(0, Role.ERROR)]]}, 3, labels=labels)
    assert broken.environments["words"].errors == 1
    assert broken.environments["words"].figures == summarise({"sampled": SAMPLED[1:2]}, 3).sampled
    assert not summarise({"sampled": SAMPLED}, 3, labels=[""] * 4).environments, "of one there is nothing to tell apart"


def test_figures_over_several_tries_take_no_task_of_which_one_broke_off():
    tries = [[turn(0, Role.ATTEMPT, answer="7")], [turn(0, Role.ERROR)]]
    found = figures({"sampled": [episode("1"), episode("1")], "independent": tries}, turns=1)
    assert found["pass_k"] == 1 and found["accuracy_by_turn"] == [0]


def test_the_answer_with_which_an_episode_ended_early_without_an_error_stands():
    ended = [turn(0, Role.ATTEMPT, answer="7", terminated=True)]
    given_up = episode("1", "1")  # as Reflexion does at the same wrong answer
    found = figures({"sampled": [ended, given_up]}, turns=3)
    assert found["accuracy_by_turn"] == [1 / 2, 1 / 2, 1 / 2]
    assert found["errors"] == 0


def test_figures_over_nothing_are_null_and_all_of_it_is_json():
    found = figures({"sampled": [episode("7", "7")], "greedy": [episode("7", "1")]}, turns=2)
    assert found["fix_rate"] is None and found["se"]["fix_rate"] is None
    assert found["greedy"]["keep_rate"] == 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    single = figures({"sampled": [episode("7")]}, turns=1)
    assert (single["keep_rate"], single["repeat_rate"], single["majority_turns"]) == (None, None, 1)


def test_reflections_are_not_answers_and_episodes_stay_apart():
    mixed = [
        turn(0, Role.ATTEMPT, 0, "1"),
        turn(1, Role.ATTEMPT, 1, "2"),
        turn(2, Role.REFLECTION, 0, RIGHT),
        turn(3, Role.RETRY, 0, "7"),
        turn(4, Role.ERROR, 1),
    ]
    tries = (Try(False, "1"), Try(True, "7"))
    assert episodes(mixed, "answers") == [Episode(tries), Episode((Try(False, "2"),), broken=True)]


@pytest.mark.parametrize(
    ("answers", "right"),
    [
        (("1", "7", "7"), True),
        (("1", "7"), False),
        (("7", "1"), True),
        ((None, None, "7"), True),
        ((None, None), False),
    ],
)
def test_the_majority_is_the_most_common_parsed_answer_and_the_first_of_equals(answers, right):
    assert majority([Try(answer == RIGHT, answer) for answer in answers]) is right


def test_evaluation_plays_whole_episodes_that_never_stop_at_success():
    rollout = RetrySettings(turns=5, episodes=8, reflect=True, stop_at_success=True)
    found = {label: (play, draw) for label, play, draw, _ in plays(EvaluationSettings(), rollout, SamplingSettings())}
    whole, sampling = found["sampled"]
    assert (whole.turns, whole.episodes, whole.reflect, whole.stop_at_success) == (5, 1, True, False)
    assert sampling.temperature == 1
    first, _ = found["independent"]
    assert (first.name, first.turns, first.episodes) == ("attempt", 1, 4)
    assert found["greedy"][0] == whole and found["greedy"][1].temperature == 0


def test_the_number_of_turns_can_be_another_one_than_in_training():
    settings = EvaluationSettings(turns=3, independent=1, greedy=False)
    [(label, rollout, *_)] = plays(settings, AttemptSettings(episodes=8), SamplingSettings())
    assert (label, rollout.name, rollout.turns) == ("sampled", "retry", 3)


def test_independent_episodes_of_many_actions_are_whole_ones():
    found = {label: play for label, play, *_ in plays(EvaluationSettings(), ActSettings(turns=8), SamplingSettings())}
    assert {label: (play.turns, play.episodes) for label, play in found.items()} == {
        "sampled": (8, 1),
        "independent": (8, 4),
        "greedy": (8, 1),
    }


def test_the_controls_that_a_rollout_names_are_passes_of_their_own():
    found = {label: play for label, play, *_ in plays(EvaluationSettings(), ReflectSettings(), SamplingSettings())}
    assert list(found) == ["sampled", "independent", "greedy", "no reflection", "fixed reflection"]
    assert [found[label].reflect for label in ("sampled", "no reflection", "fixed reflection")] == [True, False, True]
    assert {found[label].episodes for label in ("sampled", "no reflection", "fixed reflection")} == {1}
    once = plays(EvaluationSettings(turns=1, greedy=False), ReflectSettings(), SamplingSettings())
    assert [label for label, *_ in once] == ["sampled", "independent"], "no second try, nothing to control"


def test_other_kinds_of_feedback_are_controls_that_play_whole_episodes():
    settings = EvaluationSettings(independent=1, greedy=False, feedbacks=["blank"])
    own, control = plays(settings, RetrySettings(turns=3), SamplingSettings())
    assert (own.label, own.feedback) == ("sampled", None)
    assert (control.label, control.feedback, control.rollout) == ("blank feedback", "blank", own.rollout)


def test_controls_have_the_same_figures_and_sections_of_their_own():
    second = [episode("1", "1"), episode("1", "7")] * 2
    found = summarise({"sampled": [episode("1", "7")] * 4, "greedy": second, "no reflection": second}, turns=2)
    control = found.controls["no reflection"]
    assert isinstance(control, AnswerFigures) and control == found.greedy
    assert [figure.value for figure in control.accuracy_by_turn] == [0, 1 / 2]
    sections = {row.section: row for row in rows(found, found) if row.label == "turn 2"}
    assert list(sections) == ["sampled", "greedy", "no reflection"]
    assert sections["no reflection"].after == control.accuracy_by_turn[1]


def test_with_two_turns_the_fix_rate_is_the_success_of_second_tries_after_failed_first_ones():
    tried = [episode("1", "7"), episode("1", "2"), episode("3", "4"), episode("7", "7")]
    assert figures({"sampled": tried}, turns=2)["fix_rate"] == 1 / 3


def test_generations_are_the_sampled_responses_of_each_pass():
    authored = made(1, Role.REFLECTION, {}, b"fixed", authored=True)
    own = [made(n, Role.ATTEMPT, {"success": False, "answer": "1"}, b"x") for n in (0, 2)]
    found = summarise({"sampled": [[own[0], turn(1, Role.ERROR)]], "greedy": [[own[0], authored, own[1]]]}, turns=2)
    assert found.generations == {"sampled": 1, "greedy": 2}
    assert any("sampled 1.0, greedy 2.0" in remark for remark in remarks(found, None, "blank"))


def actions(*done: str, number: int = 0, cut: bool = False) -> list[Turn]:
    """An episode of actions: "!" after one was refused, "." after one that reached the goal; `cut` where there was no
    room for more."""
    turns = [
        made(
            n,
            Role.ACTION,
            {"success": action[-1] == ".", "answer": action.strip("!."), "refused": action[-1] == "!"},
            action.encode(),
            episode=number,
        )
        for n, action in enumerate(done)
    ]
    return turns + [too_long(len(done), number)] * cut


ACTED = [actions("a", "b."), actions("a!", "b", "c."), actions("a!", "a!", "a!"), actions("a", "b", "a", cut=True)]


def test_the_figures_of_episodes_of_many_actions_are_those_worked_out_by_hand():
    others = [actions("a"), actions("a"), actions("a"), actions("b", "c.")]
    found = figures({"sampled": ACTED, "independent": others, "greedy": ACTED}, 8, "actions")
    assert (found["kind"], found["n"], found["turns"], found["k"]) == ("actions", 4, 8, 2)
    assert found["success"] == 2 / 4
    assert found["success_after_error"] == 1 / 2
    assert found["error_share"] == 2 / 4
    assert found["actions"] == (2 + 3 + 3 + 3) / 4
    assert found["loop_rate"] == 1 / 4 and found["loops"] == {"1": 1 / 4, "2": 0, "3": 0}
    assert found["pass_k"] == 3 / 4
    assert found["se"]["success"] == pytest.approx(math.sqrt(1 / 4 / 3))
    assert found["se"]["loops"]["1"] == found["se"]["loop_rate"]
    assert {key: value for key, value in found["greedy"].items() if key != "se"}.items() <= found.items()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_success_after_an_error_is_null_where_nothing_was_refused():
    found = figures({"sampled": [actions("a", "b.")] * 2}, 8, "actions")
    assert found["success_after_error"] is None and found["se"]["success_after_error"] is None


@pytest.mark.parametrize(
    ("done", "expected"),
    [
        ("", {}),
        ("abc", {}),
        ("aa", {1: 1}),
        ("aaaaaa", {1: 1}),
        ("aabaa", {1: 2}),
        ("abab", {2: 1}),
        ("ababa", {2: 1}),
        ("abababab", {2: 1}),
        ("aba", {}),
        ("xabcabc", {3: 1}),
        ("aabaab", {1: 2, 3: 1}),
        ("abcdabcd", {4: 1}),
    ],
)
def test_a_loop_is_a_stretch_of_the_same_actions_twice_in_a_row_or_more_counted_under_its_shortest(done, expected):
    assert loops(done) == expected


def test_actions_that_could_not_be_parsed_are_the_same_when_their_ids_are():
    def unparsed(*texts: bytes) -> list[Turn]:
        return [made(n, Role.ACTION, {"success": False, "answer": None}, text) for n, text in enumerate(texts)]

    found = figures({"sampled": [unparsed(b"hm", b"hm"), unparsed(b"hm", b"eh")]}, 2, "actions")
    assert found["loop_rate"] == 1 / 2


def test_the_table_of_many_actions_says_success_errors_loops_and_the_control():
    before = summarise({"sampled": ACTED, "independent": [actions("c.")] * 4}, 8, "actions")
    console = Console(record=True, width=140)
    console.print(table(before, before, "binary"))
    text = console.export_text()
    for fact in ("success ", "success after an error", "share with an error", "share with a loop", "actions", "pass@2"):
        assert fact in text, fact
    assert "2.750 ± 0.250" in text
    assert any("any of 2 independent episodes" in remark for remark in remarks(before, before, "binary"))
    assert WITH_FEEDBACK not in remarks(before, before, "binary")


def test_the_table_shows_each_figure_before_and_after_and_what_the_feedback_gives_away():
    before = summarise({"sampled": SAMPLED, "independent": INDEPENDENT, "greedy": SAMPLED}, turns=3)
    after = summarise({"sampled": SAMPLED[:3] * 2, "independent": INDEPENDENT[:3] * 2}, turns=3)
    console = Console(record=True, width=140)
    console.print(table(before, after, "residual"))
    text = console.export_text()
    for fact in ("0.250 ± 0.250", "turn 1", "keep rate", "majority@3", "any of 3 turns", "pass@3", "greedy fix rate"):
        assert fact in text, fact
    assert "not intrinsic self-correction" in " ".join(text.split())
    assert WITH_FEEDBACK not in remarks(before, after, "blank")


def test_the_start_models_control_stands_beside_the_oracle_over_turns():
    before = summarise({"sampled": SAMPLED, "independent": INDEPENDENT}, turns=3)
    found = remarks(before, before, "blank")
    assert any("(its pass@3) is in 0.750, with equally many answers" in remark for remark in found)


def test_a_table_of_one_evaluation_has_no_change():
    only = summarise({"sampled": SAMPLED}, turns=3)
    console = Console(record=True, width=120)
    console.print(table(only, None, "binary"))
    text = console.export_text()
    assert "result" in text and "change" not in text
    assert all(row.change == (None, None) for row in rows(only, None))


@pytest.mark.parametrize("kind", ["answers", "actions"])
def test_a_summary_comes_back_from_its_line_as_it_was(kind):
    played = {"answers": SAMPLED, "actions": ACTED}[kind]
    made = summarise({"sampled": played, "greedy": played, "blank feedback": played}, turns=3, kind=kind)
    line = EvaluationLine("eval", 8, 9, 1.5, made)
    assert EvaluationLine.from_json(json.loads(json.dumps(line.to_json(), allow_nan=False))) == line
    assert made.episodes == len(played) * 3


def test_what_a_line_lacks_is_a_figure_over_nothing():
    found = EvaluationSummary.from_json({"n": 4, "turns": 2, "accuracy_by_turn": [0.5, 1.0]})
    assert [row.label for row in rows(found, None)] == ["turn 1", "turn 2"]
    assert isinstance(found.sampled, AnswerFigures) and found.sampled.fix_rate == (None, None)
