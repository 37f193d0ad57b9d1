# SPDX-License-Identifier: Apache-2.0
"""One VM being decided on: who is asked before anything is done, and what is written down of where it may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from homeostat.api import actions as act
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide.view import Decision, HostView, Look, Say, VMView
from homeostat.decide.whereabouts import Whereabouts, blindness, candidate_of, host_of, may_be_anywhere, unproved


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


def only(vm: VirtualMachine, host: HostView) -> bool:
    """Whether this host, as it is now, is the one candidate."""
    return [(c.hypervisor, c.uid, c.host_uuid) for c in vm.status.candidates] == [(host.name, host.uid, host.host_uuid)]


def record(case: Case, hosts: list[HostView]) -> Decision:
    """Write the candidates. What is left out of a list needs proof, asked for now, that the VM is not there.

    A host where it may be and that cannot be told in a row (it has no identity yet, or a row of its name says another)
    is waited for.
    """
    if (case.vm.status.candidates or may_be_anywhere(case.vm)) and not case.view.fresh:
        return Decision(Say("Accepted"), look=Look(concerned(case, hosts[0])))
    rows: dict[str, act.Candidate] = {}
    for row in (*map(candidate_of, hosts), *unproved(case.vm, case.view), *_anywhere(case)):
        rows.setdefault(row.host_uuid or row.hypervisor, row)
    if case.where.blind and len({row.hypervisor for row in rows.values() if row.host_uuid}) < len(rows):
        return Decision(blindness(case.where))
    return Decision(Say("Accepted", f"on {hosts[0].name}"), act.RecordCandidates(tuple(rows.values())))


def _anywhere(case: Case) -> Iterator[act.Candidate]:
    """The hosts that cannot be asked, where the VM may be on any; one without identity that a row names has that."""
    if not (may_be_anywhere(case.vm) or case.where.behind):
        return
    blind, named = {name for name, _ in case.where.blind}, {each.hypervisor for each in case.vm.status.candidates}
    for host in case.view.hosts.values():
        if host.name in blind and (host.host_uuid or host.name not in named):
            yield candidate_of(host)
