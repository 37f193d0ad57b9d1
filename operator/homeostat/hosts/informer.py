# SPDX-License-Identifier: Apache-2.0
"""Keeping what one host says current: a full list on connecting, a bulk list now and then, events as wake-ups between.

The cost at rest is per host: definitions are read for domains that are new or changed, and of all domains at a sweep.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Protocol, TypeVar

from homeostat.api.observed import (
    ACTIVE_STATES,
    Absent,
    Answer,
    Credentials,
    Domain,
    HostAnswer,
    HostFacts,
    Present,
    Unknown,
)
from homeostat.hosts.cache import DomainCache, bare, read_definitions, read_domain
from homeostat.hosts.driver import (
    OPERATION_TIMEOUT,
    RPC,
    Connection,
    DomainRow,
    Driver,
    Event,
    HostError,
    HostUnreachable,
)
from homeostat.hosts.migration import Job
from homeostat.hosts.reasons import explain, sentence

T = TypeVar("T")
log = logging.getLogger(__name__)

NOT_ASKED = Unknown("NotAsked")
READS_AT_ONCE = 4
FIRST_PAUSE_SECONDS = 1.0


class InformerSettings(Protocol):
    """In seconds."""

    @property
    def host_resync_seconds(self) -> float:
        """Between bulk lists."""

    @property
    def sweep_seconds(self) -> float:
        """Between reads of everything: some changes of a definition have no event."""

    @property
    def connect_timeout_seconds(self) -> float:
        """For an attempt to connect, and for the answers to one look."""

    @property
    def reconnect_seconds(self) -> float:
        """The longest pause between attempts."""

    @property
    def call_deadline_seconds(self) -> float:
        """For one read of a list or a definition."""


@dataclass(frozen=True, slots=True)
class LookAnswer:
    """What a host said of one UUID and one name when asked. `name_holder`: UUID of the domain that has the name.

    `job` is what it was doing with the domain right before that; Unknown when that was not asked or not answered.
    """

    answer: Answer
    name_holder: str | None = None
    job: Job | Unknown | None = NOT_ASKED


@contextlib.asynccontextmanager
async def _within(seconds: float, code: int = RPC) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise HostUnreachable(code, f"it was not answered within {seconds:g} s") from None


class HostInformer:
    """One Hypervisor's informer. `on_change` gets its name and the UUIDs with news; None: anything may have changed.

    `silent_since` is since when an earlier process has had no answer.
    `connection` is what effects are performed on: None unless the expected host is connected and was listed in full.
    """

    def __init__(
        self,
        name: str,
        driver: Driver,
        now: Callable[[], datetime],
        settings: InformerSettings,
        on_change: Callable[[str, set[str] | None], None],
        silent_since: datetime | None = None,
    ) -> None:
        self.answer = HostAnswer(reachable=None, since=silent_since)
        self.connection: Connection | None = None
        self._name, self._driver, self._now, self._settings, self._on_change = name, driver, now, settings, on_change
        self._target: tuple[str, Credentials | None] | None = None
        self._expected = ""
        self._tasks: set[asyncio.Task[None]] = set()  # the last one, and those before it that are ending
        self._attended: Connection | None = None  # the one whose callbacks count
        self._cache = DomainCache()
        self._wake = asyncio.Event()
        self._dirty: set[str] = set()
        self._relist = False
        self._failures = 0
        self._chance = random.Random(name)  # spreads the hosts' attempts

    def configure(self, uri: str, credentials: Credentials | None, expected_host_uuid: str | None = None) -> None:
        """Say where the host is and, once that is known, which host it has to be. Repeating it changes nothing."""
        if self._expected != (expected_host_uuid or ""):
            self._expected = expected_host_uuid or ""
            self._check_identity()
        if self._target == (uri, credentials):
            return
        if self._target is not None:  # what the old address said proves nothing about the new one
            self.connection = self._attended = None
            self.answer = replace(self.answer, reachable=None, since=self._now(), reason="", message="")
        self._target, self._failures = (uri, credentials), 0
        for before in self._tasks:
            before.cancel()
        task = asyncio.create_task(self._run(uri, credentials, frozenset(self._tasks)), name=f"informer-{self._name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def uri(self) -> str:
        """Where the host is sought; "" before that was said."""
        return self._target[0] if self._target else ""

    async def close(self) -> None:
        """End; the connection is closed."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def look(self, uuid: str, name: str, *, job: bool = False) -> LookAnswer:
        """Ask the host now about one domain. The cache gets what it said; never raises.

        `job`: also what libvirt is doing with it, which may mean to wait for its QEMU. That is asked first: no job,
        then a state, says that the state is not that of a job under way.
        """
        connection = self.connection
        if connection is None:
            return LookAnswer(self._unknown())
        doing = await self._job(connection, uuid) if job else NOT_ASKED
        number = self._cache.begin()
        try:
            async with _within(self._settings.connect_timeout_seconds):
                domain = await read_domain(connection, uuid)
                holder = await connection.domain_named(name)
        except HostError as error:
            return LookAnswer(Unknown(*explain(error), self.answer.since), job=doing)
        if connection is not self.connection:  # lost, or found to lead to another host, while it was asked
            return LookAnswer(self._unknown())
        self._tell(self._take(number, {uuid: domain}))
        return LookAnswer(Absent() if domain is None else Present(domain), holder, doing)

    async def _job(self, connection: Connection, uuid: str) -> Job | Unknown | None:
        try:
            async with _within(self._settings.connect_timeout_seconds):
                return await connection.job(uuid)
        except HostError as error:
            return Unknown(*explain(error))

    # The life of a connection

    async def _run(self, uri: str, credentials: Credentials | None, before: frozenset[asyncio.Task[None]]) -> None:
        if before:
            await asyncio.wait(before)
        while True:
            try:
                await self._attend(uri, credentials)
            except HostError as error:
                self._unreachable(*explain(error))
            except Exception as error:  # a fault of ours must not leave a host that looks well
                log.debug("attending %s failed", self._name, exc_info=True)
                self._unreachable(*sentence("InternalError", repr(error)))
            await self._pause()

    async def _attend(self, uri: str, credentials: Credentials | None) -> None:
        """Connect and follow the host until it is lost, or turns out to be another. HostError: it could not be read."""
        async with _within(self._settings.connect_timeout_seconds, OPERATION_TIMEOUT):
            connection = await self._driver.open(uri, credentials)
        try:
            self._attended = connection
            connection.subscribe(self._event, lambda why: self._closed(connection, why))
            await self._meet(connection)
            await self._follow(connection)
        except HostError:
            if self._attended is connection:  # else it is known already, and why
                raise
        finally:
            if self._attended is connection:
                self.connection = self._attended = None
            await connection.close()

    async def _meet(self, connection: Connection) -> None:
        """The first full look; `connection` is set after it if the host is the expected one."""
        facts = self._with_pools(await self._bounded(connection.facts()))
        if self._is_expected(facts):
            await self._list(connection, definitions_of_all=True)
        if self._attended is not connection:
            return
        if not self._is_expected(facts):  # the expectation may have changed meanwhile
            self._mismatch(facts)
            return
        self.connection, self._failures = connection, 0
        self.answer = replace(
            self.answer, reachable=True, since=self._now(), heard=self._now(), reason="", message="", facts=facts
        )
        log.info("connected to %s, host %s with libvirt %s", self._name, facts.host_uuid, facts.libvirt_version)
        self._on_change(self._name, None)

    async def _follow(self, connection: Connection) -> None:
        """Keep the cache current for as long as `connection` is the one in use.

        A list waits for a domain that libvirt is destroying, ten seconds and more when its QEMU is stopped (measured);
        events do not wait for the list.
        """
        tasks = {asyncio.create_task(work) for work in (self._lists(connection), self._events(connection))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in done:
            task.result()

    async def _lists(self, connection: Connection) -> None:
        time = asyncio.get_running_loop().time
        resync, sweep = self._settings.host_resync_seconds, self._settings.sweep_seconds
        listed = swept = time()
        while self.connection is connection:
            if time() >= swept + sweep:
                swept = listed = time()
                await self._sweep(connection)
            elif self._relist or time() >= listed + resync:
                self._relist, listed = False, time()
                self._tell(await self._list(connection, definitions_of_all=False))
            else:
                await self._awake(min(listed + resync, swept + sweep) - time())

    async def _events(self, connection: Connection) -> None:
        """Read the domains that events are about, none after another: libvirt may be busy with one of them for long."""
        reading: dict[str, asyncio.Task[None]] = {}
        try:
            while self.connection is connection:
                for uuid in [uuid for uuid, task in reading.items() if task.done()]:
                    reading.pop(uuid).result()
                for uuid in self._dirty - reading.keys():
                    self._dirty.discard(uuid)
                    reading[uuid] = asyncio.create_task(self._read(connection, uuid))
                    reading[uuid].add_done_callback(lambda _task: self._wake.set())
                await self._awake(self._settings.sweep_seconds)
        finally:
            for task in reading.values():
                task.cancel()

    async def _awake(self, seconds: float) -> None:
        """Until something happens, at most for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0)):
                await self._wake.wait()
        self._wake.clear()

    async def _pause(self) -> None:
        """Longer after each failure; cut short when another host is expected."""
        longest = min(self._settings.reconnect_seconds, FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self._wake.clear()
        await self._awake(longest * self._chance.uniform(0.5, 1.0))

    # Reads

    async def _sweep(self, connection: Connection) -> None:
        facts = self._with_pools(await self._bounded(connection.facts()))
        changed = await self._list(connection, definitions_of_all=True)
        if self.connection is not connection:
            return
        if not self._is_expected(facts):
            self._mismatch(facts)
        elif facts != self.answer.facts:
            self.answer = replace(self.answer, facts=facts)
            self._on_change(self._name, None)
        self._tell(changed)

    def _with_pools(self, facts: HostFacts) -> HostFacts:
        """While storage hangs, the pools as they were: where their folders are does not change by that."""
        old = self.answer.facts
        if facts.pools_known or old is None or old.host_uuid != facts.host_uuid:
            return facts
        return replace(facts, pools=old.pools)

    async def _list(self, connection: Connection, *, definitions_of_all: bool) -> set[str]:
        """Bring the cache to a bulk list that is begun now; the UUIDs with news."""
        number = self._cache.begin()
        rows = await self._bounded(connection.domains())
        unread = rows if definitions_of_all else self._cache.changed_rows(rows)
        found = await self._gather({row.uuid: row for row in unread}, lambda row: self._definitions(connection, row))
        if self._attended is not connection:
            return set()
        return self._take(number, {**self._cache.missing(number, (row.uuid for row in rows)), **found})

    async def _definitions(self, connection: Connection, row: DomainRow) -> Domain | None:
        """One domain of a list; one whose definitions cannot be had is still there."""
        try:
            if row.state not in ACTIVE_STATES and not row.persistent:  # it went while the list was made, call by call
                return await self._bounded(read_domain(connection, row.uuid))
            return await self._bounded(read_definitions(connection, row))
        except HostUnreachable:
            raise
        except HostError as error:
            log.info("the definition of domain %s on %s cannot be had: %s", row.name, self._name, error.message)
            return self._cache.domains.get(row.uuid) or bare(row)

    async def _read(self, connection: Connection, uuid: str) -> None:
        number = self._cache.begin()
        try:
            domain = await self._bounded(read_domain(connection, uuid))
        except HostError as error:
            log.info("domain %s of %s cannot be read, all are listed again: %s", uuid, self._name, error.message)
            self._relist = True
            return
        if self._attended is connection:
            self._tell(self._take(number, {uuid: domain}))

    async def _gather(
        self, wanted: dict[str, T], read: Callable[[T], Awaitable[Domain | None]]
    ) -> dict[str, Domain | None]:
        slots = asyncio.Semaphore(READS_AT_ONCE)

        async def one(item: T) -> Domain | None:
            async with slots:
                return await read(item)

        return dict(zip(wanted, await asyncio.gather(*map(one, wanted.values())), strict=True))

    async def _bounded(self, read: Awaitable[T]) -> T:
        async with _within(self._settings.call_deadline_seconds):
            return await read

    def _take(self, number: int, seen: dict[str, Domain | None]) -> set[str]:
        changed = self._cache.put(number, seen)
        self.answer = replace(self.answer, heard=self._now(), domains=self._cache.domains)
        return changed

    # What is said

    def _event(self, event: Event) -> None:
        if event.uuid is None:
            self._relist = True
        else:
            self._dirty.add(event.uuid)
        self._wake.set()

    def _closed(self, connection: Connection, why: str) -> None:
        if self._attended is connection:
            self.connection = self._attended = None
            self._unreachable(*explain(HostUnreachable(RPC, why)))
            self._wake.set()

    def _is_expected(self, facts: HostFacts) -> bool:
        return self._expected.lower() in ("", facts.host_uuid.lower())

    def _check_identity(self) -> None:
        """The expectation has changed: let go of a host that is not the one, ask again one that was not."""
        facts = self.answer.facts
        if self.connection is not None and facts is not None and not self._is_expected(facts):
            self._mismatch(facts)
        self._wake.set()

    def _mismatch(self, facts: HostFacts) -> None:
        self.connection = self._attended = None
        self.answer = replace(self.answer, facts=facts)
        details = f"its host UUID is {facts.host_uuid}, expected is {self._expected}"
        self._unreachable(*sentence("IdentityMismatch", details))

    def _unreachable(self, reason: str, message: str) -> None:
        """Say so once; an attempt that fails as the last one did is no news."""
        old = self.answer
        if (old.reachable, old.reason, old.message) == (False, reason, message):
            return
        since = self._now() if old.reachable else old.since or self._now()
        self.answer = replace(old, reachable=False, since=since, reason=reason, message=message)
        log.info("%s cannot be used: %s", self._name, message)
        self._on_change(self._name, None)

    def _unknown(self) -> Unknown:
        reason = "HostNotAsked" if self.answer.reachable is None else self.answer.reason
        return Unknown(reason, self.answer.message, self.answer.since)

    def _tell(self, changed: set[str]) -> None:
        if changed:
            self._on_change(self._name, changed)
