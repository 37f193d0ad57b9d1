# SPDX-License-Identifier: Apache-2.0
"""What libvirt's documents say of a host's bridges and networks."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable


def bridges(interfaces: Iterable[ET.Element]) -> dict[str, int | None]:
    """The bridges among a host's interfaces, with their MTU; None where libvirt does not say."""
    return {one.get("name", ""): _mtu(one) for one in interfaces if one.get("type") == "bridge"}


def mtus(bridges: dict[str, int | None], networks: Iterable[ET.Element]) -> tuple[tuple[str, str, int], ...]:
    """(Bridge or Network, name, MTU). A network that does not say has that of its bridge."""
    known = [("Bridge", name, mtu) for name, mtu in bridges.items()]
    for one in networks:
        bridge = one.find("bridge")
        found = _mtu(one) or (bridges.get(bridge.get("name", "")) if bridge is not None else None)
        known.append(("Network", one.findtext("name") or "", found))
    return tuple(sorted((kind, name, mtu) for kind, name, mtu in known if mtu is not None))


def _mtu(root: ET.Element) -> int | None:
    found = root.find("mtu")
    return int(found.get("size", "0")) or None if found is not None else None
