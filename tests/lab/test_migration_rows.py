# SPDX-License-Identifier: Apache-2.0
"""Rows of the decision table in which a host is silent, lost its record, or shows what a person did meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab.host import Host
from tests.lab.rig import Rig, linux
from tests.lab.test_migration import (
    LAST_PASSES,
    OUTLASTS,
    finished,
    in_mid_copy,
    in_row,
    lose_the_answer,
    move,
    only_on,
    placed,
    running,
    switch,
    unanswered,
)

GIVES_UP = 90
"""Seconds until a libvirt has given up another one that is silent: the target's takes thirty."""


@contextmanager
def left_alone(rig: Rig, uuid: str, *hosts: Host) -> Iterator[None]:
    """The VM's processes on these hosts are the same afterwards, and none was started anywhere."""
    before = [host.qemu_pid(uuid) for host in hosts], rig.processes(uuid)
    assert None not in before[0]
    yield
    assert ([host.qemu_pid(uuid) for host in hosts], rig.processes(uuid)) == before


def waits(rig: Rig, row: str, owner: str, reason: str) -> None:
    """It is in this row for longer than the grace period, is not over, and says so."""
    in_row(rig, row, GIVES_UP)
    rig.until(lambda: rig.reason("vmmig", "go") == reason, f"the reason {reason}")
    rig.stays(lambda: decision(rig) == (row, owner, reason), f"row {row} lasts", OUTLASTS)
    assert rig.condition("vmmig", "go", "Finished")["status"] == "False"


def decision(rig: Rig) -> tuple[str, str, str]:
    """(row, owner, reason)."""
    status = rig.status("vmmig", "go")
    return status["decision"]["row"], status["decision"]["owner"], status["reason"]


def asked(rig: Rig) -> bool:
    """Whether a person is."""
    return bool(rig.condition("vmmig", "go", "Ambiguous")["status"] == "True")


def resolve(rig: Rig, keep: str) -> None:
    """A person's answer to what is seen."""
    evidence = rig.status("vmmig", "go")["decision"]["evidence"]
    rig.patch("vmmig", "go", {"spec": {"resolve": {"keep": keep, "evidence": evidence}}})


def idle(host: Host, uuid: str) -> bool:
    """Whether libvirt has no job of the domain, asked on the host itself."""
    return "None" in host.execute("virsh", "-c", "qemu:///system", "domjobinfo", uuid)


# The source is silent


def test_a_source_that_is_silent_in_mid_copy_is_presumed_to_run_and_goes_on_when_it_is_heard(rig: Rig) -> None:
    """Row 14, then 1: the hosts hear each other all the time."""
    uuid = in_mid_copy(rig)
    h1, h2 = rig.lab.hosts[:2]
    with left_alone(rig, uuid, h1, h2):
        h1.shun()
        waits(rig, "14", "Source", "SourceUnknown")
        assert not asked(rig)
        assert running(rig, uuid, h1)
        h1.unfilter()
        in_row(rig, "1")
    switch(rig, uuid)
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)
    assert rig.processes(uuid) == 2


def test_a_source_that_is_cut_off_keeps_the_vm_when_the_target_has_given_it_up(rig: Rig) -> None:
    """Row 14, then 15: libvirt ends what waits on the target, and nothing is started in its place."""
    uuid = in_mid_copy(rig)
    h1, h2 = rig.lab.hosts[:2]
    with left_alone(rig, uuid, h1):
        h1.shun()
        in_row(rig, "14")
        h1.cut()
        waits(rig, "15", "Source", "SourceUnknown")
        assert h2.qemu_pid(uuid) is None
        assert running(rig, uuid, h1)
        h1.unfilter()
        h1.join()
        finished(rig, "go", "RolledBack")
    only_on(rig, "web", h1)


def test_a_silent_source_is_left_with_the_target_that_waits_for_a_go_until_it_is_seen_to_run(rig: Rig) -> None:
    """Row 13b, then 23: the switchover is to be confirmed, and the source's libvirt let it go on."""
    uuid = in_mid_copy(rig, switchover="Confirmed")
    h1, h2 = rig.lab.hosts[:2]
    pid = h1.qemu_pid(uuid)
    with left_alone(rig, uuid, h1, h2):
        h2.mute(h1)
        switch(rig, uuid)
        h1.shun()
        waits(rig, "13b", "Unknown", "SourceUnknown")
        rig.until(lambda: idle(h1, uuid) and running(rig, uuid, h1), "the source to go on")
        assert decision(rig)[0] == "13b"
    h1.unfilter()
    h2.unfilter()
    in_row(rig, "23")
    finished(rig, "go", "RolledBack")
    only_on(rig, "web", h1)
    assert h1.qemu_pid(uuid) == pid


def test_a_target_that_ran_and_went_off_is_not_started_before_the_silent_source_is_seen(rig: Rig) -> None:
    """Row 15b, then 7b."""
    uuid = unanswered(rig)
    h1, h2 = rig.lab.hosts[:2]
    h1.shun()
    in_row(rig, "13")
    rig.until(lambda: idle(h1, uuid), "the source's libvirt to give up")
    with left_alone(rig, uuid, h1):
        h2.kill_qemu(uuid)
        waits(rig, "15b", "Target", "SourceUnknown")
        assert not running(rig, uuid, h1)
    h1.unfilter()
    h2.unfilter()
    assert finished(rig, "go", "MigratedThenOff")["marks"]["endedSource"]
    only_on(rig, "web", h2)
    assert rig.processes(uuid) == 3


# The target is silent


LOCKS = {"Effective": ("12", "Source", "TargetUnknown"), "None": ("12b", "Unknown", "TargetMayRun")}


@pytest.mark.parametrize("locks", LOCKS)
def test_a_source_that_runs_while_the_target_is_silent_is_left_running(rig: Rig, locks: str) -> None:
    """Row 12 or 12b: a person is asked only where no lock proves that the target did not take over."""
    for name in ("h1", "h2"):
        pools = (rig.get("hv", name) or {})["spec"]["pools"]
        rig.patch("hv", name, {"spec": {"pools": [each | {"locks": locks} for each in pools]}})
    uuid = in_mid_copy(rig)
    h1, h2 = rig.lab.hosts[:2]
    with left_alone(rig, uuid, h1):
        h2.cut()
        waits(rig, *LOCKS[locks])
        assert asked(rig) == (locks == "None")
        assert running(rig, uuid, h1)
        h2.join()
        finished(rig, "go", "RolledBack")
    only_on(rig, "web", h1)


def test_without_a_lock_a_silent_target_that_may_run_does_and_the_source_is_frozen_when_it_is_seen(rig: Rig) -> None:
    """Row 12b, then 11: the one row in which both have run."""
    uuid = placed(rig, "web", disks=[], **linux())
    h1, h2 = rig.lab.hosts[:2]
    move(rig, "go", "web", target={"host": "h2"}, policy=LAST_PASSES)
    lose_the_answer(rig, uuid)
    rig.until(lambda: running(rig, uuid, h2), "its CPUs to run on h2")
    with left_alone(rig, uuid, h1, h2):
        h2.cut()
        waits(rig, "12b", "Unknown", "TargetMayRun")
        assert asked(rig)
        h2.unfilter()
        h2.join()
        in_row(rig, "11")
        rig.until(lambda: not running(rig, uuid, h1), "the source's CPUs to be stopped")
        rig.until(lambda: asked(rig), "a person to be asked")
        assert running(rig, uuid, h2)
    pid = h2.qemu_pid(uuid)
    rig.until(lambda: rig.status("vmmig", "go")["decision"]["source"].get("state") == "Paused", "it to be seen frozen")
    resolve(rig, "KeepTarget")
    finished(rig, "go", "Migrated")
    assert (h1.qemu_pid(uuid), h2.qemu_pid(uuid)) == (None, pid)
    assert [host.number for host in rig.lab.hosts if host.definition(uuid)] == [2]


def test_while_neither_host_is_heard_it_goes_its_way(rig: Rig) -> None:
    """Row 26, then 1, and 26b with the source gone."""
    uuid = in_mid_copy(rig)
    h1, h2 = rig.lab.hosts[:2]
    with left_alone(rig, uuid, h1, h2):
        h1.shun()
        h2.shun()
        waits(rig, "26", "Unknown", "BothUnknown")
        h1.unfilter()
        in_row(rig, "1")
    with left_alone(rig, uuid, h2):
        switch(rig, uuid)
        waits(rig, "26b", "Unknown", "TargetUnknown")
        assert running(rig, uuid, h2)
        h2.unfilter()
        finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)


# A record is lost


def forgotten(rig: Rig, uuid: str, lost: Host, runs: Host, row: str, owner: str) -> None:
    """One host's libvirt loses its process while no operator is there; the one that comes leaves both as they are."""
    with left_alone(rig, uuid, lost, runs):
        lost.lose_record(uuid)
        rig.lab.hosts[1].unfilter()
        rig.operator.start()
        waits(rig, row, owner, "ProcessMayBeLeft")
        assert asked(rig)
        assert (running(rig, uuid, runs), running(rig, uuid, lost)) == (True, False)
        assert lost.definition(uuid) is not None
    lost.kill_qemu(uuid)


def test_a_process_that_the_targets_libvirt_lost_is_taken_for_one_that_may_be_there(rig: Rig) -> None:
    """Row 27: after a lost answer the source goes on, and the target has the VM with its CPUs stopped."""
    uuid = in_mid_copy(rig, switchover="Confirmed")
    h1, h2 = rig.lab.hosts[:2]
    rig.operator.kill()
    h2.mute(h1)
    switch(rig, uuid)
    rig.until(lambda: idle(h1, uuid) and running(rig, uuid, h1), "the source to go on")
    forgotten(rig, uuid, h2, h1, "27", "Unknown")
    resolve(rig, "KeepSource")
    finished(rig, "go", "RolledBack")
    only_on(rig, "web", h1)
    assert rig.processes(uuid) == 2


def test_a_process_that_the_sources_libvirt_lost_is_taken_for_one_that_may_be_there(rig: Rig) -> None:
    """Row 27b: it took over on the target, and the source's libvirt died before it was told."""
    uuid = unanswered(rig)
    h1, h2 = rig.lab.hosts[:2]
    rig.until(lambda: running(rig, uuid, h2), "its CPUs to run on h2")
    rig.operator.kill()
    forgotten(rig, uuid, h1, h2, "27b", "Target")
    resolve(rig, "KeepTarget")
    finished(rig, "go", "Migrated")
    only_on(rig, "web", h2)
    assert rig.processes(uuid) == 2


# CPUs that are stopped


def test_what_has_arrived_waits_for_its_go_while_no_operator_is_there(rig: Rig) -> None:
    """Row 24: the switchover is to be confirmed."""
    uuid = in_mid_copy(rig, switchover="Confirmed")
    h1, h2 = rig.lab.hosts[:2]
    rig.operator.kill()
    switch(rig, uuid)
    rig.until(lambda: h1.definition(uuid) is None, "it to arrive")
    with left_alone(rig, uuid, h2):
        rig.stays(lambda: not running(rig, uuid, h2), "it waits")
        rig.operator.start()
        finished(rig, "go", "Migrated")
    assert running(rig, uuid, h2)
    only_on(rig, "web", h2)


def test_what_somebody_paused_when_it_had_come_to_nothing_stays_so_on_the_source(rig: Rig) -> None:
    """Row 25. What is paused in mid-copy, libvirt calls paused by the migration, and lets run when that has ended."""
    uuid = in_mid_copy(rig)
    h1, h2 = rig.lab.hosts[:2]
    rig.operator.kill()
    h2.kill_qemu(uuid)
    rig.until(lambda: idle(h1, uuid), "it to come to nothing")
    with left_alone(rig, uuid, h1):
        h1.virsh("suspend", uuid)
        rig.operator.start()
        assert finished(rig, "go", "RolledBack")["decision"]["row"] == "25"
        rig.stays(lambda: not running(rig, uuid, h1), "it stays paused")
    h1.virsh("resume", uuid)
    only_on(rig, "web", h1)


def test_what_somebody_paused_when_it_had_arrived_stays_so_on_the_target(rig: Rig) -> None:
    """Row 7d."""
    uuid = in_mid_copy(rig)
    h1, h2 = rig.lab.hosts[:2]
    rig.operator.kill()
    switch(rig, uuid)
    rig.until(lambda: running(rig, uuid, h2) and h1.definition(uuid) is None, "it to arrive")
    with left_alone(rig, uuid, h2):
        h2.virsh("suspend", uuid)
        rig.operator.start()
        assert finished(rig, "go", "Migrated")["decision"]["row"] == "7d"
        rig.stays(lambda: not running(rig, uuid, h2), "it stays paused")
    h2.virsh("resume", uuid)
    only_on(rig, "web", h2)
