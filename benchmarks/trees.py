"""What a tree search asks of the engine: tokens prefilled with the prefix cache and without, and how full its batch is.

    python -m benchmarks.trees [--quick] [--device cpu|cuda]

Real: the rollout `search` of Agent-R with the environment `textcraft` (data: REDRAFT_DATA, else ../shared/data), many
trees at once; the engine, vLLM in this process as actors run it on a CPU, and its prefix cache. Tokens and the batch
are counted at vLLM's scheduler, so that what is computed again after a preemption counts again.
Simulated: the model is tiny and random. It never crafts anything, so trees have no successes and no corrected
trajectories, and each sampled action is a node of its own. Since such a model would end no answer early, one token in
32 ends it: lengths are geometric, cut at 64 tokens. A token is a byte, so prompts are 714 to 1,262
tokens before the first action.

    cached     trees that may ask for twice what the batch holds
    uncached   the same, each prompt computed from its first token
    fitting    as cached, with so few trees that all their actions at once just fit the batch

Sides run in rounds, in alternating order, each under a weights version of its own, so that none finds the prefixes of
another. Figures are medians over rounds. Occupancy is what runs of `max_running`, weighted by time, from the first
request until the last tree begins: from then on the search runs out of work, as a training run does not. A block of
the cache has 16 tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protocols.errors import RedraftError
from redraft.config import MakeSettings, ModelSettings

ROOT = Path(__file__).resolve().parents[1]
SIDES = {"cached": 2.0, "uncached": 2.0, "fitting": 1.0}  # actions that may be asked for at once, over max_running
LONGEST = 4096
END_SHARE = 32  # one token in so many ends an answer
TARGETS = {"prefill_saving": 5.0, "occupancy": 0.8}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is searched. A side of a round grows `trees` trees of this shape."""

    rounds: int
    trees: int
    max_running: int
    turns: int = 6
    simulations: int = 4
    expansions: int = 4
    max_tokens: int = 64


QUICK, FULL = Plan(rounds=2, trees=24, max_running=32), Plan(rounds=3, trees=96, max_running=64)


@dataclass(slots=True)
class Counts:
    """What passed the scheduler: prompt tokens computed, and running requests times seconds."""

    prefilled: int = 0
    busy: float = 0.0
    seconds: float = 0.0


class Watch:
    """Stands in the way of vLLM's scheduler and of each step, and counts."""

    def __init__(self, llm):
        self.counts = Counts()
        self._scheduler, self._step = llm.engine_core.engine_core.scheduler, llm.step
        self._schedule = self._scheduler.schedule
        self._running, self._since = 0, time.monotonic()
        llm.step, self._scheduler.schedule = self._stepped, self._scheduled

    def begin(self) -> None:
        self.counts, self._running, self._since = Counts(), 0, time.monotonic()

    def _stepped(self):
        self._hold()
        outputs = self._step()
        self._hold()
        self._running = len(self._scheduler.running)
        return outputs

    def _scheduled(self, *arguments, **named):
        output = self._schedule(*arguments, **named)
        for name, count in output.num_scheduled_tokens.items():
            request = self._scheduler.requests[name]
            left = request.num_prompt_tokens - (request.num_computed_tokens - count)
            self.counts.prefilled += max(0, min(count, left))
        self._running = len(output.num_scheduled_tokens)
        return output

    def _hold(self) -> None:
        """So many were running since the last look."""
        now = time.monotonic()
        self.counts.busy += self._running * (now - self._since)
        self.counts.seconds += now - self._since
        self._since = now


def requests(end: int, cached: bool):
    """vLLM's parameters as the engine makes them, for a model whose answers have an end."""
    from actors.engines.vllm_common import Requests

    class EndingRequests(Requests):
        def sampling(self, settings):
            parameters = super().sampling(settings)
            ends = [end, *range(end % END_SHARE, end, END_SHARE)]
            parameters.stop_token_ids, parameters._all_stop_token_ids = ends, set(ends)
            parameters.skip_reading_prefix_cache = not cached
            return parameters

    return EndingRequests((end,), LONGEST)


class Search:
    """An engine, and trees that are grown on it."""

    def __init__(self, engine, tokenizer, plan: Plan, tasks: Sequence[dict]):
        from actors import environments
        from actors.config import EnvironmentSettings, SamplingSettings
        from actors.environment_pool import EnvironmentPool
        from actors.rendering import Renderer
        from actors.rollout_config import SearchSettings

        self._engine, self._plan, self._tasks = engine, plan, tasks
        self._watch = Watch(engine._llm)
        self._renderer = Renderer(tokenizer)
        settings = EnvironmentSettings(name="textcraft")
        limits = settings.time_limit_s, settings.threads
        self._environments = EnvironmentPool(lambda: environments.make(settings), *limits)
        self._settings = SearchSettings(turns=plan.turns, simulations=plan.simulations, expansions=plan.expansions)
        self._sampling = SamplingSettings(max_tokens=plan.max_tokens)
        self._requests = {side: requests(self._renderer.end, side != "uncached") for side in SIDES}
        self._answers = 0

    async def side(self, side: str, number: int) -> dict:
        """Grows the trees of the plan; figures of this side. `number` is that of no other side."""
        plan = self._plan
        self._engine._requests, self._engine.version = self._requests[side], number
        at_once = asyncio.Semaphore(round(SIDES[side] * plan.max_running / plan.expansions))
        begun, full = 0, Counts()

        async def tree(task: dict, seed: int) -> None:
            nonlocal begun, full
            async with at_once:
                begun += 1
                if begun == plan.trees:
                    full = Counts(0, self._watch.counts.busy, self._watch.counts.seconds)
                await self._tree(task, seed)

        self._answers, began = 0, time.monotonic()
        self._watch.begin()
        await asyncio.gather(*(tree(self._tasks[n % len(self._tasks)], n) for n in range(plan.trees)))
        seconds, counts = time.monotonic() - began, self._watch.counts
        return {
            "prefilled": counts.prefilled,
            "answers": self._answers,
            "occupancy": full.busy / full.seconds / plan.max_running,
            "occupancy_to_the_end": counts.busy / counts.seconds / plan.max_running,
            "trees_per_s": plan.trees / seconds,
        }

    async def _tree(self, task: dict, seed: int) -> None:
        from actors import rollouts
        from actors.group import GroupWriter
        from protocols.turns import Lease

        writer = GroupWriter(Lease(bytes(16), 0, 0, task, seed), lambda item, lease, spread: None)
        parts = (self._engine, self._renderer, self._environments, writer, task, seed, self._settings, self._sampling)
        await rollouts.find("search")(rollouts.Stage(*parts, _failed, self._count))

    def _count(self, role) -> None:
        self._answers += 1


def _failed(failure) -> None:
    raise RedraftError(f"an episode failed: {failure}")


async def run(plan: Plan, folder: Path, data: str) -> list[dict]:
    """The figures of each side of each round."""
    from transformers import AutoTokenizer

    from actors import engines, environments
    from actors.config import DataSettings, EngineSettings, EnvironmentSettings
    from redraft.models import make as models

    environment = EnvironmentSettings(name="textcraft")
    tasks = environments.tasks(environment, DataSettings(path=data), "train")
    make = MakeSettings(tokenizer="bytes", hidden=64, layers=2, heads=2, feed_forward=128, max_length=LONGEST)
    model = models.prepare(ModelSettings(dtype="float32", make=make), environment, folder)
    settings = EngineSettings(process="in_process", max_running=plan.max_running, max_length=LONGEST, kv_cache_gb=1.0)
    engine = await engines.start(model, "float32", settings, seed=0)
    search = Search(engine, AutoTokenizer.from_pretrained(str(model)), plan, tasks)
    rows = []
    try:
        for number in range(plan.rounds):
            for side in list(SIDES)[:: 1 if number % 2 == 0 else -1]:
                rows.append({"side": side, "round": number} | await search.side(side, len(rows) + 1))
                print({key: _short(value) for key, value in rows[-1].items()}, file=sys.stderr, flush=True)
    finally:
        await engine.close()
    return rows


def summary(rows: list[dict]) -> dict:
    """The figures of the last line. Tokens are counted by answer: no two searches ask for exactly the same."""
    sides = {side: [row for row in rows if row["side"] == side] for side in SIDES}
    each = {side: [row["prefilled"] / row["answers"] for row in found] for side, found in sides.items()}
    savings = [without / cached for without, cached in zip(each["uncached"], each["cached"], strict=True)]
    occupancy = {side: _median(found, "occupancy") for side, found in sides.items()}
    return {
        "prefill_saving": round(statistics.median(savings), 2),
        "occupancy": round(occupancy["cached"], 3),
        "occupancy_fitting": round(occupancy["fitting"], 3),
        "occupancy_to_the_end": round(_median(sides["cached"], "occupancy_to_the_end"), 3),
        "prefilled_per_answer": {side: round(statistics.median(values), 1) for side, values in each.items()},
        "trees_per_s": {side: round(_median(found, "trees_per_s"), 3) for side, found in sides.items()},
    }


def _median(rows: list[dict], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def _short(value):
    return round(value, 3) if isinstance(value, float) else value


def show(line: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for head in ("", "seen", "aim"):
        table.add_column(head, justify="right" if head else "left")
    for side, tokens in line["prefilled_per_answer"].items():
        trees = line["trees_per_s"][side]
        table.add_row(f"{side}: tokens prefilled an answer / trees a second", f"{tokens:,.0f} / {trees:.2f}", "")
    table.add_row("tokens prefilled without the cache over with", f"{line['prefill_saving']:.1f}", ">= 5")
    table.add_row("occupancy of the batch", f"{line['occupancy']:.2f}", ">= 0.8")
    table.add_row("  to the end of the last tree", f"{line['occupancy_to_the_end']:.2f}", "")
    table.add_row("  where all actions just fit", f"{line['occupancy_fitting']:.2f}", "")
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trees", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under 5 minutes on two cores; else under 20")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the engine computes")
    chosen = parser.parse_args()
    if chosen.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    data = Path(os.environ.get("REDRAFT_DATA") or ROOT.parent / "shared" / "data") / "textcraft"
    with tempfile.TemporaryDirectory(prefix="redraft-") as folder:
        line = summary(asyncio.run(run(QUICK if chosen.quick else FULL, Path(folder), str(data))))
    show(line)
    machine = {"quick": chosen.quick, "device": chosen.device, "cores": os.cpu_count()}
    print(json.dumps(line | machine | {"python": platform.python_version()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
