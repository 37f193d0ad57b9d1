# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D102 - the methods without a docstring are those of the port, which describes them
"""The driver's port in memory: connections over which calls travel to simulated hosts, and events come back."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from homeostat.api.observed import Checkpoint, HostFacts, Pool, Volume
from homeostat.hosts import driver
from homeostat.hosts.driver import Credentials, DomainRow, Event, HostError, HostUnreachable
from homeostat.hosts.migration import Cost, In, Job, MigrationRequest, classified
from tests.simulation import libvirt_xml, migration
from tests.simulation.effects import Call, Effects, Life, done_with, forever, read, write
from tests.simulation.hypervisor import Record, check_agent, invalid, not_running
from tests.simulation.machine import Machine

T = TypeVar("T")

CONNECT_SECONDS = 60.0
REQUESTS_AT_ONCE = {"observe": 3, "storage": 4, "effects": 8, "agent": 4, "jobs": 4, "migrations": 64}
"""How many calls of a kind are under way at a time; further ones wait."""

ROLES = {
    "addresses": "agent",
    "job": "jobs",
    "reach": "migrations",
    "migrate": "migrations",
    "resume_post_copy": "migrations",
}
ROLES |= dict.fromkeys(("pool", "volumes", "refresh_pool", "create_volume", "delete_volume"), "storage")
DEADLINE_SECONDS, LONG_DEADLINE_SECONDS, AGENT_DEADLINE_SECONDS = 60.0, 180.0, 20.0

SECONDS = {"create": 0.1, "define": 0.005, "create_volume": 0.05, "domains": 0.004, "facts": 0.01}
"""How long a call travels, over and above what it takes on the host."""


@dataclass(slots=True)
class Delivery:
    """How events travel: delay in seconds, and the share of them that is lost, doubled, or late and overtaken."""

    delay: float = 0.01
    lost: float = 0.0
    doubled: float = 0.0
    reordered: float = 0.0
    late: float = 5.0

    def delays(self, chance: random.Random) -> list[float]:
        """After how many seconds the event arrives: once, twice or never."""
        if chance.random() < self.lost:
            return []
        times = 2 if chance.random() < self.doubled else 1
        return [self.late * chance.random() if chance.random() < self.reordered else self.delay for _ in range(times)]


def _deadline(name: str, role: str) -> float | None:
    if role == "migrations":
        return None
    if role == "agent":
        return AGENT_DEADLINE_SECONDS
    return LONG_DEADLINE_SECONDS if name in ("create", "destroy") else DEADLINE_SECONDS


class SimulatedDriver:
    """Opens connections to the machines that addresses lead to. One for each life of an operator."""

    def __init__(self, addresses: dict[str, Machine], life: Life, effects: Effects, delivery: Delivery) -> None:
        self._addresses, self._life, self._effects, self._delivery = addresses, life, effects, delivery
        self._chance = random.Random(life.number)

    async def open(self, uri: str, credentials: Credentials | None) -> SimulatedConnection:
        """See Driver.open."""
        if not self._life.alive:
            await forever()
        host = self._addresses.get(uri)
        if host is None:
            raise HostUnreachable(driver.SYSTEM_ERROR, f"unable to connect to server at '{uri}': unknown host", 7)
        await self._reach(host)
        connection = SimulatedConnection(host, self._life, self._effects, self._delivery, self._chance)
        host.connections.append(connection)
        self._life.hang_ups.append(connection.hang_up)
        return connection

    async def _reach(self, host: Machine) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await host.linked.wait()
        except TimeoutError:
            what = f"unable to connect to server at '{host.name}:16509': Connection timed out"
            raise HostUnreachable(driver.SYSTEM_ERROR, what, 7) from None
        await asyncio.sleep(0.02)
        await host.thawed.wait()
        if not host.daemon_up:
            what = f"unable to connect to server at '{host.name}:16509': Connection refused"
            raise HostUnreachable(driver.SYSTEM_ERROR, what, 7)
        if host.refuse_open is not None:
            raise HostUnreachable(host.refuse_open.code, host.refuse_open.message, host.refuse_open.domain)


class SimulatedConnection:
    """One connection to one host. See homeostat.hosts.driver.Connection for what each method means."""

    def __init__(self, host: Machine, life: Life, effects: Effects, delivery: Delivery, chance: random.Random) -> None:
        self.host, self.life, self._effects, self._delivery, self._chance = host, life, effects, delivery, chance
        self.lost: str | None = None
        self._pending: set[asyncio.Future[Any]] = set()
        self._slots = {role: asyncio.Semaphore(number) for role, number in REQUESTS_AT_ONCE.items()}
        self._on_event: Callable[[Event], None] | None = None
        self._on_close: Callable[[str], None] | None = None
        self._context = contextvars.copy_context()

    # Calls ------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _unreachable(why: str) -> HostUnreachable:
        return HostUnreachable(driver.SYSTEM_ERROR, f"Cannot recv data: {why}", 7)

    async def _call(self, name: str, work: Callable[[], Awaitable[Any]], target: str | None = None) -> Any:
        if not self.life.alive:
            await forever()
        if self.lost is not None:
            raise HostUnreachable(driver.INTERNAL_ERROR, "internal error: client socket is closed", 7)
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.add(reply)
        raised = HostError(driver.SYSTEM_ERROR, "cannot write the status file: Input/output error", 10)
        execute = lambda: self._executed(work)  # noqa: E731
        call = Call(self.life, execute, self._unreachable, raised, SECONDS.get(name, 0.002), self._link)
        role = ROLES.get(name, "effects" if target else "observe")
        try:
            async with self._slots[role], asyncio.timeout(_deadline(name, role)):
                if target is None:
                    return await read(self._effects, call, reply)
                return await write(self._effects, call, reply, target, f"{self.host.name} {name}")
        except TimeoutError:
            if role == "observe":
                self.lose("a call did not return in time")
            raise self._unreachable("the call did not return in time") from None
        finally:
            self._pending.discard(reply)
            done_with(reply)

    async def _link(self) -> bool:
        # A request is lost with the connection while the network is cut. One that a frozen host's kernel has taken in
        # is carried out when the host goes on, its sender dead or not.
        while not self.host.linked.is_set():
            await self.host.linked.wait()
            if self.lost is not None:
                return False
        boot = self.host.boots
        await self.host.thawed.wait()
        return self.host.daemon_up and self.host.boots == boot

    async def _executed(self, work: Callable[[], Awaitable[Any]]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self.host.calls.add(task)
        try:
            return await work()
        finally:
            self.host.calls.discard(task)

    async def _read(self, name: str, work: Callable[[], T]) -> T:
        async def answer() -> T:
            return work()

        result: T = await self._call(name, answer)
        return result

    def _target(self, uuid: str) -> str:
        record = self.host.records.get(uuid)
        return record.name if record else uuid

    # Reads ------------------------------------------------------------------------------------------------------------

    async def facts(self) -> HostFacts:
        return await self._read("facts", self.host.all_facts)

    async def domains(self) -> list[DomainRow]:
        return await self._read("domains", lambda: [record.row() for record in self.host.records.values()])

    async def domain(self, uuid: str) -> DomainRow | None:
        return await self._read("domain", lambda: self._if_known(uuid, Record.row))

    async def domain_named(self, name: str) -> str | None:
        def uuid() -> str | None:
            record = self.host.named(name)
            return record.uuid if record else None

        return await self._read("domain_named", uuid)

    async def xml(self, uuid: str, *, inactive: bool) -> str | None:
        return await self._read(
            "xml", lambda: self._if_known(uuid, lambda record: self.host.xml(record, inactive=inactive))
        )

    async def cost(self, uuid: str) -> Cost | None:
        def spent(record: Record) -> Cost | None:
            move = record.process.move if record.process is not None else None
            if not isinstance(move, migration.Migration) or move.incoming is not record:
                return None
            return Cost(int(move.sent * 2**20))

        return await self._read("cost", lambda: self._if_known(uuid, spent))

    def _if_known(self, uuid: str, answer: Callable[[Record], T]) -> T | None:
        record = self.host.records.get(uuid)
        return answer(record) if record else None

    async def checkpoints(self, uuid: str) -> tuple[Checkpoint, ...] | None:
        def answer() -> tuple[Checkpoint, ...] | None:
            record = self.host.records.get(uuid)
            return tuple(Checkpoint(*each) for each in record.checkpoints.items()) if record else None

        found: tuple[Checkpoint, ...] | None = await self._read("checkpoints", answer)
        return found

    async def addresses(self, uuid: str) -> list[tuple[str, str, str]]:
        async def ask() -> list[tuple[str, str, str]]:
            process = await self.host.monitor(self.host.find(uuid))
            check_agent(process)
            macs = [mac.get("address", "") for mac in process.live.iterfind("devices/interface/mac")]
            return [(f"eth{n}", mac, f"198.51.100.{process.pid % 200 + n}") for n, mac in enumerate(macs)]

        result: list[tuple[str, str, str]] = await self._call("addresses", ask)
        return result

    async def pool(self, name: str) -> Pool:
        return await self._read("pool", lambda: self.host.pool_state(name))

    async def volumes(self, pool: str, examined: frozenset[str] = frozenset()) -> list[Volume]:
        return await self._read("volumes", lambda: self.host.pool(pool).volumes(examined))

    async def volume_size(self, pool: str, name: str) -> int:
        return await self._read("volume_size", lambda: self.host.pool(pool).size(name))

    # Effects ----------------------------------------------------------------------------------------------------------

    async def refresh_pool(self, pool: str) -> None:
        def refresh() -> None:
            self.host.pool(pool).check_active()
            self.host.pool(pool).refresh()

        await self._read("refresh_pool", refresh)  # changes what libvirt shows, not what is there

    async def create_volume(self, pool: str, xml: str) -> None:
        async def work() -> None:
            self.host.pool(pool).create(xml)

        await self._call("create_volume", work, libvirt_xml.called(xml))

    async def delete_volume(self, pool: str, name: str) -> None:
        async def work() -> None:
            self.host.pool(pool).delete(name)

        await self._call("delete_volume", work, name)

    async def define(self, xml: str) -> None:
        target = libvirt_xml.called(xml)
        await self._call("define", lambda: self.host.define(xml), target)

    async def create(self, uuid: str, *, paused: bool) -> None:
        await self._call("create", lambda: self.host.create(uuid, paused=paused), self._target(uuid))

    async def shutdown(self, uuid: str, *, agent: bool) -> None:
        await self._call("shutdown", lambda: self.host.shutdown(uuid, agent=agent), self._target(uuid))

    async def destroy(self, uuid: str) -> None:
        await self._call("destroy", lambda: self.host.destroy(uuid), self._target(uuid))

    async def suspend(self, uuid: str) -> None:
        await self._call("suspend", lambda: self.host.suspend(uuid), self._target(uuid))

    async def resume(self, uuid: str) -> None:
        await self._call("resume", lambda: self.host.resume(uuid), self._target(uuid))

    async def undefine(self, uuid: str) -> None:
        await self._call("undefine", lambda: self.host.undefine(uuid), self._target(uuid))

    async def set_metadata(self, uuid: str, element: str, *, live: bool) -> None:
        name = "set_metadata live" if live else "set_metadata"
        await self._call(name, lambda: self.host.set_metadata(uuid, element, live=live), self._target(uuid))

    async def redefine_checkpoint(self, uuid: str, xml: str) -> None:
        await self._call("redefine_checkpoint", lambda: self.host.redefine_checkpoint(uuid, xml), self._target(uuid))

    async def remove_managed_save(self, uuid: str) -> None:
        await self._call("remove_managed_save", lambda: self.host.remove_managed_save(uuid), self._target(uuid))

    # Live migration ---------------------------------------------------------------------------------------------------

    async def job(self, uuid: str) -> Job | None:
        async def ask() -> Job | None:
            record = self.host.records.get(uuid)
            if record is None or record.process is None or record.doing is None:
                return None
            if not isinstance(record.doing, migration.Migration):
                return In()
            await record.process.awake.wait()
            return record.doing.progress()

        result: Job | None = await self._call("job", ask)
        return result

    async def reach(self, uuid: str, peer: str) -> None:
        try:
            await self._call("reach", lambda: migration.reach(self.host, uuid, peer))
        except HostError as error:
            raise classified(error) from None

    async def migrate(self, uuid: str, request: MigrationRequest) -> None:
        await self._move("migrate", lambda: migration.migrate(self.host, uuid, request), uuid)

    async def resume_post_copy(self, uuid: str, request: MigrationRequest) -> None:
        await self._move("resume_post_copy", lambda: migration.resume_post_copy(self.host, uuid, request), uuid)

    async def _move(self, name: str, work: Callable[[], Awaitable[None]], uuid: str) -> None:
        try:
            await self._call(name, work, self._target(uuid))
        except HostError as error:
            raise classified(error) from None

    async def abort_job(self, uuid: str) -> None:
        def abort(move: migration.Migration) -> None:
            if move.post_copy:
                raise invalid("cannot abort migration in post-copy mode")
            move.aborted = True

        await self._steer("abort_job", uuid, abort)

    async def set_max_downtime(self, uuid: str, milliseconds: int) -> None:
        await self._steer("set_max_downtime", uuid, lambda move: setattr(move, "downtime", milliseconds))

    async def set_migration_speed(self, uuid: str, mib_s: int) -> None:
        await self._steer("set_migration_speed", uuid, lambda move: setattr(move, "speed", float(mib_s)))

    async def start_post_copy(self, uuid: str) -> None:
        def switch(move: migration.Migration) -> None:
            if not move.request.post_copy:
                raise invalid("switching to post-copy requires migration to be started with VIR_MIGRATE_POSTCOPY flag")
            move.post_copy = True

        await self._steer("start_post_copy", uuid, switch)

    async def _steer(self, name: str, uuid: str, change: Callable[[migration.Migration], None]) -> None:
        async def work() -> None:
            record = self.host.find(uuid)
            if not record.active:
                raise not_running()
            if name in ("set_max_downtime", "set_migration_speed") and record.doing is None:
                return  # kept by QEMU; the next migration sets its own
            move = migration.outgoing(record)
            move.account()
            change(move)
            move.changed.set()

        await self._call(name, work, self._target(uuid))

    # Events and the end -----------------------------------------------------------------------------------------------

    def subscribe(self, on_event: Callable[[Event], None], on_close: Callable[[str], None]) -> None:
        self._on_event, self._on_close = on_event, on_close
        self._context = contextvars.copy_context()

    def tell(self, uuid: str | None, kind: str) -> None:
        """An event of the host sets out."""
        for delay in self._delivery.delays(self._chance):
            self._effects.later(delay, self._arrive, Event(uuid, kind))

    def _arrive(self, event: Event) -> None:
        reachable = self.host.linked.is_set() and self.host.thawed.is_set()
        if self._on_event is not None and self.lost is None and self.life.alive and reachable:
            self._context.run(self._on_event, event)

    def lose(self, why: str) -> None:
        """The connection is gone: calls under way fail, and the one who subscribed hears of it."""
        if self.lost is not None:
            return
        self.lost = why
        if self in self.host.connections:
            self.host.connections.remove(self)
        for reply in self._pending:
            if not reply.done() and self.life.alive:
                reply.set_exception(HostUnreachable(driver.INTERNAL_ERROR, f"internal error: {why}", 7))
        if self._on_close is not None and self.life.alive:
            asyncio.get_running_loop().call_soon(self._on_close, why, context=self._context)

    def hang_up(self) -> None:
        """The operator's process is dead: the host sees the connection close. What it has taken in it carries out."""
        self.lost = "the client is gone"
        if self in self.host.connections:
            self.host.connections.remove(self)

    async def close(self) -> None:
        """See Connection.close."""
        if self.life.alive:
            self._on_close = None
            self.lose("closed by the client")
