# SPDX-License-Identifier: Apache-2.0
"""What probes of honesty are written with: two machines, names that nothing else has, and what is worth looking at."""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from homeostat.hosts.driver import Connection, HostError

Seen = list[Any]
Probe = Callable[["Rig"], Awaitable[Seen]]
PROBES: list[tuple[str, Probe]] = []


class Machine(Protocol):
    """One host, and what can be done to it from outside.

    `pool` is storage that both machines have, `own_pool` one of the same path that each has for itself; `uri` is where
    the other machine's libvirt reaches this one.
    """

    pool: str
    own_pool: str
    uri: str

    async def connect(self) -> Connection:
        """A new connection."""

    async def restart_daemon(self) -> None:
        """Kill libvirtd and start it again."""

    async def stop_daemon(self) -> None:
        """Kill libvirtd."""

    async def start_daemon(self) -> None:
        """Start libvirtd."""

    async def freeze_daemon(self) -> None:
        """Stop libvirtd with SIGSTOP."""

    async def thaw_daemon(self) -> None:
        """Let libvirtd go on."""

    async def lose_record(self, uuid: str) -> None:
        """Restart libvirtd without its record of a running domain."""

    async def kill_qemu(self, uuid: str) -> None:
        """SIGKILL to the QEMU of a domain."""

    async def terminate_qemu(self, uuid: str) -> None:
        """SIGTERM to the QEMU of a domain."""

    async def freeze_qemu(self, uuid: str) -> None:
        """SIGSTOP to the QEMU of a domain."""

    async def thaw_qemu(self, uuid: str) -> None:
        """SIGCONT to the QEMU of a domain."""

    async def managed_save(self, uuid: str) -> None:
        """`virsh managedsave`."""

    async def qemus(self, uuid: str) -> int:
        """How many QEMU processes of a domain there are."""

    async def running(self, uuid: str) -> bool:
        """Whether the CPUs of a domain run here."""

    async def restless(self, name: str, pool: str, file: str) -> None:
        """Make a disk with which the guest of this name writes to its memory all the time."""

    async def writes(self, uuid: str) -> None:
        """Returns once such a guest writes to its memory."""

    async def mute(self) -> None:
        """Lose what libvirtd answers the other machine's."""

    async def refuse(self) -> None:
        """Lose what the other machine's libvirtd asks."""

    async def part(self) -> None:
        """Reset the streams of migrations to this machine."""

    async def unfilter(self) -> None:
        """Undo `mute`, `refuse` and `part`."""


def probe(script: Probe) -> Probe:
    """Enters a script into PROBES."""
    PROBES.append((script.__name__, script))
    return script


@dataclass
class Rig:
    """Two machines with common storage, and names that nothing else has."""

    one: Machine
    two: Machine
    host: Connection = field(init=False)
    uuids: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    _connections: list[Connection] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def connect(self, machine: Machine) -> Connection:
        """A new connection to one of the machines, which is closed when the probe has ended."""
        self._connections.append(await machine.connect())
        return self._connections[-1]

    async def again(self) -> Connection:
        """A new connection to the first machine, once it answers."""
        self.host = await self.connect(self.one)
        return self.host

    def fresh(self) -> tuple[str, str]:
        """A UUID and a name."""
        self.uuids.append(str(uuid.uuid4()))
        return self.uuids[-1], f"probe-{self.uuids[-1][:8]}"

    async def volume(self, host: Connection | None = None, name: str = "") -> str:
        """Creates a volume of 1 MiB on the common storage and returns its name."""
        name = name or f"probe-{uuid.uuid4().hex[:8]}"
        self.files.append(name)
        await (host or self.host).create_volume(self.one.pool, volume_xml(name))
        return name

    async def path(self, name: str) -> str:
        """The path of a file on the common storage."""
        return f"{(await self.host.pool(self.one.pool)).path}/{name}"

    async def defined(self, *disks: str, extra: str = "") -> str:
        """Defines a domain and returns its UUID."""
        number, name = self.fresh()
        await self.host.define(domain_xml(number, name, *disks, extra=extra))
        return number

    async def started(self, *disks: str, extra: str = "") -> str:
        """Defines and starts a domain and returns its UUID."""
        number = await self.defined(*disks, extra=extra)
        await self.host.create(number, paused=False)
        return number

    async def row(self, number: str, host: Connection | None = None) -> Any:
        """What libvirt shows of a domain: state, reason, persistent, managed save; None when there is none."""
        row = await (host or self.host).domain(number)
        return None if row is None else (row.state, row.reason, row.persistent, row.managed_save)

    @staticmethod
    async def until(seen: Callable[[], Awaitable[object]]) -> None:
        """Returns once something is seen, or after 30 s: then it is for the comparison to say that it was not."""
        for _ in range(300):
            if await seen():
                return
            await asyncio.sleep(0.1)

    async def until_off(self, number: str) -> Any:
        """The row of a domain once it is off, or after 20 s."""
        for _ in range(200):
            row = await self.row(number)
            if row is None or row[0] == "Shutoff":
                break
            await asyncio.sleep(0.1)
        return row

    async def clean(self) -> None:
        """Removes what the probe made."""
        for machine in (self.one, self.two):
            await machine.unfilter()
            host = await self.connect(machine)
            for number in self.uuids:
                with suppress(HostError, Exception):
                    await machine.kill_qemu(number)
                for call in (host.destroy, host.remove_managed_save, host.undefine):
                    with suppress(HostError):
                        await call(number)
            with suppress(HostError):
                await host.refresh_pool(machine.pool)
            for name in self.files:
                with suppress(HostError):
                    await host.delete_volume(machine.pool, name)
        for connection in self._connections:
            await connection.close()


async def code(call: Awaitable[object]) -> int:
    """The code of the error a call raises, 0 if none."""
    try:
        await call
    except HostError as error:
        return error.code
    return 0


def volume_xml(name: str, size: int = 2**20) -> str:
    """A raw volume."""
    mode = "<permissions><mode>0666</mode></permissions>"
    target = f"<target><format type='raw'/>{mode}</target>"
    return f"<volume><name>{name}</name><capacity>{size}</capacity>{target}</volume>"


def domain_xml(number: str, name: str, *disks: str, extra: str = "", memory: int = 64, kernel: str = "") -> str:
    """A small domain that any host can run."""
    devices = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>"
        f"<target dev='vd{letter}' bus='virtio'/></disk>"
        for letter, path in zip("abc", disks, strict=False)
    )
    boot = f"<kernel>{kernel}</kernel>" if kernel else ""
    return (
        f"<domain type='qemu'><name>{name}</name><uuid>{number}</uuid><memory unit='MiB'>{memory}</memory>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os><features><acpi/></features>"
        f"<devices>{devices}{extra}<controller type='usb' model='none'/></devices></domain>"
    )


AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
