"""How a GPU does, within some minutes and without a network: learner, weights, generation, whole runs, tests.

    python -m benchmarks.gpu [--minutes 8] [--device cuda|cpu] [--model FOLDER]

    attention    masks beside none, on the same packed rows
    learner      a step under ZeRO 0 to 3 beside plain torch; share of the chip's peak
    weights      from the trained weights to a proved engine, by each transport
    generation   an actor beside offline vLLM
    run          `redraft train` of a made model (on CUDA one of 1.4B in bfloat16) or of --model, learner and actor on
                 one GPU: the first start, with what is compiled for it, the next, and one whose engine proposes tokens
                 (actors.engine.speculate: ngram); steps, tokens/s, who waited
    tests        those marked `gpu`

Each part is a process of its own and gets its share of the minutes that are left. One that fails, or takes longer, is
named, and the others go on: the exit status is 0 once all were tried, whatever failed, and the last line is JSON. With
--device cpu all of it runs at small sizes, so that it is known to work before it meets a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.all import GRACE_S, ROOT, run

ROUNDS = {"cpu": "1", "cuda": "5"}
SIZES = {"cpu": "50M", "cuda": "50M,300M,1.5B"}  # of weights
MODELS = {
    "cpu": ["model.make.pretrain=null"],
    "cuda": [
        "model={dtype: bfloat16, make: {hidden: 1536, layers: 28, heads: 12, feed_forward: 8960, max_length: 256}}",
        "actors.gpus=0.5",
        "learner.gpus=0.5",
        "actors.engine.gpu_memory=0.35",
        "learner.optimizer.lr=1e-6",
    ],
}
RUNS = {"cold": [], "warm": [], "ngram": ["actors.engine.speculate=ngram"]}
"""Of the run part, and what each changes."""
STEPS = {"cpu": 4, "cuda": 12}


@dataclass(frozen=True, slots=True)
class Part:
    """`share` of the minutes; `measure(device, model, limit_s)` returns figures or raises RuntimeError with why not."""

    name: str
    share: float
    measure: Callable[[str, str | None, float], dict[str, Any]]


def benchmark(name: str, *arguments: str) -> Callable[[str, str | None, float], dict[str, Any]]:
    def measure(device: str, model: str | None, limit_s: float) -> dict[str, Any]:
        sizes = ["--sizes", SIZES[device]] if name == "weights" else []
        return run(name, ["--device", device, "--rounds", ROUNDS[device], *sizes, *arguments], limit_s)

    return measure


def runs(device: str, model: str | None, limit_s: float) -> dict[str, Any]:
    """Runs of one recipe, one after the other: what the first has compiled, the second finds."""
    until = time.monotonic() + limit_s
    with tempfile.TemporaryDirectory(prefix="redraft-") as folder:
        return {name: trained(Path(folder), name, device, model, until - time.monotonic()) for name in RUNS}


def trained(folder: Path, name: str, device: str, model: str | None, limit_s: float) -> dict[str, Any]:
    """The quickstart's recipe for a few steps, as the run of this name changes it."""
    own = MODELS[device] if model is None else [f"model={{path: {model}}}", *MODELS[device][1:]]
    few = [f"steps={STEPS[device]}", "evaluation.n=2", "evaluation.independent=1", "evaluation.greedy=false"]
    recipe = ROOT / "recipes" / "quickstart.yaml"
    command = [sys.executable, "-m", "redraft", "train", str(recipe), "--run", name, *few, *own, *RUNS[name]]
    output, began = folder / f"{name}.txt", time.time()
    with open(output, "wb") as said:
        process = subprocess.Popen(
            command, cwd=folder, stdout=said, stderr=said, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        try:
            code = process.wait(max(1.0, limit_s))
        except subprocess.TimeoutExpired:
            process.terminate()  # as a scheduler would: it stops cleanly
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
            raise RuntimeError(f"the {name} run did not end in time: {last_of(output)}") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if code:
        raise RuntimeError(f"the {name} run failed: {last_of(output)}")
    lines = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return figures(lines, time.time() - began)


def figures(lines: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """Of the lines of metrics.jsonl: how long all but the steps took, and medians of the steps after the first."""
    later = lines[1:] or lines
    waits = {key: statistics.median(line["seconds"].get(key, 0.0) for line in later) for key in lines[0]["seconds"]}
    steps_s = [after["time_s"] - before["time_s"] for before, after in zip(lines, lines[1:], strict=False)]
    return {
        "steps": len(lines),
        "besides_steps_s": round(seconds - sum(steps_s), 1),
        "step_s": round(statistics.median(steps_s), 3) if steps_s else None,
        "generated_tokens_per_s": statistics.median(line["tokens_per_s"] for line in later),
        "seconds_a_step": {key: round(value, 3) for key, value in waits.items()},
    }


def last_of(output: Path) -> str:
    found = [line for line in output.read_text(errors="replace").splitlines() if line.strip()]
    return found[-1][:300] if found else "it said nothing"


def tests(device: str, model: str | None, limit_s: float) -> dict[str, Any]:
    """Those marked gpu; without a GPU they say so and are skipped."""
    files = [str(file) for file in sorted((ROOT / "tests").rglob("test_*.py")) if "pytest.mark.gpu" in file.read_text()]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *files, "-p", "no:cacheprovider"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"the tests did not end within {limit_s:.0f} s") from None
    summary = next((line for line in reversed(done.stdout.splitlines()) if line.strip()), "")
    if done.returncode not in (0, 5):  # 5: none was chosen
        raise RuntimeError(f"{summary}\n{done.stdout[-2000:]}")
    return {"summary": summary}


PARTS = (
    Part("attention", 2, benchmark("attention", "--quick")),
    Part("learner", 3, benchmark("learner", "--quick")),
    Part("weights", 2, benchmark("weights", "--quick")),
    Part("generation", 2, benchmark("generation", "--quick")),
    Part("run", 3, runs),
    Part("tests", 1, tests),
)


def facts(device: str) -> dict[str, Any]:
    """What it ran on."""
    import torch
    import transformers

    found = {
        "device": device,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "memory_gib": round(card.total_memory / 2**30, 1),
            "cards": torch.cuda.device_count(),
        }
    return found


def tried(device: str, model: str | None, minutes: float) -> tuple[dict[str, dict], dict[str, str], dict[str, float]]:
    """Figures by part, why others have none, and how long each took."""
    until = time.monotonic() + 60 * minutes
    lines, failed, seconds = {}, {}, {}
    for number, part in enumerate(PARTS):
        began = time.monotonic()
        limit_s = (until - began - GRACE_S) * part.share / sum(later.share for later in PARTS[number:])
        print(f"[{number + 1}/{len(PARTS)}] {part.name}, {limit_s:.0f} s at most", file=sys.stderr, flush=True)
        try:
            if limit_s < 1:
                raise RuntimeError("no time was left")
            lines[part.name] = part.measure(device, model, limit_s)
        except RuntimeError as error:
            failed[part.name] = str(error)
        seconds[part.name] = round(time.monotonic() - began, 1)
        said = failed.get(part.name, "done")
        print(
            f"[{number + 1}/{len(PARTS)}] {part.name}: {said}, {seconds[part.name]:.0f} s", file=sys.stderr, flush=True
        )
    return lines, failed, seconds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", help="folder of a model to train, in place of a made one")
    chosen = parser.parse_args()
    import torch

    if (chosen.device == "cuda") != torch.cuda.is_available():
        parser.error("--device is cuda where PyTorch finds a GPU, which vLLM then uses, and cpu elsewhere")
    lines, failed, seconds = tried(chosen.device, chosen.model, chosen.minutes)
    for name, why in failed.items():
        print(f"{name} failed: {why}", file=sys.stderr)
    print(json.dumps(facts(chosen.device) | lines | {"failed": failed, "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
