# SPDX-License-Identifier: Apache-2.0
"""Hosts, a VM and migrations for the tests of what is decided before libvirt is asked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from homeostat.api.hypervisor import HypervisorSpec
from homeostat.api.meta import FINALIZER
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.observed import Absent, Answer, Present
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide.migratable import marker
from homeostat.decide.migration_peers import Peers, peer_uri
from homeostat.decide.migration_planning import Fleet
from homeostat.decide.view import HostView
from tests.unit import test_decide_vm as vms

NOW = vms.NOW
TO_B: dict[str, Any] = {"target": {"host": "b"}}
DISK = {"name": "root", "pool": "fast", "size": "1Gi"}
POOL = {"name": "fast", "pool": "default", "storageID": "one", "allowedNamespaces": ["*"]}
SPEC: dict[str, Any] = {"uri": "qemu+tcp://198.51.100.1/system", "acceleration": "Emulation", "pools": [POOL]}
MARKED = {"default": frozenset({marker(vms.UUIDS["a"])})}


def spec(**fields: Any) -> HypervisorSpec:
    """Return the spec of a host."""
    return HypervisorSpec.model_validate(SPEC | fields)


def machine(**fields: Any) -> VirtualMachine:
    """Return a VM with a disk on storage that the hosts share."""
    return vms.settled({"disks": [DISK]} | fields)


def running(vm: VirtualMachine, **fields: Any) -> Answer:
    """Return the answer of the host that runs the VM."""
    return Present(replace(vms.domain(vm, state="Running", reason="Booted"), **fields))


def host(name: str, answer: Answer | None = None, **fields: Any) -> HostView:
    """Return a host that has proved its storage; it has nothing of the VM unless it says so."""
    given: dict[str, Any] = {"spec": spec(), "volumes": MARKED} | fields
    return replace(vms.host(name, answer or Absent()), **given)


def migration(name: str = "move", created: str = "2026-01-01T00:00:00Z", **fields: Any) -> VirtualMachineMigration:
    """Return a migration of the VM, as yet without an intent."""
    status, meta = fields.pop("status", {}), {"finalizers": [FINALIZER], "uid": f"uid-{name}"}
    metadata = {"name": name, "namespace": "shop", "creationTimestamp": created, **meta, **fields.pop("meta", {})}
    return VirtualMachineMigration.model_validate(
        {"metadata": metadata, "spec": {"vmRef": {"name": "web"}} | fields, "status": status}
    )


def fleet(*hosts: HostView, others: tuple[VirtualMachineMigration, ...] = (), most: int = 10, **fields: Any) -> Fleet:
    """Return what a plan is made on: hosts that reach each other, and other migrations."""
    uris = {one.host_uuid: peer_uri(one.spec) for one in hosts}
    reached = {Peers(one, other, uri): "" for one in uris for other, uri in uris.items()}
    view = vms.view(*hosts, fresh=fields.pop("fresh", True))
    return Fleet(view, others, most, NOW, **({"reached": reached} | fields))


def pair(vm: VirtualMachine, *more: HostView, **fields: Any) -> Fleet:
    """Return a fleet where the VM runs on a, and b has nothing of it."""
    return fleet(host("a", running(vm)), host("b"), *more, **fields)


def moving(name: str, source: str, target: str, vm: str = "", port: int | None = None) -> VirtualMachineMigration:
    """Return a migration of some VM that is under way."""
    intent = {
        "source": source,
        "sourceUUID": vms.UUIDS["a"],
        "target": target,
        "targetUUID": vms.UUIDS[target] if port else vms.UUIDS["b"],
        "port": port,
        "attempt": name,
        "domainUUID": vms.UID,
        "time": "2026-01-01T00:00:00Z",
    }
    return migration(name, vmRef={"name": vm or f"vm-{name}"}, status={"intent": intent})
