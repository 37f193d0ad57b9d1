# SPDX-License-Identifier: Apache-2.0
"""Rows of the decision table in which a host is silent, or has lost its record, while the source may run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.host import Host
from tests.lab.rig import Rig
from tests.lab.test_migration import SLOW, copying, finished, move, only_on, placed, running, switch

H2 = {"host": "h2"}


def in_row(rig: Rig, number: str) -> None:
    """Wait until the migration is in this row of the table."""
    rig.until(lambda: rig.status("vmmig", "go")["decision"]["row"] == number, f"row {number}")


def in_mid_copy(rig: Rig) -> str:
    """A restless VM on its way from h1 to h2 that never gets there by itself; returns its UUID."""
    uuid = placed(rig, "web")
    move(rig, "go", "web", target=H2, policy=SLOW)
    copying(rig, "go")
    return uuid


@contextmanager
def left_alone(rig: Rig, uuid: str, *hosts: Host) -> Iterator[None]:
    """The VM's processes on these hosts are the same afterwards, and there was no other one."""
    before = [host.qemu_pid(uuid) for host in hosts], rig.processes(uuid)
    assert None not in before[0]
    yield
    assert ([host.qemu_pid(uuid) for host in hosts], rig.processes(uuid)) == before


# The source is silent


def test_a_source_that_is_silent_in_mid_copy_is_presumed_to_run_and_goes_on_when_it_is_heard(rig: Rig) -> None:
    """Row 14, then 1: the hosts hear each other all the time."""
    uuid = in_mid_copy(rig)
    h1, h2 = rig.lab.hosts[:2]
    with left_alone(rig, uuid, h1, h2):
        h1.shun()
        in_row(rig, "14")
        rig.stays(lambda: running(rig, uuid, h1) and h2.qemu_pid(uuid), "it is copied on", 8)
        status = rig.status("vmmig", "go")
        assert (status["reason"], status["decision"]["row"], status["decision"]["owner"]) == (
            "SourceUnknown",
            "14",
            "Source",
        )
        assert rig.condition("vmmig", "go", "Ambiguous")["status"] == "False"
        h1.unfilter()
        in_row(rig, "1")
    switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)
    assert rig.processes(uuid) == 2


def test_a_source_that_is_cut_off_keeps_the_vm_when_the_target_has_given_it_up(rig: Rig) -> None:
    """Row 14, then 15: libvirt ends what waits on the target, and nothing is started there in its place."""
    uuid = in_mid_copy(rig)
    h1, h2 = rig.lab.hosts[:2]
    with left_alone(rig, uuid, h1):
        h1.shun()
        in_row(rig, "14")
        h1.cut()
        in_row(rig, "15")
        assert h2.qemu_pid(uuid) is None
        rig.stays(lambda: running(rig, uuid, h1) and not rig.lab.hosts[2].qemu_pid(uuid), "it runs on the source", 8)
        status = rig.status("vmmig", "go")
        assert (status["reason"], status["decision"]["row"]) == ("SourceUnknown", "15")
        assert rig.condition("vmmig", "go", "Finished")["status"] == "False"
        h1.unfilter()
        h1.join()
        finished(rig, "go", "RolledBack")
    only_on(rig, "web", h1)


# The target is silent


LOCKS = {"Effective": ("12", "Source", "TargetUnknown", "False"), "None": ("12b", "Unknown", "TargetMayRun", "True")}


@pytest.mark.parametrize("locks", LOCKS)
def test_a_source_that_runs_while_the_target_is_silent_is_left_running(rig: Rig, locks: str) -> None:
    """Row 12 or 12b: a person is asked only where no lock proves that the target did not take over."""
    row, owner, reason, ambiguous = LOCKS[locks]
    for name in ("h1", "h2"):
        pools = (rig.get("hv", name) or {})["spec"]["pools"]
        rig.patch("hv", name, {"spec": {"pools": [each | {"locks": locks} for each in pools]}})
    uuid = in_mid_copy(rig)
    h1, h2 = rig.lab.hosts[:2]
    with left_alone(rig, uuid, h1):
        h2.cut()
        in_row(rig, row)
        rig.until(lambda: rig.reason("vmmig", "go") == reason, reason)
        rig.stays(lambda: running(rig, uuid, h1), "it runs on the source", 8)
        status = rig.status("vmmig", "go")
        assert (status["reason"], status["decision"]["row"], status["decision"]["owner"]) == (reason, row, owner)
        assert rig.condition("vmmig", "go", "Ambiguous")["status"] == ambiguous
        assert rig.condition("vmmig", "go", "Finished")["status"] == "False"
        h2.join()
        finished(rig, "go", "RolledBack")
    only_on(rig, "web", h1)


# The target's record is lost


def test_a_process_that_the_targets_libvirt_lost_is_taken_for_one_that_may_be_there(rig: Rig) -> None:
    """Row 27: after a lost answer the source goes on, and the target has the VM with its CPUs stopped."""
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target=H2, policy=SLOW | {"switchover": "Confirmed"})
    copying(rig, "go")
    rig.operator.kill()
    h2.mute(h1)
    switch(rig, uuid)
    rig.until(lambda: h1.virsh("domstate", "--reason", uuid).strip() == "running (migration canceled)", "it to go on")
    with left_alone(rig, uuid, h1, h2):
        h2.lose_record(uuid)
        h2.unfilter()
        rig.operator.start()
        in_row(rig, "27")
        rig.until(lambda: rig.condition("vmmig", "go", "Ambiguous")["status"] == "True", "a person to be asked")
        rig.stays(lambda: running(rig, uuid, h1) and h2.definition(uuid) is not None, "nothing is removed", 6)
        assert rig.reason("vmmig", "go") == "ProcessMayBeLeft"
    assert not running(rig, uuid, h2)
    h2.kill_qemu(uuid)
    evidence = rig.status("vmmig", "go")["decision"]["evidence"]
    rig.patch("vmmig", "go", {"spec": {"resolve": {"keep": "KeepSource", "evidence": evidence}}})
    finished(rig, "go", "RolledBack")
    only_on(rig, "web", h1)
    assert rig.processes(uuid) == 2
