# SPDX-License-Identifier: Apache-2.0
"""What is kept of a host from one look to the next is what a look that keeps nothing would say."""

from __future__ import annotations

from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from homeostat.api.hypervisor import Hypervisor
from homeostat.api.meta import FINALIZER
from homeostat.api.observed import Domain, HostAnswer, HostFacts, Owner
from homeostat.api.reading import read
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.hosts.informer import HostInformer
from homeostat.reconcile import observe
from homeostat.reconcile.fleet import Fleet
from tests.simulation.clock import EPOCH

pytestmark = pytest.mark.unit

HOSTS, VMS, STRANGERS = ("h1", "h2", "h3"), ("a", "b", "c"), ("x",)
UUIDS = {name: f"00000000-0000-4000-9000-{number:012d}" for number, name in enumerate((*HOSTS, *VMS, *STRANGERS))}
SPEC: dict[str, Any] = {"uri": "qemu+tcp://198.51.100.1/system", "acceleration": "Emulation"}


def hypervisor(name: str, identity: str, **fields: Any) -> Hypervisor:
    meta = {"name": name, "uid": name, "resourceVersion": "1", "finalizers": [FINALIZER]} | fields.pop("meta", {})
    return read(Hypervisor, {"metadata": meta, "spec": SPEC | fields, "status": {"hostUUID": UUIDS[identity]}})


def vm(name: str, hosts: tuple[str, ...], memory: int) -> VirtualMachine:
    rows = [{"hypervisor": each, "uid": each, "hostUUID": UUIDS[each]} for each in hosts]
    meta = {"namespace": "shop", "name": name, "uid": UUIDS[name], "resourceVersion": "1", "finalizers": [FINALIZER]}
    spec = {"memory": {"size": f"{memory}Mi"}, "disks": []}
    return read(VirtualMachine, {"metadata": meta, "spec": spec, "status": {"candidates": rows}})


def answer(host: str, domains: tuple[str, ...], *, active: bool, reachable: bool | None) -> HostAnswer:
    there = {}
    for name in domains:
        owner = Owner("here", "shop", name, UUIDS[name]) if name in VMS else None
        state = "Running" if active else "Shutoff"
        there[UUIDS[name]] = Domain(UUIDS[name], f"shop_{name}", state, "Booted", persistent=True, owner=owner)
    facts = HostFacts(UUIDS[host], host, "9.0.0", "8.0.0", cpus=16, memory_mib=16384)
    return HostAnswer(reachable=reachable, heard=EPOCH, message="silent", facts=facts, domains=there)


names = st.sampled_from(VMS)
hosts = st.sampled_from(HOSTS)
some_hosts = st.lists(hosts, unique=True, max_size=2).map(tuple)
some_domains = st.lists(st.sampled_from((*VMS, *STRANGERS)), unique=True, max_size=3).map(tuple)
fields = st.sampled_from(
    [
        {},
        {"maintenance": "Cordon"},
        {"overcommit": {"cpuPercent": 200, "memoryPercent": 150}},
        {"outOfService": {"since": "2030-01-01T00:00:30Z", "evidence": "PoweredOff"}},
        {"meta": {"labels": {"zone": "a"}}},
        {"meta": {"deletionTimestamp": "2030-01-01T00:00:00Z"}},
    ]
)
changes = st.one_of(
    st.tuples(st.just("vm"), names, st.one_of(st.none(), st.tuples(some_hosts, st.sampled_from((64, 128))))),
    st.tuples(st.just("assume"), names, some_hosts),
    st.tuples(st.just("hypervisor"), hosts, st.one_of(st.none(), st.tuples(hosts, fields))),
    st.tuples(st.just("answer"), hosts, st.tuples(some_domains, st.booleans(), st.sampled_from((True, False, None)))),
    st.tuples(st.just("missing"), hosts, st.booleans()),
    st.tuples(st.just("time"), st.just(""), st.sampled_from((1, 60))),
    st.tuples(st.just("waits no longer"), st.just(""), st.none()),
)


class Bed:
    """A fleet of three hosts, and a clock."""

    def __init__(self) -> None:
        self.time = EPOCH
        self.fleet = Fleet(self.now, lambda names: None, cluster="here", listed=True, awaiting=True)
        for name in HOSTS:
            self.fleet.note_hypervisor(name, hypervisor(name, name))
            self._says(name, answer(name, (), active=True, reachable=True))
        for name in VMS:
            self.fleet.note_vm(("shop", name), vm(name, (), 64))

    def now(self) -> datetime:
        return self.time

    def _says(self, host: str, said: HostAnswer) -> None:
        self.fleet.informers[host] = cast(HostInformer, SimpleNamespace(answer=said, connection=None))

    def change(self, what: str, name: str, how: Any) -> None:
        """One of `changes`."""
        key = "shop", name
        if what == "vm":
            self.fleet.note_vm(key, vm(name, *how) if how else None)
        elif what == "assume" and key in self.fleet.vms:
            self.fleet.assume(key, self.fleet.vms[key], frozenset(UUIDS[each] for each in how))
        elif what == "hypervisor":
            self.fleet.note_hypervisor(name, hypervisor(name, how[0], **how[1]) if how else None)
        elif what == "answer":
            domains, active, reachable = how
            self._says(name, answer(name, domains, active=active, reachable=reachable))
        elif what == "missing":
            self.fleet.missing.update({name: "a Secret"}) if how else self.fleet.missing.pop(name, None)
        elif what == "waits no longer":
            self.fleet.awaiting = False
        elif what == "time":
            self.time += timedelta(seconds=how)

    def anew(self) -> dict[str, tuple[str, ...]]:
        """The VMs that each host may hold, by a fleet that knows what this one knows and has seen nothing change."""
        fleet = Fleet(self.now, lambda names: None, cluster="here", listed=True)
        fleet.informers, fleet.missing = self.fleet.informers, self.fleet.missing
        for name, each in self.fleet.hypervisors.items():
            fleet.note_hypervisor(name, each)
        for key, vm in self.fleet.vms.items():
            fleet.note_vm(key, vm)
        for key, hosts in self.fleet._assumed.items():
            fleet.assume(key, self.fleet.vms[key], hosts)
        return {name: fleet.holds(each) for name, each in fleet.hypervisors.items()}

    def look(self) -> list[object]:
        """What every VM's pass would read."""
        return [observe.from_caches(self.fleet, key, each) for key, each in sorted(self.fleet.vms.items())]


OUT = {"outOfService": {"since": "2030-01-01T00:00:30Z", "evidence": "PoweredOff"}}
SILENT: tuple[tuple[str, ...], bool, bool | None] = ((), False, False)
UNASKED: tuple[tuple[str, ...], bool, bool | None] = ((), False, None)


@example([("answer", "h1", SILENT), ("hypervisor", "h1", ("h1", OUT)), ("time", "", 60)])
@example(
    [
        ("answer", "h1", SILENT),
        ("answer", "h2", SILENT),
        ("hypervisor", "h1", ("h1", OUT)),
        ("hypervisor", "h2", ("h1", {})),
        ("time", "", 60),
        ("answer", "h2", ((), True, True)),
    ]
)
@example([("answer", "h1", UNASKED), ("waits no longer", "", None)])
@example([("hypervisor", "h1", ("h1", {"meta": {"deletionTimestamp": "2030-01-01T00:00:00Z"}})), ("vm", "a", None)])
@given(st.lists(changes, max_size=12))
def test_what_is_kept_of_a_host_is_what_a_look_that_keeps_nothing_would_say(steps: list[tuple[str, str, Any]]) -> None:
    bed = Bed()
    bed.look()
    for step in steps:
        bed.change(*step)
        kept = bed.look()
        bed.fleet.views.clear()
        assert kept == bed.look()
        held = {name: bed.fleet.holds(each) for name, each in bed.fleet.hypervisors.items()}
        assert held == bed.anew()


def test_a_host_is_seen_anew_only_when_something_there_has_changed() -> None:
    bed = Bed()
    bed.look()
    before = {name: view for name, (view, *_) in bed.fleet.views.items()}
    bed.change("answer", "h1", (("a",), True, True))
    bed.change("vm", "b", (("h2",), 64))
    bed.change("vm", "c", ((), 64))
    bed.look()
    after = {name: view for name, (view, *_) in bed.fleet.views.items()}
    assert {name for name in HOSTS if after[name] is not before[name]} == {"h1", "h2"}
