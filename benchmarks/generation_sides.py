"""The two sides of `benchmarks.generation`, each in a process of its own, and the replay service of the actor's."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from actors.config import ActorSettings, DataSettings, EngineSettings, MixedEnvironment, SamplingSettings
from actors.environments.base import OneAnswer, Verdict
from actors.rollout_config import RetrySettings
from protocols.keys import group_id
from protocols.turns import Lease
from replay.config import Endpoints, ReplaySettings

TURNS, TOKENS = 4, 64  # of an episode, of a turn
QUESTION_TOKENS = 64
FEEDBACK = "no, 12 off"
LETTERS = list("0123456789+-*/()>?=.,;:!@ abcdefghijklmnopqrstuvwxyz")
MAX_LENGTH = 512
RUN = "benchmark"
LOOK_S = 0.01  # between two exchanges: the controller makes one every 50 ms


@dataclass(frozen=True, slots=True)
class Setup:
    """What a side is made of. `cores` that all its threads share; `replay` where its turns go."""

    model: str
    dtype: str
    device: str
    cores: tuple[int, ...]
    replay: Endpoints

    @property
    def engine(self) -> EngineSettings:
        return EngineSettings(max_running=256, max_length=MAX_LENGTH, gpu_memory=0.4)


@dataclass(frozen=True, slots=True)
class Round:
    """A wave of so many episodes at once; `number` makes its questions new ones."""

    number: int
    episodes: int

    @property
    def tokens(self) -> int:
        """That are sampled in it."""
        return self.episodes * TURNS * TOKENS

    @property
    def questions(self) -> list[str]:
        shape = self.episodes, QUESTION_TOKENS
        letters = np.random.default_rng([self.number, self.episodes]).choice(LETTERS, shape)
        return ["".join(row) for row in letters]


class Hearing(OneAnswer):
    """Says the same few tokens to every answer, at once."""

    blocking = False

    @classmethod
    def tasks(cls, data: DataSettings, split: str) -> tuple[dict, ...]:
        return ()

    def question(self, task: dict) -> str:
        return task["question"]

    def judge(self, task: dict, text: str) -> Verdict:
        return Verdict(0.0)

    def say(self, verdict: Verdict) -> str:
        return FEEDBACK


def exact_length() -> None:
    """From now on an engine in this process samples on past end tokens, so that each turn has TOKENS tokens."""
    from actors.engines import vllm_common

    class Requests(vllm_common.Requests):
        def sampling(self, settings: SamplingSettings):
            parameters = super().sampling(settings)
            parameters.stop_token_ids, parameters.ignore_eos = [], True
            return parameters

    vllm_common.Requests = Requests


# The actor's side.


class ActorSide:
    """An `actors.actor.Actor` that is given leases as the controller gives them."""

    def __init__(self, setup: Setup):
        from actors.actor import Actor
        from actors.contract import Spec

        exact_length()
        spec = Spec(
            run_id=RUN,
            model=setup.model,
            dtype=setup.dtype,
            seed=0,
            environments=(MixedEnvironment(name="benchmarks.generation_sides:Hearing"),),
            rollout=RetrySettings(turns=TURNS),
            sampling=SamplingSettings(max_tokens=TOKENS),
            actors=ActorSettings(engine=setup.engine),
            keys=None,
            version=0,
        )
        self._actor, self._shard, self._leased = Actor(spec, "actor-0", None), setup.replay.ingest, 0

    async def start(self) -> None:
        while (report := await self._exchange()).state != "ready":
            if report.state == "failed":
                raise RuntimeError(report.error)

    async def play(self, questions: list[str]) -> int:
        """A group of one episode for each question; returns the tokens sampled."""
        await self._exchange(tuple(self._lease(question) for question in questions))
        tokens = closed = 0
        while closed < len(questions):
            report = await self._exchange()
            if report.abandoned or report.state == "failed":
                raise RuntimeError(report.error or report.abandoned[0][2])
            closed += len(report.closed)
            tokens += report.tokens
        return tokens

    def _lease(self, question: str) -> Lease:
        self._leased += 1
        task = {"id": str(self._leased), "question": question}
        return Lease(group_id(RUN, 0, task["id"]), 0, self._leased, task, self._leased, self._shard)

    async def _exchange(self, leases: tuple[Lease, ...] = ()):
        from actors.contract import Orders

        report = await self._actor.exchange(Orders(leases))
        await asyncio.sleep(LOOK_S)
        return report


# The offline side.


class OfflineSide:
    """`vllm.LLM.generate` called once a turn, with the sampling parameters and the engine arguments of the actor.

    Its linears are vLLM's own, though, packed for the processor: nobody replaces its weights. So are its blocks of the
    prefix cache on a CPU: 32 tokens, the fewest that it takes without the actor's WeightsExtension.
    """

    def __init__(self, setup: Setup):
        from transformers import AutoTokenizer

        from actors.engines import vllm_common
        from actors.rendering import Renderer

        self._setup = setup
        exact_length()
        vllm_common.prepare_process(setup.engine, separate=vllm_common.on_gpu())
        self._renderer = Renderer(AutoTokenizer.from_pretrained(setup.model))
        self._feedback = self._renderer.next(FEEDBACK, ended=False).tolist()
        requests = vllm_common.Requests(self._renderer.ends, MAX_LENGTH)
        self._parameters = requests.sampling(SamplingSettings(max_tokens=TOKENS))

    async def start(self) -> None:
        from vllm import LLM

        from actors.engines import vllm_common

        setup = self._setup
        arguments = vllm_common.engine_arguments(Path(setup.model), setup.dtype, setup.engine, 0)
        del arguments["worker_extension_cls"]
        if not vllm_common.on_gpu():
            import torch

            torch._C._cpu._init_amx()  # see actors/engines/vllm_worker.py
            arguments["block_size"] = 32
        self._llm = LLM(**arguments)

    async def play(self, questions: list[str]) -> int:
        prompts, tokens = [self._renderer.first(question).tolist() for question in questions], 0
        for turn in range(TURNS):
            if turn:
                prompts = [prompt + self._feedback for prompt in prompts]
            outputs = self._llm.generate(
                [{"prompt_token_ids": ids} for ids in prompts], self._parameters, use_tqdm=False
            )
            answers = [list(output.outputs[0].token_ids) for output in outputs]
            tokens += sum(map(len, answers))
            prompts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        return tokens


SIDES: dict[str, Callable[[Setup], ActorSide | OfflineSide]] = {"actor": ActorSide, "offline": OfflineSide}


def work(name: str, setup: Setup, pipe: Connection) -> None:
    """The main function of a side's process: plays each Round that comes; says the seconds and CPU-seconds it took."""
    os.sched_setaffinity(0, setup.cores)
    try:
        asyncio.run(_work(SIDES[name](setup), pipe))
    except (EOFError, BrokenPipeError):
        return  # the run has gone away
    except Exception as error:
        pipe.send(f"{name}: {type(error).__name__}: {error}")


async def _work(side: ActorSide | OfflineSide, pipe: Connection) -> None:
    await side.start()
    pipe.send((0.0, 0.0))
    while True:
        round = await asyncio.to_thread(pipe.recv)
        began, used = time.monotonic(), time.process_time()
        tokens = await side.play(round.questions)
        seconds, cpu_s = time.monotonic() - began, time.process_time() - used
        if tokens != round.tokens:
            raise RuntimeError(f"{tokens} tokens were sampled, not {round.tokens}")
        pipe.send((seconds, cpu_s))


def serve_replay(folder: str, endpoints: Endpoints, cores: tuple[int, ...], pipe: Connection) -> None:
    """The main function of the replay service's process: until the run has gone away."""
    from replay.server.service import Service

    os.sched_setaffinity(0, cores)
    with Service(Path(folder, "spool"), endpoints, ReplaySettings(), RUN):
        pipe.send((0.0, 0.0))
        try:
            pipe.recv()
        except EOFError:
            return
