"""What each method does on its tiny task: every recipe trained from the same base model, through the real system.

    python -m benchmarks.methods [--quick] [--only METHOD]... [--seeds N] [--again] [--folder FOLDER]

Each run is `redraft train` in a process of its own, with a base model made for its seed. What it came to is a row of
benchmarks/results/methods.jsonl (method_rows.py), which is committed; a method and seed that has one is not trained
again, so that a benchmark that was cut off goes on, here or on another machine. Rows of older settings are marked in
the tables, and trained anew with --again. CPU-seconds are those of the whole process tree of the run, with its start
and its evaluations, without making the base model. At the end the tables and the picture of docs/results.md are written
from all rows, and one JSON line is printed. With --quick rows stay in the folder, and tables are only printed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from benchmarks import method_rows
from benchmarks.method_rows import Row

ROOT = Path(__file__).resolve().parents[1]
FOLDER = Path("runs/methods")
ROWS = Path("benchmarks/results/methods.jsonl")  # beneath ROOT
POLL_S = 0.5
LIMIT_S = 3600.0  # of one run
END_S = 120.0  # that one which is told to end may take for its step and its checkpoint


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
    the question for good), tasks, or both, experience of those tasks, too."""


QUICK = ("evaluation.n=250", "evaluation.greedy=false")  # of every method with --quick
SHORT = ("steps=40",)
EXPLORATIONS = {"tasks": 20_000, "both": 1_000}  # for all tasks of signs, and for as many as the recipe has
START = ("steps=12", "model.make.pretrain.steps=900", "learner.optimizer.warmup_steps=5", "evaluation.greedy=false")
# The first answer is planned by a reflection on the draft of all plus signs, as a retry is by one on a failed answer.
PLAN = ("rollout.plan={}", "environment.options={draft: true}")
OTHERS = ROOT / "benchmarks" / "evolver.py"
FLAGGED = f"environment.name={OTHERS}:Flagged"
TOLD = "rollout.experience=null"
ALONE = (TOLD, "learner.objective.clip_high_navigated=null")
PLAIN = ("learner.credit={name: group}",)
METHODS = (
    Method("rise-turnwise", "quickstart", quick=SHORT),
    Method("rise-turnwise-binary", "quickstart", ("environment.feedback=binary",), SHORT, seeds=1),
    Method("rise-turnwise-blank", "quickstart", ("environment.feedback=blank",), SHORT, seeds=1),
    Method("rise", "signs-rise", quick=SHORT),
    Method("rise-distill", "signs-rise-distill", quick=("steps=15",), teacher="rise-turnwise", seeds=1),
    Method("grpo", "signs-grpo", quick=("steps=20",)),
    Method("rloo", "signs-rloo", quick=("steps=20",)),
    Method("reinforce-pp", "signs-reinforce-pp", quick=("steps=20",)),
    Method("ufo", "signs-ufo", quick=("steps=15",)),
    Method("pag", "signs-pag", quick=("steps=20",)),
    Method("critique-grpo", "signs-critique-grpo", quick=("steps=15",)),
    Method("erl", "signs-erl", quick=("steps=15",)),
    Method("score", "signs-score", quick=("steps=20", "learner.credit.hold_steps=5")),
    Method("sdpo", "signs-sdpo", quick=("steps=15",)),
    # Reflections can only be rewarded where they are carried out: a base model trained for longer does so.
    Method("reflect-start", "quickstart", START),
    Method("reflect", "signs-reflect", quick=("steps=15",), start="reflect-start"),
    Method("reflect-solved", "signs-reflect", ("rollout.solved=true",), start="reflect-start", seeds=1),
    Method("reflect-plan", "signs-reflect", PLAN, start="reflect-start", seeds=1),
    Method("introspect", "signs-introspect", quick=("steps=25",)),
    Method("star", "signs-star", quick=("steps=40",)),
    Method("reflexion", "signs-reflexion"),
    Method("best-of-n", "signs-best-of-n"),
    Method("agent-r", "minicraft-agent-r", quick=("steps=40",), seeds=2),
    # More steps, since its batches hold fewer sequences: at least as many are trained in all.
    Method("agent-r-good-only", "minicraft-agent-r", ("rollout.pairs=0", "steps=460"), ("steps=58",), seeds=2),
    Method("agent-r-direct-revision", "minicraft-agent-r", ("rollout.cut=end", "rollout.splice=verbatim"), seeds=1),
    Method("leafe", "minicraft-leafe", quick=("steps=20",), seeds=2),
    # AdamW scales what larger advantages would add to a step; what is compared has as many attempts.
    Method("attributing", "minicraft-attributing", quick=("steps=12",)),
    Method("attributing-without", "minicraft-attributing", ("learner.credit={name: group}",), ("steps=12",)),
    *(
        Method(f"attributing-{flags}", "minicraft-attributing", (FLAGGED, f"environment.options={{flags: {flags}}}"))
        for flags in ("random", "outcome", "inverted", "flipped")
    ),
    Method("gigpo", "minicraft-gigpo", quick=("steps=12",)),
    Method("navigating", "minicraft-navigating", quick=("steps=12",), made="experience"),
    Method("navigating-without", "minicraft-navigating", (TOLD,), ("steps=12",)),
    Method("navigating-all", "minicraft-navigating", ("rollout.experience.share=1.0",), made="experience"),
    Method("navigating-shuffled", "minicraft-navigating", made="shuffled"),
    Method("navigating-kept", "minicraft-navigating", (TOLD, f"environment.name={OTHERS}:Told"), made="kept"),
    Method("questioning", "signs-questioning", quick=("steps=12",), made="tasks"),
    Method("questioning-original", "signs-questioning", ("data.synthetic=null",), ("steps=12",)),
    Method("questioning-unproved", "signs-questioning", ("data.synthetic=null", f"environment.name={OTHERS}:Guessed")),
    # The three of them, and what is left where one or two, or all, are taken away.
    Method("agentevolver", "minicraft-agentevolver", quick=("steps=12",), made="both"),
    Method("agentevolver-without-attributing", "minicraft-agentevolver", PLAIN, made="both"),
    Method("agentevolver-without-navigating", "minicraft-agentevolver", ALONE, made="tasks"),
    Method("agentevolver-questioning", "minicraft-agentevolver", (*ALONE, *PLAIN), made="tasks"),
    Method("agentevolver-nothing", "minicraft-agentevolver", (*ALONE, *PLAIN, "data.synthetic=null")),
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
    *(f"agentevolver-{what}" for what in ("without-attributing", "without-navigating", "questioning", "nothing")),
)
NAMES = tuple(method.name for method in METHODS)
COSTS = ("attempts", "sampled_tokens", "learner_tokens", "cpu_s")


class Failed(Exception):
    """A run that did not end well; its message holds the end of its output."""


class Bench:
    """Runs of some methods in one folder."""

    def __init__(self, folder: Path, quick: bool, methods: Sequence[Method] | None = None, rows: Path = ROWS):
        """None: METHODS."""
        self.folder, self.quick = folder.resolve(), quick
        self.methods = tuple(METHODS if methods is None else methods)
        self.file = None if quick else ROOT / rows
        self.folder.mkdir(parents=True, exist_ok=True)

    def find(self, name: str) -> Method:
        return next(method for method in self.methods if method.name == name)

    def run_of(self, method: Method, seed: int) -> Path:
        return self.folder / "runs" / f"{method.name}-seed{seed}"

    def rows(self) -> list[Row]:
        """All that are known, the newest last."""
        return method_rows.read(self.file, self.folder / "runs")

    def lacks(self, method: Method, seed: int, again: bool) -> bool:
        """Whether there is no row of this method and seed; or, `again`, none of its settings of today."""
        own = [row for row in self.rows() if (row.method, row.seed) == (method.name, seed)]
        digest = self.digest(method)
        return not any(not again or row.digest == digest for row in own)

    def train(self, method: Method, seed: int) -> Path:
        """The folder of the method's run with this seed, trained now unless it is there with the same settings."""
        run, digest = self.run_of(method, seed), self.digest(method)
        if (row := method_rows.kept(run)) is not None and row.digest == digest:
            return run
        commit, changes = method_rows.commit(ROOT), [*self._changes(method), f"seed={seed}"]
        if method.start is not None:
            changes.append(f"model.path={self.train(self.find(method.start), seed)}")
        elif "pretrained" not in _settings(method).get("model", {}):  # what is fetched is the same for all seeds
            changes.append(f"model.make.seed={seed}")
            self._redraft("pretrain", method, changes, self.folder / "pretrain.log")
        changes += self._make(method, seed, changes)
        with self._teacher(method, seed) as more:
            log = self.folder / f"{run.name}.log"
            began, say = time.monotonic(), f"{run.name}: "
            print(f"{say}training", flush=True)
            cpu_s = self._redraft("train", method, [*changes, *more, "--run", run.name, "--again"], log)
        wall_s = time.monotonic() - began
        known = {"method": method.name, "seed": seed, "digest": digest, "recipe": _digest(_settings(method))}
        try:
            row = method_rows.of_run(run, **known, commit=commit, cpu_s=cpu_s, wall_s=wall_s)
        except ValueError as error:
            raise Failed(f"{error}; see {log}") from error
        method_rows.keep(row, run, self.file)
        print(f"{say}done in {wall_s:.0f} s, {cpu_s:.0f} CPU-s", flush=True)
        return run

    def digest(self, method: Method) -> str:
        """Of all settings of a run but its seed: the recipe's without its comments, the changes, what is made before
        it, and the digests of methods that it stands on. The same on every machine."""
        stands_on = [self.digest(self.find(name)) for name in (method.start, method.teacher) if name]
        changes = [change.replace(f"{ROOT}{os.sep}", "") for change in self._changes(method)]
        return _digest([_settings(method), changes, method.made, stands_on])

    def _changes(self, method: Method) -> list[str]:
        return [*method.changes, *((*QUICK, *method.quick) if self.quick else ())]

    def _make(self, method: Method, seed: int, changes: Sequence[str]) -> list[str]:
        """The changes that name what is made before the method, made now."""
        told = []
        if method.made in EXPLORATIONS:
            file, log = self._place(method, seed, "tasks")
            more = f"--explorations={EXPLORATIONS[method.made]}"
            self._redraft("question", method, [str(file), *changes, more], log)
            told.append(f"data.synthetic.path={file}")
        if method.made in ("", "tasks"):
            return told
        from benchmarks import evolver

        file, log = self._place(method, seed, "experience")
        own = [change for change in changes if change != TOLD and str(OTHERS) not in change]
        self._redraft("experience", method, [str(file), *own, *told], log)
        if method.made == "shuffled":
            evolver.shuffled(file, file)
        if method.made == "kept":
            return [f"environment.options={{read: 0.5, pool: {file}}}"]
        return [*told, f"rollout.experience.path={file}"]

    def _place(self, method: Method, seed: int, what: str) -> tuple[Path, Path]:
        """Where it is made, anew, and the log of that."""
        file = self.folder / f"{method.name}-seed{seed}-{what}.jsonl"
        for old in (file, file.with_name(file.name + ".progress")):
            old.unlink(missing_ok=True)
        return file, file.with_suffix(".log")

    @contextlib.contextmanager
    def _teacher(self, method: Method, seed: int) -> Iterator[list[str]]:
        """The changes that name a server of the teacher's model, while it serves."""
        if method.teacher is None:
            yield []
            return
        from benchmarks.teacher_server import started
        from redraft.models.make import trained

        model = trained(self.train(self.find(method.teacher), seed), self.folder / ".cache" / "models")
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
            try:
                while process.poll() is None:
                    meter.read()
                    if time.monotonic() > until:
                        raise Failed(f"{command} {method.name} took longer than {LIMIT_S:.0f} s; see {log}")
                    time.sleep(POLL_S)
            finally:
                end(process)
        if process.returncode:
            raise Failed(f"{command} {method.name} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
        return meter.seconds


def end(process: subprocess.Popen) -> None:
    """Ends a command that runs: told to, it ends all that it has started."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def end_when_told() -> None:
    """SIGTERM ends this command as Ctrl-C does, and what it has started."""

    def told(*_: object) -> None:
        sys.exit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, told)


def _recipe(method: Method) -> Path:
    return ROOT / "recipes" / f"{method.recipe}.yaml"


def _settings(method: Method) -> dict:
    return yaml.safe_load(_recipe(method).read_text())


def _digest(parts: object) -> str:
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=10).hexdigest()


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
    """The rows of one method, a seed each; `older` where its settings are no longer these."""

    method: Method
    rows: tuple[Row, ...]
    older: bool


def results(bench: Bench) -> list[Result]:
    """Of all rows that are known, in the order of its methods."""
    rows, found = bench.rows(), []
    for method in bench.methods:
        digest = bench.digest(method)
        if chosen := method_rows.chosen(rows, method.name, digest):
            found.append(Result(method, tuple(chosen), chosen[0].digest != digest))
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
            "before": mean([row.before.to_json() for row in result.rows]),
            "after": mean([row.last.to_json() for row in result.rows]),
            **{key: mean([getattr(row, key) for row in result.rows]) for key in COSTS},
            "seeds": len(result.rows),
            "older": result.older,
        }
        for result in found
    }
    return json.dumps({"methods": methods})


def train(bench: Bench, names: Sequence[str], seeds: int, again: bool) -> None:
    """What has no row yet, one seed of all methods after another. Raises Failed."""
    for seed in range(seeds):
        for method in bench.methods:
            if method.name in names and seed < method.seeds and bench.lacks(method, seed, again):
                bench.train(method, seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"one seed, shorter runs, without {', '.join(LONG)}")
    parser.add_argument("--only", action="append", choices=NAMES, metavar="METHOD", help=", ".join(NAMES))
    parser.add_argument("--seeds", type=int, default=None, help="most seeds (default 3, 1 with --quick)")
    parser.add_argument("--again", action="store_true", help="train anew what was trained with older settings")
    parser.add_argument("--write", action="store_true", help="train nothing: write the page anew from the rows")
    parser.add_argument("--folder", type=Path, default=None, help=f"where runs are kept (default {FOLDER})")
    options = parser.parse_args()
    bench = Bench(options.folder or (FOLDER.with_name("methods-quick") if options.quick else FOLDER), options.quick)
    seeds = options.seeds or (1 if options.quick else 3)
    chosen = options.only or [name for name in NAMES if not (options.quick and name in LONG)]
    if not options.write:
        train(bench, chosen, seeds, options.again)
    found = results(bench)
    from benchmarks import methods_page as page

    if options.quick:
        print(page.tables(page.lines(found)))
    else:
        shown = page.lines(found, page.printed(ROOT), NAMES)
        print(page.tables(shown))
        page.write(shown, ROOT / "docs")
    print(line(found))


def run(command: Callable[[], None]) -> None:
    """The command of a benchmark of methods; ends with 1 where a run has failed."""
    end_when_told()
    try:
        command()
    except Failed as error:
        print(error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run(main)
