"""What may change when a run is resumed, and which runs have nothing to go on with."""

from __future__ import annotations

import json
import re

import pytest
from support.places import RECIPES, ROOT

from actors.contract import Report
from learner import checkpoint
from learner.checkpoint import RunState
from protocols.errors import SettingError
from protocols.reports import StepReport
from redraft import recipe as recipes
from redraft import run as runs
from redraft.control.status import Status
from redraft.run import MAY_CHANGE, MAY_CHANGE_WITHIN

STOP = ("evaluation.every=20", "evaluation.stop={patience: 2}")


def loaded(*overrides: str) -> recipes.Recipe:
    return recipes.load(RECIPES / "quickstart.yaml", overrides)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of the quickstart in ./runs that has ended early, after 40 of its 160 steps."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "quickstart"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"id": "a", "model": "m"}')
    (folder / "recipe.yaml").write_text(loaded(*STOP).dump())
    (folder / "summary.json").write_text(json.dumps({"state": "done", "early": "2 evaluations", "steps": 40}))
    checkpoint.finish(checkpoint.begin(folder, 40), RunState("a", 40, 0, {}, 1, 1), keep=1)
    return folder


def test_a_run_that_has_ended_early_is_done_until_it_is_to_end_otherwise(run):
    assert runs.done("quickstart", loaded(*STOP)) and not runs.done("quickstart", loaded())
    with pytest.raises(SettingError, match="evaluation.stop: .* ended early, after 40 steps. Set evaluation.stop=null"):
        runs.check(loaded(*STOP), None, resume=True, again=False)
    runs.check(loaded(STOP[0], "evaluation.stop={patience: 3}"), None, resume=True, again=False)


def test_a_run_that_has_sampled_its_tokens_goes_on_with_more_of_them(run):
    (run / "recipe.yaml").write_text(loaded("sampled_tokens=900").dump())
    ended = {"state": "done", "early": "1,000 tokens were sampled (sampled_tokens=900)", "steps": 40}
    (run / "summary.json").write_text(json.dumps(ended))
    assert runs.done("quickstart", loaded("sampled_tokens=900"))
    with pytest.raises(SettingError, match="sampled_tokens: .* ended early, after 40 steps. Set sampled_tokens=null"):
        runs.check(loaded("sampled_tokens=900"), None, resume=True, again=False)
    runs.check(loaded("sampled_tokens=2000"), None, resume=True, again=False)


def test_tokens_are_spent_with_the_step_that_reaches_them_and_stay_so_when_it_is_resumed(run):
    of, recipe = runs.find(str(run)), loaded("sampled_tokens=900")
    status = Status(of, recipe)
    for step, tokens in enumerate((400, 500), 1):
        status.played(0, Report("ready", generated_tokens=tokens))
        assert not status.spent, "not before the step"
        status.step_done(StepReport(step=step))
    assert status.spent == Status(of, recipe).spent == "900 tokens were sampled (sampled_tokens=900)"
    assert not Status(of, loaded("sampled_tokens=901")).spent and not Status(of, loaded()).spent


def test_ranks_stage_and_where_they_run_may_change(run):
    others = ("learner.ranks=2", "learner.zero=3", "learner.cpus=0.5", "learner.threads=2", "actors.count=3")
    runs.check(loaded(*others, "learner.keep_best=true", "evaluation.every=80"), None, resume=True, again=False)
    stopped = ("stop_s=1200", "learner.standby=true", "actors.standby=true")
    runs.check(loaded(*stopped), None, resume=True, again=False)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("learner.batch_groups=7", r"^learner.batch_groups: 7, but the run quickstart began with \d+\. On resume"),
        ("seed=9", "^seed: 9, but the run quickstart began with 0"),
        ("learner.optimizer.lr=0.5", "^learner.optimizer.lr: 0.5, but .* began with"),
        ("learner.rounds={steps: 2}", "^learner.rounds: .*2.*, but .* began with null"),
    ],
)
def test_what_may_not_change_is_named_with_both_values(run, override, said):
    with pytest.raises(SettingError, match=said):
        runs.check(loaded(override), None, resume=True, again=False)


def test_the_page_of_operations_names_all_that_may_change_and_nothing_else():
    page = (ROOT / "docs" / "operations.md").read_text()
    table = page.partition("## What a resumed run may change")[2].partition("## Upgrade")[0]
    rows = {cells[1].strip("` "): cells[2] for line in table.splitlines() if len(cells := line.split("|")) > 3}
    named = {key: set(re.findall(r"`(\w+)`", cell)) for key, cell in rows.items() if key not in ("section", "---")}
    assert named == {"whole": MAY_CHANGE, **MAY_CHANGE_WITHIN}
