# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 - the port says what each method returns
"""The driver on libvirt-python: connections of their own for each purpose, so that what hangs harms only its like.

`reads` carries what is asked of one domain and `lists` what is asked of all: libvirt answers neither for a domain that
it is destroying, for ten seconds and more when its QEMU is stopped. `effects` changes domains; `storage` is for pools
and volumes (a dead NFS server hangs these), `agent` and `addresses` for what waits for a program inside a guest: for
requests to power off, and for questions. `facts` is for what makes libvirt examine the host. They are opened when they
are needed. `observe` is always there, for events; when it is lost, the host is. The end of any other connection is only
that of its own call.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import libvirt

from homeostat.api.observed import Checkpoint, HostFacts, Pool, Volume
from homeostat.hosts import jobs, lanes, reads
from homeostat.hosts.driver import (
    NO_DOMAIN,
    OPERATION_TIMEOUT,
    Connection,
    Credentials,
    DomainRow,
    Driver,
    Event,
    HostError,
    NotBegun,
)
from homeostat.hosts.links import DriverSettings, Endpoint, Links
from homeostat.hosts.migration import Cost, Job, MigrationRequest, classified
from homeostat.hosts.names import METADATA_KEY, METADATA_NAMESPACE
from homeostat.hosts.sessions import Session, Virt, host_error
from homeostat.hosts.turns import Turns

__all__ = ["DriverSettings", "LibvirtConnection", "LibvirtDriver"]

T = TypeVar("T")

_READS, _STORAGE, _AGENT, _ADDRESSES, _JOBS, _MIGRATIONS = 8, 4, 4, 2, 4, 64
_REFUSAL_SECONDS, _AGENT_SHUTDOWN_SECONDS = 2.0, 70.0  # libvirt itself waits for a minute


class LibvirtDriver(Driver):
    """Opens connections to libvirt hosts."""

    def __init__(self, settings: DriverSettings | None = None) -> None:
        self._settings = settings or DriverSettings()
        _start_events()

    async def open(self, uri: str, credentials: Credentials | None) -> LibvirtConnection:
        """A connection that answers, or HostUnreachable. May never return: wrap it in a time-out.

        Cancelled, the attempt goes on in its thread, and a connection that comes late is closed.
        """
        connection = LibvirtConnection(Endpoint(uri, credentials, self._settings))
        try:
            await connection.start()
        except BaseException:
            await connection.close()
            raise
        return connection


class LibvirtConnection(Connection):
    """One host. `deadline` is how many seconds a call may take before its connection is closed under it."""

    def __init__(self, endpoint: Endpoint) -> None:
        settings = endpoint.settings
        self.deadline, self._long, self._agent_deadline = (
            settings.deadline, settings.long_deadline, settings.agent_deadline,
        )  # fmt: skip
        self._endpoint = endpoint
        self._observe: Session | None = None
        self._reads = Links("reads", endpoint, _READS)
        self._lists = Links("lists", endpoint, 1)
        self._facts = Links("facts", endpoint, 1)
        self._agent = Links("agent", endpoint, _AGENT)
        self._addresses = Links("addresses", endpoint, _ADDRESSES)
        self._storage = Links("storage", endpoint, _STORAGE)
        self._turns: defaultdict[str, Turns] = defaultdict(Turns)  # by pool
        self._effects = Links("effects", endpoint, settings.effect_threads)
        self._jobs = Links("jobs", endpoint, _JOBS)
        self._migrations = Links("migrations", endpoint, _MIGRATIONS)
        self._asked: dict[str, asyncio.Task[Job | None]] = {}  # by UUID
        self._on_event: Callable[[Event], None] = lambda event: None
        self._on_close: Callable[[str], None] | None = None

    async def start(self) -> None:
        """Open the connection for observation and have its events sent."""
        self._observe = session = await self._endpoint.connect("observe", self._lost)

        def enqueue(uuid: str, kind: str) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                session.loop.call_soon_threadsafe(self._event, Event(uuid, kind))

        def register(virt: Virt) -> None:
            session.callbacks = reads.register_events(virt, enqueue)

        await session.run(register, self.deadline)

    def subscribe(self, on_event: Callable[[Event], None], on_close: Callable[[str], None]) -> None:
        """See Connection.subscribe. What happened before is not replayed, except that the connection was lost."""
        self._on_event, self._on_close = on_event, on_close
        if self._observe is not None and self._observe.ended:
            self._lost(self._observe.ended)

    async def close(self) -> None:
        """End the connection; calls under way end with HostUnreachable. on_close is not called."""
        self._on_close = None
        self._close_links("the connection was closed")

    async def facts(self) -> HostFacts:
        host = await self._facts.call(reads.host, self.deadline)
        try:
            async with asyncio.timeout(self._agent_deadline):  # of which a part may be spent waiting for others' calls
                return replace(host, pools=await self._storage.call(reads.pools, self._agent_deadline))
        except (HostError, TimeoutError):  # storage that hangs must not make the host unknown
            return replace(host, pools_known=False)

    async def domains(self) -> list[DomainRow]:
        return await self._lists.call(reads.domains, self.deadline)

    async def domain(self, uuid: str) -> DomainRow | None:
        return await self._read(_or_none(lambda virt: reads.domain(virt.lookupByUUIDString(uuid))))

    async def domain_named(self, name: str) -> str | None:
        return await self._read(_or_none(lambda virt: str(virt.lookupByName(name).UUIDString())))

    async def xml(self, uuid: str, *, inactive: bool) -> str | None:
        # Secrets are part of what a redefinition has to keep, and of nothing else.
        flags = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE if inactive else 0
        return await self._read(_or_none(lambda virt: str(virt.lookupByUUIDString(uuid).XMLDesc(flags))))

    async def job(self, uuid: str) -> Job | None:
        if uuid in self._asked:  # a QEMU that hangs may take up one connection, not all
            raise HostError(OPERATION_TIMEOUT, "an earlier question about this domain's job has not been answered yet")
        question = asyncio.create_task(self._jobs.call(lambda virt: jobs.job(virt, uuid), self.deadline))
        self._asked[uuid] = question
        question.add_done_callback(lambda done: self._answered(uuid, done))
        return await asyncio.shield(question)

    async def cost(self, uuid: str) -> Cost | None:
        return await self._read(_or_none(lambda virt: jobs.cost(virt.lookupByUUIDString(uuid))))

    async def checkpoints(self, uuid: str) -> tuple[Checkpoint, ...] | None:
        return await self._read(_or_none(lambda virt: reads.checkpoints(virt.lookupByUUIDString(uuid))))

    async def addresses(self, uuid: str) -> list[tuple[str, str, str]]:
        return await self._addresses.call(
            lambda virt: reads.addresses(virt.lookupByUUIDString(uuid)), self._agent_deadline
        )

    async def pool(self, name: str) -> Pool:
        return await self._stored(lambda virt: reads.pool(virt, name))

    async def volumes(self, pool: str, examined: frozenset[str] = frozenset()) -> list[Volume]:
        return await self._stored(lambda virt: reads.volumes(virt.storagePoolLookupByName(pool), examined))

    async def volume_size(self, pool: str, name: str) -> int:
        return await self._stored(
            lambda virt: int(virt.storagePoolLookupByName(pool).storageVolLookupByName(name).info()[1])
        )

    async def refresh_pool(self, pool: str) -> None:
        await self._turns[pool].refresh(lambda: self._store(lambda virt: virt.storagePoolLookupByName(pool).refresh(0)))

    async def create_volume(self, pool: str, xml: str) -> None:
        async with self._turns[pool].making():
            await self._store(lambda virt: virt.storagePoolLookupByName(pool).createXML(xml, 0))

    async def delete_volume(self, pool: str, name: str) -> None:
        await self._store(lambda virt: virt.storagePoolLookupByName(pool).storageVolLookupByName(name).delete(0))

    async def define(self, xml: str) -> None:
        await self._effect(lambda virt: virt.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE))

    async def create(self, uuid: str, *, paused: bool) -> None:
        flags = libvirt.VIR_DOMAIN_START_PAUSED if paused else 0
        await self._on(uuid, lambda domain: domain.createWithFlags(flags), deadline=self._long)

    async def shutdown(self, uuid: str, *, agent: bool) -> None:
        if agent:
            await self._ask_agent(
                lambda virt: virt.lookupByUUIDString(uuid).shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)
            )
        else:
            await self._on(uuid, lambda domain: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN))

    async def destroy(self, uuid: str) -> None:
        await self._on(uuid, lambda domain: domain.destroyFlags(0), deadline=self._long)

    async def suspend(self, uuid: str) -> None:
        await self._on(uuid, lambda domain: domain.suspend())

    async def resume(self, uuid: str) -> None:
        await self._on(uuid, lambda domain: domain.resume())

    async def undefine(self, uuid: str) -> None:
        flags = libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM | libvirt.VIR_DOMAIN_UNDEFINE_KEEP_TPM
        flags |= libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA  # else it is refused when there are any
        await self._on(uuid, lambda domain: domain.undefineFlags(flags))

    async def redefine_checkpoint(self, uuid: str, xml: str) -> None:
        flags = libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        await self._on(uuid, lambda domain: domain.checkpointCreateXML(xml, flags))

    async def set_metadata(self, uuid: str, element: str, *, live: bool) -> None:
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if live else libvirt.VIR_DOMAIN_AFFECT_CONFIG
        kind = libvirt.VIR_DOMAIN_METADATA_ELEMENT
        await self._on(uuid, lambda domain: domain.setMetadata(kind, element, METADATA_KEY, METADATA_NAMESPACE, flags))

    async def remove_managed_save(self, uuid: str) -> None:
        await self._on(uuid, lambda domain: domain.managedSaveRemove(0))

    async def reach(self, uuid: str, peer: str) -> None:
        await self._migrate(lambda virt: jobs.reach(virt.lookupByUUIDString(uuid), peer))

    async def migrate(self, uuid: str, request: MigrationRequest) -> None:
        await self._migrate(lambda virt: jobs.migrate(virt.lookupByUUIDString(uuid), request))

    async def resume_post_copy(self, uuid: str, request: MigrationRequest) -> None:
        await self._migrate(lambda virt: jobs.resume_post_copy(virt.lookupByUUIDString(uuid), request))

    async def abort_job(self, uuid: str) -> None:
        await self._on(uuid, lambda domain: domain.abortJob())

    async def set_max_downtime(self, uuid: str, milliseconds: int) -> None:
        await self._on(uuid, lambda domain: domain.migrateSetMaxDowntime(milliseconds, 0))

    async def set_migration_speed(self, uuid: str, mib_s: int) -> None:
        await self._on(uuid, lambda domain: domain.migrateSetMaxSpeed(mib_s, 0))

    async def start_post_copy(self, uuid: str) -> None:
        await self._on(uuid, lambda domain: domain.migrateStartPostCopy(0))

    async def _migrate(self, work: Callable[[Virt], None]) -> None:
        """In a connection of its own, without a deadline: keep-alive notices a source that is lost.

        Not as an effect that is waited for: a cancellation leaves it to its thread, and libvirt ends no migration
        because its client is gone (measured).
        """
        try:
            await self._migrations.call(work, math.inf)
        except HostError as error:
            raise classified(error) from None

    def _answered(self, uuid: str, question: asyncio.Task[Job | None]) -> None:
        del self._asked[uuid]
        if not question.cancelled():
            question.exception()  # looked at, should nobody wait for it any more

    async def _read(self, work: Callable[[Virt], T]) -> T:
        return await self._reads.call(work, self.deadline)

    async def _stored(self, work: Callable[[Virt], T]) -> T:
        return await self._storage.call(work, self.deadline, patience=self._endpoint.settings.connect_timeout)

    async def _store(self, work: Callable[[Virt], object]) -> None:
        await self._storage.call(work, self.deadline, effect=True)

    async def _on(self, uuid: str, work: Callable[[Virt], object], deadline: float | None = None) -> None:
        await self._effect(lambda virt: work(virt.lookupByUUIDString(uuid)), deadline)

    async def _effect(self, work: Callable[[Virt], object], deadline: float | None = None) -> None:
        await self._effects.call(work, deadline or self.deadline, effect=True)

    async def _ask_agent(self, work: Callable[[Virt], object]) -> None:
        """Refused at once or not at all: libvirt returns when the guest is off, or after a minute.

        Asked for longer than this, the request is with the guest's process. NotBegun when it was not asked for at all:
        as many guests as may be asked at once have not answered yet.
        """
        begun = threading.Lock()  # held by the request, or by this once it has given up on it

        def ask(virt: Virt) -> None:
            if begun.acquire(blocking=False):
                work(virt)

        try:
            async with asyncio.timeout(_REFUSAL_SECONDS):
                await self._agent.call(ask, _AGENT_SHUTDOWN_SECONDS)
        except TimeoutError:
            if begun.acquire(blocking=False):
                why = f"no connection for agents was free within {_REFUSAL_SECONDS:g} s"
                raise NotBegun(OPERATION_TIMEOUT, why) from None

    def _event(self, event: Event) -> None:
        self._on_event(event)

    def _lost(self, why: str) -> None:
        on_close, self._on_close = self._on_close, None
        self._close_links(why)
        if on_close is not None:
            on_close(why)

    def _close_links(self, why: str) -> None:
        if self._observe is not None:
            self._observe.end(why)
        for links in (self._reads, self._lists, self._facts, self._agent, self._addresses, self._storage, self._effects,
                      self._jobs, self._migrations):  # fmt: skip
            links.close(why)


def _or_none(work: Callable[[Virt], T]) -> Callable[[Virt], T | None]:
    def guarded(virt: Virt) -> T | None:
        try:
            return work(virt)
        except libvirt.libvirtError as error:
            if host_error(error).code == NO_DOMAIN:
                return None
            raise

    return guarded


@functools.cache
def _start_events() -> None:
    """Once per process, before the first connection: libvirt's event loop, without which there is no keep-alive."""
    libvirt.registerErrorHandler(lambda context, error: None, None)  # it would print every error to stderr
    libvirt.virEventRegisterDefaultImpl()

    def turn() -> None:
        while True:
            with contextlib.suppress(libvirt.libvirtError):
                libvirt.virEventRunDefaultImpl()

    lanes.start("libvirt-events", turn)
