# SPDX-License-Identifier: Apache-2.0
"""A VM of which a host knows a newer generation than the API server, whose store was set back to a backup."""

from __future__ import annotations

from dataclasses import replace

from homeostat.api import actions as act
from homeostat.api.observed import Owner
from homeostat.decide.view import Decision, Say
from homeostat.decide.vm_case import Case, do
from homeostat.decide.whereabouts import Place, blindness


def catch_up(case: Case, place: Place) -> Decision | None:
    """Touch nothing while a host is silent; then make our marks those of the object as it is, so edits count again.

    The marks take its power request too: what an older spec names is no wish for a restart. What status says since when
    is as old as the store, so that a running guest does not pay for it, StoreBehind is on record first.
    """
    vm, domain, host = case.vm, place.domain, place.host
    if not case.where.behind:
        return None
    if case.where.blind:
        return Decision(Say("StoreBehind", blindness(case.where).detail))
    known, read = domain.owner.generation if domain.owner else 0, vm.metadata.generation
    say = Say("StoreBehind", f"Hypervisor {host.name} knows generation {known}, the API server has {read}")
    if domain.active and vm.status.reason != "StoreBehind":
        return Decision(say, requeue_after=0.0)
    # The one that tells that the store is behind is the last.
    for live, there in ((True, domain.live_owner if domain.active else None), (False, domain.owner)):
        mark = _as_it_is(case, there) if there is not None and (live or domain.persistent) else None
        if mark is not None and mark != there:
            return do(case, act.Mark(host.name, domain.uuid, mark, live=live), say, host)
    return None


def _as_it_is(case: Case, owner: Owner) -> Owner:
    return replace(owner, generation=case.vm.metadata.generation, request=case.vm.spec.power.request)
