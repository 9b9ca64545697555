"""A run on the real parts: it ends well, survives what may die, stops when told, and goes on where it was."""

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from pathlib import Path

import psutil
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support import grafana
from support.collector import Collector, facts
from support.gpu_exporter import GpuExporter
from support.places import ROOT
from support.run_house import ENVIRONMENT, Command, leftovers
from support.waiting import deadline_s, until
from support.watch_house import NAME, Prometheus, listed, rules

from learner import checkpoint
from protocols import metrics, reports  # noqa: F401  reports declares metrics, too
from redraft import records
from redraft.control.remote import Remote
from redraft.watch.viewer.index import Index
from replay.disk.reader import SpoolReader

pytestmark = pytest.mark.ray

RECIPE = {
    "name": "tiny",
    "steps": 4,
    "model": {"dtype": "float32", "make": {"seed": 0}},
    "environment": {"name": "signs", "feedback": "residual"},
    "rollout": {"name": "retry", "turns": 3, "reflect": True},
    "sampling": {"max_tokens": 9},
    "actors": {"count": 1, "groups": 32, "engine": {"max_running": 32, "max_length": 128}},
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
CREW = RECIPE | {  # its engines are scripted: what is asked of it is what a run's parts do for each other
    "actors": {
        "count": 2,
        "cpus": 0.3,
        "groups": 32,
        "probe_tolerance": 1e6,  # a script has no weights that could be proved
        "engine": {"name": "scripted", "first_token_s": 0.2, "max_length": 128},
    },
    "learner": RECIPE["learner"] | {"credit": {"name": "raw"}, "objective": {"name": "sft"}, "restarts": 0},
    "replay": {"shards": 2},
}
"""`learner.restarts` is 0 so that the learner's death is that of the run, which is asked about in the end."""


SCRAPED_AGAIN_S = 15  # a second to read the list, a second to scrape, the rest for a busy machine; not the usual minute


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("work")
    for name, recipe in (("tiny", RECIPE), ("crew", CREW)):
        (made / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    return made


def test_a_run_trains_evaluates_and_leaves_a_folder_that_tells_all(folder):
    run = Command(folder, "train", "tiny.yaml", "evaluation.every=2", "learner.keep_best=true")
    output = run.wait(240)
    assert run.process.returncode == 0, output[-3000:]
    kept = folder / "runs" / "tiny"
    assert run.summary("tiny")["state"] == "done"
    assert run.steps("tiny") == [1, 2, 3, 4]
    evaluated = {line["label"]: line for line in run.lines("tiny", "evaluations.jsonl")}
    assert [(line["step"], line["version"]) for line in evaluated.values()] == [(0, 0), (2, 2), (4, 4)]
    assert list(evaluated) == ["before", "during", "after"]
    solved = [evaluated[label]["accuracy_by_turn"][-1] for label in ("during", "after")]
    assert checkpoint.best(kept).name == f"step-{(2, 4)[solved[1] > solved[0]]:06d}"
    for line in run.lines("tiny", "metrics.jsonl"):
        assert line["groups"] == 16 and line["turns"] == 16 * 5
        assert line["staleness_max"] <= 1
    first = run.lines("tiny", "metrics.jsonl")[0]
    assert first["staleness_max"] == 0
    assert first["mismatch_max"] < 1e-3, "trainer and sampler agree on the log-probs of what was sampled"
    files = {"report.html", "recipe.yaml", "run.json", "spool", "checkpoints", "tensorboard"}
    assert files <= {path.name for path in kept.iterdir()}
    assert (kept / "checkpoints" / "step-000004" / "model" / "model.safetensors").exists()
    said = Index(kept)
    assert {entry.step for entry in said.find(label="training")} == {1, 2, 3, 4}
    for label in evaluated:
        assert len(said.find(label=label)) == RECIPE["evaluation"]["n"]
    assert all(entry.head["task"].startswith("signs/") and entry.head["size"] == 5 for entry in said.find())
    assert not leftovers()
    assert "Traceback" not in output and "Warning" not in output, output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--resume"),
        (["--resume"], "has done 4 of 4"),
        (["--resume", "steps=8", "learner.batch_groups=8"], "learner.batch_groups: 8, but the run tiny began with 16"),
    ],
)
def test_a_run_that_exists_is_neither_overwritten_nor_falsified(folder, arguments, words):
    before = (folder / "runs" / "tiny" / "summary.json").read_text()
    refused = Command(folder, "train", "tiny.yaml", *arguments)
    assert words in refused.wait(60).splitlines()[-1] and refused.process.returncode == 2
    assert (folder / "runs" / "tiny" / "summary.json").read_text() == before


def test_a_checkpoint_can_be_evaluated_later(folder):
    command = Command(folder, "eval", "tiny", "evaluation.n=10", "--best")
    output = command.wait(120)
    assert command.process.returncode == 0, output[-3000:]
    line = command.lines("tiny", "evaluations.jsonl")[-1]
    assert (line["n"], line["overrides"]) == (10, ["evaluation.n=10"])
    assert line["step"] == checkpoint.step_of(checkpoint.best(folder / "runs" / "tiny"))
    assert len(Index(folder / "runs" / "tiny").find(label="eval")) == 10


def redraft(folder: Path, *arguments: str) -> str:
    """What a command beside the run prints."""
    command = [sys.executable, "-m", "redraft", *arguments]
    answer = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=deadline_s(120), env=ENVIRONMENT
    )
    assert answer.returncode == 0, answer
    return answer.stdout


@pytest.fixture(scope="module")
def watched(folder):
    """A run of two actors that trains, and goes on until it is told to stop; a Prometheus that watches it, and an
    exporter that says of GPUs what they would; its /sd."""
    options = ("steps=2000", "actors.count=2", "actors.engine.stats=true")
    run = Command(folder, "train", "tiny.yaml", *options, "--run", "watched")
    run.until(lambda: len(run.steps("watched")) >= 2, 180)
    sd = json.loads((folder / "runs" / "watched" / "run.json").read_text())["sd"]
    exporter = GpuExporter("watched")
    with contextlib.closing(exporter), Prometheus(folder, sd, exporter.address) as prometheus:
        yield run, prometheus, sd, exporter
    if run.process.poll() is None:
        run.process.send_signal(signal.SIGINT)
        run.wait(120)


def test_every_process_of_a_run_is_found_and_serves_metrics_of_ours(watched):
    run, prometheus, sd, _ = watched
    processes = {"controller", "replay-0", "learner-0", "actor-0", "actor-1"}
    found = until(lambda: (up := prometheus.healthy()) == listed(sd) and up, "all that is listed is scraped", 60)
    assert {name for name in found if not name.startswith("ray-")} == processes
    known = {metric.name.removesuffix("_total") for metric in metrics.METRICS}
    for name in processes:
        with urllib.request.urlopen(f"http://{found[name]}/metrics", timeout=deadline_s(10)) as page:
            families = {family.name for family in text_string_to_metric_families(page.read().decode())}
        ours = {family for family in families if family.startswith("redraft_")}
        assert ours and ours <= known, f"{name}: {ours - known}"
    assert sd in redraft(run.folder, "status", "watched")


def test_a_view_that_stays_open_is_answered_again_and_again(watched):
    run, *_ = watched
    with contextlib.closing(Remote(str(run.folder / "runs" / "watched"))) as remote:
        first = remote.status()
        later = until(lambda: (found := remote.status()).step > first.step and found, "a later step", 60)
        assert later.run == "watched" and len(later.actors) == 2


def test_every_panel_shows_a_run_that_goes_on_and_every_rule_can_be_asked(watched):
    run, prometheus, *_ = watched
    found = grafana.panels()
    assert len(found) > 100

    def empty() -> list[str]:
        shows = {title: grafana.shown(panel, prometheus, "watched") for title, panel in found.items()}
        return [title for title, values in shows.items() if all(one.value is None for one in values)]

    steps = len(run.steps("watched"))
    run.until(lambda: not empty() or len(run.steps("watched")) > steps + 100, 240)
    assert not empty()
    [controller], [phase] = (
        grafana.shown(found[f"overview: {title}"], prometheus, "watched") for title in ("Controller", "Phase")
    )
    assert (controller.text, controller.color, phase.text, phase.color) == ("up", "green", "training", "green")
    behind = grafana.shown(found["why-idle: Versions behind"], prometheus, "watched")
    assert {one.name for one in behind} == {"actor-0", "actor-1", "bound"}
    assert all(0 <= one.value <= 2 for one in behind), "the bound is 1, and an actor loads the newest as it comes"
    for event in grafana.boards()["overview"]["annotations"]["list"]:
        prometheus.query(grafana.expression(event["expr"], "watched"))
    for rule in rules():
        asked = prometheus.query(rule["expr"])
        assert asked or "alert" in rule, rule
        for name in NAME.findall(rule["expr"]):
            assert prometheus.query(name), f"{name} of {rule} has no data"


def test_the_states_of_the_learner_and_of_the_actors_add_up_to_their_time(watched):
    _, prometheus, *_ = watched
    for name in ("learner_state", "actor_state"):
        query = f'sum by (name) (rate(redraft_{name}_seconds_total{{run="watched"}}[10s]))'

        def shares(query: str = query) -> dict[str, float]:
            return {found["metric"]["name"]: float(found["value"][1]) for found in prometheus.query(query)}

        def adds_up() -> bool:
            found = shares()
            return bool(found) and all(0.7 < share < 1.3 for share in found.values())

        # A state is counted when it ends: on a busy machine one that lasts for seconds may lie across a window's edge.
        until(adds_up, f"{name}: seconds counted a second: {shares()}", 60)


def test_an_actor_that_is_killed_is_replaced_and_scraped_again_and_the_run_goes_on(watched):
    run, prometheus, sd, _ = watched
    before = listed(sd)
    run.part("ray::ActorPart").send_signal(signal.SIGKILL)
    until(lambda: listed(sd).keys() < before.keys(), "the actor is no longer listed", 30)
    after = until(lambda: (now := listed(sd)).keys() == before.keys() and now, "its replacement is listed", 60)
    (replaced,) = (name for name in before if before[name] != after[name])
    began = time.monotonic()
    until(lambda: prometheus.healthy().get(replaced) == after[replaced], "it is scraped again", SCRAPED_AGAIN_S)
    print(f"{replaced} was scraped again {time.monotonic() - began:.1f} s after it was listed")
    log = run.folder / "runs" / "watched" / "logs" / "controller.log"
    assert f"{replaced} replaced: its process died" in log.read_text()
    steps = len(run.steps("watched"))
    run.until(lambda: len(run.steps("watched")) >= steps + 10, 120)


def stopped(run: Command, name: str, number: signal.Signals) -> int:
    """The steps of a run that a signal has stopped, and that left nothing behind."""
    children = run.children()
    run.process.send_signal(number)
    output = run.wait(120)
    summary = run.summary(name)
    assert summary["state"] == "stopped" and "--resume" in output, output[-3000:]
    assert run.process.returncode == (75 if number == signal.SIGTERM else 0), "who takes the machine starts it again"
    _, alive = psutil.wait_procs(children, timeout=deadline_s(30))
    assert not alive, f"left behind: {alive}"
    assert not leftovers()
    assert run.steps(name) == list(range(1, summary["steps"] + 1)), "no step is lost, none is done twice"
    return summary["steps"]


def test_ctrl_c_and_sigterm_stop_everything_and_resume_goes_on(watched, folder):
    run, *_ = watched
    steps = stopped(run, "watched", signal.SIGINT)
    again = Command(folder, "train", "tiny.yaml", "steps=2000", "actors.count=2", "--run", "watched", "--resume")
    again.until(lambda: len(again.steps("watched")) >= steps + 3, 180)
    stopped(again, "watched", signal.SIGTERM)
    versions = [line["version"] for line in again.lines("watched", "metrics.jsonl")]
    assert versions == sorted(set(versions)) and versions[-1] > 1_000_000, "version numbers never repeat"


def test_every_panel_shows_nothing_or_an_alarm_of_a_run_that_is_dead(watched):
    """Its Prometheus asks at the addresses of before, where nobody answers since the run was stopped."""
    _, prometheus, _, exporter = watched
    exporter.close()
    up = 'max(up{run="watched"} or up{job="beside"})'
    until(lambda: all(one["value"][1] == "0" for one in prometheus.query(up)), "nothing answers", 60)
    later = time.time() + 4 * grafana.INTERVAL_S
    shows = {title: grafana.shown(panel, prometheus, "watched", later) for title, panel in grafana.panels().items()}
    alarms = {title for title, values in shows.items() for one in values if one.value is not None}
    assert alarms == {"overview: Controller", "overview: Not answering"}
    assert all(
        one.color == ("text" if one.value is None else "red") for found in shows.values() for one in found if one.text
    )
    [controller] = shows["overview: Controller"]
    assert controller.text == "down"
    told = [rule["alert"] for rule in rules() if "alert" in rule and prometheus.query(rule["expr"], later)]
    assert not told, "it was stopped, and had said so"
    step = grafana.panels()["overview: Step"]
    step["targets"][0]["instant"] = False
    [misleading] = grafana.shown(step, prometheus, "watched", later)
    assert misleading.value > 0, "asked for over time, Grafana would show the last that there was"


def fleet(remote: Remote) -> dict[str, int]:
    """How many actors there are in which state."""
    return Counter(actor.state for actor in remote.status().actors)


@pytest.fixture(scope="module")
def collector():
    with Collector().serving() as made:
        yield made


@pytest.fixture(scope="module")
def traced(collector) -> dict[str, str]:
    """The environment of a run whose spans go there, soon."""
    return {**ENVIRONMENT, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "500"}


@pytest.fixture(scope="module")
def crew(folder, traced):
    """A run of two actors, to be scaled; it goes on until something ends it."""
    said = ("logs.format=json", "logs.traces=true")
    run = Command(folder, "train", "crew.yaml", "steps=20000", *said, "--run", "crew", environment=traced)
    run.until(lambda: len(run.steps("crew")) >= 2, 180)
    yield run
    if run.process.poll() is None:
        run.process.send_signal(signal.SIGINT)
        run.wait(120)


def test_actors_may_come_and_go_while_the_run_goes_on(crew, folder):
    with contextlib.closing(Remote(str(folder / "runs" / "crew"))) as remote:
        assert "3 actors, 2 before" in redraft(folder, "scale", "crew", "3")
        asked = time.monotonic()
        crew.until(lambda: fleet(remote) == {"ready": 3}, 90)
        print(f"a third actor played {time.monotonic() - asked:.0f} s after it was asked for")
        refused = Command(folder, "scale", "crew", "99")
        assert "99 actors are too many: there is room for" in refused.wait(60) and refused.process.returncode == 2
        redraft(folder, "scale", "crew", "1")
        crew.until(lambda: fleet(remote) == {"ready": 1}, 60)
    steps = len(crew.steps("crew"))
    crew.until(lambda: len(crew.steps("crew")) >= steps + 3, 60)


def test_each_part_writes_its_log_as_json_to_its_output_where_that_is_asked_for(crew):
    words = (word for child in crew.children() for word in child.cmdline())
    session = next(word.partition("=")[2] for word in words if word.startswith("--session_dir="))

    def said() -> dict[str, list[dict]]:
        found = defaultdict(list)
        for path in Path(session, "logs").glob("worker-*.out"):
            for line in path.read_text().splitlines():
                if line.startswith("{"):
                    entry = json.loads(line)
                    found[entry["part"]].append(entry)
        return found

    parts = {"controller", "learner-0", "actor-0", "actor-1"}
    crew.until(lambda: parts <= said().keys() and any("step" in line for line in said()["learner-0"]), 60)
    lines = [line for several in said().values() for line in several]
    assert {line["run"] for line in lines} == {"crew"}
    checkpoints = [line for line in said()["learner-0"] if line["message"].startswith("checkpoint ")]
    assert all(line["message"].endswith(f"step-{line['step']:06}") for line in checkpoints) and checkpoints


def test_a_group_can_be_followed_from_its_lease_to_the_step_that_used_it(crew, collector):
    def whole() -> dict | None:
        links = [link for step in collector.named("step") for link in step.links]
        traces = (collector.trace(link.trace_id) for link in links)
        return next((trace for trace in traces if trace.keys() == {"lease", "play", "turn", "close"}), None)

    trace = crew.until(whole, 60)
    ((controller, lease),), ((actor, play),), ((replay, close),) = (trace[name] for name in ("lease", "play", "close"))
    assert controller == "controller" and actor.startswith("actor-") and replay.startswith("replay-")
    assert play.parent_span_id == lease.span_id and close.parent_span_id == play.span_id
    assert {(part, turn.parent_span_id) for part, turn in trace["turn"]} == {(actor, play.span_id)}
    assert lease.start_time_unix_nano <= play.start_time_unix_nano <= close.end_time_unix_nano
    assert facts(lease)["redraft.end"] == "closed" and facts(play)["redraft.actor"] == actor
    [step, *_] = [one for one in collector.named("step") if close.span_id in {link.span_id for link in one.links}]
    assert facts(step)["redraft.train_s"] > 0 and step.end_time_unix_nano >= close.end_time_unix_nano


@pytest.mark.parametrize("how", ["--resume", "--again"])
def test_a_run_that_goes_on_is_neither_resumed_nor_renamed(crew, folder, how):
    kept = ("run.json", "recipe.yaml", "checkpoints/incarnation")
    before = [(folder / "runs" / "crew" / file).read_text() for file in kept]
    second = [sys.executable, "-m", "redraft", "train", "crew.yaml", "steps=3000", "--run", "crew", how]
    refused = subprocess.run(
        second, cwd=folder, capture_output=True, text=True, timeout=deadline_s(60), env=ENVIRONMENT
    )
    assert refused.returncode == 2 and f"process {crew.process.pid} on " in refused.stderr.splitlines()[-1], refused
    assert [(folder / "runs" / "crew" / file).read_text() for file in kept] == before
    assert not (folder / "runs" / "crew" / "summary.json").exists()
    assert not list((folder / "runs").glob("crew-*")) and crew.process.poll() is None
    assert "training" in redraft(folder, "status", "crew")


def test_replay_may_be_killed_and_may_grow_while_the_run_goes_on(crew, folder):
    with contextlib.closing(Remote(str(folder / "runs" / "crew"))) as remote:
        assert not remote.status().replay.dropped, "however late a group is, the learner waits for it"
    crew.part("ray::ReplayPart").send_signal(signal.SIGKILL)
    assert "3 shards" in redraft(folder, "replay", "grow", "crew")
    steps = len(crew.steps("crew"))
    crew.until(lambda: len(crew.steps("crew")) >= steps + 10, 120)
    with contextlib.closing(Remote(str(folder / "runs" / "crew"))) as remote:
        assert not remote.status().replay.dropped, "however late a shard is, no group is overtaken"


def test_a_learner_that_is_killed_ends_the_run_with_a_clear_word(crew):
    crew.part("ray::RankPart").send_signal(signal.SIGKILL)
    output = crew.wait(120)
    assert crew.process.returncode == 75 and "learner rank 0 died" in output and "--resume" in output, output[-3000:]


def test_after_all_that_a_supervised_run_survives_its_controller_and_every_step_used_whole_groups_once(
    crew, folder, traced
):
    assert "Go on with: redraft train runs/crew/recipe.yaml --run crew --resume" in redraft(folder, "status", "crew")
    steps = max(crew.steps("crew")) + 8
    options = (f"steps={steps}", "--run", "crew", "--resume", "--restarts", "1")
    again = Command(folder, "train", "crew.yaml", *options, environment=traced)
    again.until(lambda: again.steps("crew")[-1] > steps - 6, 240)
    again.part("ray::Controller").send_signal(signal.SIGKILL)
    output = again.wait(240)
    assert again.process.returncode == 0 and "restart 1 of 1 in a row" in output, output[-3000:]
    assert "the controller's process died" in output and "Go on with: redraft train runs/crew/" in output
    assert "a fault (exit code 75); the run is resumed" in output, "it ended by itself, with one line"
    assert again.summary("crew")["state"] == "done"
    kept = [line.report.step for line in records.steps(records.step_lines(folder / "runs" / "crew"))]
    assert kept == list(range(1, steps + 1)), "steps 1 to n, each of them once in what the checkpoints keep"
    assert all(line["groups"] == 16 and line["turns"] == 16 * 5 for line in again.lines("crew", "metrics.jsonl"))
    kept = json.loads(redraft(folder, "replay", "stats", "crew", "--json"))
    assert kept["trained_total"] == 16 * steps, kept
    # A learner that was killed before the checkpoint of a step that it had published leaves turns of a lost future.
    # What of them is beyond the bound is dropped, and counted; nothing else may be.
    assert not kept["dropped"].keys() - {"stale"}, kept
    assert "all groups are whole" in redraft(folder, "replay", "verify", "crew")
    spools = sorted((folder / "runs/crew/spool").iterdir())
    trained = [len(list(SpoolReader(shard).marks())) for shard in spools]
    print(f"{steps} steps; groups that each shard kept until they were trained: {trained}")
    assert len(trained) == 3 and all(trained)


def test_gsm8k_trains_with_two_actors_and_two_ranks_under_zero_3(folder, data_folder):
    recipe = ROOT / "recipes" / "gsm8k-grpo.yaml"
    run = Command(folder, "train", str(recipe), f"data.path={data_folder('gsm8k')}", "--run", "gsm8k")
    output = run.wait(300)
    assert run.process.returncode == 0, output[-3000:]
    assert run.steps("gsm8k") == [1, 2, 3]
