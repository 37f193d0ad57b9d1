# SPDX-License-Identifier: Apache-2.0
"""The disks of a VM that are known to exist, and where: none of them is ever made anew."""

from __future__ import annotations

from collections.abc import Iterable

from homeostat.api.meta import clipped
from homeostat.api.observed import Domain
from homeostat.api.virtualmachine import DiskStatus, VirtualMachine
from homeostat.decide import wanted
from homeostat.decide.view import HostView
from homeostat.decide.whereabouts import Place

MAX_CHAIN, MAX_PATH = 64, 1024


def known(vm: VirtualMachine, places: Iterable[Place]) -> VirtualMachine:
    """The VM with those disks in its status that its definitions show: a status can be lost, or be of an earlier VM."""
    for place in places:
        disks = shown(vm, place.host, place.domain)
        vm = vm.model_copy(update={"status": vm.status.model_copy(update={"disks": disks})})
    return vm


def shown(vm: VirtualMachine, host: HostView, domain: Domain) -> tuple[DiskStatus, ...]:
    """The disks that a definition has shown to exist; what was seen once stays on record."""
    chains, old = dict(domain.chains), {disk.name: disk for disk in vm.status.disks}
    config = domain.live or domain.inactive
    there = {disk.alias for disk in config.disks} if config else set()
    rows = []
    for disk in vm.spec.disks:
        alias, pool = f"ua-disk-{disk.name}", wanted.find_pool(host.spec, disk.pool)
        if alias not in there or pool is None:
            rows += [old[disk.name]] if disk.name in old else []
            continue
        rows.append(
            DiskStatus(
                name=disk.name,
                alias=alias,
                volume=wanted.volume_name(vm, disk),
                pool=disk.pool,
                storage=wanted.storage_of(pool, host.host_uuid),
                chain=tuple(clipped(path, MAX_PATH) for path in chains.get(alias, ())[:MAX_CHAIN]),
            )
        )
    return tuple(rows)
