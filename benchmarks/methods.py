"""What each method does on its tiny task: every recipe trained from the same base model, through the real system.

    python -m benchmarks.methods [--quick] [--only METHOD]... [--seeds N] [--folder FOLDER]

Each run is `redraft train` in a process of its own, with a base model made for its seed. Runs are kept in the folder,
and one that is there, done, and of the same settings is not trained again, so that a benchmark that was cut off goes
on. Attempts are the responses sampled for training, reflections apart; CPU-seconds are those of the whole process tree
of the run, with its start and its evaluations, without making the base model. At the end the tables and the picture of
docs/results.md are written from all runs in the folder (with --quick they are only printed), and one JSON line is
printed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from protocols.evaluation import EvaluationSummary
from protocols.reports import RunEnded

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("runs/methods")
POLL_S = 0.5
LIMIT_S = 3600.0  # of one run


@dataclass(frozen=True, slots=True)
class Method:
    """One line of the table: a recipe with changes, and what it stands on."""

    name: str
    recipe: str
    changes: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    """Further changes with --quick."""
    start: str | None = None
    """The method whose trained model it starts from, instead of the base model."""
    teacher: str | None = None
    """The method whose trained model is served as its teacher."""
    seeds: int = 3
    """Most seeds."""
    made: str = ""
    """What is made before it with the base model, and named in the recipe: experience (also told of other tasks, or in
    the question for good), or tasks."""


QUICK = ("evaluation.n=250", "evaluation.greedy=false")  # of every method with --quick
SHORT = ("steps=80",)
EXPLORATIONS = 20_000
START = ("steps=12", "model.make.pretrain.steps=900", "learner.optimizer.warmup_steps=5", "evaluation.greedy=false")
# The first answer is planned by a reflection on the draft of all plus signs, as a retry is by one on a failed answer.
PLAN = ("rollout.plan={}", "environment.options={draft: true}")
OTHERS = ROOT / "benchmarks" / "evolver.py"
FLAGGED = f"environment.name={OTHERS}:Flagged"
TOLD = "rollout.experience=null"
METHODS = (
    Method("rise-turnwise", "quickstart", quick=SHORT),
    Method("rise-turnwise-binary", "quickstart", ("environment.feedback=binary",), SHORT, seeds=1),
    Method("rise-turnwise-blank", "quickstart", ("environment.feedback=blank",), SHORT, seeds=1),
    Method("rise", "signs-rise", quick=SHORT),
    Method("rise-distill", "signs-rise-distill", quick=("steps=30",), teacher="rise-turnwise", seeds=1),
    Method("grpo", "signs-grpo", quick=("steps=40",)),
    Method("rloo", "signs-rloo", quick=("steps=40",)),
    Method("reinforce-pp", "signs-reinforce-pp", quick=("steps=40",)),
    Method("ufo", "signs-ufo", quick=("steps=30",)),
    Method("pag", "signs-pag", quick=("steps=40",)),
    Method("critique-grpo", "signs-critique-grpo", quick=("steps=30",)),
    Method("score", "signs-score", quick=("steps=40", "learner.credit.hold_steps=10")),
    # Reflections can only be rewarded where they are carried out: a base model trained for longer does so.
    Method("reflect-start", "quickstart", START),
    Method("reflect", "signs-reflect", quick=("steps=30",), start="reflect-start"),
    Method("reflect-solved", "signs-reflect", ("rollout.solved=true",), start="reflect-start", seeds=1),
    Method("reflect-plan", "signs-reflect", PLAN, start="reflect-start", seeds=1),
    Method("introspect", "signs-introspect", quick=("steps=50",)),
    Method("star", "signs-star", quick=("steps=40",)),
    Method("reflexion", "signs-reflexion"),
    Method("best-of-n", "signs-best-of-n"),
    Method("agent-r", "minicraft-agent-r", quick=("steps=80",), seeds=2),
    # More steps, since its batches hold fewer sequences: at least as many are trained in all.
    Method("agent-r-good-only", "minicraft-agent-r", ("rollout.pairs=0", "steps=460"), ("steps=115",), seeds=2),
    Method("agent-r-direct-revision", "minicraft-agent-r", ("rollout.cut=end", "rollout.splice=verbatim"), seeds=1),
    # AdamW scales what larger advantages would add to a step; what is compared has as many attempts.
    Method("attributing", "minicraft-attributing", quick=("steps=20",)),
    Method("attributing-without", "minicraft-attributing", ("learner.credit={name: group}",), ("steps=20",)),
    *(
        Method(f"attributing-{flags}", "minicraft-attributing", (FLAGGED, f"environment.options={{flags: {flags}}}"))
        for flags in ("random", "outcome", "inverted", "flipped")
    ),
    Method("gigpo", "minicraft-gigpo", quick=("steps=20",)),
    Method("navigating", "minicraft-navigating", quick=("steps=20",), made="experience"),
    Method("navigating-without", "minicraft-navigating", (TOLD,), ("steps=20",)),
    Method("navigating-all", "minicraft-navigating", ("rollout.experience.share=1.0",), made="experience"),
    Method("navigating-shuffled", "minicraft-navigating", made="shuffled"),
    Method("navigating-kept", "minicraft-navigating", (TOLD, f"environment.name={OTHERS}:Told"), made="kept"),
    Method("questioning", "signs-questioning", quick=("steps=20",), made="tasks"),
    Method("questioning-original", "signs-questioning", ("data.synthetic=null",), ("steps=20",)),
    Method("questioning-unproved", "signs-questioning", ("data.synthetic=null", f"environment.name={OTHERS}:Guessed")),
    Method("agentevolver", "minicraft-agentevolver", quick=("steps=20",), made="experience"),
)
LONG = (  # not with --quick
    "rise-turnwise-binary",
    "rise-turnwise-blank",
    "reflect-solved",
    "reflect-plan",
    "agent-r-direct-revision",
    *(f"attributing-{flags}" for flags in ("random", "outcome", "inverted", "flipped")),
    *(f"navigating-{how}" for how in ("all", "shuffled", "kept")),
    "questioning-unproved",
)
NAMES = tuple(method.name for method in METHODS)


class Failed(Exception):
    """A run that did not end well; its message holds the end of its output."""


def find(name: str) -> Method:
    return next(method for method in METHODS if method.name == name)


class Bench:
    """Runs in one folder."""

    def __init__(self, folder: Path, quick: bool):
        self.folder, self.quick = folder.resolve(), quick
        self.folder.mkdir(parents=True, exist_ok=True)

    def run_of(self, method: Method, seed: int) -> Path:
        return self.folder / "runs" / f"{method.name}-seed{seed}"

    def train(self, method: Method, seed: int) -> Path:
        """The folder of the method's run with this seed, trained now unless it is there with the same settings."""
        run = self.run_of(method, seed)
        kept = json.loads((run / "cost.json").read_text()) if (run / "cost.json").exists() else None
        if kept is not None and "digest" not in kept:  # taken as it is
            return run
        changes = [*method.changes, *((*method.quick, *QUICK) if self.quick else ()), f"seed={seed}"]
        digest = self._digest(method, seed, changes)
        if kept is not None and kept["digest"] == digest:
            return run
        if method.start is None:
            changes.append(f"model.make.seed={seed}")
            self._redraft("pretrain", method, changes, self.folder / "pretrain.log")
        else:
            changes.append(f"model.path={self.train(find(method.start), seed)}")
        changes += self._make(method, seed, changes)
        with self._teacher(method, seed) as more:
            log = self.folder / f"{run.name}.log"
            began, say = time.monotonic(), f"{run.name}: "
            print(f"{say}training", flush=True)
            cpu_s = self._redraft("train", method, [*changes, *more, "--run", run.name, "--again"], log)
        wall_s = time.monotonic() - began
        cost = {"cpu_s": round(cpu_s, 1), "wall_s": round(wall_s, 1), "digest": digest}
        (run / "cost.json").write_text(json.dumps(cost))
        print(f"{say}done in {wall_s:.0f} s, {cpu_s:.0f} CPU-s", flush=True)
        return run

    def _digest(self, method: Method, seed: int, changes: Sequence[str]) -> str:
        """Of all that the run depends on: its recipe, the changes, and the runs that it stands on."""
        stands_on = [self.train(find(name), seed) for name in (method.start, method.teacher) if name]
        costs = [(run / "cost.json").read_text() for run in stands_on]
        parts = [_recipe(method).read_text(), list(changes), costs]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()

    def _make(self, method: Method, seed: int, changes: Sequence[str]) -> list[str]:
        """The changes that name what is made before the method, made now."""
        if not method.made:
            return []
        file = self.folder / f"{method.name}-seed{seed}.jsonl"
        for old in (file, file.with_name(file.name + ".progress")):
            old.unlink(missing_ok=True)
        log = self.folder / f"{method.name}-seed{seed}-made.log"
        if method.made == "tasks":
            synthetic = "data.synthetic={path: %s, ratio: 1.0, original: false}"
            self._redraft("question", method, [str(file), *changes, f"--explorations={EXPLORATIONS}"], log)
            return [synthetic % file]
        from benchmarks import evolver

        own = [change for change in changes if change != TOLD and str(OTHERS) not in change]
        self._redraft("experience", method, [str(file), *own], log)
        if method.made == "shuffled":
            evolver.shuffled(file, file)
        if method.made == "kept":
            return [f"environment.options={{read: 0.5, pool: {file}}}"]
        return [f"rollout.experience.path={file}"]

    @contextlib.contextmanager
    def _teacher(self, method: Method, seed: int) -> Iterator[list[str]]:
        """The changes that name a server of the teacher's model, while it serves."""
        if method.teacher is None:
            yield []
            return
        from benchmarks.teacher_server import started
        from redraft.models.make import trained

        model = trained(self.train(find(method.teacher), seed), self.folder / ".cache" / "models")
        with started(model) as server:
            yield [f"rollout.teacher.url={server.url}", f"rollout.teacher.model={server.model}"]

    def _redraft(self, command: str, method: Method, arguments: Sequence[str], log: Path) -> float:
        """Runs the command in the folder; returns the CPU-seconds of its process tree. Raises Failed."""
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "redraft", command, str(_recipe(method)), *arguments],
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            meter = Meter(process.pid)
            until = time.monotonic() + LIMIT_S
            while process.poll() is None:
                meter.read()
                if time.monotonic() > until:
                    process.terminate()
                    raise Failed(f"{command} {method.name} took longer than {LIMIT_S:.0f} s; see {log}")
                time.sleep(POLL_S)
        if process.returncode:
            raise Failed(f"{command} {method.name} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        return meter.seconds


def _recipe(method: Method) -> Path:
    return ROOT / "recipes" / f"{method.recipe}.yaml"


class Meter:
    """Sums the CPU time of a process and of all that it started, also of those that ended meanwhile."""

    def __init__(self, pid: int):
        self._root = psutil.Process(pid)
        self._seen: dict[tuple[int, float], float] = {}

    def read(self) -> None:
        with contextlib.suppress(psutil.Error):
            for process in [self._root, *self._root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    self._seen[process.pid, process.create_time()] = times.user + times.system

    @property
    def seconds(self) -> float:
        return sum(self._seen.values())


@dataclass(frozen=True, slots=True)
class Result:
    """What the runs of one method over seeds came to; `before` and `after` are evaluations, one a seed."""

    method: Method
    before: list[EvaluationSummary]
    after: list[EvaluationSummary]
    attempts: list[int]
    cpu_s: list[float]
    feedback: str


def results(bench: Bench) -> list[Result]:
    """Of all runs in the folder that are done, in the order of METHODS. An untrained method has no change."""
    found = []
    for method in METHODS:
        runs = [run for seed in range(method.seeds) if (run := bench.run_of(method, seed) / "cost.json").exists()]
        ended = [RunEnded.from_json(json.loads((run.parent / "summary.json").read_text())) for run in runs]
        if not runs:
            continue
        costs = [json.loads(run.read_text()) for run in runs]
        recipe = yaml.safe_load((runs[0].parent / "recipe.yaml").read_text())
        found.append(
            Result(
                method,
                [one.before for one in ended if one.before],
                [one.after or one.before for one in ended if one.before],
                [one.attempts for one in ended],
                [cost["cpu_s"] for cost in costs],
                recipe["environment"]["feedback"],
            )
        )
    return found


def mean(values: Sequence) -> object:
    """The mean of each number in evaluations of the same form; None where one has none."""
    first = values[0]
    if isinstance(first, dict):
        return {key: mean([value.get(key) for value in values]) for key in first}
    if isinstance(first, list):
        return [mean(list(column)) for column in zip(*values, strict=False)]
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return round(sum(numbers) / len(numbers), 4) if len(numbers) == len(values) else first


def line(found: Sequence[Result]) -> str:
    """The JSON line: means over seeds."""
    methods = {
        result.method.name: {
            "before": mean([summary.to_json() for summary in result.before]),
            "after": mean([summary.to_json() for summary in result.after]),
            "attempts": round(sum(result.attempts) / len(result.attempts)),
            "cpu_s": round(sum(result.cpu_s) / len(result.cpu_s), 1),
            "seeds": len(result.before),
        }
        for result in found
    }
    return json.dumps({"methods": methods})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"one seed, shorter runs, without {', '.join(LONG)}")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="METHOD", help=", ".join(NAMES))
    parser.add_argument("--seeds", type=int, default=None, help="most seeds (default 3, 1 with --quick)")
    parser.add_argument("--folder", type=Path, default=None, help=f"where runs are kept (default {FOLDER})")
    options = parser.parse_args()
    bench = Bench(options.folder or (FOLDER.with_name("methods-quick") if options.quick else FOLDER), options.quick)
    seeds = options.seeds or (1 if options.quick else 3)
    chosen = options.only or [name for name in NAMES if not (options.quick and name in LONG)]
    for seed in range(seeds):
        for method in METHODS:
            if method.name in chosen and seed < method.seeds:
                bench.train(method, seed)
    found = results(bench)
    from benchmarks.methods_page import tables, write

    print(tables(found))
    if not options.quick:
        write(found, ROOT / "docs")
    print(line(found))


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        print(error, file=sys.stderr)
        sys.exit(1)
