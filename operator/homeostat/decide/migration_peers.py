# SPDX-License-Identifier: Apache-2.0
"""How the libvirt daemons of two hosts reach each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from homeostat.api.hypervisor import HypervisorSpec


class Peers(NamedTuple):
    """Two hosts, by their UUIDs, and the URI by which the source's daemon is to reach the target's."""

    source: str
    target: str
    uri: str


@dataclass(frozen=True, slots=True)
class Reach:
    """Have a host's daemon connect to a peer, as it would to migrate a domain of it."""

    host: str
    uuid: str
    peers: Peers


def peer_uri(host: HypervisorSpec) -> str:
    """Where other hosts' libvirt daemons reach this one; "" when nothing says."""
    return host.migration.peer_uri or ("" if host.uri == "qemu:///system" else host.uri)
