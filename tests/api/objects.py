# SPDX-License-Identifier: Apache-2.0
"""The smallest objects that are valid, with whatever a test adds to their specs."""

from typing import Any

from homeostat.api.meta import API_VERSION

Object = dict[str, Any]


def vm(name: str = "web", namespace: str = "default", **spec: Any) -> Object:
    """Return a VirtualMachine."""
    metadata = {"name": name, "namespace": namespace}
    head = {"apiVersion": API_VERSION, "kind": "VirtualMachine", "metadata": metadata}
    return {**head, "spec": {"memory": {"size": "64Mi"}, **spec}}


def hypervisor(name: str = "host-1", **spec: Any) -> Object:
    """Return a Hypervisor."""
    head = {"apiVersion": API_VERSION, "kind": "Hypervisor", "metadata": {"name": name}}
    return {**head, "spec": {"uri": "qemu+tcp://198.51.100.11/system", **spec}}


def migration(name: str = "move", namespace: str = "default", **spec: Any) -> Object:
    """Return a VirtualMachineMigration."""
    metadata = {"name": name, "namespace": namespace}
    head = {"apiVersion": API_VERSION, "kind": "VirtualMachineMigration", "metadata": metadata}
    return {**head, "spec": {"vmRef": {"name": "web"}, **spec}}


def disk(**fields: Any) -> Object:
    """Return a blank disk."""
    return {"name": "root", "pool": "local", "size": "1Gi", **fields}


def image_disk(**image: Any) -> Object:
    """Return a disk made from an image."""
    source = {"type": "Image", "image": {"pool": "images", "volume": "debian.qcow2", "format": "qcow2", **image}}
    return {"name": "root", "pool": "local", "source": source}


def volume_disk(**volume: Any) -> Object:
    """Return a disk that is an existing volume."""
    source = {"type": "Volume", "volume": {"name": "data.qcow2", "format": "qcow2", **volume}}
    return {"name": "root", "pool": "local", "source": source}


def network(**fields: Any) -> Object:
    """Return a network on a Linux bridge."""
    return {"name": "lan", "type": "Bridge", "bridge": {"name": "br0"}, **fields}
