# SPDX-License-Identifier: Apache-2.0
"""What a Hypervisor may be used for, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal, cast

from homeostat.api import reasons
from homeostat.api.hypervisor import (
    Allocated,
    Capacity,
    Hypervisor,
    HypervisorStatus,
    NetworkStatus,
    Orphan,
    PoolStatus,
)
from homeostat.api.meta import Condition, rfc3339, set_condition
from homeostat.api.observed import Domain, HostAnswer, HostFacts

Truth = Literal["True", "False", "Unknown"]
MIB = 1024 * 1024
OLDEST_LIBVIRT, OLDEST_QEMU = (9, 0), (7, 2)
MOST_LISTED = 100
_OPEN = {"Off": "Connected", "Cordon": "Cordoned", "Evacuate": "Evacuating"}
UNREACHABLE = frozenset({"TLSFailed", "AuthFailed", "CredentialsMissing", "IdentityMismatch", "LibvirtTooOld"})
"""Reasons of the informer that have a row of their own; all others are Unreachable."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What VMs and domains take of a host.

    `holds` are VMs that may be there, `known` the UIDs of all VMs that exist.
    """

    cpus: int
    memory_mib: int
    domains: int
    holds: tuple[str, ...]
    known: Set[str]


def verdict(
    hypervisor: Hypervisor, answer: HostAnswer, twins: Iterable[str], *, holds: int = 0, now: datetime | None = None
) -> tuple[str, str]:
    """(reason, details) of a Hypervisor: a row of reasons.HYPERVISOR and the sentence of this case.

    Without `now`, here and below, spec.outOfService is taken to have begun.
    """
    others = sorted(twins)
    if hypervisor.metadata.deleting:
        return ("Deleting", f"it still holds {holds} VMs") if holds else ("Released", "")
    if others:
        return "DuplicateHost", f"Hypervisor {others[0]} has host UUID {pinned(hypervisor, answer)} too"
    if (void := void_declaration(hypervisor, answer, now)) is not None:
        return "OutOfServiceButAnswering", void
    if released(hypervisor, answer, now):
        out = hypervisor.spec.out_of_service
        return "OutOfService", f"declared {out.evidence} since {rfc3339(out.since)}" if out else ""
    if answer.reachable is None:
        return "Connecting", f"at {hypervisor.spec.uri}"
    if not answer.reachable and (start := begins(hypervisor, now)) is not None:
        return "OutOfServiceLater", f"spec.outOfService.since is {rfc3339(start)}; {answer.message}"
    if not answer.reachable:
        return answer.reason if answer.reason in UNREACHABLE else "Unreachable", answer.message
    return _unfit(hypervisor, answer.facts) or (_OPEN[hypervisor.spec.maintenance], "")


def _unfit(hypervisor: Hypervisor, facts: HostFacts | None) -> tuple[str, str] | None:
    if facts is None:
        return "Connecting", ""
    if not facts.qemu_version:
        return "NoQEMU", "libvirt reports no emulator for x86_64"
    if _version(facts.libvirt_version) < OLDEST_LIBVIRT:
        return "LibvirtTooOld", f"it is {facts.libvirt_version}"
    if _version(facts.qemu_version) < OLDEST_QEMU:
        return "QEMUTooOld", f"it is {facts.qemu_version}"
    if hypervisor.spec.acceleration == "KVM" and not facts.kvm:
        return "NoKVM", ""
    return None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def void_declaration(hypervisor: Hypervisor, answer: HostAnswer, now: datetime | None = None) -> str | None:
    """Why spec.outOfService is void: the host was heard from after it was declared, or answers before it begins.

    None when it is valid or not set.
    """
    out = hypervisor.spec.out_of_service
    heard = _heard(hypervisor, answer)
    if out is None:
        return None
    if answer.reachable and begins(hypervisor, now) is not None:
        return f"declared since {rfc3339(out.since)}, which is yet to come, and it answers"
    if heard is None or heard <= out.since:
        return None
    return f"declared since {rfc3339(out.since)}, and it answered after that"


def released(hypervisor: Hypervisor, answer: HostAnswer, now: datetime | None = None) -> bool:
    """Whether a person vouches that nothing runs on the host, and nothing was heard that says otherwise.

    A host that was not asked yet is not silent: an attempt has to have failed.
    """
    return (
        hypervisor.spec.out_of_service is not None
        and answer.reachable is False
        and begins(hypervisor, now) is None
        and void_declaration(hypervisor, answer, now) is None
    )


def begins(hypervisor: Hypervisor, now: datetime | None) -> datetime | None:
    """When spec.outOfService begins, if that is yet to come: nobody can know what will not run then."""
    out = hypervisor.spec.out_of_service
    return out.since if out is not None and now is not None and out.since > now else None


def together(answers: Iterable[HostAnswer]) -> HostAnswer:
    """What is heard of a host by way of all its Hypervisors: the first one's words, silent if none of them answers."""
    every = list(answers)
    reach = {answer.reachable for answer in every}
    heard = [answer.heard for answer in every if answer.heard is not None]
    reachable = True if True in reach else None if None in reach else False
    return replace(every[0], reachable=reachable, heard=max(heard, default=None))


def silent_since(hypervisor: Hypervisor) -> datetime | None:
    """Since when the host has not answered, by the status; None when it answered last."""
    found = next((each for each in hypervisor.status.conditions if each.type == "Reachable"), None)
    return found.last_transition_time if found is not None and found.status == "False" else None


def _heard(hypervisor: Hypervisor, answer: HostAnswer) -> datetime | None:
    times = [time for time in (answer.heard, hypervisor.status.last_heard) if time is not None]
    return max(times) if times else None


def _last_heard(hypervisor: Hypervisor, answer: HostAnswer, now: datetime) -> datetime | None:
    """What is to be remembered of when the host answered: the time when it fell silent, or that a declaration is void.

    What makes one void is written while the host still answers: a restart forgets when that was. A time to come is
    left from a declaration that began later than now, and is taken back with it.
    """
    out = hypervisor.spec.out_of_service
    heard = hypervisor.status.last_heard if answer.reachable else _heard(hypervisor, answer)
    past = min(heard, now) if heard is not None else None
    if out is None or void_declaration(hypervisor, answer, now) is None:
        return past
    after = out.since + timedelta(seconds=1)  # times on record are whole seconds
    return max(past, after) if past is not None else after


def judged_in(
    hypervisor: Hypervisor, answer: HostAnswer, remembered: datetime | None, now: datetime, lists: float
) -> float | None:
    """In how many seconds spec.outOfService is to be judged anew; None: nothing changes by time.

    When it begins; and while the host answers and that is not `remembered`, after the next list (`lists` seconds).
    """
    out = hypervisor.spec.out_of_service
    if out is None or (remembered is not None and remembered > out.since):
        return None
    if answer.reachable:
        return lists
    start = begins(hypervisor, now)
    return (start - now).total_seconds() if start is not None else None


def closed(reason: str, details: str) -> tuple[str, str] | None:
    """Why no VM may be newly placed on a host of this verdict; None when one may."""
    return None if reason == "Connected" else (reason, details or reasons.HYPERVISOR[reason].meaning.rstrip("."))


def starts_blocked(reason: str, details: str) -> tuple[str, str] | None:
    """Why not even a VM that is defined there may be started: a row of reasons.VM."""
    rows = {"DuplicateHost": "DuplicateHost", "OutOfServiceButAnswering": "HostAnswersAgain"}
    return (rows[reason], details) if reason in rows else None


def status(
    hypervisor: Hypervisor,
    answer: HostAnswer,
    said: tuple[str, str],
    claims: Claims,
    cluster: str,
    now: datetime,
    together: HostAnswer | None = None,
) -> HypervisorStatus:
    """The Hypervisor's whole status. What an unreachable host said last stays.

    `together` is what is heard of its host by way of all Hypervisors that name it, when there are more.
    """
    (reason, details), old, facts = said, hypervisor.status, answer.facts if answer.reachable else None
    row = reasons.HYPERVISOR[reason]
    since = old.since if old.since and (old.state, old.reason) == (row.state, reason) else now
    foreign, orphans = (
        _strangers(hypervisor, answer, claims, cluster, now) if answer.reachable else (old.foreign_domains, old.orphans)
    )
    return HypervisorStatus(
        observed_generation=hypervisor.metadata.generation,
        host_uuid=pinned(hypervisor, answer),
        state=row.state,
        reason=reason,
        since=since,
        next=row.next,
        conditions=_conditions(hypervisor, answer, (reason, details), since, now),
        last_heard=_last_heard(hypervisor, together or answer, now),
        hostname=facts.hostname if facts else old.hostname,
        libvirt_version=facts.libvirt_version if facts else old.libvirt_version,
        qemu_version=facts.qemu_version if facts else old.qemu_version,
        capacity=Capacity(cpus=facts.cpus, memory_mib=facts.memory_mib) if facts else old.capacity,
        allocated=Allocated(cpus=claims.cpus, memory_mib=claims.memory_mib, domains=claims.domains),
        cpu_models=_cpu_models(hypervisor, facts) if facts else old.cpu_models,
        pools=_pools(hypervisor, facts),
        networks=_networks(hypervisor, facts),
        foreign_domains=foreign,
        orphans=orphans,
        holds=claims.holds[:MOST_LISTED] if hypervisor.metadata.deleting else (),
    )


def _cpu_models(hypervisor: Hypervisor, facts: HostFacts) -> tuple[str, ...]:
    models = facts.emulated_cpu_models if hypervisor.spec.acceleration == "Emulation" else facts.cpu_models
    return models[:200]


def pinned(hypervisor: Hypervisor, answer: HostAnswer) -> str | None:
    """The host UUID that is believed: the spec's, else the one pinned, else that of the first contact."""
    first = answer.facts.host_uuid if answer.reachable and answer.facts else None
    return hypervisor.spec.host_uuid or hypervisor.status.host_uuid or first


def _strangers(
    hypervisor: Hypervisor, answer: HostAnswer, claims: Claims, cluster: str, now: datetime
) -> tuple[int, tuple[Orphan, ...]]:
    ours = [d for d in answer.domains.values() if d.owner is not None and d.owner.cluster == cluster]
    since = {orphan.uuid: orphan.since for orphan in hypervisor.status.orphans}
    orphans = [_orphan(d, since.get(d.uuid) or now) for d in ours if d.owner and d.owner.uid not in claims.known]
    return len(answer.domains) - len(ours), tuple(sorted(orphans, key=lambda orphan: orphan.uuid))[:MOST_LISTED]


def _orphan(domain: Domain, since: datetime) -> Orphan:
    owner = domain.owner
    return Orphan(
        uuid=domain.uuid,
        name=domain.name,
        namespace=owner.namespace if owner else None,
        vm=owner.name if owner else None,
        since=since,
    )


def _pools(hypervisor: Hypervisor, facts: HostFacts | None) -> tuple[PoolStatus, ...]:
    """The pools; how full they are is left to metrics, it would change with every write of a guest."""
    there = {pool.name: pool for pool in facts.pools} if facts else {}
    known = facts is not None and facts.pools_known
    rows = []
    for pool in hypervisor.spec.pools:
        found = there.get(pool.pool)
        active = (found.state if found else "Missing") if known else "Unknown"
        rows.append(
            PoolStatus(
                name=pool.name,
                pool=pool.pool,
                active=cast(Literal["Active", "Inactive", "Missing", "Unknown"], active),
                capacity_mib=found.capacity // MIB if found else None,
            )
        )
    return tuple(rows)


def _networks(hypervisor: Hypervisor, facts: HostFacts | None) -> tuple[NetworkStatus, ...]:
    return tuple(
        NetworkStatus(name=network.name, present=_presence(network.type, network, facts))
        for network in hypervisor.spec.networks
    )


def _presence(kind: str, network: object, facts: HostFacts | None) -> Literal["Present", "Missing", "Unknown"]:
    if facts is None or kind == "OpenVSwitch" or (kind == "Bridge" and not facts.bridges_known):
        return "Unknown"
    member = getattr(network, "bridge" if kind == "Bridge" else "network")
    return "Present" if member.name in (facts.bridges if kind == "Bridge" else facts.networks) else "Missing"


def _conditions(
    hypervisor: Hypervisor, answer: HostAnswer, said: tuple[str, str], since: datetime, now: datetime
) -> tuple[Condition, ...]:
    reason, details = said
    row, generation = reasons.HYPERVISOR[reason], hypervisor.metadata.generation
    text = row.sentence(details, rfc3339(since) if row.ready != "True" else "")
    reach: Truth = "Unknown" if answer.reachable is None else "True" if answer.reachable else "False"
    conditions = set_condition(
        hypervisor.status.conditions, "Ready", cast(Truth, row.ready), reason, text, generation, now
    )
    conditions = set_condition(
        conditions,
        "Reachable",
        reach,
        answer.reason or ("Answers" if answer.reachable else "NotAsked"),
        answer.message or ("The host answers." if answer.reachable else "The host was not asked yet."),
        generation,
        # What its VMs say since when it is silent has to be what the next operator reads here, to the second.
        answer.since if reach == "False" and answer.since else now,
    )
    schedulable: Truth = "True" if reason == "Connected" else "False"
    conditions = set_condition(conditions, "Schedulable", schedulable, reason, text, generation, now)
    return set_condition(
        conditions,
        "Stalled",
        "True" if row.stalled else "False",
        reason if row.stalled else "NotStalled",
        text if row.stalled else reasons.OTHER["NotStalled"],
        generation,
        now,
    )
