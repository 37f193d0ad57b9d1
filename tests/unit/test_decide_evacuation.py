# SPDX-License-Identifier: Apache-2.0
"""Evacuating a host: what is moved, what is not and why, and what clearing it takes back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from homeostat.api import reasons
from homeostat.api.hypervisor import Hypervisor
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.observed import HostAnswer, HostFacts
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide.evacuation import LABEL, RETRY, WAITS, Evacuation, NewMigration, evacuate
from homeostat.decide.hypervisor import closed, verdict
from homeostat.decide.view import Say
from tests.unit.migrations import INTENT

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FINE = ("True", Say("Migratable"))


def hypervisor(maintenance: str = "Evacuate", evacuation: dict[str, Any] | None = None) -> Hypervisor:
    spec = {"uri": "qemu+tls://a/system", "maintenance": maintenance}
    metadata = {"name": "a", "uid": "hv", "generation": 2}
    status = {"evacuation": evacuation} if evacuation else {}
    return Hypervisor.model_validate({"metadata": metadata, "spec": spec, "status": status})


def vms(count: int) -> list[VirtualMachine]:
    return [
        VirtualMachine.model_validate(
            {
                "metadata": {"name": f"vm-{n}", "namespace": "shop", "uid": f"uid-{n}"},
                "spec": {"memory": {"size": "64Mi"}},
            }
        )
        for n in range(count)
    ]


def attempt(
    vm: str, name: str = "evacuate-1", ended: str = "", *, label: bool = True, **status: Any
) -> VirtualMachineMigration:
    """Return a migration of a VM; `ended` is True or False as Succeeded says, "" for one that goes on."""
    conditions = [
        {"type": kind, "status": value, "reason": "Refused", "message": "No.", "lastTransitionTime": NOW}
        for kind, value in (("Finished", "True"), ("Succeeded", ended))
        if ended
    ]
    labels = {LABEL: "hv"} if label else {}
    done = {"completionTime": NOW, "reason": "Refused"} if ended else {}
    return VirtualMachineMigration.model_validate(
        {
            "metadata": {"name": name, "namespace": "shop", "labels": labels},
            "spec": {"vmRef": {"name": vm}},
            "status": {"conditions": conditions, **done, **status},
        }
    )


def evacuated(count: int, *attempts: VirtualMachineMigration, later: float = 0, **verdicts: Any) -> Evacuation:
    able = {f"uid-{n}": verdicts.get(f"vm_{n}", FINE) for n in range(count)}
    return evacuate(hypervisor(), vms(count), able, attempts, NOW + timedelta(seconds=later))


def applied(new: NewMigration) -> VirtualMachineMigration:
    return attempt(new.vm, new.name)


def test_a_host_that_is_evacuated_takes_no_vms_and_is_still_ready() -> None:
    answer = HostAnswer(reachable=True, facts=HostFacts("uuid", "a", "9.0.0", "7.2.0", 4, 8192, kvm=True))
    reason, details = verdict(hypervisor(), answer, ())
    assert (reason, reasons.HYPERVISOR[reason].ready) == ("Evacuating", "True")
    assert closed(reason, details) is not None
    assert closed(*verdict(hypervisor("Off"), answer, ())) is None


def test_every_vm_gets_a_migration_as_many_at_once_as_the_host_lets_go_twice_over() -> None:
    first = evacuated(6)
    assert [each.vm for each in first.make] == ["vm-0", "vm-1", "vm-2", "vm-3"]
    assert first.status is not None
    assert (first.status.moved, first.status.moving, first.status.remaining) == (0, 0, 6)
    again = evacuated(6, *map(applied, first.make))
    assert again.make == ()
    assert again.status is not None
    assert again.status.moving == 4


def test_a_migration_that_is_made_twice_is_made_once() -> None:
    assert evacuated(1).make == evacuated(1, later=3600).make


def test_a_migration_that_somebody_else_made_will_do() -> None:
    assert evacuated(1, attempt("vm-0", "by-hand", label=False)).make == ()


def test_what_cannot_move_is_named_with_its_reason_and_left_running() -> None:
    found = evacuated(2, vm_0=("False", Say("TPM")))
    assert [each.vm for each in found.make] == ["vm-1"]
    assert found.status is not None
    (blocked,) = found.status.blocked
    assert (blocked.vm, blocked.reason) == ("shop/vm-0", "TPM")
    assert blocked.message
    assert found.cancel == ()


def test_a_reason_that_this_version_does_not_know_blocks_as_well() -> None:
    blocked = evacuated(1, vm_0=("False", Say("Entangled"))).status
    assert blocked is not None
    assert [(each.vm, each.reason) for each in blocked.blocked] == [("shop/vm-0", "Entangled")]


@pytest.mark.parametrize("status", [{}, {"completionTime": None}], ids=["whole", "without its time"])
def test_one_that_failed_is_tried_again_later_under_another_name(status: dict[str, Any]) -> None:
    (first,) = evacuated(1).make
    failed = attempt("vm-0", first.name, "False", **status)
    soon = evacuated(1, failed, later=RETRY.total_seconds() - 1)
    assert soon.make == ()
    assert soon.status is not None
    assert [(each.reason, each.message) for each in soon.status.blocked] == [
        ("Refused", f"VirtualMachineMigration {first.name}: No.")
    ]
    (second,) = evacuated(1, failed, later=RETRY.total_seconds()).make
    assert second.name != first.name


def test_one_that_is_to_be_shut_down_says_what_is_waited_for() -> None:
    (vm,) = vms(1)
    agreed = VirtualMachine.model_validate(
        vm.model_dump(by_alias=True) | {"spec": vm.spec.wire() | {"evacuation": "ShutOff"}}
    )
    found = evacuate(hypervisor(), [agreed], {"uid-0": ("False", Say("LocalDisk"))}, [], NOW).status
    assert found is not None
    assert found.blocked[0].message is not None
    assert found.blocked[0].message.endswith(WAITS)
    for status, counts in (
        ({"state": "Stopping", "reason": "Evacuating"}, (1, None)),
        ({"state": "Stopped", "reason": "Evacuated"}, (0, 1)),
        ({"state": "Stopped", "reason": "Halted"}, (0, None)),
    ):
        rests = VirtualMachine.model_validate(agreed.model_dump(by_alias=True) | {"status": status})
        then = evacuate(hypervisor(), [rests], {"uid-0": FINE}, [], NOW)
        assert then.status is not None
        assert (then.status.remaining, then.status.shut_off, then.status.blocked, then.make) == (*counts, (), ())


def test_what_was_moved_stays_counted_when_its_migration_has_expired() -> None:
    moved = evacuated(0, attempt("vm-0", ended="True")).status
    assert moved is not None
    assert (moved.moved, moved.remaining) == (1, 0)
    later = evacuate(hypervisor(evacuation=moved.wire()), [], {}, [], NOW + timedelta(days=2)).status
    assert later is not None
    assert (later.moved, later.since) == (1, NOW)


def test_clearing_it_cancels_what_has_not_begun_and_nothing_else() -> None:
    attempts = [
        attempt("vm-0", "waits"),
        attempt("vm-1", "moves", intent=INTENT),
        attempt("vm-2", "done", "True"),
        attempt("vm-3", "by-hand", label=False),
    ]
    found = evacuate(hypervisor("Off"), vms(4), {}, attempts, NOW)
    assert found == Evacuation(cancel=(("shop", "waits"),))


def test_a_name_that_is_taken_keeps_no_vm_from_being_tried_again() -> None:
    """Attempts expire one by one, and are counted anew."""
    names = [applied(evacuated(1).make[0])]
    for _ in range(2):
        failed = [attempt("vm-0", each.metadata.name, "False") for each in names]
        (new,) = evacuated(1, *failed, later=RETRY.total_seconds() + 1).make
        names.append(applied(new))
    for left in (names[1:], names[2:]):
        failed = [attempt("vm-0", each.metadata.name, "False") for each in left]
        (new,) = evacuated(1, *failed, later=RETRY.total_seconds() + 1).make
        assert new.name not in {each.metadata.name for each in left}


def test_a_vm_that_came_back_in_the_same_evacuation_is_moved_again() -> None:
    first = attempt("vm-0", evacuated(1).make[0].name, "True")
    (new,) = evacuated(1, first).make
    assert new.name != first.metadata.name


@pytest.mark.parametrize("state", ["Stopped", "Finished"])
def test_a_vm_that_rests_is_in_nobodys_way(state: str) -> None:
    (vm,) = vms(1)
    rests = vm.model_copy(update={"status": vm.status.model_copy(update={"state": state})})
    found = evacuate(hypervisor(), [rests], {"uid-0": FINE}, (), NOW)
    assert found.status is not None
    assert (found.make, found.status.remaining) == ((), 0)


def test_a_vm_that_is_to_be_stopped_is_waited_for_and_not_moved() -> None:
    (vm,) = vms(1)
    halted = vm.model_copy(update={"spec": vm.spec.model_copy(update={"run_strategy": "Halted"})})
    found = evacuate(hypervisor(), [halted], {"uid-0": FINE}, (), NOW)
    assert found.status is not None
    assert (found.make, found.status.remaining, found.status.blocked) == ((), 1, ())
