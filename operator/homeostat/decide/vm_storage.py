# SPDX-License-Identifier: Apache-2.0
"""The volumes of a VM: made before its definition, removed after it."""

from __future__ import annotations

from homeostat.api import actions as act
from homeostat.api.hypervisor import HostPool
from homeostat.api.observed import Unknown
from homeostat.api.virtualmachine_spec import Disk
from homeostat.decide import wanted
from homeostat.decide.migration_copy import mark_on
from homeostat.decide.view import Decision, HostView, Look, Say
from homeostat.decide.vm_case import Case, concerned, do
from homeostat.decide.vm_retry import backing_off
from homeostat.decide.whereabouts import host_of, nowhere


def storage(case: Case, host: HostView) -> Decision | None:
    """None when every volume is there; else what makes it so, or what is missing."""
    volumes = wanted.volumes(case.vm, host)
    pools = tuple(sorted({volume.pool for volume in volumes}))
    if not case.view.fresh or any(pool not in host.volumes for pool in pools):
        return Decision(Say("Creating", f"on {host.name}"), look=Look(concerned(case, host), host.name, pools))
    for volume in volumes:
        names = host.volumes[volume.pool]
        if isinstance(names, Unknown):
            detail = f"pool {volume.pool!r} on Hypervisor {host.name}: {names.message}"
            return Decision(Say("PoolUnavailable", detail), requeue_after=30)
        if volume.kind != "File" and (mark := mark_on(volume.name, names)) is not None:
            detail = f"disk {volume.disk!r}: pool {volume.pool!r} on Hypervisor {host.name} has {mark!r}"
            return Decision(Say("DiskStale", detail), requeue_after=60)
        if volume.name not in names:
            return _absent(case, host, volume, names)
    return None


def _absent(case: Case, host: HostView, volume: wanted.WantedVolume, names: frozenset[str]) -> Decision:
    where = f"volume {volume.name!r} in pool {volume.pool!r} on Hypervisor {host.name}"
    if volume.kind in ("File", "Volume"):
        reason = "ImageMissing" if volume.kind == "File" else "VolumeMissing"
        return Decision(Say(reason, f"there is no {where}"), requeue_after=30)
    if any(seen.name == volume.disk for seen in case.vm.status.disks):
        detail = f"disk {volume.disk!r} was seen before, now there is no {where}"
        return Decision(Say("DiskMissing", detail), requeue_after=30)
    if (retained := _retained(case, volume, names)) is not None:
        detail = f"disk {volume.disk!r}: pool {volume.pool!r} on Hypervisor {host.name} has {retained!r}"
        return Decision(Say("RetainedDisk", detail), requeue_after=60)
    if (wait := backing_off(case, "DiskFailed")) is not None:
        return wait
    create = act.CreateVolume(host.name, volume.pool, volume.name, volume.format, volume.capacity, volume.backing)
    return do(case, create, Say("Creating", f"disk {volume.disk} on {host.name}"), host)


def _retained(case: Case, volume: wanted.WantedVolume, names: frozenset[str]) -> str | None:
    """The volume of an earlier VM of this name that a blank disk is not to be put beside."""
    disk = next(disk for disk in case.vm.spec.disks if disk.name == volume.disk)
    if volume.kind != "Blank" or not wanted.retained_matters(disk):
        return None
    return min((name for name in names if name.startswith(wanted.volume_prefix(case.vm, disk))), default=None)


def remove_volumes(case: Case) -> Decision | None:
    """Volumes we made and whose disk says Delete, on every host that the VM is proved to be gone from."""
    hosts = (host_of(case.view, each.hypervisor, each.host_uuid) for each in case.vm.status.candidates)
    steps = (_remove_volumes_on(case, host) for host in hosts if host is not None and nowhere(host))
    return next((step for step in steps if step is not None), None)


def _may_be_used(case: Case, disk: Disk, pool: HostPool, host: HostView) -> bool:
    """Whether a process on another candidate may have the disk: one that was given up without an answer."""
    storage = wanted.storage_of(pool, host.host_uuid)
    for each in case.vm.status.candidates:
        other = host_of(case.view, each.hypervisor, each.host_uuid)
        if other is not None and nowhere(other):
            continue
        theirs = wanted.find_pool(other.spec, disk.pool) if other is not None else None
        if pool.storage_id if theirs is None else wanted.storage_of(theirs, each.host_uuid) == storage:
            return True
    return False


def _remove_volumes_on(case: Case, host: HostView) -> Decision | None:
    disks = [disk for disk in case.vm.spec.disks if disk.deletion_policy == "Delete" and disk.source.volume is None]
    found = [(disk, pool) for disk in disks if (pool := wanted.find_pool(host.spec, disk.pool)) is not None]
    there = [(disk, pool.pool) for disk, pool in found if not _may_be_used(case, disk, pool, host)]
    pools = tuple(sorted({pool for _, pool in there}))
    if pools and (not case.view.fresh or any(pool not in host.volumes for pool in pools)):
        return Decision(Say("Deleting"), look=Look(concerned(case, host), host.name, pools))
    steps = (_remove_volume(case, host, disk, pool) for disk, pool in there)
    return next((step for step in steps if step is not None), None)


def _remove_volume(case: Case, host: HostView, disk: Disk, pool: str) -> Decision | None:
    names, name = host.volumes[pool], wanted.volume_name(case.vm, disk)
    if isinstance(names, Unknown):
        detail = (
            f"pool {pool!r} on Hypervisor {host.name}: {names.message}; "
            f"or set deletionPolicy Retain on disk {disk.name!r}"
        )
        return Decision(Say("DeletingWaits", detail), requeue_after=30)
    if name not in names:
        return None
    return do(case, act.DeleteVolume(host.name, pool, name), Say("Deleting"), host)
