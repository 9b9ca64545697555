"""An adapter in the engine: merged into the weights, as runs do it, beside vLLM's own LoRA; generation and loading.

    python -m benchmarks.lora MODEL_FOLDER

One engine of each kind, one after the other, in a process of its own: SEQUENCES requests at once, TOKENS tokens each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIDES = ("base", "merged", "vllm")
SEQUENCES, PROMPT, TOKENS, ROUNDS, RANK = 16, 32, 64, 3, 8


def write_adapter(model: str, folder: Path) -> None:
    """PEFT's folder of an adapter that changes the model a little, and the same as it is published."""
    import torch
    from safetensors.torch import save_file

    from learner.lora_config import LoraSettings
    from learner.model.lora import Adapter

    adapter = Adapter(LoraSettings(rank=RANK), model, 0)
    made = adapter.merged({}, torch.bfloat16)
    adapter.add(made)
    state = adapter.perturbed({name: part.detach() for name, part in adapter.trained(made).items()}, 0.01, 0)
    adapter.write(folder / "adapter", state)
    save_file(state | adapter.buffers, folder / "published.safetensors", adapter.metadata)


def side(kind: str, model: str, folder: Path) -> dict:
    """Tokens/s of each round, and seconds of a load of the adapter."""
    from actors.config import EngineSettings
    from actors.engines import vllm_common

    settings = EngineSettings(max_length=256, max_running=SEQUENCES)
    vllm_common.prepare_process(settings, separate=False)
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    arguments = vllm_common.engine_arguments(Path(model), "bfloat16", settings, 0)
    own = {"enable_lora": True, "max_lora_rank": RANK} if kind == "vllm" else {}
    llm = LLM(**arguments | own)
    request = {"lora_request": LoRARequest("adapter", 1, str(folder / "adapter"))} if kind == "vllm" else {}
    loads = []
    for _ in range(ROUNDS if kind == "merged" else 0):
        began = time.monotonic()
        llm.collective_rpc("redraft_open", args=(str(folder / "published.safetensors"),))
        opened = time.monotonic()
        llm.collective_rpc("redraft_load")
        loads.append((opened - began, time.monotonic() - opened))
    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    speeds = []
    for number in range(ROUNDS + 1):  # the first warms up
        prompts = [{"prompt_token_ids": [5 + number, *range(100 + row, 99 + row + PROMPT)]} for row in range(SEQUENCES)]
        began = time.monotonic()
        llm.generate(prompts, sampling, use_tqdm=False, **request)
        speeds.append(SEQUENCES * TOKENS / (time.monotonic() - began))
    found = {"tokens_per_s": round(statistics.median(speeds[1:]), 1)}
    if loads:
        merge, copy = (statistics.median(times) for times in zip(*loads, strict=True))
        found |= {"merge_ms": round(1e3 * merge, 1), "copy_ms": round(1e3 * copy, 1)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora", description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.side:
        print(json.dumps(side(chosen.side, chosen.model, chosen.folder)))
        return 0
    with tempfile.TemporaryDirectory(prefix="redraft-") as folder:
        write_adapter(chosen.model, Path(folder))
        found = {}
        for kind in SIDES:
            command = [sys.executable, "-m", "benchmarks.lora", chosen.model, "--side", kind, "--folder", folder]
            answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
            found[kind] = json.loads(answer.stdout.splitlines()[-1])
            print(kind, found[kind], file=sys.stderr, flush=True)
    print(json.dumps(found | {"sequences": SEQUENCES, "rank": RANK, "cores": os.cpu_count()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
