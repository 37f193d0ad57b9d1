# SPDX-License-Identifier: Apache-2.0
"""Post-copy on real hosts: each has a part of the VM's memory, and whatever breaks, both are kept until it goes on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.lab.host import Host
from tests.lab.processes import LabError
from tests.lab.rig import Object, Rig, linux
from tests.lab.test_migration import OUTLASTS, SLOW, copying, finished, move, only_on, placed, running

POST_COPY = SLOW | {"mode": "PostCopy"}
CRAWLING = {"mode": "PostCopy", "bandwidth": "1Mi"}
"""With this the rest of a guest that has nothing to do takes longer than the guest takes to do something."""
SHARED = {"name": "data", "pool": "shared", "size": "8Mi"}
Halves = tuple[int | None, int | None]


def leaves(rig: Rig, policy: Object = POST_COPY) -> None:
    """Move `web` from h1 to h2; returns in post-copy, which is begun by hand to save the first pass over memory."""
    uuid = rig.uuid("web")
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target={"host": "h2"}, policy=policy)
    copying(rig, "go")
    with suppress(LabError):  # the operator may have begun it
        h1.virsh("migrate-postcopy", uuid)
    rig.until(lambda: running(rig, uuid, h2), "it to run on the target")


def halves(rig: Rig) -> Halves:
    """The pids of the two processes."""
    uuid = rig.uuid("web")
    return rig.lab.hosts[0].qemu_pid(uuid), rig.lab.hosts[1].qemu_pid(uuid)


def breaks(rig: Rig) -> Halves:
    """Cut what the two QEMUs have between them; returns the processes once the operator has seen it."""
    h1, h2 = rig.lab.hosts[:2]
    h1.part(h2)
    rig.until(lambda: rig.reason("vmmig", "go") == "PostCopyInterrupted", "the break to be seen")
    both = halves(rig)
    assert None not in both
    return both


def told(rig: Rig) -> str:
    """The message of Succeeded."""
    return str(rig.condition("vmmig", "go", "Succeeded").get("message", ""))


def test_a_vm_goes_by_post_copy_and_nothing_stops_it_then(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h2 = rig.lab.hosts[1]
    move(rig, "go", "web", target={"host": "h2"}, policy=POST_COPY)
    rig.until(lambda: rig.reason("vmmig", "go") == "PostCopying", "post-copy")
    pid = h2.qemu_pid(uuid)
    rig.patch("vmmig", "go", {"spec": {"abort": "Requested"}})
    rig.until(lambda: "it can no longer be stopped" in told(rig), "it to be said that it is too late")
    status = finished(rig, "go", "Migrated")
    assert status["marks"]["postCopy"]
    only_on(rig, "web", h2)
    assert (h2.qemu_pid(uuid), rig.processes(uuid)) == (pid, 2)


def _operator(rig: Rig) -> None:
    rig.operator.kill()
    rig.operator.start()


def _libvirtd(host: Host) -> None:
    host.kill_libvirtd()
    host.start_libvirtd()


MEANWHILE: dict[str, Callable[[Rig], object]] = {
    "the operator is killed": _operator,
    "the source's libvirtd is restarted": lambda rig: _libvirtd(rig.lab.hosts[0]),
}


@pytest.mark.parametrize("meanwhile", MEANWHILE)
def test_post_copy_that_breaks_is_kept_and_goes_on_when_the_network_is_back(rig: Rig, meanwhile: str) -> None:
    placed(rig, "web")
    leaves(rig)
    both = breaks(rig)
    assert "Repair the network" in told(rig)
    MEANWHILE[meanwhile](rig)
    rig.stays(lambda: halves(rig) == both, "both processes are kept", OUTLASTS)
    assert rig.condition("vmmig", "go", "Finished")["status"] == "False"
    rig.lab.hosts[0].unfilter()
    finished(rig, "go", "Migrated", seconds=120)
    only_on(rig, "web", rig.lab.hosts[1])
    assert halves(rig) == (None, both[1])


def test_a_network_that_swallows_what_is_sent_is_an_interruption_and_no_unknown_job(rig: Rig) -> None:
    """The source's libvirt tries to connect, and does not tell its job meanwhile: the state tells enough."""
    placed(rig, "web")
    leaves(rig)
    both = breaks(rig)
    h1, h2 = rig.lab.hosts[:2]
    h2.swallow(h1)
    h1.unfilter()
    seen = lambda: rig.status("vmmig", "go")["decision"]["source"].get("job") == "Unknown"  # noqa: E731
    rig.until(seen, "the source not to tell its job", 90)
    assert rig.reason("vmmig", "go") == "PostCopyInterrupted"
    assert "h1 said: " in told(rig)
    h2.unfilter()
    finished(rig, "go", "Migrated", seconds=150)
    only_on(rig, "web", h2)
    assert halves(rig) == (None, both[1])


def test_a_guest_that_panics_and_resets_in_post_copy_has_moved(rig: Rig) -> None:
    uuid = placed(rig, "web", disks=[SHARED], **linux("homeostat.panic=15 panic=1"))
    h1, h2 = rig.lab.hosts[:2]
    rig.until(lambda: "GUEST-UP" in h1.console(uuid), "the guest")
    leaves(rig, CRAWLING)
    assert "Kernel panic" not in h1.console(uuid)
    rig.until(lambda: "Rebooting in 1 seconds" in h2.console(uuid), "the panic")
    rig.stays(lambda: rig.reason("vmmig", "go") == "PostCopying", "it is in post-copy when it resets", 3)
    h1.virsh("migrate-setspeed", "--postcopy", uuid, "1000")
    finished(rig, "go", "Migrated")
    rig.until(lambda: "GUEST-UP" in h2.console(uuid), "the guest to come up again")
    only_on(rig, "web", h2)
    assert rig.processes(uuid) == 2


def test_a_guest_that_powers_itself_off_in_post_copy_is_started_where_it_went(rig: Rig) -> None:
    """Row 22c: what the source still holds is of no use. To libvirt a SIGTERM to QEMU is the guest's own power-off."""
    uuid = placed(rig, "web")
    h2 = rig.lab.hosts[1]
    leaves(rig)
    assert rig.processes(uuid) == 2
    h2.kill_qemu(uuid, signal.SIGTERM)
    status = finished(rig, "go", "MigratedThenOff")
    assert status["decision"]["row"] == "18b"
    rig.until(lambda: rig.processes(uuid) == 3, "it to be started again")
    only_on(rig, "web", h2)


def test_a_source_that_dies_in_post_copy_has_lost_memory_and_a_person_decides(rig: Rig) -> None:
    """Row 21, and libvirt keeps the job of what it has lost: what it refuses is told, and a restart ends it."""
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    leaves(rig)
    pid = h2.qemu_pid(uuid)
    h2.freeze_libvirtd()
    h1.part(h2)
    rig.until(lambda: "post-copy failed" in h1.virsh("domstate", "--reason", uuid), "the break")
    h1.kill_qemu(uuid)
    # It forgets the job if it hears of that after its peer's answer, which comes at once when the peer is thawed.
    rig.until(lambda: "shut off" in h1.virsh("domstate", uuid), "the source's libvirt to see that its QEMU is gone")
    h2.thaw_libvirtd()
    h1.unfilter()
    rig.until(lambda: rig.condition("vmmig", "go", "Ambiguous").get("status") == "True", "it to be Ambiguous")
    assert rig.reason("vmmig", "go") == "MemoryLost"
    rig.stays(lambda: h2.qemu_pid(uuid) == pid, "the target's half is not ended", 4)
    evidence = rig.status("vmmig", "go")["decision"]["evidence"]
    assert evidence in rig.condition("vmmig", "go", "Ambiguous")["message"]
    rig.patch("vmmig", "go", {"spec": {"resolve": {"keep": "KeepTarget", "evidence": evidence}}})
    rig.until(lambda: "cannot acquire state change lock" in told(rig), "what is refused to be told", 90)
    assert "libvirtd" in told(rig)
    _libvirtd(h1)
    finished(rig, "go", "MigratedThenOff", "VMDown")
    rig.until(lambda: rig.processes(uuid) == 3, "it to be started anew")
    only_on(rig, "web", h2)
