"""Dialogues of agents through the endpoint beside the same ones that `retry` plays in process, interleaved.

    python -m benchmarks.endpoint [--quick] [--rounds N]

The work: waves of 64 episodes at once, each of 4 turns. A question has 64 tokens, each turn samples exactly 64 (end
tokens do not end it), and 11 tokens of feedback come between.

    retry     rollout `retry` with an environment that answers at once
    agent     rollout `agent`: 64 processes, in each a loop around OpenAI's client (`benchmarks/endpoint_agent.py`),
              which speaks HTTP to the endpoint; paths, turns and rewards are made as in a run

Real: the engine, the endpoint, the programs. Made for this: the environment, and the model (0.8 million random weights:
the smaller the model, the more the work around it weighs). Both share one engine and take turns, in alternating order;
figures are medians over rounds, ratios are taken within rounds. "CPU" is that of the process with engine and endpoint,
which the programs, processes of their own and a little behind it in priority, do not count into; so it is the same on a
busy machine. Seconds need two idle cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path

from actors import engines, rendering, rollouts
from actors.config import EngineSettings, EnvironmentSettings, SamplingSettings
from actors.environment_pool import EnvironmentPool
from actors.group import GroupWriter
from actors.rollout_config import AgentSettings, RetrySettings, Rollout
from benchmarks.endpoint_agent import TURNS
from benchmarks.generation import MODEL
from benchmarks.generation_sides import MAX_LENGTH, TOKENS, Hearing, Round, exact_length
from protocols.turns import Lease, Turn
from redraft.config import ModelSettings
from redraft.models import make as models

EPISODES = 64
QUICK_ROUNDS, ROUNDS = 5, 15
AGENT = Path(__file__).with_name("endpoint_agent.py")


class Side:
    """One way to play."""

    def __init__(self, engine, renderer, settings: Rollout):
        self._engine, self._renderer, self._settings = engine, renderer, settings
        self.pool = EnvironmentPool(Hearing, 60.0, 32)

    async def wave(self, work: Round) -> tuple[float, float]:
        """Seconds and CPU-seconds."""
        began, spent = time.monotonic(), time.process_time()
        tokens = sum(await asyncio.gather(*(self._group(n, text) for n, text in enumerate(work.questions))))
        if tokens != work.tokens:
            raise RuntimeError(f"{self._settings.name} sampled {tokens} tokens, not {work.tokens}")
        return time.monotonic() - began, time.process_time() - spent

    async def _group(self, number: int, question: str) -> int:
        tokens, failures = [], []
        task = {"id": str(number), "question": question}

        def sink(item, lease, spread: float) -> None:
            if isinstance(item, Turn):
                tokens.append(len(item.response))

        writer = GroupWriter(Lease(number.to_bytes(16, "big"), 0, number, task, number), sink)
        stage = rollouts.Stage(
            self._engine,
            self._renderer,
            self.pool,
            writer,
            task,
            number,
            self._settings,
            SamplingSettings(max_tokens=TOKENS),
            failures.append,
            lambda role: None,
        )
        await rollouts.find(self._settings.name)(stage)
        writer.close()
        if failures:
            raise failures[0]
        return sum(tokens)


async def measured(model: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Seconds and CPU-seconds of each round, by side."""
    exact_length()
    settings = EngineSettings(max_running=256, max_length=MAX_LENGTH)
    engine = await engines.start(model, "float32", settings, 0)
    renderer = rendering.load(model)
    sides = {
        "retry": Side(engine, renderer, RetrySettings(turns=TURNS)),
        "agent": Side(engine, renderer, AgentSettings(run=f"{AGENT}:solve", processes=EPISODES, kind="answers")),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    try:
        for number in range(rounds + 1):
            for place, name in enumerate(sorted(sides, reverse=number % 2 == 0)):
                spent = await sides[name].wave(Round(2 * number + place, EPISODES))
                if number:  # the first one starts processes
                    found[name].append(spent)
                    print(f"round {number} of {rounds}: {name} {spent[0]:.2f} s, {spent[1]:.2f} CPU-s", flush=True)
    finally:
        for side in sides.values():
            await side.pool.close()
        await engine.close()
    return found


def summary(found: dict[str, list[tuple[float, float]]]) -> dict:
    tokens = EPISODES * TURNS * TOKENS
    line: dict = {"benchmark": "endpoint", "episodes": EPISODES, "turns": TURNS, "rounds": len(found["retry"])}
    for place, unit in enumerate(("s", "cpu_s")):
        line |= {
            f"{name}_tokens_per_{unit}": round(tokens / statistics.median(one[place] for one in spent))
            for name, spent in found.items()
        }
        ratios = [one[place] / other[place] for one, other in zip(found["retry"], found["agent"], strict=True)]
        line[f"ratio_{unit}"] = round(statistics.median(ratios), 3)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds")
    parser.add_argument("--rounds", type=int, help="rounds of both sides")
    asked = parser.parse_args()
    rounds = asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        making = ModelSettings(dtype="float32", make=MODEL)
        model = models.prepare(making, EnvironmentSettings(name="signs"), Path(folder), lambda line: None)
        print(json.dumps(summary(asyncio.run(measured(model, rounds)))))


if __name__ == "__main__":
    main()
