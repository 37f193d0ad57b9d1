# SPDX-License-Identifier: Apache-2.0
"""A libvirt host in memory: a daemon with domain records, apart from the QEMU processes the records are about.

Less helpful than the real thing on purpose: UUIDs and names are unique on one host only, images are not locked unless
a scenario turns that on, reasons are forgotten when the daemon restarts, a record can be lost while its process runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from homeostat.api.observed import HostFacts, Pool
from homeostat.hosts import driver
from homeostat.hosts.driver import DomainRow, HostError
from homeostat.hosts.migration import In
from homeostat.hosts.names import METADATA_NAMESPACE
from tests.simulation import libvirt_xml
from tests.simulation.effects import Effects
from tests.simulation.libvirt_xml import Element
from tests.simulation.qemu import Guest, Ledger, Process
from tests.simulation.storage import File, PoolView

if TYPE_CHECKING:
    from tests.simulation.connection import SimulatedConnection
    from tests.simulation.migration import Migration

DOMAIN_CHECKPOINT = 71  # VIR_FROM_DOMAIN_CHECKPOINT
QEMU_DOMAIN = 10  # VIR_FROM_QEMU
JOB_WAIT_SECONDS = 30.0
KEEP_ALIVE_SECONDS = 20.0
STOPPED_QEMU_SECONDS = 10.2
ACTIVE = ("Running", "Paused", "ShuttingDown")


@dataclass(eq=False, slots=True)
class Record:
    """What libvirtd knows of one domain. `persistent` and `managed_save` are files that outlive the daemon."""

    uuid: str
    name: str
    persistent: Element | None = None
    live: Element | None = None
    state: str = "Shutoff"
    reason: str = "Unknown"
    process: Process | None = None
    managed_save: Element | None = None
    autostart: bool = False
    checkpoints: dict[str, str] = field(default_factory=dict)  # name -> XML
    job: asyncio.Lock = field(default_factory=asyncio.Lock)
    ending: bool = False
    doing: Migration | In | None = None

    def row(self) -> DomainRow:
        """The domain as the bulk list shows it."""
        saved = self.managed_save is not None
        return DomainRow(
            self.uuid, self.name, self.state, self.reason, self.persistent is not None, saved, self.autostart,
            checkpoints=bool(self.checkpoints),
        )  # fmt: skip

    @property
    def active(self) -> bool:
        """Whether libvirtd believes that there is a process."""
        return self.state in ACTIVE


def not_running() -> HostError:
    """What libvirt says when a domain is off."""
    return HostError(driver.OPERATION_INVALID, "Requested operation is not valid: domain is not running", QEMU_DOMAIN)


def invalid(what: str) -> HostError:
    """VIR_ERR_OPERATION_INVALID."""
    return HostError(driver.OPERATION_INVALID, f"Requested operation is not valid: {what}", QEMU_DOMAIN)


def check_agent(process: Process) -> None:
    """Raises what libvirt says of an agent that is not configured, or not connected."""
    if libvirt_xml.channel(process.live) is None:
        raise HostError(74, "argument unsupported: QEMU guest agent is not configured", QEMU_DOMAIN)
    if not process.agent_connected:
        what = "Guest agent is not responding: QEMU guest agent is not connected"
        raise HostError(driver.AGENT_UNRESPONSIVE, what, QEMU_DOMAIN)


class Host:
    """One machine with libvirtd and QEMU."""

    def __init__(self, name: str, number: int, effects: Effects, ledger: Ledger) -> None:
        self.name, self.number, self.effects, self.ledger = name, number, effects, ledger
        self.facts = HostFacts(
            host_uuid=f"00000000-0000-4000-9000-{number:012d}",
            hostname=name,
            libvirt_version="9.0.0",
            qemu_version="7.2.22",
            cpus=64,
            memory_mib=131072,
            kvm=True,
            cpu_models=("qemu64", "Nehalem", "EPYC"),
            default_cpu_model="Nehalem",
            disk_owner=(64055, 109),
            networks=("default",),
            bridges=("br0",),
            bridges_known=True,
        )
        self.records: dict[str, Record] = {}
        self.pools: dict[str, PoolView] = {}
        self.default_guest = Guest()
        self.guests: dict[str, Guest] = {}
        self.connections: list[SimulatedConnection] = []
        self.calls: set[asyncio.Task[object]] = set()
        self.refuse_start: HostError | None = None
        self.refuse_open: HostError | None = None
        self.linked, self.thawed = asyncio.Event(), asyncio.Event()
        self.linked.set()
        self.thawed.set()
        self.daemon_up = True
        self.destroy_of_stopped_raises = False
        self.log_held = False  # virtlogd refuses a second process of a name while the first has its log open
        self._number = 0

    # What libvirt answers ---------------------------------------------------------------------------------------------

    def find(self, uuid: str) -> Record:
        """The record of a UUID, or NO_DOMAIN."""
        record = self.records.get(uuid)
        if record is None:
            what = f"Domain not found: no domain with matching uuid '{uuid}'"
            raise HostError(driver.NO_DOMAIN, what, QEMU_DOMAIN)
        return record

    def named(self, name: str) -> Record | None:
        """The record of a name, or None."""
        return next((record for record in self.records.values() if record.name == name), None)

    def pool(self, name: str) -> PoolView:
        """A pool, or NO_STORAGE_POOL."""
        if name not in self.pools:
            what = f"Storage pool not found: no storage pool with matching name '{name}'"
            raise HostError(driver.NO_STORAGE_POOL, what, 18)
        return self.pools[name]

    def pool_state(self, name: str) -> Pool:
        """A pool as `Connection.pool` answers."""
        if name not in self.pools:
            return Pool(name, "Missing")
        pool = self.pools[name]
        return Pool(name, "Active" if pool.active else "Inactive", pool.path, 2**40)

    def xml(self, record: Record, *, inactive: bool) -> str:
        """The domain's XML as libvirt shows it."""
        root = record.live if record.live is not None else record.persistent
        if inactive and record.persistent is not None:
            root = record.persistent
        assert root is not None
        target = libvirt_xml.channel(root) if root is record.live else None
        if target is not None and record.process is not None:
            target.set("state", "connected" if record.process.agent_connected else "disconnected")
        return libvirt_xml.text_of(root)

    # What libvirt does ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def job(self, record: Record) -> AsyncIterator[None]:
        """One job at a time for each domain; OPERATION_TIMEOUT after 30 s of waiting for it."""
        try:
            async with asyncio.timeout(JOB_WAIT_SECONDS):
                await record.job.acquire()
        except TimeoutError:
            what = "Timed out during operation: cannot acquire state change lock"
            raise HostError(driver.OPERATION_TIMEOUT, what, QEMU_DOMAIN) from None
        try:
            yield
        finally:
            record.job.release()

    async def monitor(self, record: Record) -> Process:
        """The process, once it answers on its monitor: a stopped one never does, an ended one raises."""
        process = record.process
        if process is None:
            raise not_running()
        await process.awake.wait()
        if process.ended:
            what = "Unable to read from monitor: Connection reset by peer"
            raise HostError(driver.SYSTEM_ERROR, what, QEMU_DOMAIN)
        return process

    async def define(self, text: str) -> None:
        """Connection.define."""
        try:
            root = libvirt_xml.defined(text)
        except libvirt_xml.Invalid as error:
            raise HostError(error.code, f"XML error: {error}", 20) from None
        uuid, name = libvirt_xml.uuid_of(root), libvirt_xml.name_of(root)
        known, namesake = self.records.get(uuid), self.named(name)
        if known is not None and known.name != name:
            what = f"operation failed: domain '{known.name}' is already defined with uuid {uuid}"
            raise HostError(driver.OPERATION_FAILED, what, 20)
        if known is None and namesake is not None:
            what = f"operation failed: domain '{name}' already exists with uuid {namesake.uuid}"
            raise HostError(driver.OPERATION_FAILED, what, 20)
        record = self.records.setdefault(uuid, Record(uuid, name))
        record.persistent = root
        self.tell(record, "LIFECYCLE")

    async def create(self, uuid: str, *, paused: bool) -> None:
        """Connection.create."""
        record = self.find(uuid)
        async with self.job(record):
            if record.active:
                raise invalid("domain is already running")
            saved, root = record.managed_save, record.managed_save
            if root is None:
                root = record.persistent
            assert root is not None
            process = self._launch(record, root)
            record.state, record.reason = "Paused", "StartingUp"
            await asyncio.sleep(0.3)
            if process.ended or record.process is not process:
                raise HostError(1, "internal error: process exited while connecting to monitor", QEMU_DOMAIN)
            record.managed_save = None
            self._run(record, process, "Paused" if paused else "Running", "User" if paused else "Booted", saved)

    def _run(self, record: Record, process: Process, state: str, reason: str, saved: Element | None) -> None:
        record.state, record.reason = state, reason
        self.tell(record, "LIFECYCLE")
        if state == "Running":
            record.reason = "Restored" if saved is not None else reason
            process.run()
            process.boot()
        if saved is not None:
            process.booted -= process.guest.boots  # a restored guest is up at once

    def _launch(self, record: Record, root: Element, *, incoming: bool = False) -> Process:
        try:
            process = self._process(record, root, incoming=incoming)
        except HostError:
            record.state, record.reason = "Shutoff", "Failed"
            raise
        self._number += 1
        record.process, record.live = process, libvirt_xml.running(root, self._number, self._chain)
        process.live = record.live
        process.on_end, process.on_reboot = self._ended, self._rebooted
        return process

    def _process(self, record: Record, root: Element, *, incoming: bool) -> Process:
        if self.refuse_start is not None:
            raise self.refuse_start
        if self.log_held and any(process.name == record.name for process in self.processes()):
            what = f"can't connect to virtlogd: Cannot open log file: '{record.name}.log': Device or resource busy"
            raise HostError(driver.SYSTEM_ERROR, what, QEMU_DOMAIN)
        paths = [path for disk, path in libvirt_xml.disks(root) if disk.find("readonly") is None]
        files = tuple(self._open(path, locking=not incoming) for path in paths)
        for path in libvirt_xml.boot_files(root):
            if self._file(path) is None:
                what = f"internal error: process exited while connecting to monitor: could not open '{path}'"
                raise HostError(driver.INTERNAL_ERROR, what, QEMU_DOMAIN)
        used = sum(process.memory_mib for process in self.processes())
        if used + libvirt_xml.memory_mib(root) > self.facts.memory_mib:
            what = "cannot set up guest memory 'pc.ram': Cannot allocate memory"
            raise HostError(
                driver.INTERNAL_ERROR, f"internal error: qemu unexpectedly closed the monitor: {what}", QEMU_DOMAIN
            )
        guest = self.guests.get(record.name, self.default_guest)
        size = libvirt_xml.memory_mib(root)
        return Process(record.uuid, record.name, self.name, root, guest, self.ledger, size, files, incoming=incoming)

    def _file(self, path: str) -> File | None:
        folder, _, name = path.rpartition("/")
        pool = next((pool for pool in self.pools.values() if pool.path == folder), None)
        return pool.storage.files.get(name) if pool else None

    def _open(self, path: str, *, locking: bool) -> File:
        for each in [path, *(backing for backing, _ in self._chain(path))]:
            if self._file(each) is None:
                what = f"Cannot access storage file '{each}': No such file or directory"
                raise HostError(driver.SYSTEM_ERROR, what, QEMU_DOMAIN)
        file = self._file(path)
        assert file is not None
        if locking and self.locked(file):
            what = 'internal error: process exited while connecting to monitor: Failed to get "write" lock'
            raise HostError(driver.INTERNAL_ERROR, what, QEMU_DOMAIN)
        return file

    def locked(self, file: File) -> bool:
        """Whether somebody's image lock keeps this host from writing to a file."""
        storages = [pool.storage for pool in self.pools.values() if file in pool.storage.files.values()]
        return any(storage.locked(file, self.name) for storage in storages)

    def activate(self, process: Process) -> None:
        """Open its images for writing, or fail as QEMU does while another one has them."""
        if any(process not in file.writers and self.locked(file) for file in process.files):
            raise HostError(driver.INTERNAL_ERROR, 'internal error: Failed to get "write" lock', QEMU_DOMAIN)
        process.activate()

    def _chain(self, path: str) -> list[tuple[str, str]]:
        chain: list[tuple[str, str]] = []
        file = self._file(path)
        while file is not None and file.backing is not None and len(chain) < 64:
            chain.append(file.backing)
            file = self._file(file.backing[0])
        return chain

    async def shutdown(self, uuid: str, *, agent: bool) -> None:
        """Connection.shutdown."""
        record = self.find(uuid)
        async with self.job(record):
            if record.state != "Running":
                raise not_running()
            process = await self.monitor(record)
            if agent:
                check_agent(process)
            process.request_off()

    async def destroy(self, uuid: str) -> None:
        """Connection.destroy. A stopped QEMU is killed after ten seconds; seen too: the call then raises."""
        record = self.find(uuid)
        process = record.process
        if process is None or not record.active:
            raise not_running()
        if process.stopped:
            await asyncio.sleep(STOPPED_QEMU_SECONDS)
            process.end("Destroyed")
            if self.destroy_of_stopped_raises:
                raise not_running()
            return
        record.ending = True
        await asyncio.sleep(0.1)
        if record.process is not process:
            raise not_running()
        process.end("Destroyed")

    async def suspend(self, uuid: str) -> None:
        """Connection.suspend. Let through where a domain is being moved from."""
        record = self.find(uuid)
        leaving = record.doing is not None and not isinstance(record.doing, In)
        async with nullcontext() if leaving else self.job(record):
            if not record.active:
                raise not_running()
            if record.state == "Running":
                (await self.monitor(record)).pause()
                self._set(record, "Paused", "Migration" if record.doing else "User", "LIFECYCLE")

    async def resume(self, uuid: str) -> None:
        """Connection.resume."""
        record = self.find(uuid)
        async with self.job(record):
            if not record.active:
                raise not_running()
            if record.state == "Running":
                raise invalid("domain is already running")
            if record.state == "Paused":
                process = await self.monitor(record)
                self.activate(process)
                process.run()
                self._set(record, "Running", "Unpaused", "LIFECYCLE")

    async def undefine(self, uuid: str) -> None:
        """Connection.undefine. A domain that runs becomes transient."""
        record = self.find(uuid)
        async with self.job(record):
            if record.persistent is None:
                raise invalid("cannot undefine transient domain")
            if record.managed_save is not None:
                raise invalid("Refusing to undefine while domain managed save image exists")
            record.persistent = None
            if not record.active:
                self.records.pop(uuid, None)
            record.checkpoints.clear()
            self.tell(record, "LIFECYCLE")

    async def set_metadata(self, uuid: str, element: str, *, live: bool) -> None:
        """Connection.set_metadata."""
        record = self.find(uuid)
        async with self.job(record):
            if live and record.live is None:
                raise not_running()
            if not live and record.persistent is None:
                raise invalid("cannot change persistent config of a transient domain")
            root = record.live if live else record.persistent
            assert root is not None
            libvirt_xml.set_metadata(root, element, METADATA_NAMESPACE)
            self.tell(record, "METADATA_CHANGE")

    async def redefine_checkpoint(self, uuid: str, xml: str) -> None:
        """Connection.redefine_checkpoint."""
        record, root = self.find(uuid), libvirt_xml.parse(xml)
        async with self.job(record):
            parent = root.findtext("parent/name")
            if parent is not None and parent not in record.checkpoints:
                what = f"invalid argument: parent {parent} for moment {root.findtext('name')} not found"
                raise HostError(driver.INVALID_ARG, what, DOMAIN_CHECKPOINT)
            record.checkpoints[root.findtext("name", "")] = xml

    async def remove_managed_save(self, uuid: str) -> None:
        """Connection.remove_managed_save."""
        record = self.find(uuid)
        async with self.job(record):
            if record.managed_save is None:
                what = f"Failed to remove managed save file '{record.name}.save': No such file or directory"
                raise HostError(driver.SYSTEM_ERROR, what, QEMU_DOMAIN)
            record.managed_save = None

    # What libvirt notices ---------------------------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        """The QEMU processes on this machine, known to libvirtd or not."""
        return [process for process in self.ledger.alive if process.host == self.name]

    def _set(self, record: Record, state: str, reason: str, kind: str) -> None:
        record.state, record.reason = state, reason
        self.tell(record, kind)

    def _ended(self, process: Process, how: str) -> None:
        record = self.records.get(process.uuid)
        if not self.daemon_up or record is None or record.process is not process:
            return
        self.off(record, "Destroyed" if record.ending else how)

    def off(self, record: Record, reason: str) -> None:
        """Libvirtd takes note that a process has ended."""
        record.process, record.live, record.ending, record.doing = None, None, False, None
        if record.persistent is None:
            self.records.pop(record.uuid, None)
        self._set(record, "Shutoff", reason, "LIFECYCLE")

    def _rebooted(self, process: Process) -> None:
        record = self.records.get(process.uuid)
        if record is not None and record.process is process:
            self.tell(record, "REBOOT")

    def tell(self, record: Record, kind: str) -> None:
        """Sends an event to every connection that subscribed."""
        for connection in list(self.connections):
            connection.tell(record.uuid, kind)

    def definitions(self) -> dict[str, Element]:
        """The persistent definitions, by UUID, as files of this host."""
        return {uuid: deepcopy(r.persistent) for uuid, r in self.records.items() if r.persistent is not None}
