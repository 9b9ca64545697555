"""A run on the real parts: it ends well, survives what may die, stops when told, and goes on where it was."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from run_house import ENVIRONMENT, ROOT, Command, leftovers

from protocols import metrics
from replay.reader import SpoolReader

RECIPE = {
    "name": "tiny",
    "steps": 4,
    "model": {"dtype": "float32", "make": {"seed": 0}},
    "environment": {"name": "signs", "feedback": "residual"},
    "rollout": {"name": "retry", "turns": 3, "reflect": True},
    "sampling": {"max_tokens": 9},
    "actors": {"count": 1, "episodes": 32, "engine": {"max_running": 32, "max_length": 128}},
    "learner": {
        "batch_groups": 16,
        "row_tokens": 256,
        "micro_tokens": 1024,
        "attention": "eager",
        "checkpoint_every": 2,
        "credit": {"name": "turnwise", "baseline": "batch"},
        "objective": {"name": "awr", "temperature": 0.5},
        "optimizer": {"lr": 0.0005},
    },
    "evaluation": {"n": 20},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("work")
    (made / "tiny.yaml").write_text(yaml.safe_dump(RECIPE))
    return made


def test_a_run_trains_evaluates_and_leaves_a_folder_that_tells_all(folder):
    run = Command(folder, "train", "tiny.yaml")
    output = run.wait(240)
    assert run.process.returncode == 0, output[-3000:]
    kept = folder / "runs" / "tiny"
    assert run.summary("tiny")["state"] == "done"
    assert run.steps("tiny") == [1, 2, 3, 4]
    assert [line["label"] for line in run.lines("tiny", "evaluations.jsonl")] == ["before", "after"]
    for line in run.lines("tiny", "metrics.jsonl"):
        assert line["groups"] == 16 and line["turns"] == 16 * 5
        assert line["staleness_max"] <= 1
    first = run.lines("tiny", "metrics.jsonl")[0]
    assert first["staleness_max"] == 0
    assert first["mismatch_max"] < 1e-3, "trainer and sampler agree on the log-probs of what was sampled"
    assert {"report.html", "recipe.yaml", "run.json", "spool", "checkpoints"} <= {path.name for path in kept.iterdir()}
    assert (kept / "checkpoints" / "step-000004" / "model" / "model.safetensors").exists()
    assert not leftovers()
    assert "Traceback" not in output and "Warning" not in output, output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--resume"),
        (["--resume"], "has done 4 of 4"),
        (["--resume", "steps=8", "learner.batch_groups=8"], "began with another value"),
    ],
)
def test_a_run_that_exists_is_neither_overwritten_nor_falsified(folder, arguments, words):
    before = (folder / "runs" / "tiny" / "summary.json").read_text()
    refused = Command(folder, "train", "tiny.yaml", *arguments)
    assert words in refused.wait(60).splitlines()[-1] and refused.process.returncode == 2
    assert (folder / "runs" / "tiny" / "summary.json").read_text() == before


def test_a_checkpoint_can_be_evaluated_later(folder):
    command = Command(folder, "eval", "tiny", "evaluation.n=10")
    output = command.wait(120)
    assert command.process.returncode == 0, output[-3000:]
    assert command.lines("tiny", "evaluations.jsonl")[-1]["n"] == 10


def check_metrics(folder: Path, name: str) -> None:
    """`redraft status` names every process's metrics port; each of them serves metrics of ours and no unknown ones."""
    command = [sys.executable, "-m", "redraft", "status", name, "--json"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, timeout=60, env=ENVIRONMENT)
    status = json.loads(answer.stdout)
    ports = status["metrics_ports"] | {actor["name"]: actor["metrics_port"] for actor in status["actors"]}
    assert {"controller", "replay-0", "learner-0", "actor-0", "actor-1"} == set(ports)
    known = {
        metric.name.removesuffix("_total") for metric in vars(metrics).values() if isinstance(metric, metrics.Metric)
    }
    for part, port in ports.items():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            families = {family.name for family in text_string_to_metric_families(page.read().decode())}
        ours = {family for family in families if family.startswith("redraft_")}
        assert ours and ours <= known, f"{part}: {ours - known}"


def test_an_actor_that_is_killed_is_replaced_and_the_run_ends_well(folder):
    run = Command(folder, "train", "tiny.yaml", "steps=120", "actors.count=2", "--run", "killed")
    run.until(lambda: len(run.steps("killed")) >= 2, 180)
    check_metrics(folder, "killed")
    run.part("ray::ActorPart").send_signal(signal.SIGKILL)
    output = run.wait(240)
    assert run.process.returncode == 0, output[-3000:]
    assert run.summary("killed")["state"] == "done" and run.steps("killed") == list(range(1, 121))
    assert "replaced: its process died" in (folder / "runs" / "killed" / "logs" / "controller.log").read_text()


def test_ctrl_c_and_sigterm_stop_everything_and_resume_goes_on(folder):
    steps = 0
    for number, arguments in ((signal.SIGINT, []), (signal.SIGTERM, ["--resume"])):
        run = Command(folder, "train", "tiny.yaml", "steps=2000", "--run", "broken", *arguments)
        run.until(lambda run=run, more=steps + 3: len(run.steps("broken")) >= more, 180)
        children = run.children()
        run.process.send_signal(number)
        output = run.wait(120)
        stopped = run.summary("broken")
        assert stopped["state"] == "stopped" and "--resume" in output
        _, alive = psutil.wait_procs(children, timeout=30)
        assert not alive, f"left behind: {alive}"
        assert not leftovers()
        steps = stopped["steps"]
        assert run.steps("broken") == list(range(1, steps + 1)), "no step is lost, none is done twice"
    versions = [line["version"] for line in run.lines("broken", "metrics.jsonl")]
    assert versions == sorted(set(versions)) and versions[-1] > 1_000_000, "version numbers never repeat"


def test_replay_may_be_killed_and_may_grow_while_the_run_goes_on(folder):
    run = Command(folder, "train", "tiny.yaml", "steps=60", "replay.shards=2", "--run", "forgetful")
    run.until(lambda: len(run.steps("forgetful")) >= 2, 180)
    run.part("ray::ReplayPart").send_signal(signal.SIGKILL)
    grown = subprocess.run(
        [sys.executable, "-m", "redraft", "replay", "grow", "forgetful"],
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert grown.returncode == 0 and "3 shards" in grown.stdout, grown
    output = run.wait(240)
    assert run.process.returncode == 0, output[-3000:]
    assert run.steps("forgetful") == list(range(1, 61))
    kept = [len(list(SpoolReader(shard).marks())) for shard in sorted((folder / "runs/forgetful/spool").iterdir())]
    print(f"groups that each shard kept until they were trained: {kept}")
    assert len(kept) == 3 and all(kept)


def test_a_learner_that_is_killed_ends_the_run_with_a_clear_word_and_resume_goes_on(folder):
    run = Command(folder, "train", "tiny.yaml", "steps=200", "--run", "widowed")
    run.until(lambda: len(run.steps("widowed")) >= 3, 180)
    run.part("ray::RankPart").send_signal(signal.SIGKILL)
    output = run.wait(120)
    assert run.process.returncode != 0 and "learner" in output and "--resume" in output, output[-3000:]
    done = max(run.steps("widowed"))
    again = Command(folder, "train", "tiny.yaml", f"steps={done + 3}", "--run", "widowed", "--resume")
    output = again.wait(240)
    assert again.process.returncode == 0, output[-3000:]
    steps = again.steps("widowed")
    assert steps[-1] == done + 3 and sorted(set(steps)) == list(range(1, done + 4))


def test_gsm8k_trains_with_two_actors_and_two_ranks_under_zero_3(folder, data_folder):
    recipe = ROOT / "recipes" / "gsm8k-grpo.yaml"
    run = Command(folder, "train", str(recipe), f"data.path={data_folder / 'gsm8k'}", "--run", "gsm8k")
    output = run.wait(300)
    assert run.process.returncode == 0, output[-3000:]
    assert run.steps("gsm8k") == [1, 2, 3]
