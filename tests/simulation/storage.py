# SPDX-License-Identifier: Apache-2.0
"""Storage: files with contents, shared by hosts or not, and pools: each host's own, cached view of a folder.

A pool is a name. What it shows is what was in the folder when libvirt last looked.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from homeostat.api.observed import Volume
from homeostat.hosts import driver
from homeostat.hosts.driver import HostError
from tests.simulation import libvirt_xml

if TYPE_CHECKING:
    from tests.simulation.qemu import Process

_contents = itertools.count(1)


@dataclass(eq=False, slots=True)
class File:
    """One file. `content` says which one it is, and changes only when it is another one.

    `version` counts what a VM has written to its disk: a copy that is older is not the disk any more.
    """

    capacity: int
    content: str
    format: str = "raw"
    backing: tuple[str, str] | None = None
    writers: set[Process] = field(default_factory=set)
    name: str = ""
    version: int = 0


@dataclass(eq=False, slots=True)
class Storage:
    """A file system: shared by every host that mounts it. `locks`: QEMU's image locks work on it.

    `locks_across`: they are seen by other hosts too; not so on NFS mounted with nolock, or on block devices.
    """

    name: str
    locks: bool = False
    locks_across: bool = True
    full: bool = False
    files: dict[str, File] = field(default_factory=dict)

    def locked(self, file: File, host: str) -> bool:
        """Whether somebody's lock keeps a host from writing to a file."""
        return self.locks and any(self.locks_across or writer.host == host for writer in file.writers)

    def put(self, name: str, *, content: str = "", capacity: int = 2**30, form: str = "raw") -> File:
        """Makes a file, as a person would: no pool knows of it."""
        self.files[name] = File(capacity, content or f"content-{next(_contents)}", form, name=name)
        return self.files[name]


@dataclass(eq=False, slots=True)
class PoolView:
    """One host's pool. What libvirt shows is `cached`; what is in the folder is `storage`."""

    name: str
    path: str
    storage: Storage
    active: bool = True
    cached: dict[str, Volume] = field(default_factory=dict)

    def refresh(self) -> None:
        """Look at the folder again."""
        self.cached = {name: Volume(name, f"{self.path}/{name}") for name in self.storage.files}

    def mount(self, storage: Storage) -> None:
        """Another file system is at the path from now on. libvirt is told nothing."""
        self.storage = storage

    def volumes(self, examined: frozenset[str]) -> list[Volume]:
        """What libvirt shows, less what is examined and gone. OPERATION_INVALID when the pool is not active."""
        self.check_active()
        gone = examined - self.storage.files.keys()
        return [volume for volume in self.cached.values() if volume.name not in gone]

    def check_active(self) -> None:
        """Raises what libvirt says of a pool that is not active."""
        if not self.active:
            what = f"Requested operation is not valid: storage pool '{self.name}' is not active"
            raise HostError(driver.OPERATION_INVALID, what, 18)

    def create(self, text: str) -> str:
        """Creates the volume of this XML and returns its name."""
        self.check_active()
        root = libvirt_xml.parse(text)
        name = root.findtext("name") or ""
        if not name:
            raise HostError(libvirt_xml.XML_ERROR, "XML error: missing volume name element", 18)
        if "/" in name:
            what = f"Requested operation is not valid: volume name '{name}' cannot contain '/'"
            raise HostError(driver.OPERATION_INVALID, what, 18)
        if name in self.cached:
            raise HostError(driver.STORAGE_VOL_EXIST, f"storage volume '{name}' exists already", 18)
        if name in self.storage.files:
            what = f"Requested operation is not valid: volume target path '{self.path}/{name}' already exists"
            raise HostError(driver.OPERATION_INVALID, what, 18)
        if self.storage.full:
            what = f"cannot create path '{self.path}/{name}': No space left on device"
            raise HostError(driver.SYSTEM_ERROR, what, 18)
        self._write(name, root)
        return name

    def _write(self, name: str, root: libvirt_xml.Element) -> None:
        capacity = root.find("capacity")
        size = 0
        if capacity is not None:
            size = int(capacity.text or "0") * libvirt_xml.UNITS.get(capacity.get("unit", "bytes"), 1)
        form, backing = root.find("target/format"), root.find("backingStore/path")
        file = self.storage.put(name, capacity=size, form=form.get("type", "raw") if form is not None else "raw")
        if backing is not None and backing.text:
            kind = root.find("backingStore/format")
            file.backing = (backing.text, kind.get("type", "raw") if kind is not None else "raw")
        self.cached[name] = Volume(name, f"{self.path}/{name}")

    def delete(self, name: str) -> None:
        """Deletes the file, whoever has it open. NO_STORAGE_VOL when libvirt does not know it, be it there or not."""
        self._check_known(name)
        self.storage.files.pop(name, None)
        del self.cached[name]

    def size(self, name: str) -> int:
        """The capacity of a volume, as its file says."""
        self._check_known(name)
        return self.storage.files[name].capacity

    def _check_known(self, name: str) -> None:
        self.check_active()
        if name not in self.cached:
            what = f"Storage volume not found: no storage vol with matching name '{name}'"
            raise HostError(driver.NO_STORAGE_VOL, what, 18)
