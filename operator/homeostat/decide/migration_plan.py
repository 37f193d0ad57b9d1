# SPDX-License-Identifier: Apache-2.0
"""A migration before libvirt is asked: whether it makes sense, where it goes, whose turn it is, what is written down.

Everything that is wrong with it is a sentence. Nothing is done to a host here but for the mark that proves shared
storage. Plans are to be made one at a time: two at once would both take the last place.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from homeostat.api import actions as act
from homeostat.api.hypervisor import HypervisorSpec
from homeostat.api.meta import FINALIZER
from homeostat.api.migration import IntentStatus, VirtualMachineMigration
from homeostat.api.migration_policy import EffectivePolicy, MigrationPolicy
from homeostat.api.observed import Present, Unknown
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import migration_copy as copies
from homeostat.decide import migration_policy as policies
from homeostat.decide import wanted
from homeostat.decide.migratable import blockers, locked, marker, off_limits, pools_of, proved, shared, to_be_proved
from homeostat.decide.migration import ended
from homeostat.decide.migration_peers import Peers, Reach, peer_uri
from homeostat.decide.migration_planning import Fleet, Found, Look, Plan
from homeostat.decide.migration_turn import behind, of_the_same_vm, port, turn
from homeostat.decide.placement import obstacle
from homeostat.decide.view import HostView, Say
from homeostat.decide.vm import stopping
from homeostat.decide.whereabouts import claim, locate


def plan(migration: VirtualMachineMigration, vm: VirtualMachine | None, fleet: Fleet) -> Plan:
    """The next step of a migration that has no intent yet."""
    if migration.metadata.deleting or migration.spec.abort:
        return _end("Aborted", "it was stopped before anything was begun")
    if vm is None:
        return _end("UnknownVM", f"spec.vmRef.name is {migration.spec.vm_ref.name!r}")
    found = _find(migration, vm, fleet)
    if isinstance(found, Plan):
        return found
    target = _choose(found)
    if isinstance(target, Plan):
        return target
    steps = (_check, turn, _reach, _prove, _write)
    return next(plan for step in steps if (plan := step(found, target)) is not None)


def _end(reason: str, detail: str = "") -> Plan:
    return Plan(Say(reason, detail), requeue_after=None)


def _wait(reason: str, detail: str, look: Look | None = None) -> Plan:
    return Plan(Say(reason, detail), look=look)


# Source
# -------------------------------------------------------------------------------------------------------------


def _find(migration: VirtualMachineMigration, vm: VirtualMachine, fleet: Fleet) -> Found | Plan:
    where = locate(vm, fleet.view)
    if why := stopping(vm):
        return _end("VMNotRunning", why)
    if (limits := off_limits(vm)) is not None:
        return _end("NotMigratable", f"{limits.reason}: {limits.detail}")
    moving = of_the_same_vm(migration, [each for each in fleet.migrations if not ended(each)])
    if moving is not None and moving.status.intent is not None:  # where it is to go from is known after that
        return Plan(Say("Queued", f"VirtualMachineMigration {moving.metadata.name} moves the same VM"))
    if len(where.active) > 1:
        return _end("NotMigratable", "it runs on " + " and on ".join(place.host.name for place in where.active))
    if not where.active:
        return _nowhere(vm, fleet)
    place = where.active[0]
    if (place.domain.state, place.domain.reason) == ("Paused", "StartingUp"):
        return _wait("VMStarting", f"on {place.host.name}")
    if place.domain.state not in ("Running", "Blocked"):
        return _end("VMNotRunning", f"it is {place.domain.state}/{place.domain.reason} on {place.host.name}")
    return Found(migration, vm, place.domain, place.host, fleet)


def _nowhere(vm: VirtualMachine, fleet: Fleet) -> Plan:
    for name, unknown in locate(vm, fleet.view).blind:
        reason = "HostsConnecting" if unknown.reason == "HostNotAsked" else "SourceUnknown"
        return _wait(reason, f"the VM may be on Hypervisor {name}: {unknown.message or unknown.reason}")
    if vm.status.state in (None, "Starting"):
        return _wait("VMStarting", "")
    return _end("VMNotRunning", f"its state is {vm.status.state}")


# Target
# -------------------------------------------------------------------------------------------------------------


def _choose(found: Found) -> HostView | Plan:
    wish, hosts = found.migration.spec.target, found.fleet.view.hosts
    if wish is not None and wish.host is not None:
        return _named(found, wish.host)
    labels = wish.host_selector.match_labels if wish and wish.host_selector else {}
    matching = [h for h in hosts.values() if all(h.labels.get(key) == value for key, value in labels.items())]
    if not matching:
        return _end("NoHostMatches", ", ".join(f"{key}={value}" for key, value in labels.items()))
    others = sorted((h for h in matching if not _same(h, found.source)), key=lambda h: h.name)
    if not others:
        return _end(
            "NoTarget", f"{found.source.name} is the only Hypervisor that {'matches' if labels else 'there is'}"
        )
    return _roomiest(found, others)


def _roomiest(found: Found, others: list[HostView]) -> HostView | Plan:
    """Of the hosts that fit, one that takes another migration now, then the one with the most free memory."""
    verdicts = {host.name: _obstacle(found, host) for host in others}
    fitting = [host for host in others if verdicts[host.name] is None]
    if fitting:
        busy = {host.name: behind(found.migration, found.source, host, found.fleet) != "" for host in fitting}
        return min(fitting, key=lambda host: (busy[host.name], -host.free_memory_mib, host.name))
    said = [verdict for verdict in verdicts.values() if verdict is not None]
    waits = next((each for each in said if each.say.reason == "HostsConnecting"), None)
    return waits or _end("NoTarget", "; ".join(each.say.detail for each in said[:3]))


def _named(found: Found, name: str) -> HostView | Plan:
    host = found.fleet.view.hosts.get(name)
    if host is None:
        known = ", ".join(sorted(found.fleet.view.hosts)[:5]) or "none"
        return _end("UnknownTarget", f"spec.target.host is {name!r}; Hypervisors are: {known}")
    if _same(host, found.source):
        return _end("TargetIsSource", f"spec.target.host is {name!r}, and the VM is on {found.source.name}")
    return _obstacle(found, host) or host


def _same(host: HostView, source: HostView) -> bool:
    return host.name == source.name or (host.host_uuid != "" and host.host_uuid == source.host_uuid)


def _obstacle(found: Found, host: HostView) -> Plan | None:
    """Why the VM cannot go to this host."""
    if host.closed is not None and host.closed[0] == "Connecting":
        return _wait("HostsConnecting", f"Hypervisor {host.name}: {host.closed[1]}")
    if isinstance(host.answer, Unknown):
        return _end("TargetUnreachable", f"Hypervisor {host.name}: {host.answer.message or host.answer.reason}")
    if host.closed is not None:
        return _end("TargetClosed", f"Hypervisor {host.name}: {host.closed[0]}: {host.closed[1]}")
    if words := found.fleet.reached.get(_peers(found, host)):
        return _end("PeerUnreachable", f"from {found.source.name} to {_peers(found, host).uri}: {words}")
    if words := _in_the_way(found, host):
        return _end("NotMigratable", words)
    for say in blockers(found.move(host)):
        return _end("NotMigratable", f"{say.reason}: {say.detail or f'Hypervisor {host.name}'}")
    room = obstacle(_anywhere(found), host)
    return _end("NoTarget", room.detail) if room else None


def _in_the_way(found: Found, host: HostView) -> str:
    """What the host has of the VM that is not removed for a migration; "" for a definition of ours that is off."""
    if not isinstance(host.answer, Present):
        return ""
    domain, name = host.answer.domain, f"Hypervisor {host.name}"
    whose = claim(found.vm, domain.owner, found.fleet.view.cluster)
    if whose != "ours":
        return f"{name} has a domain with the VM's UUID: {whose}"
    if domain.active:
        return f"{name} has a process of the VM"
    if domain.managed_save:
        return f"{name} has a managed-save image of the VM: drop it with spec.managedSave Discard"
    return f"{name} has a definition of the VM with snapshots: remove their metadata there" if domain.snapshots else ""


def _anywhere(found: Found) -> VirtualMachine:
    """The VM without what ties it to storage that is copied: `blockers` has looked at its disks."""
    return found.vm.model_copy(update={"status": found.vm.status.model_copy(update={"disks": ()})})


# Policy
# -------------------------------------------------------------------------------------------------------------


def _check(found: Found, target: HostView) -> Plan | None:
    """What is wrong with the wishes themselves."""
    copy = found.migration.spec.storage_copy
    disks = {disk.name: disk for disk in found.vm.spec.disks}
    for name in copy.disks if copy else ():
        if name not in disks:
            return _end("UnknownDisk", f"spec.storageCopy.disks has {name!r}; the VM has {', '.join(disks) or 'none'}")
        if shared(found.move(target), disks[name].pool):
            return _end("SharedDiskCopy", f"disk {name!r} is in pool {disks[name].pool!r}, which both hosts share")
    chosen = policy_of(found, target)
    if isinstance(chosen, str):
        return _end("PolicyConflict", chosen)
    if not peer_uri(target.spec):
        return _end("NoPeerURI", f"set spec.migration.peerURI of Hypervisor {target.name}")
    return None


def policy_of(found: Found, target: HostView) -> EffectivePolicy | str:
    """The policy for this move, or a sentence on what cannot be done."""
    return policies.effective(
        found.migration.spec.policy,
        found.source.spec.migration.policy,
        found.fleet.policy,
        target_tls=_encrypted(target.spec),
        post_copy=_post_copy(found, target),
    )


def policy_anew(
    migration: VirtualMachineMigration,
    intent: IntentStatus,
    source: HypervisorSpec,
    target: HypervisorSpec,
    everywhere: MigrationPolicy | None,
) -> EffectivePolicy:
    """The policy of a migration that is under way and whose status has none: its own alone, if they conflict by now."""
    for host, all_hosts in ((source.migration.policy, everywhere), (None, None)):
        chosen = policies.effective(
            migration.spec.policy,
            host,
            all_hosts,
            target_tls=_encrypted(target),
            post_copy=intent.post_copy == "Enabled",
        )
        if isinstance(chosen, EffectivePolicy):
            return chosen
    raise AssertionError(chosen)  # the API server has admitted it


def _encrypted(target: HypervisorSpec) -> bool:
    tls = target.migration.tls
    return tls == "Enabled" if tls else peer_uri(target).startswith("qemu+tls:")


def _post_copy(found: Found, target: HostView) -> bool:
    """Whether Auto may count on post-copy: nothing tells beforehand, but a target that just refused it would again."""
    refused = (each for each in found.fleet.migrations if each.status.reason == "NoPostCopy")
    return all(each.status.target != target.name for each in refused)


# Connection
# ---------------------------------------------------------------------------------------------------------


def _peers(found: Found, target: HostView) -> Peers:
    return Peers(found.source.host_uuid, target.host_uuid, peer_uri(target.spec))


def _reach(found: Found, target: HostView) -> Plan | None:
    """Before the first migration between two hosts: see that the source's daemon can connect to the target's."""
    peers = _peers(found, target)
    if peers in found.fleet.reached:
        return None
    say = Say("Accepted", f"whether {found.source.name} can connect to {peers.uri} is being tried")
    return Plan(say, reach=Reach(found.source.name, wanted.domain_uuid(found.vm), peers))


# Storage
# ------------------------------------------------------------------------------------------------------------


def _prove(found: Found, target: HostView) -> Plan | None:
    """Have the source mark the pools that both hosts call the same, and see the marks on the target."""
    move = found.move(target)
    pairs, copied = {name: pools_of(move, name) for name in to_be_proved(move)}, copies.pools(move)
    wish = {
        found.source.name: tuple(
            sorted({here.pool for here, _ in pairs.values() if here} | {*copied[found.source.name]})
        ),
        target.name: tuple(sorted({there.pool for _, there in pairs.values() if there} | {*copied[target.name]})),
    }
    looked = all(pool in host.volumes for host in (found.source, target) for pool in wish[host.name])
    sizes = copies.sources(move)
    if not found.fleet.view.fresh or not looked or any(each not in found.source.sizes for each in sizes):
        return _wait("Accepted", f"to {target.name}", Look((found.source.name, target.name), wish, sizes))
    for name, (here, _) in pairs.items():
        seen = found.source.volumes[here.pool] if here else frozenset[str]()
        if here and not isinstance(seen, Unknown) and marker(found.source.host_uuid) not in seen:
            mark = act.CreateVolume(found.source.name, here.pool, marker(found.source.host_uuid), "raw", 512)
            return Plan(Say("Accepted", f"pool {name!r} is marked"), action=mark, requeue_after=0.0)
        if proved(move, name) is None:
            return _wait("Accepted", f"the volumes of pool {name!r} cannot be listed on both hosts")
    return None


# Intent
# -------------------------------------------------------------------------------------------------------------


def _write(found: Found, target: HostView) -> Plan:
    """The finalizer, then the intent: from then on the VM's own controller does nothing to it."""
    chosen, migration, copied = policy_of(found, target), found.migration, copies.planned(found.move(target))
    if isinstance(chosen, str):
        return _end("PolicyConflict", chosen)
    if isinstance(copied, Say):
        return _end(copied.reason, copied.detail)
    if FINALIZER not in migration.metadata.finalizers:
        return Plan(Say("Accepted", f"to {target.name}"), action=act.AddFinalizer(), requeue_after=0.0)
    post_copy = policies.prepares_post_copy(chosen, post_copy=_post_copy(found, target))
    intent = IntentStatus(
        source=found.source.name,
        source_uuid=found.source.host_uuid,
        target=target.name,
        target_uuid=target.host_uuid,
        attempt=migration.metadata.uid,
        domain_uuid=wanted.domain_uuid(found.vm),
        time=found.fleet.now,
        started_paused="Enabled" if chosen.switchover == "Confirmed" else "Disabled",
        locks="Effective" if locked(found.move(target)) else "None",
        post_copy="Enabled" if post_copy else "Disabled",
        copies=copied,
        port=port(found, target),
    )
    say = Say("Preparing", f"from {found.source.name} to {target.name}")
    return Plan(say, found.source.name, target.name, intent, chosen, requeue_after=0.0)


# Request
# ------------------------------------------------------------------------------------------------------------


def request(
    migration: VirtualMachineMigration, intent: IntentStatus, policy: EffectivePolicy, target: HypervisorSpec
) -> act.Migrate:
    """What libvirt is asked for.

    It is told not to check the storage (libvirt 9.0 knows no local file system that is shared) only when no disk is
    copied: then all of them were proved to be on the same storage when this was planned.
    """
    copy, tls = migration.spec.storage_copy, policy.tls == "Enabled"
    many = policy.parallel_connections if policy.parallel_connections > 1 else 0
    return act.Migrate(
        host=intent.source,
        uuid=intent.domain_uuid,
        peer=peer_uri(target),
        address=target.migration.address or urlsplit(peer_uri(target)).hostname or "",
        port=intent.port or 0,
        tls=tls,
        post_copy=intent.post_copy == "Enabled",
        auto_converge=policy.auto_converge == "Enabled",
        connections=many,
        compression="" if policy.compression == "None" else policy.compression.lower(),
        bandwidth_mib=policies.bandwidth_mib(policy),
        max_downtime_ms=max(policy.max_downtime_milliseconds // policies.STEPS, 1),
        start_paused=intent.started_paused == "Enabled",
        copy=copy.type if copy else "None",
        copy_disks=tuple(f"ua-disk-{name}" for name in copy.disks) if copy else (),
        unsafe=copy is None or copy.type == "None",
    )
