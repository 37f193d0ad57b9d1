# SPDX-License-Identifier: Apache-2.0
"""Making volumes and refreshing their pool take turns."""

from __future__ import annotations

import asyncio

import pytest

from homeostat.hosts.driver import RPC, HostUnreachable
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


def test_a_refresh_that_is_not_answered_is_not_tried_again_by_each_who_waited_for_it() -> None:
    async def drill() -> int:
        turns, tries = Turns(), 0

        async def work() -> None:
            nonlocal tries
            tries += 1
            await asyncio.sleep(60)
            if tries <= 2:
                raise HostUnreachable(RPC, "a call was not answered within 60 s")

        async def made() -> float:
            async with turns.making():
                return asyncio.get_running_loop().time()

        waiting = [asyncio.create_task(turns.refresh(work)) for _ in range(20)]
        await asyncio.sleep(1)
        making = asyncio.create_task(made())
        errors = await asyncio.gather(*waiting, return_exceptions=True)
        assert {str(each) for each in errors} == {"a call was not answered within 60 s"}
        assert await making == 120, "one refresh was under way when the others were asked for, and one was for them"
        await turns.refresh(work)  # asked for later, it is tried
        return tries

    assert run_virtual(drill()) == 3
