# SPDX-License-Identifier: Apache-2.0
"""What happens to a host behind the operator's back: faults of machine, network and daemon, and deeds of people."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

from homeostat.api.observed import HostFacts
from homeostat.hosts import driver
from homeostat.hosts.driver import HostError
from homeostat.hosts.migration import In
from tests.simulation import libvirt_xml, migration
from tests.simulation.effects import Effects
from tests.simulation.hypervisor import KEEP_ALIVE_SECONDS, QEMU_DOMAIN, Host, Record, invalid
from tests.simulation.qemu import Ledger, Process
from tests.simulation.storage import PoolView, Storage


class Machine(Host):
    """A host, and everything that can be done to it from outside of libvirt's remote protocol."""

    def __init__(self, name: str, number: int, effects: Effects, ledger: Ledger) -> None:
        super().__init__(name, number, effects, ledger)
        self.boots = self.ends_of_daemon = 0
        self._silence: asyncio.TimerHandle | None = None
        self.peers: dict[str, Machine] = {}
        self.at: dict[str, Callable[[], object]] = {}
        """What happens when a migration from here reaches one of migration.POINTS, once."""
        self.muted = self.refusing = self.parted = False

    def all_facts(self) -> HostFacts:
        """What the host says of itself."""
        return replace(self.facts, pools=tuple(self.pool_state(name) for name in self.pools))

    def add_pool(self, name: str, storage: Storage, path: str = "") -> PoolView:
        """Makes a pool whose folder is on this storage."""
        self.pools[name] = PoolView(name, path or f"/var/lib/libvirt/{name}", storage)
        self.pools[name].refresh()
        return self.pools[name]

    # The network and the machine --------------------------------------------------------------------------------------

    def cut(self) -> None:
        """Nothing gets through any more, in either direction. Connections die of silence after 20 s."""
        self.linked.clear()
        self._fall_silent()

    def restore(self) -> None:
        """The network is back."""
        self.linked.set()
        self._speak_again()

    def freeze(self) -> None:
        """The host accepts connections and never answers; guests go on. What it took in is carried out at the end."""
        self.thawed.clear()
        self._fall_silent()

    def thaw(self) -> None:
        """The host answers again."""
        self.thawed.set()
        self._speak_again()

    def _fall_silent(self) -> None:
        if self._silence is None:
            why = "connection closed due to keepalive timeout"
            self._silence = self.effects.later(KEEP_ALIVE_SECONDS, self._drop, why)

    def _speak_again(self) -> None:
        if self._silence is not None and self.linked.is_set() and self.thawed.is_set():
            self._silence.cancel()
            self._silence = None

    def _drop(self, why: str) -> None:
        for connection in list(self.connections):
            connection.lose(why)
        self._silence = None

    def power_off(self) -> None:
        """The machine loses power: every process is gone, nothing answers."""
        self._stop_daemon()
        for process in self.processes():
            process.end("Crashed")
        self.boots += 1
        self.cut()

    def power_on(self) -> None:
        """The machine boots: domains with autostart are started, for all others the reason is Unknown."""
        self.restore()
        self._start_daemon()
        for record in list(self.records.values()):
            if record.autostart and record.persistent is not None:
                self.effects.spawn(self._autostart(record.uuid))

    async def _autostart(self, uuid: str) -> None:
        try:
            await self.create(uuid, paused=False)
        except HostError:
            pass

    def reboot(self, seconds: float = 60.0) -> None:
        """The machine goes down and comes up again by itself."""
        self.power_off()
        self.effects.later(seconds, self.power_on)

    # libvirtd ---------------------------------------------------------------------------------------------------------

    def stop_daemon(self) -> None:
        """Libvirtd is killed. QEMU processes go on."""
        self._stop_daemon()
        self._drop("End of file while reading data: Input/output error")

    def start_daemon(self) -> None:
        """Libvirtd is started, and finds what is left."""
        self._start_daemon()

    def restart_daemon(self) -> None:
        """Libvirtd is killed and started again."""
        self.stop_daemon()
        self.start_daemon()

    def _stop_daemon(self) -> None:
        self.daemon_up = False
        self.ends_of_daemon += 1
        for call in list(self.calls):
            call.cancel()

    def _start_daemon(self) -> None:
        self.daemon_up = True
        for record in list(self.records.values()):
            record.job, record.ending = asyncio.Lock(), False
            self._reconnect(record)
        for pool in self.pools.values():
            pool.refresh()

    def _reconnect(self, record: Record) -> None:
        process = record.process
        if process is None:
            record.state, record.reason = "Shutoff", "Unknown"
        elif process.ended:
            self.off(record, "Crashed")
        elif record.doing is not None:
            migration.recover(self, record)
        elif record.reason == "StartingUp":
            process.on_end = None
            process.end("Failed")
            self.off(record, "Failed")

    # Live migration: see tests.simulation.migration -------------------------------------------------------------------

    def mute(self) -> None:
        """What libvirtd answers another host's is lost; what that asks is carried out."""
        self.muted = True

    def refuse(self) -> None:
        """What another host's libvirtd asks is lost."""
        self.refusing = True

    def part(self) -> None:
        """The streams of migrations to this host are reset."""
        self.parted = True

    def unfilter(self) -> None:
        """Undo `mute`, `refuse` and `part`."""
        self.muted = self.refusing = self.parted = False

    def hears(self, peer: Machine) -> bool:
        """Whether a peer's libvirtd gets through to this one."""
        through = self.linked.is_set() and peer.linked.is_set()
        return through and self.thawed.is_set() and self.daemon_up and not self.refusing

    def is_heard(self, peer: Machine) -> bool:
        """Whether what this libvirtd says arrives at a peer's."""
        return self.linked.is_set() and peer.linked.is_set() and self.thawed.is_set() and not self.muted

    def incoming(self, outgoing: Record, live: libvirt_xml.Element) -> Record:
        """The domain and the QEMU that wait for an incoming guest."""
        record, namesake = self.records.get(outgoing.uuid), self.named(outgoing.name)
        if record is not None and record.active:
            what = f"domain is already active as '{record.name}'"
            raise HostError(driver.OPERATION_INVALID, f"Requested operation is not valid: {what}", QEMU_DOMAIN)
        if record is None and namesake is not None:
            what = f"operation failed: domain '{namesake.name}' already exists with uuid {namesake.uuid}"
            raise HostError(driver.OPERATION_FAILED, what, 20)
        record = record or Record(outgoing.uuid, outgoing.name)
        for label in live.findall("seclabel"):
            live.remove(label)
        self._launch(record, live, incoming=True)
        self.records[record.uuid] = record
        record.doing = In()
        self.shows(record, "Paused", "StartingUp")
        return record

    def shows(self, record: Record, state: str, reason: str) -> None:
        """Libvirtd shows a domain as this from now on, and says so."""
        self._set(record, state, reason, "LIFECYCLE")

    def go_on(self, record: Record, process: Process) -> None:
        """A migration was rolled back: the source's CPUs run again, unless an image lock is in the way."""
        try:
            self.activate(process)
        except HostError:
            return
        process.run()
        self.shows(record, "Running", "MigrationCanceled")

    def lose_record(self, uuid: str) -> Process | None:
        """Libvirtd restarts without its record of a running domain; the process goes on and nobody knows it."""
        self.stop_daemon()
        record = self.records[uuid]
        process, record.process, record.live = record.process, None, None
        if process is not None:
            process.on_end = process.on_reboot = None
        if record.persistent is None:
            del self.records[uuid]
        self.start_daemon()
        return process

    # QEMU and people --------------------------------------------------------------------------------------------------

    def process(self, uuid: str) -> Process:
        """The QEMU process of a UUID on this host; LookupError when there is none."""
        found = [process for process in self.processes() if process.uuid == uuid]
        if not found:
            raise LookupError(f"no process of {uuid} on {self.name}")
        return found[0]

    def pause(self, uuid: str, reason: str) -> None:
        """QEMU stops its CPUs by itself, such as for IOError."""
        record = self.records[uuid]
        self.process(uuid).pause()
        self._set(record, "Paused", reason, "LIFECYCLE")

    def managed_save(self, uuid: str) -> None:
        """Somebody saves the domain's memory and ends it: virsh managedsave."""
        record = self.find(uuid)
        if record.process is None:
            raise invalid("domain is not running")
        saved, process = record.live, record.process
        process.on_end = None
        process.end("Saved")
        self.off(record, "Saved")
        record.managed_save = saved

    def define_by_hand(self, xml: str) -> str:
        """Somebody defines a domain with virsh; its UUID."""
        self.effects.spawn(self.define(xml))
        return libvirt_xml.uuid_of(libvirt_xml.parse(xml))
