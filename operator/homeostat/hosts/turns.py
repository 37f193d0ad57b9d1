# SPDX-License-Identifier: Apache-2.0
"""Who may do what to a pool at once: libvirt refuses to refresh one while a volume of it is being made (measured)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from homeostat.hosts.driver import HostUnreachable


class Turns:
    """Volumes of one pool are made side by side, a refresh runs alone, and one refresh serves all who waited for it."""

    def __init__(self) -> None:
        self._door = asyncio.Lock()  # held by a refresh while it waits and runs: nothing new begins
        self._idle = asyncio.Event()
        self._idle.set()
        self._making = self._begun = self._ended = 0
        self._lost: tuple[int, HostUnreachable] | None = None  # the last refresh that was not answered

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
        """Return once a refresh that began after this call has ended well; what `work` raises otherwise.

        One that was not answered has failed for all who waited for it: each trying anew would hold up the others.
        """
        wanted = self._begun + 1
        async with self._door:
            if self._ended >= wanted:
                return
            if self._lost is not None and self._lost[0] >= wanted:
                error = self._lost[1]
                raise HostUnreachable(error.code, error.message, error.domain)
            await self._idle.wait()
            self._begun = number = self._begun + 1
            try:
                await work()
            except HostUnreachable as error:
                self._lost = number, error
                raise
            self._ended = number
