# SPDX-License-Identifier: Apache-2.0
"""Who may do what to a pool at once: libvirt refuses to refresh one while a volume of it is being made (measured)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable


class Turns:
    """Volumes of one pool are made side by side, a refresh runs alone, and one refresh serves all who waited for it."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()  # held by a refresh while it waits and runs: nothing new begins
        self._idle = asyncio.Event()
        self._idle.set()
        self._making = self._begun = self._ended = 0

    @contextlib.asynccontextmanager
    async def making(self) -> AsyncIterator[None]:
        """A volume may be made for as long as the context lasts."""
        async with self._door:
            self._making += 1
            self._idle.clear()
        try:
            yield
        finally:
            self._making -= 1
            if not self._making:
                self._idle.set()

    async def refresh(self, work: Callable[[], Awaitable[object]]) -> None:
        """Return once a refresh that began after this call has ended well; what `work` raises otherwise."""
        wanted = self._begun + 1
        async with self._door:
            if self._ended >= wanted:
                return
            await self._idle.wait()
            self._begun = number = self._begun + 1
            await work()
            self._ended = number
