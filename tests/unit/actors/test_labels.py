"""No token of new weights has the label of older, proved ones: not amid a load, nor after one that failed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actors.engines.vllm_async import AsyncEngine
from actors.engines.vllm_local import LocalEngine


class Core:
    """In the place of vLLM: notes what it is told, and under which label it computes."""

    def __init__(self) -> None:
        self.label, self.loaded_under = "3", ""

    def _rpc(self, method: str) -> list[Any]:
        if method == "redraft_load":
            self.loaded_under = self.label
            raise RuntimeError("half of it is loaded")
        return [[None]] if method == "redraft_ended" else [None]

    def set_weight_version(self, label: str) -> None:
        self.label = label


class Local(Core):
    def collective_rpc(self, method: str, args: tuple = ()) -> list[Any]:
        return self._rpc(method)


class Apart(Core):
    async def collective_rpc(self, method: str, args: tuple = ()) -> list[Any]:
        return self._rpc(method)

    async def update_weight_version(self, label: str) -> None:
        self.label = label


def engine(kind: type, core: Core) -> Any:
    made: Any = object.__new__(kind)
    made._llm, made.version = core, 3

    async def do(work) -> None:
        work()

    if kind is LocalEngine:
        made._do = do
    return made


@pytest.mark.parametrize(("kind", "core"), [(AsyncEngine, Apart()), (LocalEngine, Local())], ids=["apart", "local"])
def test_weights_are_loaded_under_their_own_label(kind, core):
    made = engine(kind, core)
    with pytest.raises(RuntimeError, match="half of it"):
        asyncio.run(made.load(None, 4))
    assert core.loaded_under == core.label == "4" and made.version == 3
