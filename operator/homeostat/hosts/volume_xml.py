# SPDX-License-Identifier: Apache-2.0
"""Volume XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET


def render_volume(
    name: str,
    format_: str,
    capacity: int | None,
    backing: tuple[str, str] | None = None,
    *,
    owner: tuple[int, int] = (0, 0),
    mode: str = "0600",
) -> str:
    """A new volume: capacity in bytes (None: that of the backing file), backing (path, format), owner (uid, gid)."""
    root = ET.Element("volume", type="file")
    ET.SubElement(root, "name").text = name
    if capacity is not None:
        ET.SubElement(root, "capacity", unit="bytes").text = str(capacity)
        ET.SubElement(root, "allocation", unit="bytes").text = "0"
    target = ET.SubElement(root, "target")
    ET.SubElement(target, "format", type=format_)
    permissions = ET.SubElement(target, "permissions")
    for tag, value in (("mode", mode), ("owner", str(owner[0])), ("group", str(owner[1]))):
        ET.SubElement(permissions, tag).text = value
    if format_ == "qcow2":
        ET.SubElement(target, "compat").text = "1.1"  # libvirt's own default, 0.10, keeps no bitmaps of a checkpoint
    if backing is not None:
        store = ET.SubElement(root, "backingStore")
        ET.SubElement(store, "path").text = backing[0]
        ET.SubElement(store, "format", type=backing[1])
    return ET.tostring(root, encoding="unicode")
