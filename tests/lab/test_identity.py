# SPDX-License-Identifier: Apache-2.0
"""Domains that are somebody else's are never touched; those that are given over go on as they are."""

from __future__ import annotations

import hashlib
from typing import NamedTuple
from uuid import uuid4

from tests.lab.host import Host
from tests.lab.rig import Rig

DOMAIN = """<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid><metadata>{metadata}</metadata>
  <memory unit='MiB'>64</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>
  <devices><interface type='bridge'><source bridge='br0'/></interface></devices>
</domain>"""
OWNER = (
    "<h:vm xmlns:h='https://homeostat.dev/domain/1' cluster='{cluster}' namespace='default' name='{name}'"
    " uid='{uid}' request='' generation='1'/>"
)


class Trace(NamedTuple):
    """All that would show that a domain was touched."""

    pid: int | None
    live: str
    inactive: str


def trace(host: Host, uuid: str) -> Trace:
    """The trace of a running domain, as it is now."""
    live, inactive = (
        hashlib.sha256(host.virsh("dumpxml", *option, uuid).encode()).hexdigest() for option in ([], ["--inactive"])
    )
    return Trace(host.qemu_pid(uuid), live, inactive)


def by_hand(host: Host, name: str, uuid: str = "", metadata: str = "") -> str:
    """Define and start a domain as somebody with virsh would; returns its UUID."""
    uuid = uuid or str(uuid4())
    file = host.directory / "by-hand.xml"
    file.write_text(DOMAIN.format(name=name, uuid=uuid, metadata=metadata))
    host.virsh("define", str(file))
    host.virsh("start", uuid)
    return uuid


def cluster(rig: Rig) -> str:
    return rig.kubectl("get", "namespace", "kube-system", "-o", "jsonpath={.metadata.uid}").strip()


def owned(name: str, cluster: str) -> str:
    """The metadata of a domain that another object of this name is represented by."""
    return OWNER.format(name=name, cluster=cluster, uid=uuid4())


def in_conflict(rig: Rig, name: str, reason: str) -> None:
    assert rig.says(name, reason)
    rig.until(lambda: rig.condition("vm", name, "Conflict").get("status") == "True", f"Conflict of {name}")


def test_a_domain_with_the_vms_uuid_or_name_that_is_not_the_vms_is_not_touched_from_creation_to_deletion(
    rig: Rig,
) -> None:
    host, ours = rig.lab.hosts[0], cluster(rig)
    strangers = {
        "unowned": (by_hand(host, "unowned"), "Never"),
        "foreign": (by_hand(host, "foreign", metadata=owned("foreign", str(uuid4()))), "Unowned"),
        "earlier": (by_hand(host, "earlier", metadata=owned("earlier", ours)), "Unowned"),
        "renamed": (by_hand(host, "renamed", metadata=owned("other", ours)), "PreviousIncarnation"),
    }
    named = by_hand(host, "default_named")
    before = {uuid: trace(host, uuid) for uuid in (named, *(uuid for uuid, _ in strangers.values()))}
    for name, (uuid, takeover) in strangers.items():
        rig.vm(name, domainUUID=uuid, takeover=takeover)
    rig.vm("named", placement={"host": "h1"})
    for name in strangers:
        in_conflict(rig, name, "ForeignDomain")
    in_conflict(rig, "named", "ForeignName")
    rig.request("unowned", "now")
    rig.stays(lambda: {uuid: trace(host, uuid) for uuid in before} == before, "nothing to be touched", 2)
    for name in (*strangers, "named"):
        rig.delete("vm", name)
    for name in (*strangers, "named"):
        rig.gone("vm", name)
    assert {uuid: trace(host, uuid) for uuid in before} == before
    for uuid in before:
        rig.lab.assert_never_two(uuid)


def test_a_stranger_that_turns_up_while_the_vm_runs_elsewhere_is_not_touched_and_stops_the_next_start(
    rig: Rig,
) -> None:
    names = ("met", "leaving")
    uuids = {name: rig.vm(name, placement={"host": "h1"}) for name in names}
    home, elsewhere = rig.lab.hosts[:2]
    for name in names:
        rig.running(name)
    pid = home.qemu_pid(uuids["met"])
    # Defined only: a second process of one UUID is what the lab counts.
    for uuid in uuids.values():
        (elsewhere.directory / "by-hand.xml").write_text(DOMAIN.format(name=uuid, uuid=uuid, metadata=""))
        elsewhere.virsh("define", str(elsewhere.directory / "by-hand.xml"))
    before = {uuid: elsewhere.virsh("dumpxml", uuid) for uuid in uuids.values()}
    for name in names:
        in_conflict(rig, name, "Running")
    rig.delete("vm", "leaving")
    rig.gone("vm", "leaving")
    assert home.definition(uuids["leaving"]) is None
    assert home.qemu_pid(uuids["met"]) == pid
    home.kill_qemu(uuids["met"])
    in_conflict(rig, "met", "ForeignDomain")
    rig.stays(lambda: rig.host_of(uuids["met"]) is None, "nothing to be started", 2)
    assert {uuid: elsewhere.virsh("dumpxml", uuid) for uuid in uuids.values()} == before
    elsewhere.virsh("undefine", uuids["met"])
    assert rig.running("met") == home
    for uuid in uuids.values():
        rig.lab.assert_never_two(uuid)


def test_a_domain_made_by_hand_is_taken_over_without_a_restart_and_is_the_vms_from_then_on(rig: Rig) -> None:
    host = rig.lab.hosts[1]
    uuid = by_hand(host, "legacy")
    pid = host.qemu_pid(uuid)
    rig.vm("taken", domainUUID=uuid, takeover="Unowned")
    assert rig.running("taken") == host
    rig.until(lambda: "vm" in host.virsh("metadata", uuid, "https://homeostat.dev/domain/1"), "our mark")
    assert host.qemu_pid(uuid) == pid
    assert rig.condition("vm", "taken", "RestartRequired")["status"] == "True"
    rig.stays(lambda: host.qemu_pid(uuid) == pid, "the process that was there", 2)
    rig.request("taken", "now")
    rig.until(lambda: host.qemu_pid(uuid) not in (None, pid), "the restart that was asked for")
    rig.running("taken")
    rig.until(lambda: rig.condition("vm", "taken", "RestartRequired")["status"] == "False", "the spec to be in force")
    rig.lab.assert_never_two(uuid)


def test_a_released_domain_is_left_as_it_is_and_the_next_object_of_that_name_takes_it_over(rig: Rig) -> None:
    disk = {"name": "data", "pool": "shared", "size": "8Mi", "deletionPolicy": "Delete"}
    uuid = rig.vm("kept", disks=[disk], deletionPolicy="Release")
    host = rig.running("kept")
    before, files = trace(host, uuid), host.volumes("shared")
    rig.delete("vm", "kept")
    rig.gone("vm", "kept")
    rig.stays(lambda: (trace(host, uuid), host.volumes("shared")) == (before, files), "the domain as it was", 2)
    rig.vm("kept", domainUUID=uuid, takeover="PreviousIncarnation", disks=[disk])
    assert rig.running("kept") == host
    assert host.qemu_pid(uuid) == before.pid
    rig.lab.assert_never_two(uuid)


def test_an_annotation_keeps_hands_off_until_it_is_removed(rig: Rig) -> None:
    names = ("watched", "leaving")
    uuids = {name: rig.vm(name) for name in names}
    hosts = {name: rig.running(name) for name in names}
    for name in names:
        rig.kubectl("annotate", "vm", name, "homeostat.dev/reconcile=disabled")
        rig.says(name, "ReconcileDisabled")
    rig.delete("vm", "leaving")
    hosts["watched"].kill_qemu(uuids["watched"])
    assert "annotation" in rig.says("leaving", "DeletingDisabled")
    rig.until(lambda: rig.condition("vm", "watched", "Running")["status"] != "True", "the end to be reported")
    rig.stays(
        lambda: (rig.host_of(uuids["watched"]), rig.host_of(uuids["leaving"])) == (None, hosts["leaving"]),
        "nothing to be started or stopped",
        3,
    )
    for name in names:
        rig.kubectl("annotate", "vm", name, "homeostat.dev/reconcile-")
    rig.running("watched")
    rig.gone("vm", "leaving")
    assert not any(domain.uuid == uuids["leaving"] for domain in hosts["leaving"].domains())
    for uuid in uuids.values():
        rig.lab.assert_never_two(uuid)
