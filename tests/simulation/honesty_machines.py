# SPDX-License-Identifier: Apache-2.0
"""The machines that honesty's probes run on: those in memory, and those of a lab.

`python -m tests.simulation.honesty_machines LAB [PROBE ...]` runs probes on both and prints where they differ.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from homeostat.hosts.driver import Connection, HostError
from tests.lab import Lab
from tests.lab.driving import eventually
from tests.lab.host import Host
from tests.simulation import honesty
from tests.simulation.clock import run_virtual
from tests.simulation.connection import SimulatedDriver
from tests.simulation.effects import Life, current
from tests.simulation.machine import Machine
from tests.simulation.qemu import Guest
from tests.simulation.world import World


class SimulatedMachine:
    """A host in memory. See honesty.Machine."""

    pool, own_pool = "shared", "local"

    def __init__(self, machine: Machine, driver: SimulatedDriver) -> None:
        self._machine, self._driver = machine, driver
        self.uri = f"qemu+tcp://{machine.name}/system"

    async def connect(self) -> Connection:
        """A new connection."""
        return await self._driver.open(f"qemu+tcp://{self._machine.name}/system", None)

    async def restart_daemon(self) -> None:
        """Kill libvirtd and start it again."""
        self._machine.restart_daemon()

    async def stop_daemon(self) -> None:
        """Kill libvirtd."""
        self._machine.stop_daemon()

    async def start_daemon(self) -> None:
        """Start libvirtd."""
        self._machine.start_daemon()

    async def freeze_daemon(self) -> None:
        """Stop libvirtd."""
        self._machine.freeze()

    async def thaw_daemon(self) -> None:
        """Let libvirtd go on."""
        self._machine.thaw()

    async def lose_record(self, uuid: str) -> None:
        """Restart libvirtd without its record of a running domain."""
        self._machine.lose_record(uuid)

    async def kill_qemu(self, uuid: str) -> None:
        """SIGKILL."""
        self._machine.process(uuid).kill()

    async def terminate_qemu(self, uuid: str) -> None:
        """SIGTERM."""
        self._machine.process(uuid).terminate()

    async def freeze_qemu(self, uuid: str) -> None:
        """SIGSTOP."""
        self._machine.process(uuid).stop()

    async def thaw_qemu(self, uuid: str) -> None:
        """SIGCONT."""
        self._machine.process(uuid).go_on()

    async def managed_save(self, uuid: str) -> None:
        """Save the domain's memory and end it."""
        self._machine.managed_save(uuid)

    async def qemus(self, uuid: str) -> int:
        """How many QEMU processes of a domain there are."""
        return len([process for process in self._machine.processes() if process.uuid == uuid])

    async def running(self, uuid: str) -> bool:
        """Whether the CPUs of a domain run here."""
        return any(each.cpus_since for each in self._machine.processes() if each.uuid == uuid)

    async def restless(self, name: str, pool: str, file: str) -> None:
        """Make a disk with which the guest of this name writes to its memory all the time."""
        if file not in self._machine.pools[pool].storage.files:
            self._machine.pools[pool].storage.put(file)
        self._machine.guests[name] = Guest(dirty_mib_s=2000.0)

    async def writes(self, uuid: str) -> None:
        """Returns at once: a guest here writes as soon as it runs."""

    async def mute(self) -> None:
        """Lose what libvirtd answers."""
        self._machine.mute()

    async def refuse(self) -> None:
        """Lose what libvirtd is asked."""
        self._machine.refuse()

    async def part(self) -> None:
        """Reset the streams of migrations."""
        self._machine.part()

    async def unfilter(self) -> None:
        """Undo the three above."""
        self._machine.unfilter()


class LabMachine:
    """A host of a lab. See honesty.Machine."""

    pool, own_pool = "shared", "default"

    def __init__(self, lab: Lab, host: Host, other: Host) -> None:
        self._lab, self._host, self._other = lab, host, other
        self.uri = host.uri_tcp

    async def connect(self) -> Connection:
        """A new connection."""
        from homeostat.hosts.libvirt_driver import LibvirtDriver

        return await LibvirtDriver().open(self._host.uri_tcp, None)

    async def restart_daemon(self) -> None:
        """Kill libvirtd and start it again."""
        await self.stop_daemon()
        await self.start_daemon()

    async def stop_daemon(self) -> None:
        """Kill libvirtd."""
        await asyncio.to_thread(self._host.kill_libvirtd)

    async def start_daemon(self) -> None:
        """Start libvirtd."""
        await asyncio.to_thread(self._host.start_libvirtd)

    async def freeze_daemon(self) -> None:
        """Stop libvirtd with SIGSTOP."""
        await asyncio.to_thread(self._host.freeze_libvirtd)

    async def thaw_daemon(self) -> None:
        """Let libvirtd go on."""
        await asyncio.to_thread(self._host.thaw_libvirtd)

    async def lose_record(self, uuid: str) -> None:
        """Restart libvirtd without its record of a running domain."""
        await asyncio.to_thread(self._host.lose_record, uuid)

    async def kill_qemu(self, uuid: str) -> None:
        """SIGKILL."""
        await asyncio.to_thread(self._host.kill_qemu, uuid)

    async def terminate_qemu(self, uuid: str) -> None:
        """SIGTERM."""
        await asyncio.to_thread(self._host.kill_qemu, uuid, signal.SIGTERM)

    async def freeze_qemu(self, uuid: str) -> None:
        """SIGSTOP."""
        await asyncio.to_thread(self._host.freeze_qemu, uuid)

    async def thaw_qemu(self, uuid: str) -> None:
        """SIGCONT."""
        await asyncio.to_thread(self._host.thaw_qemu, uuid)

    async def managed_save(self, uuid: str) -> None:
        """Save the domain's memory and end it."""
        await asyncio.to_thread(self._host.virsh, "managedsave", uuid)

    async def qemus(self, uuid: str) -> int:
        """How many QEMU processes of a domain there are."""
        return len([process for process in self._host.processes() if _is_qemu_of(process.pid, uuid)])

    async def running(self, uuid: str) -> bool:
        """Whether the CPUs of a domain run here."""
        lives = [life for life in self._lab.intervals(uuid) if life.host == self._host.name and life.end is None]
        return any(life.running and life.running[-1][1] is None for life in lives)

    async def restless(self, name: str, pool: str, file: str) -> None:
        """Make a disk with which a guest writes to its memory all the time."""
        path = self._host.pool_path(pool) / file
        if not path.exists():
            shutil.copy(self._host.pool_path("images") / "restless.raw", path)
            path.chmod(0o666)

    async def writes(self, uuid: str) -> None:
        """Returns once its boot sector has been loaded and runs."""
        await eventually(lambda: self._host.writes(uuid), "the guest to write to its memory", 60)

    async def mute(self) -> None:
        """Lose what libvirtd answers."""
        self._host.mute(self._other)

    async def refuse(self) -> None:
        """Lose what libvirtd is asked."""
        self._host.refuse(self._other)

    async def part(self) -> None:
        """Reset the streams of migrations."""
        # Where the stream comes from: its target hears of nothing as long as it only waits.
        self._other.part(self._host)

    async def unfilter(self) -> None:
        """Undo the three above."""
        self._host.unfilter()
        self._other.unfilter()


def _is_qemu_of(pid: int, uuid: str) -> bool:
    try:
        return uuid in Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


async def _simulated(name: str) -> honesty.Seen:
    async with World(locks=True) as world:
        life = Life(1)
        world.lives.append(life)
        token = current.set(life)
        driver = SimulatedDriver(world.addresses, life, world.effects, world.events)
        one, two = (SimulatedMachine(host, driver) for host in world.hosts.values())
        seen = await honesty.run(one, two, name)
        current.reset(token)
        world.effects.violations.clear()  # a probe may do what the product must not
        return seen


def simulated(name: str) -> honesty.Seen:
    """What a probe sees in memory."""
    return run_virtual(_simulated(name))


def real(name: str, lab: Lab) -> honesty.Seen:
    """What a probe sees on the first two hosts of a lab."""
    one, two = lab.hosts[:2]
    return asyncio.run(honesty.run(LabMachine(lab, one, two), LabMachine(lab, two, one), name))


def _attempt(run: Callable[[], honesty.Seen]) -> Any:
    try:
        return run()
    except (HostError, AssertionError, LookupError) as error:
        return f"failed: {error!r}"


def main(name: str, *probes: str) -> int:
    """Runs probes on both and prints where they differ; returns how many do."""
    differing = 0
    for each in probes or [each for each, _ in honesty.PROBES]:
        there, here = _attempt(partial(real, each, Lab(name))), _attempt(partial(simulated, each))
        differing += there != here
        print(
            f"{'same  ' if there == here else 'DIFFER'} {each}: {there}" + ("" if there == here else f"\n  not {here}")
        )
    return differing


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
