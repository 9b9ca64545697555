"""Whose the memory of a shared GPU is (`actors.sleep`): the engine's, or the learner's while that trains."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from actors.engines import Sleeper


class Rest:
    """An actor's. `engine` is asked for when there is one; `busy` says whether anything needs it to be awake."""

    def __init__(self, engine: Callable[[], Sleeper], busy: Callable[[], bool]):
        self._engine, self._busy = engine, busy
        self._turn = asyncio.Lock()
        self.asleep = False

    async def begin(self) -> None:
        """Puts the engine to sleep, unless it is needed or does."""
        if self._turn.locked():
            return
        async with self._turn:
            if not self.asleep and not self._busy():
                await self._engine().sleep()
                self.asleep = True

    async def end(self) -> None:
        """Returns when the engine is awake."""
        async with self._turn:
            if self.asleep:
                await self._engine().wake()
                self.asleep = False
