# SPDX-License-Identifier: Apache-2.0
"""One VM being decided on: who is asked before anything is done, and what is written down of where it may be."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from homeostat.api import actions as act
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide.view import Decision, HostView, Look, Say, VMView
from homeostat.decide.whereabouts import Whereabouts, candidate_of, host_of, may_be_anywhere


@dataclass(frozen=True, slots=True)
class Case:
    """One VM, what is seen of it, and the time."""

    vm: VirtualMachine
    view: VMView
    where: Whereabouts
    now: datetime


def do(case: Case, action: act.Action, say: Say, host: HostView) -> Decision:
    """Act, on fresh knowledge only; what libvirt said to the last attempt is part of what is said."""
    if not case.view.fresh:
        return Decision(say, look=Look(concerned(case, host)))
    failure = case.view.failure
    if failure is not None and type(failure.action) is type(action):
        say = Say(say.reason, f"the last attempt was refused: {failure.message}")
    return Decision(say, action)


def concerned(case: Case, host: HostView) -> tuple[str, ...]:
    """The hosts to ask before anything is done: the target, those that have the VM, every one where it may be."""
    names = {host.name, *(place.host.name for place in case.where.ours), *candidates(case)}
    if may_be_anywhere(case.vm) or case.where.behind:
        names |= set(case.view.hosts)
    return tuple(sorted(names))


def candidates(case: Case) -> set[str]:
    """The Hypervisors that speak for the recorded candidates."""
    found = (host_of(case.view, each.hypervisor, each.host_uuid) for each in case.vm.status.candidates)
    return {host.name for host in found if host is not None}


def listed(vm: VirtualMachine, host: HostView) -> bool:
    """Whether the host is recorded as one where the VM may be."""
    return any(candidate.host_uuid == host.host_uuid for candidate in vm.status.candidates)


def only(vm: VirtualMachine, host: HostView) -> bool:
    """Whether this host, as it is now, is the one candidate."""
    return [(c.hypervisor, c.uid, c.host_uuid) for c in vm.status.candidates] == [(host.name, host.uid, host.host_uuid)]


def record(case: Case, hosts: list[HostView]) -> Decision:
    """Write the candidates. What is left out of a list needs proof, asked for now, that the VM is not there."""
    if (case.vm.status.candidates or may_be_anywhere(case.vm)) and not case.view.fresh:
        return Decision(Say("Accepted"), look=Look(concerned(case, hosts[0])))
    blind = {name for name, _ in case.where.blind}
    kept = [host for host in case.view.hosts.values() if host.name in blind and host not in hosts]
    entries = {host.host_uuid: candidate_of(host) for host in [*hosts, *kept] if host.host_uuid}
    return Decision(Say("Accepted", f"on {hosts[0].name}"), act.RecordCandidates(tuple(entries.values())))
