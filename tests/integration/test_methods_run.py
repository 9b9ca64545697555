"""Methods on the real parts: runs of no steps, searches, reflections on failures, curricula that go on, rounds."""

import json
import re
import signal
from collections import Counter

import pytest
import yaml
from support.run_house import Command

from protocols.keys import group_id
from protocols.turns import Role
from protocols.weights import step_of
from protocols.wire import whole_group
from replay.disk.reader import SpoolReader
from replay.disk.spool import read_row
from replay.server.groups import PLAYED, HeldGroup

pytestmark = pytest.mark.ray

LIMIT_S = 300.0  # of each command, also on a busy machine
ACTOR = {"count": 1, "groups": 16, "engine": {"max_running": 64, "max_length": 128}}
LEARNER = {"batch_groups": 4, "row_tokens": 128, "micro_tokens": 512, "attention": "eager", "optimizer": {"lr": 0.002}}
MODEL = {"dtype": "float32", "make": {"seed": 0}}
REFLECT = {
    "name": "reflect",
    "steps": 2000,
    "model": MODEL,
    "environment": {"name": "support.coins:Coins"},
    "curriculum": {"threshold": 0.05, "window": 8, "only_newest": True},
    "rollout": {"name": "reflect", "episodes": 4},
    "sampling": {"max_tokens": 6},
    "actors": ACTOR,
    "learner": LEARNER
    | {
        "max_staleness": 3,
        "rounds": {"steps": 2},
        "checkpoint_every": 10_000,  # replay then keeps until the end what was trained
        "credit": {"name": "reflection"},
        "objective": {"name": "grpo", "anchor": 0.5, "correction": "none"},
        "roles": {"reflection": 1.0},
    },
    "evaluation": {"n": 8},
}
SEARCH = {
    "name": "search",
    "steps": 3,
    "model": MODEL,
    "environment": {"name": "support.coins:Purse"},
    "rollout": {
        "name": "search",
        "turns": 4,
        "simulations": 4,
        "expansions": 2,
        "exploration": 1.0,
        "alpha": 0.5,
        "splice": "verbatim",  # so short an episode leaves no room to play the good actions after a first error
        "demonstrations": 1,
    },
    "sampling": {"max_tokens": 4},
    "actors": ACTOR,
    "learner": LEARNER | {"credit": {"name": "trajectory"}, "objective": {"name": "sft"}},
    "evaluation": {"n": 8, "independent": 2},
}


MIXED = {
    "name": "mixed",
    "steps": 3,
    "model": MODEL,
    "environments": [
        {"name": "signs", "weight": 3, "data": {"train_size": 64, "test_size": 16}},
        {"name": "support.coins:Coins", "label": "coins"},
    ],
    "rollout": {"name": "attempt", "episodes": 2},
    "sampling": {"max_tokens": 6},
    "actors": ACTOR,
    "learner": LEARNER | {"credit": {"name": "group"}, "objective": {"name": "grpo"}},
    "evaluation": {"n": 8},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("work")
    for recipe in (REFLECT, SEARCH, MIXED):
        (made / f"{recipe['name']}.yaml").write_text(yaml.safe_dump(recipe))
    return made


def done(run: Command) -> str:
    """What a command has said once it has ended well."""
    output = run.wait(LIMIT_S)
    assert run.process.returncode == 0 and "Traceback" not in output, output[-3000:]
    return output


@pytest.mark.prove
def test_a_run_of_no_steps_only_evaluates_and_can_be_reported_and_compared(folder):
    run = Command(folder, "train", "reflect.yaml", "steps=0", "--run", "nothing")
    done(run)
    kept, summary = folder / "runs" / "nothing", run.summary("nothing")
    assert (summary["state"], summary["steps"], summary.get("after")) == ("done", 0, None)
    assert summary["before"]["n"] == 8 and len(summary["before"]["accuracy_by_turn"]) == 2
    assert summary["before"]["errors"] == 0 and set(summary["before"]["controls"]) == {
        "no reflection",
        "fixed reflection",
    }
    assert [line["label"] for line in run.lines("nothing", "evaluations.jsonl")] == ["before"]
    assert not any("learner" in path.name or "replay" in path.name for path in (kept / "logs").iterdir())
    assert not {"spool", "checkpoints", "metrics.jsonl"} & {path.name for path in kept.iterdir()}
    (kept / "report.html").unlink()
    commands = [Command(folder, "report", "nothing"), Command(folder, "compare", "nothing", "--out", "beside.html")]
    output = [done(command) for command in commands][-1]
    assert "support.coins:Coins" in (kept / "report.html").read_text()
    assert "nothing" in output and "nothing" in (folder / "beside.html").read_text()


def test_a_search_trains_and_says_what_it_sampled_and_what_it_trained(folder):
    run = Command(folder, "train", "search.yaml")
    done(run)
    summary, lines = run.summary("search"), run.lines("search", "metrics.jsonl")
    assert (summary["state"], run.steps("search")) == ("done", [1, 2, 3])
    assert summary["before"]["kind"] == summary["after"]["kind"] == "actions"
    assert 0 < summary["after"]["actions"] <= 4
    for line in lines:
        trained = line["trained_turns"]
        assert set(trained) == {"action", "revision"}, "good branches, and what follows a first error"
        assert 0 < line["sequences"] <= sum(trained.values()) < line["turns"], "bad branches are not trained"
        assert line["gradient_norm"] > 0
    assert sum(line["generations"] for line in lines) > 0
    assert all(line["attempts"] == line["generations"] for line in lines), "every action is an attempt"
    assert summary["generations"] >= sum(line["generations"] for line in lines)


@pytest.mark.prove
def test_two_environments_train_in_one_run_each_with_figures_of_its_own(folder):
    run = Command(folder, "train", "mixed.yaml")
    output = done(run)
    summary, lines = run.summary("mixed"), run.lines("mixed", "metrics.jsonl")
    assert run.steps("mixed") == [1, 2, 3]
    groups = sum((Counter(line["groups_by_environment"]) for line in lines), Counter())
    assert groups.total() == 12 and 2 <= groups["coins"] <= 4, "about by their weights: a slow group comes a step later"
    assert all(line["reward_by_environment"].keys() == line["groups_by_environment"].keys() for line in lines)
    after = summary["after"]["environments"]
    assert {label: found["n"] for label, found in after.items()} == {"coins": 2, "signs": 6}
    whole = sum(found["n"] * found["accuracy_by_turn"][0] for found in after.values()) / 8
    assert summary["after"]["accuracy_by_turn"][0] == pytest.approx(whole)
    assert "of coins turn 1" in output and "of signs turn 1" in output
    assert "of environment coins" in (folder / "runs" / "mixed" / "report.html").read_text()
    again = Command(folder, "eval", "mixed", "evaluation.n=4")
    assert "of coins turn 1" in done(again)


def played(folder, name):
    """Every closed group that the run's spool holds now, by the id."""
    with SpoolReader(folder / "runs" / name / "spool" / "0") as spool:
        closed = [group for group, packed in spool.groups() if HeldGroup.unpack(packed).state not in PLAYED]
        return {group: whole_group(read_row(*row) for row in spool.rows(group)) for group in closed}


def remembered(folder, name):
    """The ids of all groups that replay has met in the run's incarnation, also those it has forgotten."""
    with SpoolReader(folder / "runs" / name / "spool" / "0") as spool:
        return {group for group, _ in spool.groups()} | {group for group, _ in spool.marks()}


def of_groups(folder, name, tasks):
    """Group id -> the task that it plays."""
    identity = json.loads((folder / "runs" / name / "run.json").read_text())["id"]
    return {group_id(identity, epoch, task["id"]): task for epoch in range(1000) for task in tasks}


def level_began(folder, name):
    """The position at which level 1 began, None before."""
    log = folder / "runs" / name / "logs" / "controller.log"
    found = re.search(r"level 1 begins at position (\d+)", log.read_text() if log.exists() else "")
    return int(found[1]) if found else None


def newest_state(folder, name):
    """What the newest checkpoint says of the run."""
    newest = max((folder / "runs" / name / "checkpoints").glob("step-*"))
    return json.loads((newest / "state.json").read_text())


def check_versions(lines):
    """Weights are published after every second step only."""
    assert [step_of(line["version"]) for line in lines] == [line["step"] // 2 * 2 for line in lines]
    assert max(line["staleness_max"] for line in lines) <= 3


@pytest.fixture(scope="module")
def failures(folder):
    """The failures of the model that the run of reflections starts with."""
    said = done(Command(folder, "failures", "reflect.yaml", "failures.jsonl", "--attempts", "8"))
    found = [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
    assert f"failures.jsonl: {len(found)} failures" in said
    return found


@pytest.mark.prove
def test_failures_of_the_model_are_what_a_run_reflects_on_in_rounds(folder, failures):
    assert 56 <= len(failures) <= 64 and all(failure["attempt"] for failure in failures)
    run = Command(folder, "train", "reflect.yaml", "data.failures=failures.jsonl")
    batch = REFLECT["learner"]["batch_groups"]
    began = run.until(lambda: level_began(folder, "reflect"), LIMIT_S)
    run.until(lambda: batch * len(run.steps("reflect")) >= began + 2 * batch, LIMIT_S)
    groups, tasks = played(folder, "reflect"), of_groups(folder, "reflect", failures)
    run.process.send_signal(signal.SIGINT)
    done(run)

    assert len(groups) >= began + 2 * batch
    for group, kept in groups.items():
        first, *others = kept.turns
        assert first.response.tolist() == tasks[group]["attempt"] and not first.versions, "it was not sampled anew"
        assert first.role is Role.ATTEMPT and first.extra["success"] is False
        assert sorted((turn.parent > 0, turn.role) for turn in others) == [
            *[(False, Role.REFLECTION)] * 4,
            *[(True, Role.RETRY)] * 4,
        ]
        assert all(step_of(version) % 2 == 0 for turn in others for _, version in turn.versions)

    lines = run.lines("reflect", "metrics.jsonl")
    check_versions(lines)
    assert all(set(line["trained_turns"]) <= {"reflection"} for line in lines)
    assert sum(line["trained_turns"].get("reflection", 0) for line in lines) > 0
    assert lines[0]["anchor_kl"] < 1e-6 < max(line["anchor_kl"] for line in lines), "held to the start model"


@pytest.mark.prove
def test_a_curriculum_goes_on_at_its_level_when_a_run_is_resumed(folder, failures):
    """The run of the test before, which was stopped after its level had risen."""
    stopped, before = newest_state(folder, "reflect"), remembered(folder, "reflect")
    began = level_began(folder, "reflect")
    assert stopped["cursor"]["spans"] == [[0, 0], [began, 1]]
    assert stopped["cursor"]["position"] >= began, "what is left to play is of the new level"

    steps = stopped["step"] + 4
    run = Command(folder, "train", "reflect.yaml", "data.failures=failures.jsonl", f"steps={steps}", "--resume")
    done(run)
    assert run.summary("reflect")["state"] == "done" and run.steps("reflect") == list(range(1, steps + 1))
    resumed, tasks = newest_state(folder, "reflect"), of_groups(folder, "reflect", failures)
    assert resumed["cursor"]["spans"] == stopped["cursor"]["spans"]
    assert resumed["cursor"]["position"] > stopped["cursor"]["position"] and resumed["incarnation"] == 1
    assert {tasks[group]["level"] for group in remembered(folder, "reflect") - before} == {1}
    *lines, last = run.lines("reflect", "metrics.jsonl")
    check_versions(lines)
    assert step_of(last["version"]) == last["step"], "the end of a run ends a round"
