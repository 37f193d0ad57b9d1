# SPDX-License-Identifier: Apache-2.0
"""Whether a VM that is off is to be started: the table of docs/run-strategy.md."""

from __future__ import annotations

from homeostat.api.observed import ACTIVE_STATES, Domain
from homeostat.api.virtualmachine import VirtualMachine

EVACUATED = "Evacuated"
ASKED = ("Evacuating", "EvacuationEnded")
"""Reasons of a VM whose guest may have been asked to power off for its host's evacuation."""
WAYS_OFF = ("Shutdown", "Crashed", "Destroyed", "Failed", "Unknown", EVACUATED)
"""How a domain went off: as libvirt says it, or for its host's evacuation.

SIGTERM to QEMU looks like the guest's own Shutdown, SIGKILL like Crashed (measured).
"""

# strategy -> the ways off after which it starts again unasked
RESTARTS = {
    "Always": frozenset(WAYS_OFF),
    "RerunOnFailure": frozenset(WAYS_OFF) - {"Shutdown"},
    "Manual": frozenset({EVACUATED}),
    "Halted": frozenset[str](),
}


def starts(strategy: str, way_off: str, *, served: bool, power_state: str = "Running") -> bool:
    """Whether a domain that went off this way is started.

    `served`: a process has run for the current spec.power.request. A way off that is no shutoff reason of libvirt's
    counts as the nearest of WAYS_OFF: anything but Shutdown is a failure.
    """
    if strategy == "Halted" or power_state == "Stopped":
        return False
    if not served:
        return True
    return (way_off if way_off in WAYS_OFF else "Unknown") in RESTARTS[strategy]


def stays(vm: VirtualMachine) -> bool:
    """Whether a process that is there may stay."""
    return vm.spec.run_strategy != "Halted" and vm.spec.power.state != "Stopped"


def way_off(vm: VirtualMachine, domain: Domain) -> str:
    """How the domain's last process ended: what we recorded when we saw it, else for what we ended it, else libvirt's.

    That the guest is asked to power off for an evacuation is on record before it is asked, and stays so until another
    process is seen, or how it ended.
    """
    if domain.owner and domain.owner.off:
        return domain.owner.off
    untold = domain.reason in (*UNTOLD, domain.owner.was if domain.owner else None)
    evacuated = vm.status.reason in ASKED or (untold and way_gone(vm) == EVACUATED)
    return EVACUATED if evacuated else domain.reason


def way_gone(vm: VirtualMachine) -> str:
    """How the last process ended of a VM whose definition is gone, by its status; Unknown when that does not say."""
    seen, known = vm.status.domain, dict.fromkeys((*ASKED, "Evacuated"), EVACUATED) | {"Finished": "Shutdown"}
    if (way := known.get(vm.status.reason or "")) is not None:
        return way
    off = seen is not None and seen.state in ("Shutoff", "Absent")
    return seen.reason if seen and off and seen.reason in WAYS_OFF else "Unknown"


def served(vm: VirtualMachine, domain: Domain | None) -> bool:
    """Whether a process has run for the VM's current power request.

    A definition is prepared for a request before it is started, so the request alone does not say that a process ran.
    That it ran is said by the mark left when its end was seen, by a way off that was not there when the definition was
    prepared, or by having been seen.
    """
    request = vm.spec.power.request
    if domain is None:
        return ran(vm, request)
    if domain.owner is None or domain.owner.request != request:
        return False
    if domain.owner.off:
        return True
    return domain.reason not in ("Unknown", "Failed", domain.owner.was) or ran(vm, request)


UNTOLD = ("Unknown", "Failed")
"""Reasons for being off that say nothing of a process that was there before."""


def ran(vm: VirtualMachine, request: str) -> bool:
    """Whether status says that a process of this request was seen: it has no other request."""
    seen = vm.status.domain
    return seen is not None and seen.request == request


def maybe_running(vm: VirtualMachine, domain: Domain, host: str) -> bool:
    """Whether a domain that libvirt calls off may still have a process: it was seen running, and no reason is known.

    libvirtd says Shutoff/Unknown after it lost its record of a running domain, and after every restart for all that
    are off. A start that is refused makes that Failed, and proves as little; a libvirtd that ended in the middle of it
    says Crashed, or Daemon, of the process that was refused. spec.confirmedOff, given after that was seen on this
    host, is a person's word that there is none.
    """
    seen, word = vm.status.domain, vm.spec.confirmed_off
    nothing = ("Unknown", "Failed", "Crashed", "Daemon") if seen and seen.reason == "RecordLost" else UNTOLD
    if domain.active or domain.reason not in nothing or (domain.owner and domain.owner.off):
        return False
    if seen is None or not (seen.state in ACTIVE_STATES or seen.reason == "RecordLost"):
        return False
    if vm.status.host not in (None, host) and vm.status.migration is None:
        return False  # it was seen running elsewhere: no definition is made here before that is seen to be over
    return not (word and word.host == host and seen.reason == "RecordLost" and seen.since and word.since >= seen.since)


def lockable(domain: Domain) -> bool:
    """Whether a second process of this domain on the same host would be refused: the image lock of a disk does that.

    Without a disk nothing is sure to: virtlogd refuses a second writer of the console log, unless it was restarted,
    and libvirt's own pid file refuses nothing (measured, libvirt 9.0).
    """
    return domain.inactive is not None and bool(domain.inactive.disks)
