# SPDX-License-Identifier: Apache-2.0
"""Live migrations in libvirt's words. These functions block; they run in the threads of a session."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ET
from typing import Any

import libvirt

from homeostat.hosts.driver import INVALID_ARG, NO_DOMAIN, OPERATION_INVALID, OPERATION_UNSUPPORTED, HostError
from homeostat.hosts.migration import Cost, In, Job, MigrationRequest, Other, Out
from homeostat.hosts.sessions import Virt, host_error

_BASE = (
    libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR
)
_COPY = {
    "None": 0,
    "Full": libvirt.VIR_MIGRATE_NON_SHARED_DISK,
    "Incremental": libvirt.VIR_MIGRATE_NON_SHARED_INC,
}
_MOVES = (
    libvirt.VIR_DOMAIN_JOB_OPERATION_UNKNOWN,  # the target has the figures from the source, which does not say of what
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN,
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT,
)


def migrate(one: Virt, request: MigrationRequest) -> None:
    """Move a domain; returns when libvirt thinks that it has been moved."""
    # Set each time: QEMU keeps the limit that an earlier migration left in it.
    one.migrateSetMaxDowntime(request.max_downtime_ms, 0)
    _move(one, request, flags(request))


def reach(one: Virt, peer: str) -> None:
    """Have the host's daemon connect to a peer; what libvirt raises when it cannot.

    It is asked for a migration that it has to refuse: once it is connected, and before it asks the peer for anything,
    it reads the definition that the target is to have, and this is none. Offline, so that nothing could run there.
    """
    how = libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_OFFLINE | libvirt.VIR_MIGRATE_PERSIST_DEST
    try:
        one.migrateToURI3(peer, {libvirt.VIR_MIGRATE_PARAM_DEST_XML: "<none/>"}, how)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_XML_ERROR:
            raise


def resume_post_copy(one: Virt, request: MigrationRequest) -> None:
    """Go on with a migration that failed in post-copy."""
    resume = libvirt.VIR_MIGRATE_POSTCOPY | libvirt.VIR_MIGRATE_POSTCOPY_RESUME
    _move(one, request, flags(request) | resume)


def _move(one: Virt, request: MigrationRequest, how: int) -> None:
    xml = one.XMLDesc(0) if request.copy_disks else ""
    one.migrateToURI3(request.peer, parameters(request, xml), how)


def flags(request: MigrationRequest) -> int:
    """The flags of migrateToURI3."""
    wanted = {
        libvirt.VIR_MIGRATE_TLS: request.tls,
        libvirt.VIR_MIGRATE_POSTCOPY: request.post_copy,
        libvirt.VIR_MIGRATE_AUTO_CONVERGE: request.auto_converge,
        libvirt.VIR_MIGRATE_PARALLEL: request.connections,
        libvirt.VIR_MIGRATE_COMPRESSED: request.compression,
        libvirt.VIR_MIGRATE_PAUSED: request.start_paused,
        libvirt.VIR_MIGRATE_UNSAFE: request.unsafe,
    }
    chosen: int = _BASE | _COPY[request.copy] | sum(flag for flag, asked in wanted.items() if asked)
    return chosen


def parameters(request: MigrationRequest, xml: str = "") -> dict[str, Any]:
    """The typed parameters of migrateToURI3; what is not asked for is left out. `xml` names the disks to be copied."""
    wanted = {
        libvirt.VIR_MIGRATE_PARAM_URI: request.migrate_uri,
        libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS: request.connections,
        libvirt.VIR_MIGRATE_PARAM_COMPRESSION: request.compression,
        libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: request.bandwidth_mib_s,
        libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY: request.post_copy_mib_s if request.post_copy else 0,
        libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS: [_device(xml, alias) for alias in request.copy_disks],
    }
    return {name: value for name, value in wanted.items() if value}


def _device(xml: str, alias: str) -> str:
    """The name (vda, ...) by which libvirt wants to be told of a disk."""
    for disk in ET.fromstring(xml).iterfind("devices/disk"):
        name, target = disk.find("alias"), disk.find("target")
        if name is not None and target is not None and name.get("name") == alias:
            return target.get("dev", "")
    raise HostError(INVALID_ARG, f"the domain has no disk {alias}")


def job(virt: Virt, uuid: str) -> Job | None:
    """What libvirt is doing with a domain. May wait for QEMU's monitor while something is."""
    try:
        one = virt.lookupByUUIDString(uuid)
        stats = one.jobStats(0)
    except libvirt.libvirtError as error:
        match host_error(error).code:
            case code if code == OPERATION_UNSUPPORTED:
                return In()
            case code if code in (NO_DOMAIN, OPERATION_INVALID):
                return None
        raise
    if stats["type"] not in (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED):
        return None
    operation = stats.get("operation", libvirt.VIR_DOMAIN_JOB_OPERATION_UNKNOWN)
    if operation == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT:
        return _out(stats, _max_downtime(one))
    if operation == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN:
        return In()
    return Other()


def cost(one: Virt) -> Cost | None:
    """What the migration that brought a domain here cost, if that was its last job. Reading it forgets nothing."""
    stats = one.jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED)
    operation = stats.get("operation", libvirt.VIR_DOMAIN_JOB_OPERATION_UNKNOWN)
    if stats["type"] != libvirt.VIR_DOMAIN_JOB_COMPLETED or operation not in _MOVES:
        return None
    return Cost(stats.get("data_processed", 0), stats.get("downtime"))


def _out(stats: dict[str, Any], max_downtime: int | None) -> Out:
    return Out(
        processed=stats.get("data_processed", 0),
        remaining=stats.get("data_remaining", 0),
        total=stats.get("data_total", 0),
        dirty_rate=stats.get("memory_dirty_rate", 0),
        page_size=stats.get("memory_page_size", 4096),
        iteration=stats.get("memory_iteration", 0),
        bytes_per_second=stats.get("memory_bps", 0),
        elapsed=stats.get("time_elapsed", 0),
        max_downtime=max_downtime,
    )


def _max_downtime(one: Virt) -> int | None:
    with contextlib.suppress(libvirt.libvirtError):  # the job may have ended meanwhile
        limit: int | None = one.migrateGetMaxDowntime(0)  # None: so does the binding say of some failures (measured)
        return limit
    return None
