# SPDX-License-Identifier: Apache-2.0
"""A live migration between simulated hosts, in the phases of libvirt's protocol.

They are: begin, prepare, perform, finish, confirm. The source's daemon drives it over a connection of its own to the
target's. It can go wrong between any two phases, in every reply, and by the end of either daemon, QEMU or host. What
the hosts show then was taken from libvirt 9.0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING

from homeostat.hosts import driver
from homeostat.hosts.driver import HostError
from homeostat.hosts.migration import In, MigrationRequest, Out
from tests.simulation import libvirt_xml
from tests.simulation.hypervisor import QEMU_DOMAIN, Record, invalid

if TYPE_CHECKING:
    from tests.simulation.machine import Machine
    from tests.simulation.qemu import Process

RPC_DOMAIN, DOMAIN_DOMAIN = 7, 20  # VIR_FROM_RPC, VIR_FROM_DOM
SILENCE_SECONDS = 30.0  # until one libvirtd gives another up: 5 times (5 + 1) seconds
CONNECT_SECONDS = 127.0  # of TCP
FAST_MIB_S = 400.0
TICK_SECONDS = 0.5
POINTS = ("begun", "prepared", "performing", "paused", "performed", "finishing", "finished", "confirmed")
"""Where something can be made to happen: Machine.at, on the source."""


class Migration:
    """One attempt, from the source's call until libvirt is through with it on both sides."""

    def __init__(self, source: Machine, record: Record, request: MigrationRequest) -> None:
        self.source, self.record, self.request = source, record, request
        self.target: Machine | None = None
        self.incoming: Record | None = None
        self.point = "begun"
        self.post_copy = self.aborted = False
        self.paused = record.state == "Paused"
        self.stream: asyncio.Task[None] | None = None
        self.attended = False
        self._ends_of_daemon = 0
        self._held: asyncio.Lock | None = None
        self.speed = float(request.bandwidth_mib_s or FAST_MIB_S)
        self.downtime = request.max_downtime_ms
        self.iteration, self.sent, self.left = 1, 0.0, float(_process(record).memory_mib)
        self.total = self.left
        self._begun = self._marked = self._heard = self._now()
        self.changed = asyncio.Event()

    # What it shows ----------------------------------------------------------------------------------------------------

    def progress(self) -> Out:
        """The statistics of the job."""
        left = (
            max(self.left - self.speed * (self._now() - self._marked), 0) if self.point == "performing" else self.left
        )
        return Out(
            processed=int((self.sent + self.left - left) * 2**20),
            remaining=int(left * 2**20),
            total=int(self.total * 2**20),
            dirty_rate=int(self.dirty * 256) if self.iteration > 1 else 0,
            iteration=self.iteration,
            bytes_per_second=int(self.speed * 2**20),
            elapsed=int((self._now() - self._begun) * 1000),
            max_downtime=self.downtime,
        )

    @property
    def dirty(self) -> float:
        """MiB a second that the guest writes to, less what auto-convergence takes from it."""
        process = self.record.process
        rate = process.guest.dirty_mib_s if process is not None else 0.0
        return float(rate * 0.8 ** max(self.iteration - 3, 0)) if self.request.auto_converge else rate

    def account(self) -> None:
        """Count what has been sent so far: the speed is about to change."""
        if self.point == "performing":
            moved = min(self.speed * (self._now() - self._marked), self.left)
            self.sent, self.left, self._marked = self.sent + moved, self.left - moved, self._now()

    # The phases -------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All of it. HostError as libvirt raises it; the hosts are left as it leaves them."""
        with self._ending():
            await self._connect()
            self._check_safe()
            await self._prepare()
            await self._perform()
            await self._finish()
            await self._fetch()
            self._confirm()

    async def resume(self) -> None:
        """Go on after post-copy failed."""
        assert self.incoming is not None
        if self.incoming.process is None:
            raise invalid("the target has no such domain")
        self._ends_of_daemon = self._target.ends_of_daemon
        self._show("Postcopy")
        with self._ending():
            await self._fetch()
            self._confirm()

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Leaves the hosts as libvirt does when what is done inside of this fails."""
        try:
            yield
        except asyncio.CancelledError:  # the source's daemon is gone
            self._lose_source()
            raise
        except HostError:
            self._roll_back()
            raise
        finally:
            self._release()

    async def _connect(self) -> None:
        host = await _connected(self.source, self.request.peer)
        if host is self.source:
            what = f"internal error: Attempt to migrate guest to the same host {host.facts.host_uuid}"
            raise HostError(driver.INTERNAL_ERROR, what, QEMU_DOMAIN)
        self.target, self._ends_of_daemon = host, host.ends_of_daemon

    def _check_safe(self) -> None:
        stays = len(_process(self.record).files) > len(self.request.copy_disks)
        if not self.request.unsafe and stays:
            what = "Unsafe migration: Migration without shared storage is unsafe"
            raise HostError(driver.MIGRATE_UNSAFE, what, QEMU_DOMAIN)

    async def _prepare(self) -> None:
        target, process = self._target, _process(self.record)
        self._reach("begun")
        await self._pass(0.05)
        incoming = target.incoming(self.record, deepcopy(process.live))
        self.incoming, self._held = incoming, incoming.job
        await incoming.job.acquire()
        process.move = _process(incoming).move = self
        await self._pass(0.3)
        target.shows(incoming, "Paused", "Migration")
        self._reach("prepared")
        await self._pass(0.05)

    async def _perform(self) -> None:
        self._reach("performing")
        self._marked = self._now()
        while not await self._converged():
            pass
        process = _process(self.record)
        process.pause()
        process.hand_over()
        self._copy()
        if not self.paused:
            self.source.shows(self.record, "Paused", "Postcopy" if self.post_copy else "Migration")
        if self.post_copy:
            return
        self._reach("paused")
        await self._pass(0.05 + self.left / self.speed)
        self.sent, self.left = self.sent + self.left, 0
        self._reach("performed")

    def _copy(self) -> None:
        """The disks that are copied have reached the target."""
        assert self.incoming is not None
        there = {file.name: file for file in _process(self.incoming).files}
        disks = libvirt_xml.disks(_process(self.record).live)
        copied = {path.rpartition("/")[2] for disk, path in disks if _alias(disk) in self.request.copy_disks}
        for file in _process(self.record).files:
            if file.name in copied:
                there[file.name].version = file.version

    async def _converged(self) -> bool:
        """One iteration over the memory; whether what is left then can be sent while the guest stands still."""
        begun = self._now()
        self._check()
        while not (self.post_copy or self._short()):
            await self._pass(min(self.left / self.speed, TICK_SECONDS), steerable=True)
            self.account()
        self.left = min(self.left + self.dirty * (self._now() - begun), self.total)
        self.iteration += 1
        return self.post_copy or self._short()

    def _short(self) -> bool:
        return self.left / self.speed * 1000 <= self.downtime

    async def _finish(self) -> None:
        """The request travels, the target takes over, the answer travels back."""
        self._reach("finishing")
        while not self._target.hears(self.source):
            await self._pass(TICK_SECONDS)
        await self._pass(0.02)
        self._take_over()
        self._reach("finished")
        while not self._target.is_heard(self.source):
            await self._pass(TICK_SECONDS)
        await self._pass(0.02)

    def _take_over(self) -> None:
        target, incoming = self._target, self.incoming
        assert incoming is not None
        process = _process(incoming)
        kept = self.record.persistent if self.record.persistent is not None else self.record.live
        assert kept is not None
        incoming.persistent = deepcopy(kept)
        process.carry_on(_process(self.record))
        if self.request.start_paused or self.paused:
            incoming.doing = None
            self._release()
            target.shows(incoming, "Paused", "User")
            return
        target.activate(process)
        process.run()
        incoming.doing = In() if self.post_copy else None
        self._release()
        target.shows(incoming, "Running", "Postcopy" if self.post_copy else "Migrated")

    async def _fetch(self) -> None:
        """In post-copy: the memory that is still missing, which the QEMUs send each other whatever the daemons do."""
        if not self.post_copy:
            return
        self.attended = True
        self.stream = self.source.effects.spawn(self._stream())
        while not self.stream.done():
            await asyncio.wait([self.stream], timeout=TICK_SECONDS)
            self._check_connection()
        if self.left > 0:
            what = "operation failed: job 'migration in' failed in post-copy phase"
            raise HostError(driver.OPERATION_FAILED, what, QEMU_DOMAIN)
        self._arrive()

    async def _stream(self) -> None:
        rate = float(self.request.post_copy_mib_s or FAST_MIB_S)
        while self.left > 0 and self._streams():
            step = min(self.left / rate, TICK_SECONDS)
            await asyncio.sleep(step)
            self.left, self.sent = max(self.left - rate * step, 0), self.sent + rate * step
        if self.attended:
            return
        if self.left > 0:
            self._show("PostcopyFailed")
        else:  # libvirt forgets that the source was to be undefined
            self._arrive()
            process = _process(self.record)
            process.on_end = None
            process.end("Migrated")
            self.source.off(self.record, "Migrated")

    def _streams(self) -> bool:
        assert self.incoming is not None
        linked = self.source.linked.is_set() and self._target.linked.is_set() and not self._target.parted
        return linked and self.record.process is not None and self.incoming.process is not None

    def _arrive(self) -> None:
        assert self.incoming is not None
        self.incoming.doing = None
        self._release()
        self._target.shows(self.incoming, "Running", "Migrated")

    def _confirm(self) -> None:
        record, process = self.record, _process(self.record)
        self._reach("confirmed")
        process.on_end = None
        process.end("Migrated")
        record.persistent, record.doing = None, None
        record.checkpoints.clear()
        self.source.off(record, "Migrated")

    # When it goes wrong -----------------------------------------------------------------------------------------------

    def _roll_back(self) -> None:
        """The source takes it for failed, whatever the target has made of it."""
        if self.post_copy and self.point in ("finishing", "finished"):
            self._show("PostcopyFailed", streaming=self.stream is not None and not self.stream.done())
            return
        if self.point not in ("finished", "confirmed"):
            self._let_go()
        record, self.record.doing = self.record, None
        process = record.process
        if process is not None and record.state == "Paused" and record.reason in ("Migration", "Postcopy"):
            self.source.go_on(record, process)

    def _release(self) -> None:
        """The target has no job any more: other calls about the domain go on there."""
        held = self._held
        if held is not None and held.locked() and self.incoming is not None and self.incoming.doing is None:
            held.release()
            self._held = None

    def _show(self, reason: str, *, streaming: bool = False) -> None:
        """Both halves of a domain in post-copy, as far as they are there; as long as it streams, only the source."""
        assert self.incoming is not None
        self.attended = False
        if self.record.process is not None:
            self.record.doing = self
            self.source.shows(self.record, "Paused", reason)
        if self.incoming.process is not None and not streaming:
            self.incoming.doing = In()
            self._target.shows(self.incoming, "Running", reason)

    def _lose_source(self) -> None:
        """The source's daemon is gone: the target notices at once, or by silence when the host or its link is gone."""
        if self.post_copy and self.point in ("finishing", "finished"):
            self.attended = False
            return
        if self.target is None:
            return
        linked = self.source.linked.is_set() and self.target.linked.is_set()
        # What is refused does not arrive, but a reset does, in answer to the next thing the target says.
        seconds = SILENCE_SECONDS if not linked else SILENCE_SECONDS / 6 if self.target.refusing else 0
        self.source.effects.later(seconds, self._let_go)

    def _let_go(self) -> None:
        """The target ends what is still incoming: libvirt's auto-destroy."""
        incoming = self.incoming
        if incoming is not None and self._target.daemon_up and isinstance(incoming.doing, In):
            process, incoming.doing = incoming.process, None
            self._release()
            if process is not None:
                process.end("Crashed")

    # Time -------------------------------------------------------------------------------------------------------------

    @property
    def _target(self) -> Machine:
        assert self.target is not None
        return self.target

    def _reach(self, point: str) -> None:
        self.point = point
        happens = self.source.at.pop(point, None)
        if happens is not None:
            happens()

    async def _pass(self, seconds: float, *, steerable: bool = False) -> None:
        """Time passes; HostError when what keeps this going is gone."""
        end = self._now() + seconds
        self._check()
        while (left := end - self._now()) > 1e-9:
            self.changed.clear()
            try:
                async with asyncio.timeout(min(left, TICK_SECONDS)):
                    await self.changed.wait()
            except TimeoutError:
                pass
            await self.source.thawed.wait()
            self._check()
            if steerable and self.changed.is_set():
                return

    def _check(self) -> None:
        target, incoming = self._target, self.incoming
        if self.aborted:
            raise HostError(driver.OPERATION_ABORTED, "operation aborted: job 'migration out' canceled by client", 10)
        if self.record.process is None:
            raise HostError(driver.OPERATION_FAILED, "operation failed: domain is not running", DOMAIN_DOMAIN)
        self._check_connection()
        if incoming is not None and incoming.process is None and self.point != "finished":
            what = "internal error: qemu unexpectedly closed the monitor"
            raise HostError(driver.INTERNAL_ERROR, what, QEMU_DOMAIN)
        if self.point == "performing" and target.parted:
            raise HostError(driver.INTERNAL_ERROR, "internal error: qemu unexpectedly closed the monitor", QEMU_DOMAIN)
        if target.hears(self.source) and target.is_heard(self.source):
            self._heard = self._now()
        elif self._now() - self._heard > SILENCE_SECONDS:
            raise HostError(driver.INTERNAL_ERROR, "internal error: client socket is closed", RPC_DOMAIN)

    def _check_connection(self) -> None:
        if self._target.ends_of_daemon != self._ends_of_daemon:
            raise HostError(driver.INTERNAL_ERROR, "internal error: client socket is closed", RPC_DOMAIN)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _process(record: Record) -> Process:
    assert record.process is not None
    return record.process


def _alias(disk: libvirt_xml.Element) -> str:
    found = disk.find("alias")
    return found.get("name", "") if found is not None else ""


def _failed(what: str) -> HostError:
    return HostError(driver.OPERATION_FAILED, f"operation failed: {what}", QEMU_DOMAIN)


async def _connected(source: Machine, peer: str) -> Machine:
    """The machine that a host's daemon is connected to when it connects to a peer."""
    host = source.peers.get(peer)
    if host is None:
        raise HostError(driver.SYSTEM_ERROR, "Unable to resolve address: Name or service not known", RPC_DOMAIN)
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await source.linked.wait()
            await host.linked.wait()
    except TimeoutError:
        what = f"unable to connect to server at '{host.name}:16509': Connection timed out"
        raise HostError(driver.SYSTEM_ERROR, what, RPC_DOMAIN) from None
    await host.thawed.wait()
    if not host.daemon_up:
        what = f"unable to connect to server at '{host.name}:16509': Connection refused"
        raise HostError(driver.SYSTEM_ERROR, what, RPC_DOMAIN)
    return host


async def reach(host: Machine, uuid: str, peer: str) -> None:
    """Connection.reach."""
    record = host.find(uuid)
    if record.doing is not None:
        raise invalid(f"another migration job is already running for domain '{record.name}'")
    async with host.job(record):
        await _connected(host, peer)


async def migrate(host: Machine, uuid: str, request: MigrationRequest) -> None:
    """Connection.migrate."""
    record = host.find(uuid)
    if not record.active:
        raise invalid("domain is not running")
    if record.doing is not None:
        raise invalid(f"another migration job is already running for domain '{record.name}'")
    async with host.job(record):
        if not record.active:
            raise invalid("domain is not running")
        move = Migration(host, record, request)
        record.doing = move
        await move.run()


async def resume_post_copy(host: Machine, uuid: str, request: MigrationRequest) -> None:
    """Connection.resume_post_copy."""
    record = host.find(uuid)
    move = record.doing
    if not isinstance(move, Migration) or record.reason != "PostcopyFailed":
        raise invalid(f"migration of domain '{record.name}' is not in post-copy phase")
    if move.stream is not None and not move.stream.done():
        raise invalid(f"migration of domain '{record.name}' is not in post-copy failed state on the target")
    move.request = request
    await move.resume()


def outgoing(record: Record) -> Migration:
    """The outgoing migration of a domain, or what libvirt says when there is none."""
    if not isinstance(record.doing, Migration):
        raise invalid("no job is active on the domain")
    return record.doing


def recover(host: Machine, record: Record) -> None:
    """The daemon is started again, and finds a domain in the middle of a migration."""
    move, process = record.doing, record.process
    assert process is not None
    if record.reason in ("Postcopy", "PostcopyFailed"):
        return
    record.doing = None
    if isinstance(move, In):
        if process.cpus_since is None:
            process.end("Failed")
        return
    if isinstance(move, Migration) and move.point in ("paused", "performing") and record.state == "Paused":
        host.go_on(record, process)
