# SPDX-License-Identifier: Apache-2.0
"""The definition of a VM on a host: the permission to run, with our mark of whose it is and what it was made for."""

from __future__ import annotations

from dataclasses import replace

from homeostat.api import actions as act
from homeostat.api.observed import Domain, Owner
from homeostat.decide import wanted
from homeostat.decide.view import Decision, HostView, Say
from homeostat.decide.vm_case import Case, do
from homeostat.decide.whereabouts import Place, claim


def define(case: Case, host: HostView, domain: Domain | None, say: Say) -> Decision:
    """Make the definition, or make it anew: as the spec wants it to be started next."""
    if (pool := wanted.unlocated(case.vm, host)) is not None:
        detail = f"Hypervisor {host.name} has not told where pool {pool!r} is"
        return Decision(Say("PoolUnavailable", detail), requeue_after=30)
    # A domain that is taken over keeps its name: libvirt redefines none under another.
    name = domain.name if domain else wanted.domain_name(case.vm)
    config = wanted.config(case.vm, host, domain)
    return do(case, act.Define(host.name, wanted.domain_uuid(case.vm), name, config, _next(case, domain)), say, host)


def prepared(case: Case, host: HostView, domain: Domain) -> bool:
    """Whether the persistent definition is the one the spec wants to be started."""
    owner = domain.owner
    if domain.inactive is None or owner is None or owner.off is not None or owner.probe:
        return False
    fits = (owner.request, owner.generation, owner.paused) == (
        case.vm.spec.power.request,
        case.vm.metadata.generation,
        case.vm.spec.execution == "Paused",
    )
    return fits and not wanted.differences(domain.inactive, wanted.config(case.vm, host, domain))


def mark_own(case: Case, place: Place) -> Decision | None:
    """A domain that is taken over, or whose metadata an edit from outside removed, gets our mark."""
    domain, owner = place.domain, place.domain.owner
    identity = (case.view.cluster, case.vm.metadata.namespace, case.vm.metadata.name, case.vm.metadata.uid)
    for live, there in ((False, owner), (True, domain.live_owner)):
        applies = domain.active if live else domain.persistent
        if applies and (there is None or (there.cluster, there.namespace, there.name, there.uid) != identity):
            mark = act.Mark(place.host.name, domain.uuid, kept(case, domain), live=live)
            return do(case, mark, Say("Starting"), place.host)
    return None


def not_off(case: Case, place: Place, say: Say) -> Decision | None:
    """Take back the mark of how it went off: it runs, started by hand perhaps. libvirt may lose its record of that."""
    domain, owner = place.domain, place.domain.owner
    if not domain.persistent or owner is None or owner.off is None:
        return None
    return do(case, act.Mark(place.host.name, domain.uuid, replace(owner, off=None)), say, place.host)


def kept(case: Case, domain: Domain | None) -> Owner:
    """Our mark as it is on this domain; a new one where there is none of ours."""
    vm, there = case.vm, domain.owner if domain else None
    identity = (case.view.cluster, vm.metadata.namespace, vm.metadata.name, vm.metadata.uid)
    if there is None or claim(vm, there, case.view.cluster) != "ours":
        return Owner(*identity, request=vm.spec.power.request)
    cluster, namespace, name, uid = identity
    return replace(there, cluster=cluster, namespace=namespace, name=name, uid=uid)


def _next(case: Case, domain: Domain | None) -> Owner:
    """Our mark, made ready for the next start: `was` is how the process before it ended, when libvirt says."""
    was = domain.reason if domain and not domain.active else None
    return replace(
        kept(case, domain),
        generation=case.vm.metadata.generation,
        request=case.vm.spec.power.request,
        off=None,
        was=None if was == "Unknown" else was,
        paused=case.vm.spec.execution == "Paused",
        probe=False,
    )
