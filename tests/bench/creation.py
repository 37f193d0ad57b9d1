# SPDX-License-Identifier: Apache-2.0
"""From nothing to N running VMs: through the operator, and in a bare loop, by turns."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.bench import processes, requests
from tests.bench.bare import Loop, Pattern
from tests.bench.bed import Bed, say, vm
from tests.bench.figures import median
from tests.bench.watch import Change, Object, Watch

BOOT_SECONDS = 2.0
"""Until a guest with nothing to boot is idle."""


class HostWrites(NamedTuple):
    """What was written of one Hypervisor's status: all, transitions (another reason), and most others in 10 s.

    Half a second of these is left for the way of the news.
    """

    name: str
    writes: int
    transitions: int
    most_in_10_s: int


@dataclass
class Round:
    """One creation of N VMs."""

    way: str  # bare or operator
    seconds: float
    busy_before: float
    spread: Counter[str]
    cpu: processes.Usage
    """CPU seconds by what used them."""
    requests: Counter[str] = field(default_factory=Counter)
    starts: list[float] = field(default_factory=list)
    """Seconds from an object's creation to its status Running, for each VM."""
    writes: list[int] = field(default_factory=list)
    """Changes of each VM's object after its creation, until it was Running."""
    hypervisors: list[HostWrites] = field(default_factory=list)


@dataclass
class Creation:
    """All rounds."""

    count: int
    rounds: list[Round]

    def of(self, way: str) -> list[Round]:
        """The rounds of one way."""
        return [each for each in self.rounds if each.way == way]

    @property
    def ratio(self) -> float:
        """Median of the operator's seconds to median of the bare loop's."""
        operator, bare = (median([each.seconds for each in self.of(way)]) for way in ("operator", "bare"))
        return operator / bare

    @property
    def pairs(self) -> list[float]:
        """The ratio of each operator's round to the bare round before it."""
        pairs = zip(self.of("operator"), self.of("bare"), strict=True)
        return [operator.seconds / bare.seconds for operator, bare in pairs]


@dataclass
class Alone:
    """VMs created one after the other: seconds until Running, and writes to the object until then."""

    starts: list[float] = field(default_factory=list)
    writes: list[int] = field(default_factory=list)


def measure_alone(bed: Bed, count: int) -> Alone:
    """Create `count` VMs, each once the one before it runs. Nothing is left of them."""
    bed.start_operator()
    result = Alone()
    for number in range(count):
        with Watch(bed.plane, "virtualmachines") as watch:
            bed.apply([vm(f"vm-{number}")])
            watch.until(lambda changes: _all_running(changes, {f"vm-{number}"}), f"vm-{number} to run", 60)  # noqa: B023
        starts, writes = _each(watch.changes)
        result.starts += starts
        result.writes += writes
        time.sleep(BOOT_SECONDS)
    bed.remove_vms()
    bed.stop_operator()
    say(f"{count} VMs one by one: {result.writes} writes, {' '.join(f'{each:.2f}' for each in result.starts)} s")
    return result


def measure(bed: Bed, count: int, rounds: int) -> Creation:
    """Create `count` VMs `rounds` times each way. Nothing is left of them."""
    patterns = _patterns(bed)
    result = Creation(count, [])
    for number in range(1, rounds + 1):
        for way, once in (("bare", _bare), ("operator", _operator)):
            one = once(bed, count, patterns)
            result.rounds.append(one)
            say(f"{count} VMs, {way} {number}/{rounds}: {one.seconds:.2f} s")
        say(f"ratio {result.pairs[-1]:.2f}")
    return result


def _patterns(bed: Bed) -> dict[str, Pattern]:
    """What the operator makes on each host."""
    bed.start_operator()
    bed.run([vm(f"pattern-{n}", placement={"host": f"h{n}"}) for n in (1, 2)])
    uuids = bed.uuids()
    patterns = {host.name: Pattern.of(host, uuids[f"pattern-{n}"]) for n, host in enumerate(bed.hosts, 1)}
    bed.remove_vms()
    bed.stop_operator()
    return patterns


def _bare(bed: Bed, count: int, patterns: dict[str, Pattern]) -> Round:
    # The operator is not there meanwhile: it would look at what appears on its hosts.
    loop = Loop(bed.hosts, patterns)
    try:
        loop.run(len(bed.hosts), "warm")
        time.sleep(BOOT_SECONDS)
        busy, before, began = processes.busy(), _cpu(bed), time.time()
        seconds, uuids = loop.run(count, "bare")
        cpu = processes.since(before, _cpu(bed))
        ran = bed.qemus.ran(uuids, began)
        return Round("bare", seconds, busy, Counter(event.host for event in ran.values()), cpu)
    finally:
        loop.close()


def _operator(bed: Bed, count: int, _: dict[str, Pattern]) -> Round:
    bed.start_operator()
    bed.run([vm(f"warm-{n}", placement={"host": f"h{n}"}) for n in (1, 2)])
    time.sleep(BOOT_SECONDS)
    busy, names = processes.busy(), [f"vm-{number}" for number in range(count)]
    objects = [vm(name) for name in names]
    with Watch(bed.plane, "virtualmachines") as vms, Watch(bed.plane, "hypervisors") as hypervisors:
        counted, before, began = requests.counted(bed.plane), _cpu(bed), time.time()
        bed.apply(objects)
        vms.until(lambda changes: _all_running(changes, set(names)), f"{count} VMs to run", 600)
        said = max(change.at for change in _first_running(vms.changes).values())
        cpu = processes.since(before, _cpu(bed))
        uuids = bed.uuids()
        ran = bed.qemus.ran([uuids[name] for name in names], began)
        seconds = max(said, *(event.at for event in ran.values())) - began
        one = Round("operator", seconds, busy, Counter(event.host for event in ran.values()), cpu)
        one.requests = requests.counted(bed.plane) - counted
    one.starts, one.writes, one.hypervisors = *_each(vms.changes), _host_writes(hypervisors)
    bed.remove_vms()
    bed.stop_operator()
    return one


def _cpu(bed: Bed) -> processes.Usage:
    plane = bed.plane
    programs = {"API server": plane.apiserver, "etcd": plane.etcd, "controllers": plane.manager}
    pids = {name: process.pid for name, process in programs.items()}
    return processes.used(bed.hosts, pids | {"operator": bed.operator.process.pid})


def _all_running(changes: list[Change], names: set[str]) -> bool:
    return changes[-1:] != [] and changes[-1].state == "Running" and names <= _first_running(changes).keys()


def _first_running(changes: list[Change]) -> dict[str, Change]:
    found: dict[str, Change] = {}
    for change in changes:
        if change.state == "Running":
            found.setdefault(change.name, change)
    return found


def _each(changes: list[Change]) -> tuple[list[float], list[int]]:
    """For each VM: seconds from creation to Running, and how often it was written."""
    created = {change.name: change.at for change in changes if change.kind == "ADDED"}
    running = _first_running(changes)
    seconds = [running[name].at - at for name, at in created.items()]
    writes = [
        sum(c.name == name and c.kind == "MODIFIED" and c.version <= running[name].version for c in changes)
        for name in created
    ]
    return seconds, writes


def _host_writes(watch: Watch) -> list[HostWrites]:
    return [_writes_of(item, [c for c in watch.changes if c.name == name]) for name, item in watch.before.items()]


def _writes_of(before: Object, changes: list[Change]) -> HostWrites:
    last, others = _verdict(before), []
    for change in changes:
        if (verdict := _verdict(change.item)) == last:
            others.append(change.at)
        last = verdict
    most = max((sum(at <= other < at + 9.5 for other in others) for at in others), default=0)
    return HostWrites(before["metadata"]["name"], len(changes), len(changes) - len(others), most)


def _verdict(item: Object) -> tuple[object, ...]:
    status = item.get("status", {})
    return status.get("reason"), status.get("hostUUID"), status.get("observedGeneration")
