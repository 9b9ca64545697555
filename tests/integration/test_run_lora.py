"""A whole run that trains an adapter: what it publishes, and that all who play its checkpoint play what it learned."""

import json

import pytest
import yaml
from support.run_house import Command, leftovers
from test_run import RECIPE

from redraft import records
from redraft.config import ModelSettings
from redraft.models.make import prepare
from redraft.recipe import build
from redraft.report.compare import read

pytestmark = [pytest.mark.ray, pytest.mark.prove]

LORA = {"rank": 4, "targets": ["gate_proj", "up_proj", "down_proj"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("work")
    learner = RECIPE["learner"] | {"optimizer": {"lr": 0.01}}
    recipe = RECIPE | {"name": "adapted", "model": RECIPE["model"] | {"lora": LORA}, "learner": learner}
    (made / "adapted.yaml").write_text(yaml.safe_dump(recipe))
    return made


@pytest.fixture(scope="module")
def run(folder):
    command = Command(folder, "train", "adapted.yaml")
    output = command.wait(240)
    assert command.process.returncode == 0, output[-3000:]
    assert "Traceback" not in output and "Warning" not in output, output
    return command


def test_a_run_trains_an_adapter_and_engines_compute_with_it(run, folder):
    kept = folder / "runs" / "adapted"
    assert run.steps("adapted") == [1, 2, 3, 4]
    mismatches = [line["mismatch_max"] for line in run.lines("adapted", "metrics.jsonl")]
    assert mismatches[0] < 1e-3, "trainer and sampler agree on the log-probs of what was sampled"
    log = (kept / "logs" / "controller.log").read_text()
    assert "replaced" not in log, "no actor was refused"
    checkpoint = kept / "checkpoints" / "step-000004"
    assert {path.name for path in checkpoint.iterdir() if path.is_dir()} == {"adapter", "engine"}
    summary = json.loads((kept / "summary.json").read_text())
    assert summary["trained_parameters"] == 3 * 3 * 4 * (96 + 288)
    assert read(kept).adapter == "LoRA of rank 4, 13,824 parameters"
    assert "LoRA of rank 4, 13,824 parameters" in (kept / "report.html").read_text()
    assert not leftovers()


def test_an_evaluation_and_a_run_that_begins_there_play_the_adapted_model(run, folder):
    command = Command(folder, "eval", "adapted")
    output = command.wait(120)
    assert command.process.returncode == 0, output[-3000:]
    after, later = records.lines(folder / "runs" / "adapted" / "evaluations.jsonl")[-2:]
    assert (after["label"], later["label"]) == ("after", "eval")
    cache = folder / ".cache" / "models"
    recipe = build(yaml.safe_load((folder / "adapted.yaml").read_text()))
    begun = ModelSettings(path=str(folder / "runs" / "adapted"), dtype="float32")
    merged = prepare(begun, recipe.environment, cache, print)
    assert merged.name.startswith("merged-") and (merged / "tokenizer.json").exists()
    assert [path for path in cache.glob("merged-*")] == [merged], "the evaluation has made it, once"


def test_what_is_adapted_cannot_change_on_resume(run, folder):
    refused = Command(folder, "train", "adapted.yaml", "steps=8", "model.lora.rank=8", "--resume")
    assert "model.lora.rank: 8, but the run adapted began with" in refused.wait(60).splitlines()[-1]
    assert refused.process.returncode == 2
