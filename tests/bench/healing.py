# SPDX-License-Identifier: Apache-2.0
"""From QEMU's end by SIGKILL to the VM running again, with all hosts well and with one that never answers."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass, field

from tests.bench import processes
from tests.bench.bed import Bed, say, vm
from tests.bench.watch import Change, Watch
from tests.lab.processes import Process

PATIENCE = 60.0
LONG_RUN = 62.0
"""Seconds. A process that ends within a minute of its start counts as a failed start, which is not meant here."""
HEALTHY, TROUBLED = "all hosts well", "one host silent, one QEMU stopped"


@dataclass
class Healing:
    """Seconds from a kill until a new process runs and status says Running, one sample a kill."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: {HEALTHY: [], TROUBLED: []})
    processes: dict[str, list[float]] = field(default_factory=lambda: {HEALTHY: [], TROUBLED: []})
    """Of these, until the new process' CPUs ran."""
    busy: dict[str, list[float]] = field(default_factory=lambda: {HEALTHY: [], TROUBLED: []})
    """Share of the CPUs in use before each series of kills."""
    overdue: int = 0
    """Kills after which the VM was not back in time; they count as PATIENCE seconds."""


def measure(bed: Bed, count: int, rounds: int, *, settled: bool) -> Healing:
    """Kill each of `count` VMs once a round in both conditions. `settled`: only after it has run for a minute."""
    bed.start_operator()
    killed = [vm(f"vm-{number}", placement={"host": "h1"}) for number in range(count)]
    others = [vm("stopped", placement={"host": "h1"}), vm("on-silent-host", placement={"host": "h2"})]
    bed.run([*killed, *others])
    names = [str(item["metadata"]["name"]) for item in killed]
    result, series = Healing(), Series(bed, settled=settled)
    for number in range(rounds):
        for condition in (HEALTHY, TROUBLED) if number % 2 == 0 else (TROUBLED, HEALTHY):
            # Without a pause between its kills, a VM is not killed twice: that would count as a crash loop.
            series.run(result, condition, names if settled else names[condition == TROUBLED :: 2])
            say(f"kills with {condition}, {number + 1}/{rounds}: {_all(result.seconds[condition])}")
    bed.remove_vms()
    bed.stop_operator()
    return result


def _all(seconds: list[float]) -> str:
    return " ".join(f"{each:.2f}" for each in sorted(seconds)) + " s"


class Series:
    """Kills of VMs of the first host, one after the other."""

    def __init__(self, bed: Bed, *, settled: bool) -> None:
        self._bed, self._settled = bed, settled
        self._uuids = bed.uuids()
        self._chance = random.Random(1)

    def run(self, result: Healing, condition: str, names: list[str]) -> None:
        """Kill each of these VMs once."""
        if self._settled:
            self._settle()
        result.busy[condition].append(processes.busy())
        if condition == TROUBLED:
            self._make_trouble()
        try:
            with Watch(self._bed.plane, "virtualmachines") as watch:
                for name in names:
                    self._kill(name, watch, result, condition)
        finally:
            if condition == TROUBLED:
                self._end_trouble()

    def _settle(self) -> None:
        newest = max(event.at for event in self._bed.qemus.refresh() if event.kind == "RESUME")
        time.sleep(max(0.0, newest + LONG_RUN - time.time()))

    def _make_trouble(self) -> None:
        near, far = self._bed.hosts
        near.freeze_qemu(self._uuids["stopped"])
        far.freeze_libvirtd()

    def _end_trouble(self) -> None:
        near, far = self._bed.hosts
        near.thaw_qemu(self._uuids["stopped"])
        far.thaw_libvirtd()
        self._bed.until_ready("h2")

    def _kill(self, name: str, watch: Watch, result: Healing, condition: str) -> None:
        uuid, host = self._uuids[name], self._bed.hosts[0]
        pid = host.qemu_pid(uuid)
        if pid is None:
            raise RuntimeError(f"{name} has no process to kill")
        process = Process.of(pid)
        time.sleep(self._chance.uniform(0, 0.5))  # so that kills do not fall into step with timers of the operator
        began = time.time()
        process.signal(signal.SIGKILL)
        try:
            ran = self._bed.qemus.ran([uuid], began, PATIENCE)[uuid].at
            watch.until(lambda changes: _said(changes, name, ran), f"{name} to be Running", PATIENCE)
            ended = next(change.at for change in watch.changes if _is(change, name, ran))
        except TimeoutError:
            result.overdue += 1
            ran = ended = began + PATIENCE
        result.seconds[condition].append(ended - began)
        result.processes[condition].append(ran - began)


def _said(changes: list[Change], name: str, after: float) -> bool:
    return any(_is(change, name, after) for change in changes)


def _is(change: Change, name: str, after: float) -> bool:
    """Whether this says that a VM is Running, and came after its new process ran."""
    return change.name == name and change.state == "Running" and change.at >= after
