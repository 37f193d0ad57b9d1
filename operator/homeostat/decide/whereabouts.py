# SPDX-License-Identifier: Apache-2.0
"""Where a VM is and where it may be: section 4 of the design, read from what the hosts answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from homeostat.api.actions import Candidate
from homeostat.api.meta import FINALIZER
from homeostat.api.observed import Absent, Domain, Owner, Present, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide.view import HostView, Say, VMView

_SEES = (Present, Absent, Unknown)


@dataclass(frozen=True, slots=True)
class Place:
    """A host that has a domain with the VM's UUID."""

    host: HostView
    domain: Domain


@dataclass(slots=True)
class Whereabouts:
    """`ours`: domains that are this VM's; `foreign`: domains with its UUID that are not, and whose.

    `blind`: hosts where the VM may be and that cannot be asked, with why; in the first seconds of an operator these are
    all that answered the one before and not yet this one. `behind`: a host knows a newer generation than the object.
    """

    ours: list[Place] = field(default_factory=list)
    foreign: list[tuple[Place, str]] = field(default_factory=list)
    blind: list[tuple[str, Unknown]] = field(default_factory=list)
    behind: bool = False

    @property
    def active(self) -> list[Place]:
        """Those of ours that have a process."""
        return [place for place in self.ours if place.domain.active]


def locate(vm: VirtualMachine, view: VMView) -> Whereabouts:
    """Sort the hosts' answers: every reachable one counts, candidate or not; blind are those where the VM may be."""
    where = Whereabouts()
    for host in _distinct(vm, view):
        if isinstance(host.answer, Present):
            _sort(vm, view, Place(host, host.answer.domain), where)
    where.behind = any(_newer(vm, place.domain.owner) for place in where.ours)
    where.blind = list(_blind(vm, view, everywhere=where.behind))
    return where


def _distinct(vm: VirtualMachine, view: VMView) -> Iterator[HostView]:
    """Each host once: of two Hypervisors that name the same one, that which sees the domain, or at least the host.

    Else that which is recorded, or the first by name.
    """
    recorded = {candidate.hypervisor for candidate in vm.status.candidates}
    seen: set[str] = set()

    def order(host: HostView) -> tuple[int, bool, str]:
        return _SEES.index(type(host.answer)), host.name not in recorded, host.name

    for host in sorted(view.hosts.values(), key=order):
        if host.host_uuid and host.host_uuid in seen:
            continue
        seen.add(host.host_uuid)
        yield host


def _sort(vm: VirtualMachine, view: VMView, place: Place, where: Whereabouts) -> None:
    whose = claim(vm, place.domain.owner, view.cluster)
    if whose == "ours":
        where.ours.append(place)
    else:
        where.foreign.append((place, whose))


def claim(vm: VirtualMachine, owner: Owner | None, cluster: str) -> str:
    """Whose a domain with the VM's UUID is: "ours" (spec.takeover counted in), or words that say whose."""
    takeover = vm.spec.takeover
    if owner is None:
        return "ours" if takeover == "Unowned" else "a domain that nobody manages"
    if owner.cluster != cluster:
        return "managed from another cluster"
    if (owner.namespace, owner.name) != (vm.metadata.namespace, vm.metadata.name):
        return f"the domain of VM {owner.namespace}/{owner.name}"
    if owner.uid == vm.metadata.uid or takeover == "PreviousIncarnation":
        return "ours"
    return "the domain of an earlier VM of this name"


def _newer(vm: VirtualMachine, owner: Owner | None) -> bool:
    return owner is not None and owner.uid == vm.metadata.uid and owner.generation > vm.metadata.generation


def may_be_anywhere(vm: VirtualMachine) -> bool:
    """Whether every Hypervisor is a candidate: the list was lost, or another's domain is to be taken over."""
    return not vm.status.candidates and (FINALIZER in vm.metadata.finalizers or vm.spec.domain_uuid is not None)


def _blind(vm: VirtualMachine, view: VMView, *, everywhere: bool) -> Iterator[tuple[str, Unknown]]:
    for host in view.hosts.values():
        if not (everywhere or may_be_anywhere(vm) or _moved_perhaps(vm, host)):
            continue
        if isinstance(host.answer, Unknown) and not host.released and not abandoned(vm, host.name):
            yield host.name, host.answer
    for candidate in vm.status.candidates:
        unknown = _candidate_blind(vm, view, candidate.hypervisor, candidate.host_uuid)
        if unknown is not None and not (everywhere and candidate.hypervisor in view.hosts):
            yield candidate.hypervisor, unknown


def _moved_perhaps(vm: VirtualMachine, host: HostView) -> bool:
    """Whether a person may have taken the VM there while no operator looked: the host has not been asked since.

    What was never seen defined, nobody has moved.
    """
    return host.awaited and vm.status.domain is not None and not listed(vm, host)


def listed(vm: VirtualMachine, host: HostView) -> bool:
    """Whether the host is recorded as one where the VM may be."""
    return any(candidate.host_uuid == host.host_uuid for candidate in vm.status.candidates)


def _candidate_blind(vm: VirtualMachine, view: VMView, name: str, host_uuid: str) -> Unknown | None:
    host = host_of(view, name, host_uuid)
    if abandoned(vm, name) or (host is not None and host.released):
        return None
    if host is None:
        if name in view.hosts:
            return Unknown(
                "IdentityMismatch", f"Hypervisor {name} is another machine now; the VM may be on host {host_uuid}"
            )
        return Unknown("HypervisorMissing", f"there is no Hypervisor {name}")
    return host.answer if isinstance(host.answer, Unknown) else None


def host_of(view: VMView, name: str, host_uuid: str) -> HostView | None:
    """The Hypervisor that speaks for a candidate: the machine counts, then the name."""
    named = view.hosts.get(name)
    if named is not None and named.host_uuid in ("", host_uuid):
        return named
    return next((host for host in view.hosts.values() if host.host_uuid == host_uuid and host_uuid), None)


def unproved(vm: VirtualMachine, view: VMView) -> Iterator[Candidate]:
    """The recorded candidates that stay on record: the VM is not proved to be gone, and nobody gave the host up."""
    for each in vm.status.candidates:
        host = host_of(view, each.hypervisor, each.host_uuid)
        if abandoned(vm, each.hypervisor) or (host is not None and (host.released or nowhere(host))):
            continue
        known = host is not None and host.host_uuid
        yield candidate_of(host) if host and known else Candidate(each.hypervisor, each.uid, each.host_uuid)


def abandoned(vm: VirtualMachine, hypervisor: str) -> bool:
    """Whether the VM is being deleted, and its owner gave up what is left of it there."""
    return vm.metadata.deleting and hypervisor in vm.spec.abandon_hosts


def blindness(where: Whereabouts) -> Say:
    """What is said of the first host that cannot be asked."""
    name, unknown = where.blind[0]
    known = {"HostNotAsked", "HypervisorMissing", "HostAnswersAgain"}
    since = f" since {unknown.since:%Y-%m-%dT%H:%M:%SZ}" if unknown.since else ""
    reason = unknown.reason if unknown.reason in known else "HostUnreachable"
    return Say(reason, f"Hypervisor {name} is unknown{since}: {unknown.message or unknown.reason}")


def foreignness(where: Whereabouts) -> Say:
    """What is said of the first domain that has the VM's UUID and is not the VM's."""
    found, whose = where.foreign[0]
    return Say("ForeignDomain", f"Hypervisor {found.host.name} has a domain with UUID {found.domain.uuid}: {whose}")


def candidate_of(host: HostView) -> Candidate:
    """A host as it is recorded in status.candidates."""
    return Candidate(host.name, host.uid, host.host_uuid)


def nowhere(host: HostView) -> bool:
    """Whether the host proved that the VM is not there."""
    return isinstance(host.answer, Absent)
