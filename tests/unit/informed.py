# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 - the methods without a docstring are those of the port, which describes them
"""A host of a few lines for the informer, which is run on a virtual clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

from homeostat.api.observed import Checkpoint, Credentials, DomainConfig, HostFacts, Owner, Pool
from homeostat.hosts.domain_xml import render
from homeostat.hosts.driver import SYSTEM_ERROR, Connection, DomainRow, Event, HostError, HostUnreachable
from homeostat.hosts.informer import HostInformer
from homeostat.hosts.migration import Job
from homeostat.reconcile.settings import Settings
from tests.simulation.clock import now, run_virtual

A, B, C = (f"00000000-0000-4000-8000-00000000000{n}" for n in "abc")
URI = "qemu+tcp://198.51.100.2/system"
POOL = Pool("default", "Active", "/pool")
CONFIG = DomainConfig(64, 1, 1, 1, "Westmere", "pc-q35-7.2", "Emulation")


def owner(uid: str, request: str = "") -> Owner:
    """Return whose a domain is."""
    return Owner("cluster", "ns", "vm", uid, request=request)


def row(uuid: str, state: str = "Running", reason: str = "Booted", **more: Any) -> DomainRow:
    """Return a line of the list of domains."""
    return DomainRow(uuid, f"ns_{uuid[-1]}", state, reason, persistent=True, **more)


@dataclass
class Host:
    """A host: what it would answer, and what it was asked."""

    uuid: str = "host-1"
    rows: dict[str, DomainRow] = field(default_factory=dict)
    xml: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    attempts: list[float] = field(default_factory=list)
    credentials: list[Credentials | None] = field(default_factory=list)
    opening: HostError | None = None
    answering: dict[str, HostError] = field(default_factory=dict)
    silent: asyncio.Event | None = None
    silent_opens: bool = False
    storage_hangs: bool = False
    pending: int = 0  # attempts under way
    connections: list[Any] = field(default_factory=list)  # Links: as much of a Connection as is asked for
    held: dict[str, asyncio.Event] = field(default_factory=dict)  # replies that are on their way for as long
    stuck: dict[str, asyncio.Event] = field(default_factory=dict)  # domains that nothing is said of for as long
    checkpoints: dict[str, list[str]] = field(default_factory=dict)

    def put(self, one: DomainRow, request: str = "", tell: bool = True) -> None:
        """Have a domain be so; an event says it if `tell`."""
        self.rows[one.uuid] = one
        self.xml[one.uuid] = render(one.uuid, one.name, CONFIG, owner(one.uuid, request), None)
        if tell:
            self.tell(one.uuid)

    def drop(self, uuid: str, tell: bool = True) -> None:
        """Have a domain be gone."""
        del self.rows[uuid]
        if tell:
            self.tell(uuid)

    def tell(self, uuid: str | None) -> None:
        """Send an event about a domain; about what nobody knows when None."""
        for link in self.connections:
            link.on_event(Event(uuid))

    def hang_up(self, why: str = "the connection was lost (end of file)") -> None:
        """Lose every connection."""
        for link in list(self.connections):
            link.closed = why
            self.connections.remove(link)
            link.on_close(why)

    async def open(self, uri: str, credentials: Credentials | None) -> Connection:
        self.attempts.append(asyncio.get_running_loop().time())
        self.credentials.append(credentials)
        self.pending += 1
        try:
            if self.silent_opens:
                await asyncio.Event().wait()
        finally:
            self.pending -= 1
        if self.opening is not None:
            raise self.opening
        self.connections.append(Link(self))
        return self.connections[-1]  # type: ignore[no-any-return]


class Link:
    """A connection to it, with what an informer asks of one."""

    def __init__(self, host: Host) -> None:
        self.host, self.closed = host, ""
        self.on_event: Callable[[Event], None] = lambda event: None
        self.on_close: Callable[[str], None] = lambda why: None

    async def _ask(self, call: str) -> None:
        self.host.asked[call] += 1
        await asyncio.sleep(0.001)
        if self.host.silent is not None:
            await self.host.silent.wait()
        if call in self.host.held:
            await self.host.held[call].wait()
        if self.closed:
            raise HostUnreachable(SYSTEM_ERROR, self.closed, 7)
        if call in self.host.answering:
            raise self.host.answering[call]

    def subscribe(self, on_event: Callable[[Event], None], on_close: Callable[[str], None]) -> None:
        self.on_event, self.on_close = on_event, on_close

    async def facts(self) -> HostFacts:
        await self._ask("facts")
        facts = HostFacts(self.host.uuid, "host", "9.0.0", "7.2.22", 4, 4096)
        return replace(facts, pools_known=False) if self.host.storage_hangs else replace(facts, pools=(POOL,))

    async def domains(self) -> list[DomainRow]:
        rows = list(self.host.rows.values())
        await self._ask("domains")
        return rows

    async def domain(self, uuid: str) -> DomainRow | None:
        await self._ask("domain")
        if uuid in self.host.stuck:
            await self.host.stuck[uuid].wait()
        return self.host.rows.get(uuid)

    async def domain_named(self, name: str) -> str | None:
        await self._ask("domain_named")
        return next((one.uuid for one in self.host.rows.values() if one.name == name), None)

    async def xml(self, uuid: str, *, inactive: bool) -> str | None:
        text = self.host.xml[uuid] if uuid in self.host.rows else None
        await self._ask("xml")
        return text

    async def checkpoints(self, uuid: str) -> tuple[Checkpoint, ...] | None:
        await self._ask("checkpoints")
        return tuple(Checkpoint(name, f"<{name}/>") for name in self.host.checkpoints.get(uuid, ()))

    async def close(self) -> None:
        self.closed = self.closed or "closed"
        if self in self.host.connections:
            self.host.connections.remove(self)

    async def job(self, uuid: str) -> Job | None:
        await self._ask("job")
        return self.host.jobs.get(uuid)


class Watched(HostInformer):
    """An informer whose news are kept."""

    def __init__(self, host: Host, settings: Settings | None = None) -> None:
        self.news: list[set[str] | None] = []
        super().__init__("hv", host, now, settings or Settings(), lambda name, uuids: self.news.append(uuids))


def drill(test: Callable[[Host, Watched], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in virtual time on a host with one running domain, its informer connected."""

    async def run() -> None:
        host = Host()
        host.put(row(A))
        informer = Watched(host)
        informer.configure(URI, None)
        await asyncio.sleep(0.5)
        try:
            await test(host, informer)
        finally:
            await informer.close()
        assert host.connections == [], "a connection was left open"

    def inner() -> None:
        run_virtual(run())

    inner.__name__ = test.__name__
    return inner
