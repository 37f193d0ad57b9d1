# SPDX-License-Identifier: Apache-2.0
"""A VM whose host is evacuated: whether its owner lets it be off meanwhile (spec.evacuation)."""

from __future__ import annotations

from homeostat.api.observed import RUNNING_STATES, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import migratable, placement
from homeostat.decide.view import HostView
from homeostat.decide.vm_case import Case
from homeostat.decide.whereabouts import Place

TEMPORARY = ("BlockJob", "PendingDetach", "Transient")
"""Reasons against a migration that go by themselves."""


def stays_off(vm: VirtualMachine, host: HostView) -> bool:
    """Whether the VM, off on this host, is not to be started there: evacuated, its owner agrees, and wants no other."""
    return _agreed(vm, host) and placement.unwanted(vm, host) is None


def shut_off(case: Case, place: Place) -> str:
    """Why the VM that runs here is shut down for its host's evacuation; "" when it is not.

    Where it is other hosts that cannot take it, all have to be heard: one that is silent may be able to.
    """
    vm, domain, host = case.vm, place.domain, place.host
    if not _agreed(vm, host) or domain.state not in RUNNING_STATES:
        return ""
    detail = f"spec.maintenance of Hypervisor {host.name} is Evacuate"
    if vm.status.reason == "Evacuating":
        return detail  # the guest was asked already, and may be about to go off
    if case.view.queued:
        return ""  # it may copy the disks that keep the VM here
    status, why = migratable.condition(vm, domain, host, case.view.hosts)
    if status != "False" or why.reason in TEMPORARY:
        return ""
    by_itself = next(migratable.of_the_vm(domain), None) is not None
    if not by_itself and any(_unheard(each) for each in case.view.hosts.values()):
        return ""
    return f"{detail}, and it cannot be moved: {why.reason}"


def _unheard(host: HostView) -> bool:
    return (host.facts is None or isinstance(host.answer, Unknown)) and not host.released


def _agreed(vm: VirtualMachine, host: HostView) -> bool:
    return vm.spec.evacuation == "ShutOff" and host.spec.maintenance == "Evacuate"
