# SPDX-License-Identifier: Apache-2.0
"""Making volumes and refreshing their pool take turns."""

from __future__ import annotations

import asyncio

import pytest

from homeostat.hosts.turns import Turns
from tests.simulation.clock import run_virtual


class Pool:
    """A pool that notes what is done to it, and refuses what libvirt refuses."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.making = self.refreshes = self.most = 0
        self.refreshing = False

    async def make(self) -> None:
        async with self.turns.making():
            assert not self.refreshing
            self.making += 1
            self.most = max(self.most, self.making)
            await asyncio.sleep(0.01)
            self.making -= 1

    async def _refresh(self) -> None:
        assert not self.making
        self.refreshing = True
        await asyncio.sleep(0.01)
        self.refreshing = False
        self.refreshes += 1

    async def refresh(self) -> None:
        await self.turns.refresh(self._refresh)


def test_volumes_are_made_side_by_side_and_never_while_the_pool_is_refreshed() -> None:
    async def drill() -> Pool:
        pool = Pool()
        await asyncio.gather(*(work for _ in range(10) for work in (pool.make(), pool.refresh(), pool.make())))
        return pool

    pool = run_virtual(drill())
    assert pool.most > 1
    assert pool.refreshes >= 1


def test_those_who_ask_while_a_refresh_runs_share_the_next_one() -> None:
    async def drill() -> int:
        pool = Pool()
        first = asyncio.create_task(pool.refresh())
        await asyncio.sleep(0.005)
        assert pool.refreshing
        await asyncio.gather(*(pool.refresh() for _ in range(10)), first)
        return pool.refreshes

    assert run_virtual(drill()) == 2


def test_a_refresh_that_failed_serves_nobody_else() -> None:
    async def drill() -> None:
        turns, tries = Turns(), 0

        async def work() -> None:
            nonlocal tries
            tries += 1
            await asyncio.sleep(0)
            if tries == 1:
                raise OSError("no answer")

        first, second = (asyncio.create_task(turns.refresh(work)) for _ in range(2))
        with pytest.raises(OSError, match="no answer"):
            await first
        await second
        assert tries == 2

    run_virtual(drill())


def test_one_who_gives_up_waiting_holds_nobody_up() -> None:
    async def drill() -> None:
        pool = Pool()
        making = asyncio.create_task(pool.make())
        await asyncio.sleep(0.001)
        waiting = asyncio.create_task(pool.refresh())
        await asyncio.sleep(0.001)
        waiting.cancel()
        await asyncio.gather(making, pool.make(), pool.refresh())
        assert pool.refreshes == 1

    run_virtual(drill())
