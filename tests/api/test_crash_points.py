# SPDX-License-Identifier: Apache-2.0
"""An operator that dies or is left without an answer at any of its writes to a real API server does no harm.

Each write of a clean run is crossed with each fault. After it an operator is at work again, and the world has to become
exactly what was declared: one process, one definition, the volumes; and after deletion what is to be retained.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from homeostat.api.meta import FINALIZER
from homeostat.kube.http import HttpTransport
from tests.api.server import Server
from tests.api.serving import await_storage
from tests.api.worlds import SETTLE_SECONDS, Lists, World, is_write, world
from tests.controlplane import ControlPlane, GivenControlPlane

FAULTS = ("kill-before", "kill-after", "drop-reply", "late=1")
KILLING = ("kill-before", "kill-after", "late=1")
AWAY_SECONDS = 0.2
WORLDS_AT_ONCE = 10
WRITES = {
    "create": {"PATCH vm", "PATCH status vm homeostat-candidates", "PATCH status vm homeostat-vm"},
    "delete": {"PATCH vm", "PATCH status vm homeostat-vm"},
}
"""What a scenario writes at the least: one that does without would not be tried where it matters."""


@dataclass(frozen=True, slots=True)
class Point:
    """A write, by its name and the how-manieth of that name in its scenario, and what goes wrong at it."""

    write: str
    occurrence: int
    fault: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.write} ({self.occurrence})"


@contextlib.asynccontextmanager
async def listing(kubeconfig: Path) -> AsyncIterator[Lists]:
    """What worlds on this API server have in common."""
    http = await HttpTransport.connect(str(kubeconfig))
    lists = Lists(http)
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(lists.run())
            yield lists
            task.cancel()
    finally:
        await http.close()


async def come_to_run(w: World) -> str:
    """Wait until the VM runs, check that there is exactly what was declared, and return its UID."""
    await w.until(w.running, "the VM running")
    await asyncio.sleep(SETTLE_SECONDS)
    w.check()
    vm, found = await w.vm(), w.found()
    assert vm is not None
    uid = vm["metadata"]["uid"]
    assert [each[1:] for each in found["definitions"]] == [(uid, True)], w.tell()
    assert [each[1:] for each in found["processes"]] == [(uid, True)], w.tell()
    host = found["processes"][0][0]
    assert found["definitions"][0][0] == vm["status"]["host"] == host, w.tell()
    assert [each["hypervisor"] for each in vm["status"]["candidates"]] == [host], w.tell()
    assert vm["metadata"]["finalizers"] == [FINALIZER], w.tell()
    assert [name.split("_")[2] for name in found["files"]] == ["data", "root"], w.tell()
    return str(uid)


async def come_to_an_end(w: World, uid: str) -> None:
    """Wait until the VM is gone and check that nothing but the disk to be retained is left."""
    await w.until(w.gone, "the VM gone")
    await asyncio.sleep(SETTLE_SECONDS)
    w.check()
    assert await w.vm() is None
    found = w.found()
    assert (found["definitions"], found["processes"]) == ([], []), w.tell()
    assert [(name.split("_")[2], uid in name) for name in found["files"]] == [("root", True)], w.tell()
    assert len(w.ledger.processes) == 1, w.tell()  # ever


async def live(lists: Lists, scenario: str, point: Point | None = None) -> list[str]:
    """Lead a VM through its life, with a fault in one scenario of it; returns the writes of that scenario."""
    written: dict[str, list[str]] = {}
    uid = ""
    async with world(lists) as w:
        for name in WRITES:
            begun = len(w.effects.log)
            act = w.create_vm if name == "create" else w.delete_vm
            await (act() if point is None or name != scenario else strike(w, act, point))
            if name == "create":
                uid = await come_to_run(w)
            else:
                await come_to_an_end(w, uid)
            written[name] = [each.name for each in w.effects.log[begun:] if is_write(each)]
    return written[scenario]


async def strike(w: World, act: Callable[[], Awaitable[None]], point: Point) -> None:
    """Have a fault strike in what comes of an act; where it killed the operator, start another."""
    fault = w.effects.fault((re.escape(point.write), point.occurrence), point.fault, on="web")
    await act()
    await w.until(lambda: fault.reached, str(point))
    if point.fault in KILLING:
        await asyncio.sleep(AWAY_SECONDS)
        w.start()


def points(writes: list[str]) -> Iterator[Point]:
    """Every write of a scenario, crossed with every fault."""
    count: Counter[str] = Counter()
    for write in writes:
        count[write] += 1
        yield from (Point(write, count[write], fault) for fault in FAULTS)


async def every_point(kubeconfig: Path, scenario: str) -> tuple[list[str], list[Point], list[str]]:
    """Run all points of a scenario; returns the writes of a clean run, the points, and what went wrong at which."""
    room = asyncio.Semaphore(WORLDS_AT_ONCE)
    failed: list[str] = []

    async def run(point: Point) -> None:
        async with room:
            try:
                await live(lists, scenario, point)
            except AssertionError as error:
                failed.append(f"{point}: {error}")

    async with listing(kubeconfig) as lists, asyncio.TaskGroup() as group:
        writes = await live(lists, scenario)
        tried = list(points(writes))
        for point in tried:
            group.create_task(run(point))
    return writes, tried, failed


@pytest.mark.parametrize("scenario", WRITES)
def test_every_crash_point(
    cluster: ControlPlane | GivenControlPlane, server: Server, scenario: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await_storage(server)
    writes, tried, failed = asyncio.run(every_point(cluster.kubeconfig, scenario))
    with capsys.disabled():
        print(f"\n{scenario}: {len(writes)} writes, {len(tried)} points on a real API server")
    assert not failed, f"{len(failed)} of {len(tried)} points, the first: {failed[0]}\nall:\n" + "\n".join(
        each.partition("\n")[0] for each in failed
    )
    assert set(writes) >= WRITES[scenario]
