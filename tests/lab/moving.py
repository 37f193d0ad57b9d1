# SPDX-License-Identifier: Apache-2.0
"""What the drills of live migration share: a guest in mid-copy between two hosts, and what is seen of it on both."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from homeostat.api import actions as act
from homeostat.api.observed import DiskConfig
from homeostat.hosts.driver import Connection, HostError
from homeostat.hosts.migration import MigrationRequest, Out
from tests.lab import Host, Lab
from tests.lab.driving import BASE, Driven, Guest, driving, eventually, guest

RESTLESS = (f"{BASE}/restless.raw", "raw")
SLOW, NEVER = 4, 20
"""MiB/s and ms: with them a restless guest is copied for ever."""
Seen = tuple[str, str, bool, str] | None
"""State, reason, persistent, and the job as Out, In or ""; None when the host has no such domain."""
RUNS, COPIES = ("Running", "Booted", True, ""), ("Running", "Booted", True, "Out")
LEAVING, STALE = ("Paused", "Migration", True, "Out"), ("Paused", "Migration", True, "")
COMING, ARRIVED = ("Paused", "Migration", False, "In"), ("Running", "Migrated", True, "")


def restless(pool: str = "shared") -> Guest:
    """A VM that writes to its memory all the time; its one disk is in this pool."""
    one = guest()
    folder = {"shared": "/var/lib/libvirt/shared", "default": "/var/lib/libvirt/images"}[pool]
    path = f"{folder}/{one.volume('root')}"
    disk = DiskConfig("ua-disk-root", path, "qcow2", "virtio", "root", True, (RESTLESS,))
    return replace(one, config=replace(one.config, disks=(disk,)))


@dataclass
class Move:
    """A VM, the two hosts it is moved between, and the call that does it, once it was made."""

    lab: Lab
    hosts: tuple[Host, Host]
    one: Guest
    stack: AsyncExitStack
    call: asyncio.Task[None] | None = None
    request: MigrationRequest = field(init=False)
    source: Driven = field(init=False)
    target: Driven = field(init=False)

    def __post_init__(self) -> None:
        self.request = MigrationRequest(self.hosts[1].uri_tcp, unsafe=True)

    async def begin(self, **changes: Any) -> None:
        """Begin a migration that does not end by itself; returns in mid-copy."""
        self.request = replace(self.request, bandwidth_mib_s=SLOW, max_downtime_ms=NEVER, **changes)
        self.call = asyncio.create_task(self.source.connection.migrate(self.one.uuid, self.request))
        await self.until_job(lambda out: out.processed > 0)

    async def switch(self) -> None:
        """Let it come to its switchover."""
        await self.source.connection.set_migration_speed(self.one.uuid, 1000)
        with contextlib.suppress(HostError):  # it may be over as soon as it is fast
            await self.source.connection.set_max_downtime(self.one.uuid, 60_000)

    async def outcome(self) -> HostError | None:
        """What the call says in the end."""
        assert self.call is not None
        try:
            await self.call
        except HostError as error:
            return error
        return None

    async def until_job(self, condition: Callable[[Out], bool]) -> Out:
        """The outgoing job once it is so."""
        for _attempt in range(1200):
            job = await self.source.connection.job(self.one.uuid)
            if isinstance(job, Out) and condition(job):
                return job
            await asyncio.sleep(0.05)
        raise AssertionError(f"not within 60 s; the job is {job}")

    async def seen(self) -> tuple[Seen, Seen]:
        """The domain on source and target: the job is asked first, as the informer does."""
        return await look(self.source.connection, self.one.uuid), await look(self.target.connection, self.one.uuid)

    async def until(self, *wanted: tuple[Seen, Seen], seconds: float = 20) -> tuple[Seen, Seen]:
        """Wait until source and target are seen as one of these, twice in a row."""
        begun, before = time.monotonic(), None
        trail = []
        while (found := await self.seen()) not in wanted or found != before:
            if found != before:
                trail.append(found)
            assert time.monotonic() < begun + seconds, f"not within {seconds} s: {wanted}; seen: {trail}"
            before = found
            await asyncio.sleep(0.05)
        return found

    def qemus(self) -> tuple[bool, bool]:
        """Whether a QEMU of it is there, on source and target."""
        there = tuple(host.qemu_pid(self.one.uuid) is not None for host in self.hosts)
        return there[0], there[1]

    def definitions(self) -> tuple[bool, bool]:
        """Whether a persistent definition of it is there, on source and target."""
        there = tuple(host.definition(self.one.uuid) is not None for host in self.hosts)
        return there[0], there[1]

    def running(self) -> tuple[bool, bool]:
        """Whether its CPUs run, on source and target, by the recorder."""
        lives = [life for life in self.lab.intervals(self.one.uuid) if life.end is None and life.running]
        names = {life.host for life in lives if life.running[-1][1] is None}
        return self.hosts[0].name in names, self.hosts[1].name in names

    def disk(self) -> tuple[int, int, int]:
        """Owner, group and mode of its disk's file, on the source's storage."""
        stat = (self.hosts[0].pool_path("shared") / self.one.volume("root")).stat()
        return stat.st_uid, stat.st_gid, stat.st_mode & 0o777

    async def connect(self) -> None:
        """Connect to both hosts, anew after a daemon was restarted."""
        self.source, self.target = [await self.stack.enter_async_context(driving(one.uri_tcp)) for one in self.hosts]


async def look(connection: Connection, uuid: str) -> Seen:
    """The domain on one host, its job asked first."""
    job = await connection.job(uuid)
    row = await connection.domain(uuid)
    return (row.state, row.reason, row.persistent, type(job).__name__ if job else "") if row else None


@asynccontextmanager
async def moving(lab: Lab, source: int = 0, target: int = 1, pool: str = "shared") -> AsyncIterator[Move]:
    """A running VM; at the end the hosts are healed and nothing is left of it.

    In pool `shared` its disk is one file, and QEMU's image lock holds between the hosts; in `default` each host has a
    file of its own at the same path, and no lock keeps one host from what the other does.
    """
    async with AsyncExitStack() as stack:
        move = Move(lab, (lab.hosts[source], lab.hosts[target]), restless(pool), stack)
        await move.connect()
        try:
            for side in (move.source, move.target) if pool == "default" else (move.source,):
                await side.do(act.CreateVolume("", pool, move.one.volume("root"), "qcow2", None, RESTLESS))
            await move.source.do(move.one.define())
            await move.source.do(act.Start("", move.one.uuid))
            await eventually(lambda: move.running()[0], "its CPUs run")
            await eventually(lambda: move.hosts[0].writes(move.one.uuid), "the guest writes to its memory", 60)
            await asyncio.sleep(1)  # to all of it
            yield move
        finally:
            await _remove(move, pool)


async def _remove(move: Move, pool: str) -> None:
    for host in move.hosts:
        await asyncio.to_thread(host.heal)
    if move.call is not None:
        move.call.cancel()
    await move.connect()
    for host, side in zip(move.hosts, (move.source, move.target), strict=True):
        await asyncio.to_thread(host.forget, move.one.uuid)
        (host.pool_path(pool) / move.one.volume("root")).unlink(missing_ok=True)
        with contextlib.suppress(HostError):
            await side.connection.refresh_pool(pool)


def drilled(
    lab: Lab, drill: Callable[[Move], Awaitable[None]], source: int = 0, target: int = 1, pool: str = "shared"
) -> None:
    """Run a drill on a running VM; CPUs of it never ran on two hosts at once."""

    async def run() -> None:
        async with moving(lab, source, target, pool) as move:
            await drill(move)
            lab.assert_never_two(move.one.uuid)

    asyncio.run(asyncio.wait_for(run(), 180))
