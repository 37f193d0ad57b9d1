# SPDX-License-Identifier: Apache-2.0
"""What is said of a VM: its status, made anew from the decision and what was seen. Nothing in it churns."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Literal, cast

from homeostat.api import reasons
from homeostat.api.meta import Condition, clipped, condition, rfc3339, set_condition
from homeostat.api.migration_policy import MigrationInFlight
from homeostat.api.observed import ACTIVE_STATES, RUNNING_STATES, Domain, DomainConfig, Unknown
from homeostat.api.virtualmachine import (
    Address,
    DomainStatus,
    StartFailures,
    VirtualMachine,
    VirtualMachineStatus,
)
from homeostat.decide import backoff, migratable, runstrategy, vm_disks, wanted
from homeostat.decide.view import Decision, HostView, VMView
from homeostat.decide.whereabouts import Whereabouts, foreignness, locate

Truth = Literal["True", "False", "Unknown"]
MAX_PENDING, MAX_ADDRESSES = 32, 64
WORD, LINE, IP, MAC = 63, 1024, 64, 17
"""The most characters of fields whose contents come from a host, or from within a guest."""


def status(vm: VirtualMachine, view: VMView, decision: Decision, now: datetime) -> VirtualMachineStatus:
    """The VM's whole status but for the candidates, which have a writer of their own."""
    where, row, old = locate(vm, view), reasons.VM[decision.say.reason], vm.status
    host, domain = _seen(where)
    pending = _pending(vm, host, domain)
    since = old.since if old.since and (old.state, old.reason) == (row.state, decision.say.reason) else now
    return VirtualMachineStatus(
        observed_generation=vm.metadata.generation,
        state=row.state,
        reason=decision.say.reason,
        since=since,
        next=row.next,
        host=_host_name(vm, where, host),
        domain=_domain(vm, host, domain, where, now),
        conditions=_conditions(vm, view, decision, where, pending, since, now),
        addresses=_addresses(vm, view, domain),
        disks=vm_disks.shown(vm, host, domain) if host and domain else old.disks,
        start_failures=_failures(vm, decision, now),
        machine_type=_canonical(domain, old.machine_type),
        cpu_model=_cpu_model(domain, old.cpu_model),
        pending_changes=tuple(pending[:MAX_PENDING]),
        migration=_migration(view),
    )


def _migration(view: VMView) -> MigrationInFlight | None:
    """That the VM's controller knows of the migration: it is not begun before."""
    found = view.migration
    if found is None or (intent := found.status.intent) is None:
        return None
    return MigrationInFlight(
        name=found.metadata.name,
        uid=found.metadata.uid,
        source=intent.source,
        target=intent.target,
        since=intent.time,
    )


def passing(vm: VirtualMachine, decision: Decision) -> bool:
    """Whether this is a step normally over in seconds, so that writing it down can wait. The end of a run cannot.

    A host that was not asked yet says nothing of a run's end.
    """
    row, alive = reasons.VM[decision.say.reason], ("Running", "Paused")
    ended = vm.status.state in alive and row.state not in (*alive, "Unknown")
    return row.passing and decision.failed is None and not ended


def sentence(decision: Decision, since: datetime | None = None) -> str:
    """The condition's message: what is, in this case, since when if it waits, what happens next, what one can do."""
    row = reasons.VM[decision.say.reason]
    return row.sentence(decision.say.detail, rfc3339(since) if since and row.ready != "True" else "")


def _seen(where: Whereabouts) -> tuple[HostView | None, Domain | None]:
    if not where.ours:
        return None, None
    # In a migration two hosts have a process: what counts is the one whose CPUs run.
    place = min(where.active or where.ours, key=lambda place: place.domain.state not in RUNNING_STATES)
    return place.host, place.domain


def _host_name(vm: VirtualMachine, where: Whereabouts, host: HostView | None) -> str | None:
    if host is not None:
        return host.name
    return vm.status.host if where.blind else None


def _domain(
    vm: VirtualMachine, host: HostView | None, domain: Domain | None, where: Whereabouts, now: datetime
) -> DomainStatus | None:
    """The domain as last observed: a host that does not answer adds nothing to what was seen of it."""
    old = vm.status.domain
    if domain is None or host is None:
        if old is None or where.blind or old.state == "Absent":
            return old
        way = runstrategy.way_gone(vm)
        return _domain_status(old, "Absent", way if way != "Unknown" else "-", old.uuid, old.request, now)
    if old is not None and old.reason == "RecordLost" and domain.active and domain.reason == "StartingUp":
        return old  # a start that is not over has not shown yet that no lock is in its way
    reason = "RecordLost" if runstrategy.maybe_running(vm, domain, host.name) else _reason(vm, domain)
    state = "Unknown" if reason == "RecordLost" else domain.state
    return _domain_status(old, state, reason, domain.uuid, _request(old, domain), now)


def _reason(vm: VirtualMachine, domain: Domain) -> str:
    """Libvirt's reason, and of a domain that is off the way it went, which libvirt forgets."""
    way = domain.reason if domain.active else runstrategy.way_off(vm, domain)
    return way if way in runstrategy.WAYS_OFF else domain.reason


def _request(old: DomainStatus | None, domain: Domain) -> str | None:
    """The request of a process that was seen; a definition alone proves no process."""
    if domain.active and domain.reason == "StartingUp":
        return old.request if old else None  # a start that can fail yet
    if domain.active:
        return clipped(domain.live_owner.request, WORD) if domain.live_owner else ""
    if domain.owner is not None and domain.owner.off:
        return clipped(domain.owner.request, WORD)
    return old.request if old else None


def _domain_status(
    old: DomainStatus | None, state: str, reason: str, uuid: str | None, request: str | None, now: datetime
) -> DomainStatus:
    same = old is not None and (old.state, old.reason) == (state, reason)
    return DomainStatus(
        state=state, reason=reason, since=old.since if old and same and old.since else now, uuid=uuid, request=request
    )


def _addresses(vm: VirtualMachine, view: VMView, domain: Domain | None) -> tuple[Address, ...]:
    """The guest's addresses but for those of its loopback, under the names the spec gives its interfaces.

    It is the guest who says them: what is no address by its length is left out.
    """
    if domain is None or not domain.active:
        return ()
    if not view.addresses:
        return vm.status.addresses
    names = {wanted.mac_address(vm, nic): nic.name for nic in vm.spec.interfaces}
    rows = [
        Address(interface=names.get(mac.lower(), clipped(name, WORD)), ip=ip, mac=mac or None)
        for name, mac, ip in view.addresses
        if name != "lo" and len(ip) <= IP and len(mac) <= MAC
    ]
    return tuple(rows[:MAX_ADDRESSES])


def _failures(vm: VirtualMachine, decision: Decision, now: datetime) -> StartFailures | None:
    old = vm.status.start_failures
    if decision.settled or (decision.say.reason in ("Halted", "StoppedAsAsked", "Finished")):
        return None
    if decision.failed is None:
        return old
    count = (old.count if old else 0) + 1
    wait = timedelta(seconds=backoff.seconds(count))
    return StartFailures(count=count, last_message=decision.failed.message, last_time=now, retry_time=now + wait)


def _canonical(domain: Domain | None, old: str | None) -> str | None:
    config = (domain.inactive or domain.live) if domain else None
    return old or (config.machine if config else None)


def _cpu_model(domain: Domain | None, old: str | None) -> str | None:
    config = (domain.inactive or domain.live) if domain else None
    return old or (config.cpu_model or None if config else None)


def _pending(vm: VirtualMachine, host: HostView | None, domain: Domain | None) -> list[str]:
    """What of the spec the running process does not have."""
    if host is None or domain is None or domain.live is None or host.facts is None or isinstance(host.answer, Unknown):
        return []
    if wanted.unsuited(vm, host) is not None or wanted.unlocated(vm, host) is not None:
        return []
    lines = wanted.differences(domain.live, _expanded(wanted.config(vm, host, domain), domain.live))
    return [clipped(line, LINE) for line in lines]


def _expanded(config: DomainConfig, live: DomainConfig) -> DomainConfig:
    """The configuration with what libvirt makes of q35 and host-model in a running domain."""
    machine = live.machine if config.machine == "q35" else config.machine
    model = live.cpu_model if config.cpu_model == "host-model" else config.cpu_model
    return replace(config, machine=machine, cpu_model=model)


def _conditions(
    vm: VirtualMachine,
    view: VMView,
    decision: Decision,
    where: Whereabouts,
    pending: list[str],
    since: datetime,
    now: datetime,
) -> tuple[Condition, ...]:
    host, domain = _seen(where)
    row, message, reason = reasons.VM[decision.say.reason], sentence(decision, since), decision.say.reason
    conditions = vm.status.conditions

    def put(kind: str, value: Truth, why: str, text: str) -> None:
        nonlocal conditions
        conditions = set_condition(conditions, kind, value, why, text, vm.metadata.generation, now)

    put("Ready", cast(Truth, row.ready), reason, message)
    put("Running", *_running(row, reason, message, domain))
    put(
        "Stalled",
        "True" if row.stalled else "False",
        reason if row.stalled else "NotStalled",
        message if row.stalled else "Nothing waits for a change of the spec.",
    )
    put("Synchronized", *_synchronized(decision, message, pending))
    put("RestartRequired", *_restart_required(pending))
    put("AgentConnected", *_agent(vm, domain))
    put("Conflict", *_conflict(decision, message, where))
    put("Migratable", *_migratable(vm, view, host, domain))
    return conditions


def _migratable(
    vm: VirtualMachine, view: VMView, host: HostView | None, domain: Domain | None
) -> tuple[Truth, str, str]:
    """What was known stays while no other host can be asked: an operator that starts rewrites no status for it."""
    value, say = migratable.condition(vm, domain, host, view.hosts)
    old = condition(vm.status.conditions, "Migratable")
    if value == "Unknown" and old is not None and old.reason != "NotRunning":
        return old.status, old.reason, old.message
    detail = f" {say.detail[:1].upper()}{say.detail[1:]}." if say.detail else ""
    return cast(Truth, value), say.reason, reasons.MIGRATABLE[say.reason] + detail


def _conflict(decision: Decision, message: str, where: Whereabouts) -> tuple[Truth, str, str]:
    """A stranger on another host stops nothing that runs here, but it will stop the next start."""
    if reasons.VM[decision.say.reason].state == "Conflict":
        return "True", decision.say.reason, message
    if where.foreign:
        say = foreignness(where)
        return "True", say.reason, sentence(Decision(say))
    return "False", "NoConflict", "No other domain has this VM's UUID or name."


def _running(row: reasons.Reason, reason: str, message: str, domain: Domain | None) -> tuple[Truth, str, str]:
    if domain is not None and domain.state in RUNNING_STATES:
        return (
            "True",
            reason if row.running == "True" else "Running",
            message if row.running == "True" else "The guest's CPUs run.",
        )
    if row.running == "Unknown" and (domain is None or not domain.active):
        return "Unknown", reason, message
    return "False", reason, message


def _synchronized(decision: Decision, message: str, pending: list[str]) -> tuple[Truth, str, str]:
    row = reasons.VM[decision.say.reason]
    if row.ready == "Unknown":
        return "Unknown", decision.say.reason, message
    if pending:
        return (
            "False",
            "RestartRequired",
            "The spec was changed and takes effect at the next start: " + "; ".join(pending) + ".",
        )
    if row.ready == "True":
        return "True", "AsDeclared", "What was seen is what the spec says."
    return "False", decision.say.reason, message


def _restart_required(pending: list[str]) -> tuple[Truth, str, str]:
    if not pending:
        return "False", "NoChange", "The running process has everything that the spec says, or there is none."
    text = "; ".join(pending)
    return (
        "True",
        "SpecChanged",
        f"{text}. It takes effect at the next start. Set spec.power.request to a new value to restart the VM now.",
    )


def _agent(vm: VirtualMachine, domain: Domain | None) -> tuple[Truth, str, str]:
    if vm.spec.guest_agent == "Disabled":
        return "False", "AgentDisabled", "spec.guestAgent is Disabled."
    if domain is None or domain.state not in ACTIVE_STATES:
        return "False", "NotRunning", "There is no running guest to have an agent."
    if domain.agent_connected is None:
        return "Unknown", "NotSeen", "The channel was not looked at yet."
    if domain.agent_connected:
        return "True", "Connected", "The guest agent answers on its channel."
    return "False", "NotConnected", "The guest runs no agent, or not yet. Install qemu-guest-agent in the guest."
