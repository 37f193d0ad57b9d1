# SPDX-License-Identifier: Apache-2.0
"""An operator that dies or is left without an answer at any of its writes to a real API server does no harm.

Each write of a clean run is crossed with each fault; a VM's life meets one at its creation and one at its deletion.
After it an operator is at work again, and the world has to become exactly what was declared: one process, one
definition, the volumes; and after deletion what is to be retained.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

from homeostat.api.meta import FINALIZER
from homeostat.kube.http import HttpTransport
from tests.api.server import Server
from tests.api.serving import await_storage
from tests.api.worlds import SETTLE_SECONDS, Lists, World, world
from tests.controlplane import ControlPlane, GivenControlPlane
from tests.rings import FIGURE

FAULTS = ("kill-before", "kill-after", "drop-reply", "late=1")
KILLING = ("kill-before", "kill-after", "late=1")
AWAY_SECONDS = 0.2
WORLDS_AT_ONCE = 8
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
    assert [each["hypervisor"] for each in vm["status"].get("candidates", [])] == [host], w.tell()
    assert vm["metadata"].get("finalizers") == [FINALIZER], w.tell()
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


async def live(w: World, at_creation: Point | None = None, at_deletion: Point | None = None) -> list[str]:
    """Lead a VM through its life, with up to two faults; returns what was written until it ran."""
    try:
        await strike(w, w.create_vm, at_creation)
        uid = await come_to_run(w)
        written = await settled(w)
        await strike(w, w.delete_vm, at_deletion)
        await come_to_an_end(w, uid)
    except AssertionError as error:
        raise AssertionError(f"{at_creation}, then {at_deletion}: {error}") from error
    return written


async def settled(w: World) -> list[str]:
    """All that was written, once nothing is added: Events are written one after the other, beside everything else."""
    before: list[str] | None = None
    while (now := w.writes()) != before:
        before = now
        await asyncio.sleep(SETTLE_SECONDS)
    return now


async def strike(w: World, act: Callable[[], Awaitable[None]], point: Point | None) -> None:
    """Have a fault strike in what comes of an act; where it killed the operator, start another."""
    if point is None:
        await act()
        return
    fault = w.effects.fault((re.escape(point.write), point.occurrence), point.fault, on="web-.*")
    await act()
    await w.until(lambda: fault.reached, str(point))
    if point.fault in KILLING:
        await asyncio.sleep(AWAY_SECONDS)
        w.start()


def points(writes: list[str]) -> list[Point]:
    """Every write, crossed with every fault."""
    count: Counter[str] = Counter()
    found = []
    for write in writes:
        count[write] += 1
        found += [Point(write, count[write], fault) for fault in FAULTS]
    return found


async def clean(lists: Lists) -> dict[str, list[str]]:
    """What is written in a life in which nothing goes wrong."""
    async with world(lists) as w:
        creation = await live(w)
        return {"create": creation, "delete": w.writes()[len(creation) :]}


async def run(lists: Lists, pairs: Iterator[tuple[Point | None, Point | None]]) -> list[str]:
    """Take pairs of points until there are none; a world in which something went wrong is left for a new one."""
    failed = []
    for first in pairs:
        async with world(lists) as w:
            try:
                for pair in chain([first], pairs):
                    await live(w, *pair)
            except AssertionError as error:
                failed.append(str(error))
    return failed


async def every_point(kubeconfig: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Run all points; returns the writes of a clean run, by scenario, and what went wrong."""
    async with listing(kubeconfig) as lists:
        writes = await clean(lists)
        pairs = zip_longest(points(writes["create"]), points(writes["delete"]))
        failed = await asyncio.gather(*(run(lists, pairs) for _ in range(WORLDS_AT_ONCE)))
    return writes, [*chain(*failed)]


def test_every_crash_point(
    cluster: ControlPlane | GivenControlPlane, server: Server, record_property: Callable[[str, object], None]
) -> None:
    await_storage(server)
    writes, failed = asyncio.run(every_point(cluster.kubeconfig))
    for name, each in writes.items():
        record_property(FIGURE, f"{name}, on a real API server: {len(each)} writes, {len(points(each))} points")
    assert not failed, f"{len(failed)} lives went wrong, the first: {failed[0]}\nall:\n" + "\n".join(
        each.partition("\n")[0] for each in failed
    )
    for name, least in WRITES.items():
        assert set(writes[name]) >= least
