# SPDX-License-Identifier: Apache-2.0
"""Storage that hangs harms what is asked of it, for a while that is known, and nothing else."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from unittest.mock import Mock

import pytest

from homeostat.api.observed import Unknown
from homeostat.hosts.driver import HostUnreachable, NotBegun
from homeostat.hosts.links import DriverSettings
from homeostat.reconcile import observe
from homeostat.reconcile.fleet import Fleet
from tests.simulation.clock import now, run_virtual
from tests.unit.driven import FakeLibvirt, connected

pytestmark = pytest.mark.unit

QUICK = DriverSettings(connect_timeout=5, deadline=10, agent_deadline=1)


def test_a_host_whose_storage_hangs_still_says_what_it_is() -> None:
    async def drill() -> tuple[bool, float]:
        host = FakeLibvirt()
        host.hangs.add("listAllVolumes")
        async with connected(host, QUICK) as connection:
            asked = [asyncio.create_task(connection.volumes("nfs")) for _ in range(20)]
            await asyncio.sleep(0.1)
            begun = time.monotonic()
            facts = await connection.facts()
            for each in asked:
                each.cancel()
        return facts.pools_known, time.monotonic() - begun

    known, seconds = asyncio.run(drill())
    assert not known
    assert seconds < 8  # it would be 10 without a limit of its own


def test_who_asks_storage_that_hangs_is_told_so_and_does_not_wait_for_all_who_asked_before() -> None:
    async def one(connection: Any) -> tuple[type[BaseException], float]:
        begun = time.monotonic()
        with pytest.raises((NotBegun, HostUnreachable)) as caught:
            await connection.volumes("nfs")
        return caught.type, time.monotonic() - begun

    async def drill() -> list[tuple[type[BaseException], float]]:
        host = FakeLibvirt()
        host.hangs.add("listAllVolumes")
        async with connected(host, QUICK) as connection:
            return await asyncio.gather(*(one(connection) for _ in range(20)))

    ends = asyncio.run(drill())
    assert {kind for kind, _ in ends} == {NotBegun, HostUnreachable}
    assert max(seconds for kind, seconds in ends if kind is NotBegun) < 8
    assert max(seconds for _, seconds in ends) < 19  # who waited for another's end would have been told after 20


def test_a_look_at_storage_that_never_answers_ends_and_says_why() -> None:
    async def drill() -> tuple[list[object], float]:
        async def never(*_: object) -> None:
            await asyncio.Event().wait()

        connection = Mock(refresh_pool=never, volumes=never, volume_size=never)
        fleet = Fleet(now, Mock(), storage_seconds=60)
        fleet.informers["h"] = Mock(connection=connection)
        needed: Any = Mock(earlier=frozenset())
        looks = [observe.everything(fleet, "h", "p"), observe._names(fleet, "h", "p", needed)]
        found = await asyncio.gather(*looks, observe._size(fleet, "h", "p", "v"))
        return list(found), asyncio.get_running_loop().time()

    found, seconds = run_virtual(drill())
    unknown = Unknown("PoolUnavailable", "it was not answered within 60 s")
    assert found == [unknown, unknown, Unknown("VolumeUnavailable", unknown.message)]
    assert seconds == pytest.approx(60)
