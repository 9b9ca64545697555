"""Answers in which weights had a part that are not proved yet wait for the proof, and are given up where it fails."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from support.published import Published

from actors.config import SamplingSettings
from actors.engines import Completion
from actors.weights import Proved
from protocols.errors import WeightsError
from protocols.turns import LOGPROBS, TOKENS, Stop
from protocols.weights import Probe

PROBE = Probe((1, 2, 3), (-1.0, -1.0), 0.1)


class Scored:
    """An engine whose answers are made by the version that was loaded last, and whose probe waits to be let."""

    def __init__(self, scores: float):
        self.version, self.running, self.error = 0, 0, None
        self._scores, self.asked, self.let = scores, asyncio.Event(), asyncio.Event()

    async def generate(self, prompt_ids, sampling) -> Completion:
        return Completion(np.zeros(1, TOKENS), np.zeros(1, LOGPROBS), ((0, self.version),), Stop.END, 0.0)

    async def load(self, path, version):
        self.version = version

    async def score(self, ids):
        self.asked.set()
        await self.let.wait()
        return np.full(len(ids) - 1, self._scores, np.float32)

    async def sums(self, unit):
        return None


def pushed(scores: float) -> tuple[SimpleNamespace, list[str]]:
    """What came of the answers before, amid and after a push, and in which order things were over."""

    async def scenario():
        inner: Any = Scored(scores)
        engine, over = Proved(inner), []
        made = Published({"a": torch.ones(4)}, 7, PROBE)
        before = await engine.generate(np.zeros(1, TOKENS), SamplingSettings())
        push = asyncio.ensure_future(engine.apply(made.ref, made.path, 0.1))
        push.add_done_callback(lambda _: over.append("proof"))
        await inner.asked.wait()
        amid = asyncio.ensure_future(engine.generate(np.zeros(1, TOKENS), SamplingSettings()))
        amid.add_done_callback(lambda _: over.append("answer"))
        for _ in range(10):
            await asyncio.sleep(0)  # one turn of the event loop
        assert not amid.done()
        inner.let.set()
        result = (await asyncio.gather(push, return_exceptions=True))[0]
        found = await amid
        after = await engine.generate(np.zeros(1, TOKENS), SamplingSettings())
        return SimpleNamespace(before=before, amid=found, after=after, result=result), over

    return asyncio.run(scenario())


def test_an_answer_of_a_version_that_is_being_proved_comes_after_the_proof():
    found, over = pushed(scores=-1.0)
    assert found.result == 0.0 and over == ["proof", "answer"]
    assert [one.versions for one in (found.before, found.amid, found.after)] == [((0, 0),), ((0, 7),), ((0, 7),)]
    assert {one.stop for one in (found.before, found.amid, found.after)} == {Stop.END}


def test_answers_of_a_version_that_fails_its_proof_are_given_up_also_those_that_come_later():
    found, _ = pushed(scores=-3.0)
    assert isinstance(found.result, WeightsError)
    assert found.before.stop is Stop.END
    assert [one.stop for one in (found.amid, found.after)] == [Stop.ABORTED] * 2 and not len(found.amid.ids)
