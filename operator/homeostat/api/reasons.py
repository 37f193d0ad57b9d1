# SPDX-License-Identifier: Apache-2.0
"""Every reason there is, by kind; `OTHER` are those of a VM's secondary conditions, with what they mean."""

from __future__ import annotations

from homeostat.api.reason import Reason
from homeostat.api.reasons_hypervisor import HYPERVISOR
from homeostat.api.reasons_migration import MIGRATABLE, MIGRATION
from homeostat.api.reasons_vm import VM_GOING_ON
from homeostat.api.reasons_vm_waiting import VM_WAITING

__all__ = ["HYPERVISOR", "MIGRATABLE", "MIGRATION", "OTHER", "VM", "Reason"]

VM = VM_GOING_ON | VM_WAITING
OTHER = {
    "NotStalled": "Nothing waits for a change of the spec.",
    "AsDeclared": "What was seen is what the spec says.",
    "RestartRequired": "The spec takes effect at the next start; a new spec.power.request restarts the VM.",
    "SpecChanged": "The running process differs from the spec; the message lists the differences.",
    "NoChange": "The running process has everything that the spec says.",
    "NoConflict": "No other domain has this VM's UUID or name.",
    "NotAmbiguous": "What was seen on both hosts names an owner of the VM, or may still do so by itself.",
    "NotQueued": "No other migration is waited for.",
    "AgentDisabled": "spec.guestAgent is Disabled.",
    "NotRunning": "There is no running guest to have an agent.",
    "NotSeen": "The channel was not looked at yet.",
    "Connected": "The guest agent answers on its channel.",
    "NotConnected": "The guest runs no agent, or not yet: install qemu-guest-agent in the guest.",
}
