# SPDX-License-Identifier: Apache-2.0
"""/healthz tells an operator that is stuck from one that is busy."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any
from unittest.mock import Mock

import pytest

from homeostat.cli.endpoints import Endpoints
from homeostat.runtime.controller import Controller, Key, Result
from tests.simulation.clock import run_virtual

pytestmark = pytest.mark.unit

KEYS: list[Key] = [("shop", str(number)) for number in range(100)]
KINDS = ("hypervisor", "virtualmachine", "virtualmachinemigration")


async def quick(_: Key) -> Result:
    return Result()


async def slow(_: Key) -> Result:
    await asyncio.sleep(100)
    return Result()


async def hung(_: Key) -> Result:
    await asyncio.Event().wait()
    return Result()


def health(seconds: float, kind: str, work: Callable[[Key], Coroutine[Any, Any, Result]]) -> list[int]:
    """What /healthz says in the end, and said before, of an operator of which one controller does this work."""

    async def keys() -> list[Key]:
        return KEYS

    async def main() -> list[int]:
        made = {each: Controller(each, work if each == kind else quick, keys=keys, workers=4) for each in KINDS}
        tasks = [asyncio.create_task(each.run()) for each in made.values()]
        operator: Any = Mock(
            hypervisors=made["hypervisor"], vms=made["virtualmachine"], migrations=made["virtualmachinemigration"]
        )
        said = []
        for _ in range(10):
            await asyncio.sleep(seconds / 10)
            said.append((await Endpoints(operator, ":0")._healthz(Mock())).status)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return said

    return run_virtual(main())


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_whose_workers_are_all_stuck_is_not_healthy(kind: str) -> None:
    said = health(300, kind, hung)
    assert (said[0], said[-1]) == (200, 500)


@pytest.mark.parametrize("kind", KINDS)
def test_an_operator_that_has_much_to_do_is_healthy(kind: str) -> None:
    assert set(health(2000, kind, slow)) == {200}


def test_an_operator_that_had_nothing_to_do_for_long_is_healthy_when_something_comes() -> None:
    assert set(health(3000, "virtualmachine", quick)) == {200}


def test_keys_that_wait_for_a_controller_to_begin_are_no_reason_to_restart() -> None:
    async def main() -> int:
        async def none() -> list[Key]:
            return []

        idle = Controller("virtualmachine", quick, keys=none)
        idle.queue.add(KEYS[0])
        await asyncio.sleep(1000)
        operator: Any = Mock(hypervisors=idle, vms=idle, migrations=idle)
        return (await Endpoints(operator, ":0")._healthz(Mock())).status

    assert run_virtual(main()) == 200
