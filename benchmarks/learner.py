"""The learner's step beside plain torch on the same packed batch, the padding of that batch, and memory of log-probs.

    python -m benchmarks.learner [--quick] [--device cpu|cuda] [--rounds N]

    torch_N   transformers' model, whole float32 logits of the trained tokens, a clipped loss of three lines, AdamW and
              a clipped gradient, with N threads
    zeroK_N   the Trainer's `step` under ZeRO stage K, N ranks of one thread each: chunked log-probs, entropies
              and figures for the report, the objective, DeepSpeed; one rank has nothing to shard, and runs alone

All sides have a process for each rank and live through the whole run; in each round each makes some steps while the
others wait. A ratio is ours over that of torch with as many threads, the median over rounds. The batch holds 5-turn
dialogues without masks, in two micro-batches. On a CPU they are 8,192 tokens in rows of 256, and the model is the
quickstart's (0.4M, float32); on CUDA 16,384 tokens in rows of 4,096, of dialogues of 1,600 on average with a heavy
tail, and a model in bfloat16, of 1.5 billion parameters, .5 or .3, the largest that fits twice: DeepSpeed keeps float32
copies of the weights, torch does not. Neither side compiles its layers. On CUDA each rank needs a GPU of its own: two
ranks run where there are two.

Padding is that of `learner.packing` on batches of 8,192 and 32,768 tokens, with lengths of turns as five kinds of tasks
have them. Memory of log-probs is the peak of forward and backward over 150,000 words beyond weights and gradients, of a
model whose hidden states are small, over chunk x vocabulary x 4 bytes: what torch allocates, and on a CPU also what the
process holds, in which the scratch memory of matrix products counts.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import wait
from pathlib import Path

from benchmarks import learner_parts as parts
from benchmarks.learner_parts import Job, Side
from learner.config import LearnerSettings
from protocols.errors import DeadlineError

TOKENS = {"cpu": 8192, "cuda": 16384}
LIMIT_S = 120.0  # of a start or a slice
END_S = 5.0
CHUNKS = (512, 2048)  # of tokens; the larger is all that are scored
MODELS = {
    "cpu": {0: {}},
    "cuda": {
        64: {"hidden": 2048, "layers": 22, "heads": 16, "feed_forward": 8192},
        28: {"hidden": 1024, "layers": 30, "heads": 16, "feed_forward": 4096},
        0: {"hidden": 1024, "layers": 18, "heads": 16, "feed_forward": 4096},
    },
}
"""By the GiB of a GPU that they need: 26 bytes of a parameter in both sides together, and what a step keeps."""
WORK = {"cpu": "signs", "cuda": "dialogues"}
DTYPES = {"cpu": "float32", "cuda": "bfloat16"}
PADDED = 8192, 32768  # tokens of batches whose padding is told
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 operations a second


@dataclass(frozen=True, slots=True)
class Plan:
    rounds: int
    slice_s: float  # that a side's steps take in a round, about


QUICK, FULL = Plan(rounds=5, slice_s=1.5), Plan(rounds=15, slice_s=4.0)


class Runner:
    """The processes of one side."""

    def __init__(self, side: Side, job: Job):
        # Python and the libraries are imported once and forked; what CUDA has touched must not be.
        context = multiprocessing.get_context("spawn" if job.device == "cuda" else "forkserver")
        context.set_forkserver_preload(["torch", "transformers", "deepspeed", "learner.trainer"])
        self.side, self._pipes, self._processes = side, [], []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(1 if side.zero is None else side.ranks):
            ours, theirs = context.Pipe()
            process = context.Process(target=parts.race, args=(side, rank, job, port, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def facts(self) -> dict:
        """Of the batch, when the side is ready to run."""
        return self._answers()[0]

    def run(self, steps: int) -> float:
        """Seconds that so many steps took the slowest rank."""
        for pipe in self._pipes:
            pipe.send(steps)
        return max(self._answers())

    def _answers(self) -> list:
        return [_answer(pipe, f"benchmark side {self.side.name}") for pipe in self._pipes]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # the end of its work
        for process in self._processes:
            process.join(END_S)
            process.kill()


def _answer(pipe, name: str):
    if not wait([pipe], LIMIT_S):
        raise DeadlineError("the benchmark", name, LIMIT_S)
    try:
        answer = pipe.recv()
    except EOFError:
        raise RuntimeError(f"{name} died") from None
    if isinstance(answer, str):
        raise RuntimeError(f"{name}:\n{answer}")
    return answer


def race(sides: list[Side], plan: Plan, job: Job) -> tuple[dict[str, list[float]], dict]:
    """Seconds a step of each side in each round, and facts of the batch."""
    runners: list[Runner] = []
    try:
        facts = []
        for side in sides:  # one after another: two cores start no faster together
            runners.append(Runner(side, job))
            facts.append(runners[-1].facts())
        counts = {}
        for runner in runners:  # the optimizer's state is made at the first step
            runner.run(1)
            counts[runner.side.name] = max(1, round(plan.slice_s / runner.run(1)))
        seconds: dict[str, list[float]] = {side.name: [] for side in sides}
        for number in range(plan.rounds):
            order = runners if number % 2 == 0 else runners[::-1]
            for runner in order:
                count = counts[runner.side.name]
                seconds[runner.side.name].append(runner.run(count) / count)
            shown = ", ".join(f"{name} {each[-1]:.2f} s" for name, each in seconds.items())
            print(f"round {number + 1}/{plan.rounds}: {shown}", file=sys.stderr, flush=True)
        return seconds, facts[0] | facts[1]
    finally:
        for runner in runners:
            runner.close()


def ratio(seconds: dict[str, list[float]], side: Side) -> float:
    """Tokens/s of a side over those of torch with as many threads."""
    torch = seconds[Side(None, side.ranks).name]
    return statistics.median(theirs / ours for theirs, ours in zip(torch, seconds[side.name], strict=True))


def memory(chunk: int, dtype: str, device: str) -> tuple[float, float]:
    """How many times chunk x vocabulary x 4 bytes torch holds for log-probs, and how many the whole process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=parts.logprob_memory, args=(chunk, dtype, device, theirs), daemon=True)
    process.start()
    try:
        used = _answer(ours, "the measurement of memory")
    finally:
        process.kill()
        process.join()
    unit = chunk * parts.BIG_VOCABULARY * 4
    return used[0] / unit, used[1] / unit


def job_on(device: str, folder: Path) -> Job:
    from actors.config import EnvironmentSettings
    from redraft.config import MakeSettings, ModelSettings
    from redraft.models.make import prepare

    kind, tokens = parts.KINDS[WORK[device]], TOKENS[device]
    shape = MakeSettings(max_length=kind.row_tokens, **model_on(device))
    made = ModelSettings(make=shape, dtype=DTYPES[device])
    settings = LearnerSettings(
        row_tokens=kind.row_tokens,
        micro_tokens=tokens // 2,
        attention="varlen",
        compile=False,
        credit={"name": "raw"},
        objective={"name": "grpo", "correction": "none"},
    )
    model = str(prepare(made, EnvironmentSettings(name="signs"), folder, lambda line: None))
    return Job(model, DTYPES[device], device, settings, kind, tokens)


def model_on(device: str) -> dict[str, int]:
    """The largest one whose memory is there."""
    gib = 0.0
    if device == "cuda":
        import torch

        gib = torch.cuda.get_device_properties(0).total_memory / 2**30
    return next(shape for least, shape in MODELS[device].items() if gib >= least)


def sides_on(device: str) -> list[Side]:
    ranks = 2
    if device == "cuda":
        import torch

        ranks = min(ranks, torch.cuda.device_count())
    alone = [Side(None, 1), Side(1, 1)]  # one rank runs the same, whatever stage is set
    return alone + [Side(zero, count) for count in range(2, ranks + 1) for zero in (None, 0, 1, 2, 3)]


def mfu(tokens_per_s: float, parameters: int) -> float | None:
    """Share of a GPU's bfloat16 peak, by 6 operations a parameter and token; None where the peak is not known."""
    import torch

    name = torch.cuda.get_device_name()
    peak = next((peak for key, peak in PEAKS.items() if key in name), None)
    return peak and tokens_per_s * 6 * parameters / peak


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table("side", "ms a step", "tokens/s", "beside torch", box=None)
    for name, found in result["sides"].items():
        table.add_row(name, f"{1e3 * found['step_s']:.0f}", f"{found['tokens_per_s']:,.0f}", f"{found['ratio']:.2f}")
    console.print(table)
    table = Table("kind of task", *(f"padding, {tokens:,} tokens" for tokens in PADDED), box=None)
    for name, shares in result["padding"].items():
        table.add_row(name, *(f"{share:.1%}" for share in shares))
    console.print(table)
    table = Table("log-probs", "memory / (chunk x vocabulary x 4 bytes): torch", "the process", box=None)
    for name, multiple in result["logprob_memory"].items():
        table.add_row(name, f"{multiple:.2f}", f"{result['logprob_memory_of_process'][name]:.2f}")
    console.print(table)


def run(plan: Plan, device: str, folder: Path) -> dict:
    padding = {
        name: [round(parts.padding(kind, tokens, steps=16), 4) for tokens in PADDED]
        for name, kind in parts.KINDS.items()
    }
    used = {f"{dtype}, chunk {chunk}": memory(chunk, dtype, device) for dtype, chunk in _memory_cases()}
    job, sides = job_on(device, folder), sides_on(device)
    seconds, facts = race(sides, plan, job)
    found = {}
    for side in sides:
        step_s = statistics.median(seconds[side.name])
        found[side.name] = {
            "step_s": round(step_s, 4),
            "tokens_per_s": round(facts["tokens"] * (1 - facts["padding_share"]) / step_s, 1),
            "ratio": round(ratio(seconds, side), 3),
        }
    result = {"one_rank_ratio": found["zero1_1"]["ratio"]}
    result |= {
        f"{side.name}_ratio": found[side.name]["ratio"] for side in sides if side.ranks > 1 and side.zero is not None
    }
    result |= {
        "padding_share": round(statistics.mean(shares[0] for shares in padding.values()), 4),
        "logprob_memory": {name: round(torchs, 3) for name, (torchs, _) in used.items()},
        "logprob_memory_of_process": {name: round(whole, 3) for name, (_, whole) in used.items()},
        "pack_ms": round(1e3 * facts["pack_s"], 1),  # in the prefetch thread, beside the step before
        "sides": found,
        "padding": padding,
    }
    if device == "cuda":
        result["mfu"] = mfu(found["zero1_1"]["tokens_per_s"], facts["parameters"])
    return result


def _memory_cases() -> list[tuple[str, int]]:
    return [("float32", CHUNKS[0]), ("float32", CHUNKS[1]), ("bfloat16", CHUNKS[1])]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learner", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on two cores; else under 10")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, help="instead of those of --quick or of the whole")
    chosen = parser.parse_args()
    plan = QUICK if chosen.quick else FULL
    plan = plan if chosen.rounds is None else replace(plan, rounds=chosen.rounds)
    os.environ |= {"DS_ACCELERATOR": chosen.device, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="redraft-") as folder:
        result = run(plan, chosen.device, Path(folder))
    show(result)
    facts = {"device": chosen.device, "quick": chosen.quick, "cores": os.cpu_count()}
    facts |= {"python": platform.python_version(), "seconds": round(time.monotonic() - began)}
    print(json.dumps(result | facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
