# SPDX-License-Identifier: Apache-2.0
"""Live migrations of one guest by the operator and by virsh, by turns; hosts emptied; what is written meanwhile."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import libvirt

from homeostat.api.hypervisor import HypervisorSpec
from homeostat.api.migration import IntentStatus, VirtualMachineMigration
from homeostat.api.migration_policy import EffectivePolicy
from homeostat.decide import migration_plan
from homeostat.hosts import jobs, perform
from homeostat.hosts.migration import MigrationRequest
from tests.bench import processes, requests
from tests.bench.bed import Bed, say, vm
from tests.bench.figures import median
from tests.bench.requests import READS
from tests.bench.watch import Change, Object, Watch
from tests.lab.host import Host
from tests.lab.rig import hypervisor, linux

PLURAL = VirtualMachineMigration.plural
SHARED = {"name": "data", "pool": "shared", "size": "64Mi", "deletionPolicy": "Delete"}
PATIENCE = 300.0
TRAILING_SECONDS = 11.0
"""How long after a migration something may still be written because of it: hosts' figures wait for ten seconds."""
WORDS = {
    libvirt.VIR_MIGRATE_LIVE: "--live",
    libvirt.VIR_MIGRATE_PEER2PEER: "--p2p",
    libvirt.VIR_MIGRATE_PERSIST_DEST: "--persistent",
    libvirt.VIR_MIGRATE_UNDEFINE_SOURCE: "--undefinesource",
    libvirt.VIR_MIGRATE_ABORT_ON_ERROR: "--abort-on-error",
    libvirt.VIR_MIGRATE_UNSAFE: "--unsafe",
}


@dataclass(frozen=True, slots=True)
class Trip:
    """One migration; in seconds.

    `before` is until QEMU starts on the target, `libvirt` until QEMU has ended on the source, `after` until the end is
    said: by virsh, or in the object's status.
    """

    before: float
    libvirt: float
    after: float
    downtime: float

    @property
    def total(self) -> float:
        """From the object's creation, or the start of virsh, until the end is said."""
        return self.before + self.libvirt + self.after


class Pair(NamedTuple):
    """The same way gone twice, one right after the other."""

    bare: Trip
    operator: Trip


@dataclass
class Trips:
    """All of one guest with the same bandwidth ("" for no limit)."""

    guest: str
    bandwidth: str
    pairs: list[Pair] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    """Share of the CPUs in use before each round."""

    def ratio(self, what: str) -> float:
        """Median of the pairs' ratios of one figure of a Trip."""
        return median([getattr(pair.operator, what) / getattr(pair.bare, what) for pair in self.pairs])


@dataclass(frozen=True, slots=True)
class Writes:
    """What was written because of one migration: its object's changes after its creation, and all requests."""

    guest: str
    bandwidth: str
    seconds: float
    own: int
    requests: Counter[str]

    @property
    def all(self) -> int:
        """Requests that write, to every object, Events too."""
        return sum(count for name, count in self.requests.items() if name.split()[0] not in READS)


class Emptied(NamedTuple):
    """Seconds until a host was empty: in the bare loop, and by the operator."""

    bare: float
    operator: float


@dataclass
class Migration:
    """All that was measured."""

    count: int
    outbound: int
    trips: list[Trips] = field(default_factory=list)
    writes: list[Writes] = field(default_factory=list)
    emptied: list[Emptied] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Guest:
    """A VM that is moved to and fro."""

    name: str
    uuid: str


def measure(bed: Bed, count: int, rounds: int, *, smoke: bool) -> Migration:
    """Move guests and empty hosts `rounds` times there and back each way. Nothing is left of them."""
    with _third_host(bed):
        result = Migration(count, _outbound(bed))
        blank, booted = _blank(bed), None if smoke else _booted(bed)
        _trips(bed, result, blank, "", rounds, warm=not smoke)
        if booted is not None:
            _trips(bed, result, booted, "", rounds)
            _trips(bed, result, booted, "8Mi", rounds)
        bed.start_operator()
        for number, bandwidth in enumerate(("", "1Mi") if smoke else ("", "", "8Mi", "1Mi")):
            target = 3 if number % 2 == 0 else 1
            _write_counts(bed, result, booted or blank, bandwidth, target, 1.0 if smoke else TRAILING_SECONDS)
        bed.remove_vms()
        _evacuations(bed, result, max(rounds // 2, 1), warm=not smoke)
        bed.remove_vms()
        bed.stop_operator()
    return result


@contextmanager
def _third_host(bed: Bed) -> Iterator[None]:
    """The first host's like is h3: QEMU on the second runs as another user, and may not open the first one's disks."""
    bed.apply([hypervisor("h3", bed.lab.hosts[2].uri_tcp, overcommit={"cpuPercent": 2000})])
    bed.start_operator()
    bed.until_ready("h3")
    yield
    bed.start_operator()
    bed.plane.kubectl("delete", "vmmig", "--all", "-n", "default", "--timeout=60s")
    bed.plane.kubectl("delete", "hv/h3", "--timeout=60s")
    bed.stop_operator()


def _outbound(bed: Bed) -> int:
    return int(bed.plane.kubectl("get", "hv/h1", "-o", "jsonpath={.spec.migration.maxOutbound}") or 2)


def _placed(bed: Bed, objects: list[Object]) -> None:
    """Have VMs run on the first host, free to go to every other one."""
    bed.run([one | {"spec": one["spec"] | {"placement": {"host": "h1"}}} for one in objects])
    bed.apply(objects)


def _blank(bed: Bed) -> Guest:
    _placed(bed, [vm("blank", disks=[SHARED])])
    time.sleep(2)  # SeaBIOS
    return Guest("blank", bed.uuids()["blank"])


def _booted(bed: Bed) -> Guest:
    _placed(bed, [vm("booted", **linux(disks=[SHARED], terminationGracePeriodSeconds=0))])
    guest = Guest("booted", bed.uuids()["booted"])
    deadline = time.monotonic() + 120
    while "GUEST-UP" not in bed.lab.hosts[0].console(guest.uuid):
        if time.monotonic() > deadline:
            raise TimeoutError("the guest did not boot")
        time.sleep(0.2)
    time.sleep(5)  # what it does after that
    return guest


# One guest


def _trips(bed: Bed, result: Migration, guest: Guest, bandwidth: str, rounds: int, *, warm: bool = True) -> None:
    """Pairs there and back; the operator is not there while virsh works, and which is first changes each round."""
    trips, names = Trips(guest.name, bandwidth), itertools.count()
    result.trips.append(trips)
    for number in range(rounds):
        ways = {}
        trips.busy.append(processes.busy())
        for way in ("bare", "operator") if number % 2 == 0 else ("operator", "bare"):
            ways[way] = _there_and_back(bed, guest, bandwidth, way, f"{number}-{next(names)}", warm=warm)
        trips.pairs += [Pair(bare, operator) for bare, operator in zip(ways["bare"], ways["operator"], strict=True)]
        last = trips.pairs[-2:]
        say(f"{guest.name} moved, {bandwidth or 'no limit'}, {number + 1}/{rounds}: {_told(last)}")


def _told(pairs: list[Pair]) -> str:
    return "; ".join(
        f"operator {p.operator.before:.2f}+{p.operator.libvirt:.2f}+{p.operator.after:.2f} s, down"
        f" {p.operator.downtime * 1000:.0f} ms, virsh {p.bare.before:.2f}+{p.bare.libvirt:.2f}+{p.bare.after:.2f} s,"
        f" down {p.bare.downtime * 1000:.0f} ms"
        for p in pairs
    )


def _there_and_back(bed: Bed, guest: Guest, bandwidth: str, way: str, name: str, *, warm: bool) -> list[Trip]:
    go = partial(_by_operator, bed) if way == "operator" else partial(_by_virsh, bed)
    name = f"{guest.name}-{bandwidth.lower() or 'free'}-{name}"
    _have(bed, way, guest, name, warm=warm)
    return [go(guest, bandwidth, f"{name}-{each}", each, 4 - each) for each in (1, 3)]


def _have(bed: Bed, way: str, guest: Guest, name: str, *, warm: bool) -> None:
    """Start the operator, and, if `warm`, have it do once what it does at first; or stop it."""
    if way == "bare":
        bed.stop_operator()
        return
    bed.start_operator()
    for source in (1, 3) if warm else ():
        _by_operator(bed, guest, "", f"{name}-warm-{source}", source, 4 - source)


def _by_virsh(bed: Bed, guest: Guest, bandwidth: str, _name: str, source: int, target: int) -> Trip:
    hosts = bed.lab.hosts
    asked = _request(hosts[source - 1], hosts[target - 1], guest.uuid, bandwidth)
    hosts[source - 1].virsh("migrate-setmaxdowntime", guest.uuid, str(asked.max_downtime_ms))
    began = time.time()
    hosts[source - 1].virsh("migrate", *_words(asked), guest.uuid, asked.peer)
    return _trip(bed, guest, began, time.time())


def _words(asked: MigrationRequest) -> list[str]:
    how = jobs.flags(asked)
    if how != sum(flag for flag in WORDS if how & flag):
        raise RuntimeError(f"virsh is not told of all flags of {how:#x}")
    bandwidth = ["--bandwidth", str(asked.bandwidth_mib_s)] if asked.bandwidth_mib_s else []
    return [*(word for flag, word in WORDS.items() if how & flag), "--migrateuri", asked.migrate_uri, *bandwidth]


def _request(source: Host, target: Host, uuid: str, bandwidth: str) -> MigrationRequest:
    """What the operator asks of libvirt for this move."""
    migration = VirtualMachineMigration.model_validate(_migration("any", "any"))
    intent = IntentStatus.model_validate(
        {
            "source": "source",
            "sourceUUID": source.host_uuid,
            "target": "target",
            "targetUUID": target.host_uuid,
            "attempt": "any",
            "domainUUID": uuid,
            "time": "2000-01-01T00:00:00Z",
        }
    )
    policy = EffectivePolicy(bandwidth=bandwidth or None)
    spec = HypervisorSpec.model_validate(hypervisor("target", target.uri_tcp)["spec"])
    return perform.request(migration_plan.request(migration, intent, policy, spec))


def _migration(name: str, of: str, target: int = 0, bandwidth: str = "") -> Object:
    spec: Object = {"vmRef": {"name": of}}
    if target:
        spec["target"] = {"host": f"h{target}"}
    if bandwidth:
        spec["policy"] = {"bandwidth": bandwidth}
    return {
        "apiVersion": "homeostat.dev/v1alpha1",
        "kind": "VirtualMachineMigration",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def _by_operator(bed: Bed, guest: Guest, bandwidth: str, name: str, _source: int, target: int) -> Trip:
    changes = _move(bed, guest, bandwidth, name, target)
    return _trip(bed, guest, changes[0].at, changes[-1].at)


def _move(bed: Bed, guest: Guest, bandwidth: str, name: str, target: int) -> list[Change]:
    """Apply a migration; returns the changes of its object from its creation until Migrated."""
    with Watch(bed.plane, PLURAL) as watch:
        bed.apply([_migration(name, guest.name, target, bandwidth)])
        watch.until(lambda changes: _migrated(changes) == {name}, f"{name} to end", PATIENCE)
        changes = list(watch.changes)
    _settled(bed, {guest.name}, target)
    return changes[: 1 + next(number for number, each in enumerate(changes) if _migrated([each]))]


def _migrated(changes: list[Change]) -> set[str]:
    """Names of the migrations that have ended. RuntimeError when one did not end well."""
    found = set()
    for change in changes:
        status = change.item.get("status", {})
        rows = {each["type"]: each for each in status.get("conditions", ())}
        if rows.get("Finished", {}).get("status") == "True":
            if status["reason"] != "Migrated":
                raise RuntimeError(f"{change.name}: {rows['Succeeded']['message']}")
            found.add(change.name)
    return found


def _settled(bed: Bed, names: set[str], target: int) -> None:
    """Wait until VMs say that they are on the target and in no migration, and are on no other host's list."""
    deadline = time.monotonic() + 60
    columns = "jsonpath={range .items[*]}{.metadata.name} {.status.candidates[*].hypervisor} {.status.migration.name}\n"
    while True:
        lines = bed.plane.kubectl("get", "vm", "-n", "default", "-o", f"{columns}{{end}}").splitlines()
        if names <= {words[0] for words in map(str.split, lines) if words[1:] == [f"h{target}"]}:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not all of {len(names)} VMs are said to be on h{target} alone: {lines}")
        time.sleep(0.2)


def _trip(bed: Bed, guest: Guest, began: float, ended: float) -> Trip:
    """The figures of the guest's last migration, by the lives of its last two processes."""
    old, new = bed.lab.intervals(guest.uuid)[-2:]
    stopped, gone = old.running[-1][1], old.end
    if stopped is None or gone is None:
        raise RuntimeError(f"{guest.name} was moved and its process on {old.host} is still there")
    return Trip(new.start - began, gone - new.start, ended - gone, new.running[0][0] - stopped)


def _write_counts(bed: Bed, result: Migration, guest: Guest, bandwidth: str, target: int, trailing: float) -> None:
    counted = requests.counted(bed.plane)
    name = f"{guest.name}-{bandwidth.lower() or 'free'}-written-{target}"
    changes = _move(bed, guest, bandwidth, name, target)
    time.sleep(trailing)
    found = requests.counted(bed.plane) - counted
    found[f"POST {PLURAL}"] -= 1  # kubectl's own
    own = sum(each.kind == "MODIFIED" for each in changes)
    result.writes.append(Writes(guest.name, bandwidth, changes[-1].at - changes[0].at, own, found))
    say(f"{name}: {own} writes to it, {result.writes[-1].all} in all, {result.writes[-1].seconds:.1f} s")


# All of a host


def _evacuations(bed: Bed, result: Migration, rounds: int, *, warm: bool) -> None:
    objects = [vm(f"vm-{number}", disks=[SHARED]) for number in range(result.count)]
    bed.start_operator()
    _placed(bed, objects)
    uuids = bed.uuids()
    time.sleep(2)  # SeaBIOS
    for number in range(rounds):
        ways: dict[str, list[float]] = {"bare": [], "operator": []}
        for way in ("bare", "operator") if number % 2 == 0 else ("operator", "bare"):
            _have(bed, way, Guest("vm-0", uuids["vm-0"]), f"vm-0-{number}", warm=warm)
            for source in (1, 3):
                ways[way].append(_empty(bed, uuids, source, 4 - source, way, result.outbound))
        pairs = [Emptied(bare, operator) for bare, operator in zip(ways["bare"], ways["operator"], strict=True)]
        result.emptied += pairs
        told = "; ".join(f"operator {pair.operator:.2f} s, bare {pair.bare:.2f} s" for pair in pairs)
        say(f"{result.count} VMs leave a host, {number + 1}/{rounds}: {told}")


def _empty(bed: Bed, uuids: dict[str, str], source: int, target: int, way: str, outbound: int) -> float:
    if way == "bare":
        return _loop(bed.lab.hosts[source - 1], bed.lab.hosts[target - 1], uuids, outbound)
    _migratable(bed, uuids)
    return _evacuate(bed, uuids, source, target)


def _loop(source: Host, target: Host, uuids: dict[str, str], outbound: int) -> float:
    """Seconds that as many threads as may leave the host at once take to move all of its VMs."""
    libvirt.registerErrorHandler(lambda context, error: None, None)
    links = [libvirt.open(source.uri_tcp) for _ in range(outbound)]
    waiting = iter(sorted(uuids.values()))

    def work(link: libvirt.virConnect) -> None:
        for uuid in waiting:
            jobs.migrate(link.lookupByUUIDString(uuid), _request(source, target, uuid, ""))

    began = time.monotonic()
    with ThreadPoolExecutor(outbound) as pool:
        list(pool.map(work, links))
    seconds = time.monotonic() - began
    for link in links:
        link.close()
    return seconds


def _migratable(bed: Bed, uuids: dict[str, str]) -> None:
    """Wait until an operator that was just started says that each VM can move."""
    for name in uuids:
        bed.plane.kubectl("wait", f"vm/{name}", "-n", "default", "--for=condition=Migratable", "--timeout=60s")


def _evacuate(bed: Bed, uuids: dict[str, str], source: int, target: int) -> float:
    """Seconds from the start of `kubectl patch` until every migration says Migrated and all CPUs run on the target."""
    with Watch(bed.plane, PLURAL) as watch:
        began = time.time()
        _maintain(bed, source, "Evacuate")
        watch.until(lambda changes: len(_migrated(changes)) == len(uuids), f"h{source} to be empty", PATIENCE)
        said = time.time()
    ran = bed.qemus.ran(uuids.values(), began)
    wrong = {event.host for event in ran.values()} - {bed.lab.hosts[target - 1].name}
    if wrong:
        raise RuntimeError(f"VMs went to {', '.join(wrong)}")
    _maintain(bed, source, "Off")
    bed.until_ready(f"h{source}")
    _settled(bed, set(uuids), target)
    return max(said, *(event.at for event in ran.values())) - began


def _maintain(bed: Bed, host: int, what: str) -> None:
    bed.plane.kubectl("patch", f"hv/h{host}", "--type=merge", "-p", f'{{"spec": {{"maintenance": "{what}"}}}}')
