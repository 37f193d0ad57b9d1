# SPDX-License-Identifier: Apache-2.0
"""The ports that a host takes memory on: one for each VM that is on its way to it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from homeostat.api.migration import VirtualMachineMigration
from homeostat.decide.migration import ended
from homeostat.decide.view import HostView


def taken(target: HostView, others: Iterable[VirtualMachineMigration]) -> dict[int, str]:
    """The ports on which a host takes VMs now, and the migrations that have them."""
    found = {}
    for each in others:
        intent = each.status.intent
        if intent and intent.port and intent.target_uuid == target.host_uuid and not ended(each):
            found[intent.port] = f"{each.metadata.namespace}/{each.metadata.name}"
    return found


def free(target: HostView, others: Iterable[VirtualMachineMigration], uuid: str) -> int | None:
    """A port of the host's range that none of the others has, and what a domain's UUID falls on if that is free.

    None when there is none, or when the host names no ports: then its libvirt chooses.
    """
    ports = target.spec.migration.ports
    if ports is None:
        return None
    found = range(ports.first, ports.last + 1)
    at, gone = zlib.crc32(uuid.encode()) % len(found), taken(target, others)
    return next((port for port in (*found[at:], *found[:at]) if port not in gone), None)
