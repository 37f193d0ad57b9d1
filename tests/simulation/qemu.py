# SPDX-License-Identifier: Apache-2.0
"""QEMU processes, the guests in them, and the record of when each ran.

A process is an object of its own: it goes on when libvirtd dies, and when libvirtd has forgotten it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.simulation.effects import Effects
from tests.simulation.libvirt_xml import Element
from tests.simulation.storage import File

_pids = itertools.count(1000)


@dataclass(slots=True)
class Guest:
    """How a guest behaves. Seconds from its (re)boot, or from the request. `dirty_mib_s`: how fast it writes to memory.

    `boots`: a request to power off is lost for so long. `obeys`: it then takes so long; None ignores it.
    """

    boots: float = 3.0
    obeys: float | None = 2.0
    agent: bool = False
    off_after: float | None = None
    crash_after: float | None = None
    dirty_mib_s: float = 0.0


@dataclass(slots=True)
class Interval:
    """When something was so: from `start` until before `end`; None while it still is. Seconds of virtual time."""

    uuid: str
    host: str
    pid: int
    start: float
    end: float | None = None


class Ledger:
    """All processes of all hosts, their intervals, and the rule they must obey at every moment."""

    def __init__(self, effects: Effects) -> None:
        self.effects = effects
        self.alive: set[Process] = set()
        self.processes: list[Interval] = []
        self.cpus: list[Interval] = []
        self.versions: dict[tuple[str, str], int] = {}
        """How often each VM has written to each of its disks, by UUID and name of the file."""

    def running(self, uuid: str) -> list[Process]:
        """The processes of a UUID that are there now."""
        return sorted((p for p in self.alive if p.uuid == uuid), key=lambda p: p.pid)

    def check(self, uuid: str) -> None:
        """Never two: at most one process per UUID, two while it is moved, and at most one whose CPUs run."""
        there = self.running(uuid)
        if len([p for p in there if p.cpus_since is not None]) > 1:
            self.effects.violated(f"CPUs of {uuid} run twice: {', '.join(map(str, there))}")
        elif len({id(p.move) for p in there}) > 1 or (len(there) > 1 and not all(p.move or p.incoming for p in there)):
            self.effects.violated(f"two processes of {uuid}: {', '.join(map(str, there))}")


@dataclass(eq=False)
class Process:
    """A QEMU process. `on_end` is how libvirtd, if it still knows it, hears of its end.

    One that is `incoming` has no images open for writing before it takes over; `move` is what the two processes of a
    domain that is being moved have in common.
    """

    uuid: str
    name: str
    host: str
    live: Element
    guest: Guest
    ledger: Ledger
    memory_mib: int = 0
    files: tuple[File, ...] = ()
    pid: int = field(default_factory=lambda: next(_pids))
    cpus_since: Interval | None = None
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    terminated: bool = False
    ended: bool = False
    booted: float = 0.0
    incoming: bool = False
    move: object | None = None
    on_end: Callable[[Process, str], None] | None = None
    on_reboot: Callable[[Process], None] | None = None
    _timers: list[asyncio.TimerHandle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._interval = Interval(self.uuid, self.host, self.pid, self._now())
        self.ledger.processes.append(self._interval)
        self.ledger.alive.add(self)
        self.awake.set()
        if not self.incoming:
            self.activate()
            self.ledger.check(self.uuid)

    def __str__(self) -> str:
        return f"{self.name} on {self.host} (pid {self.pid})"

    def activate(self) -> None:
        """Open the images for writing."""
        for file in self.files:
            if others := file.writers - {self}:
                self.ledger.effects.violated(f"two writers on one disk: {self} and {next(iter(others))}")
            if file.version != self.ledger.versions.get((self.uuid, file.name), file.version):
                self.ledger.effects.violated(f"{self} has an old copy of {file.name}")
            file.writers.add(self)

    def hand_over(self) -> None:
        """All has been sent: the images, and their locks, are the other process's."""
        for file in self.files:
            file.writers.discard(self)

    def carry_on(self, before: Process) -> None:
        """Be the guest that ran in another process."""
        self.booted = before.booted
        for seconds, what in ((self.guest.off_after, self.power_off), (self.guest.crash_after, self.kill)):
            if seconds is not None and before.booted + seconds > self._now():
                self._later(before.booted + seconds - self._now(), what)

    def run(self) -> None:
        """Let the CPUs run."""
        if self.cpus_since is None and not self.ended:
            self.cpus_since = Interval(self.uuid, self.host, self.pid, self._now())
            self.ledger.cpus.append(self.cpus_since)
            self.ledger.check(self.uuid)
            self._write()

    def _write(self) -> None:
        for file in self.files:
            file.version = self.ledger.versions.get((self.uuid, file.name), 0) + 1
            self.ledger.versions[self.uuid, file.name] = file.version

    def pause(self) -> None:
        """Stop the CPUs."""
        if self.cpus_since is not None:
            self.cpus_since.end = self._now()
            self.cpus_since = None

    def boot(self) -> None:
        """The guest begins to boot: what it is going to do on its own is set up."""
        self.booted = self._now()
        self._forget()
        if self.guest.off_after is not None:
            self._later(self.guest.off_after, self.power_off)
        if self.guest.crash_after is not None:
            self._later(self.guest.crash_after, self.kill)

    def reset(self) -> None:
        """The guest reboots itself; the process stays."""
        self.boot()
        if self.on_reboot is not None:
            self.on_reboot(self)

    @property
    def up(self) -> bool:
        """Whether the guest has booted and is able to hear."""
        return self.cpus_since is not None and not self.stopped and self._now() - self.booted >= self.guest.boots

    @property
    def agent_connected(self) -> bool:
        """Whether the guest agent answers."""
        return self.guest.agent and self.up

    def request_off(self) -> None:
        """A request to power off reaches the guest: lost while it boots, obeyed in its own time, or ignored."""
        if self.up and self.guest.obeys is not None:
            self._later(self.guest.obeys, self.power_off)

    def power_off(self) -> None:
        """The guest powers itself off."""
        if not self.stopped and self.cpus_since is not None:
            self.end("Shutdown")

    @property
    def stopped(self) -> bool:
        """Whether a SIGSTOP holds the process: its monitor does not answer, and its CPUs may go on at any time."""
        return not self.awake.is_set()

    def stop(self) -> None:
        """SIGSTOP."""
        self.awake.clear()

    def go_on(self) -> None:
        """SIGCONT; a SIGTERM that came meanwhile takes effect."""
        self.awake.set()
        if self.terminated:
            self.terminate()

    def terminate(self) -> None:
        """SIGTERM: QEMU ends as if the guest had powered off; not before a SIGCONT when it is stopped."""
        self.terminated = True
        if not self.stopped:
            self.end("Shutdown")

    def kill(self) -> None:
        """SIGKILL, or a crash."""
        self.end("Crashed")

    def end(self, how: str) -> None:
        """The process is gone. `how` is what libvirtd makes of it, if it knows the process."""
        if self.ended:
            return
        self.pause()
        self.ended, self._interval.end = True, self._now()
        self.awake.set()
        self.ledger.alive.discard(self)
        self._forget()
        for file in self.files:
            file.writers.discard(self)
        if self.on_end is not None:
            self.on_end(self, how)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._timers.append(self.ledger.effects.later(seconds, lambda: None if self.ended else call()))

    def _forget(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
