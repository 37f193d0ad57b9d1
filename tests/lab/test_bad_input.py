# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong is said in a sentence that names it, costs no storm of retries, and is over once it is mended."""

from __future__ import annotations

import contextlib
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from tests.controlplane.instance import ControlPlaneError
from tests.lab.host import EMULATOR, Host
from tests.lab.relay import Relay
from tests.lab.rig import Object, Rig, hypervisor

DISK = {"name": "data", "pool": "shared", "size": "8Mi", "deletionPolicy": "Delete"}


@pytest.fixture(autouse=True, scope="module")
def _readable(session_rig: Rig) -> Iterator[None]:
    """Nothing that is tried here leaves a traceback, or a warning that is not a sentence, in the log."""
    before = len(session_rig.operator.log)
    yield
    assert not session_rig.unreadable(session_rig.operator.log[before:])


# VMs that no host can take


@dataclass
class Fault:
    """A spec that cannot be carried out, what is said of it, and what mends it."""

    spec: Object
    reason: str
    words: tuple[str, ...]
    mend: Object | None = None  # a patch of the spec
    mended: Callable[[Rig], object] = field(default=lambda rig: None)


def image(volume: str) -> Object:
    source = {"type": "Image", "image": {"pool": "images", "volume": volume, "format": "raw"}}
    return {"name": "root", "pool": "shared", "source": source, "deletionPolicy": "Delete"}


def kernel(name: str) -> Object:
    return {"type": "Kernel", "kernel": {"pool": "images", "kernel": name}}


def pools_of_h3(namespace: str) -> Object:
    pools = hypervisor("h3", "")["spec"]["pools"]
    return {"spec": {"pools": [pool | {"allowedNamespaces": [namespace]} for pool in pools]}}


def put_image(rig: Rig) -> None:
    folder = rig.lab.hosts[0].pool_path("images")
    shutil.copy2(folder / "initrd", folder / "absent_late")


MISPLACED = {
    "pool": Fault(
        {"disks": [DISK | {"pool": "void"}]},
        "UnknownPool",
        ("spec.disks[data].pool is 'void'",),
        {"disks": []},
    ),
    "network": Fault(
        {"interfaces": [{"name": "eth0", "network": "void"}]},
        "UnknownNetwork",
        ("spec.interfaces[eth0].network is 'void'",),
        {"interfaces": [{"name": "eth0", "network": "lan"}]},
    ),
    "host": Fault(
        {"placement": {"host": "h9"}},
        "UnknownHost",
        ("spec.placement.host is 'h9'", "Hypervisors are: h1, h2, h3"),
        {"placement": {"host": "h2"}},
    ),
    "selector": Fault(
        {"placement": {"hostSelector": {"matchLabels": {"disk": "fast"}}}},
        "NoHostMatches",
        ("o Hypervisor has disk=fast",),
        mended=lambda rig: rig.kubectl("label", "hv", "h2", "disk=fast"),
    ),
    "namespace": Fault(
        {"disks": [DISK], "placement": {"host": "h3"}},
        "NotAllowed",
        ("spec.disks[data].pool is 'shared'", "h3", "namespace 'default'"),
        mended=lambda rig: rig.patch("hv", "h3", pools_of_h3("default")),
    ),
    "memory": Fault(
        {"memory": {"size": "900Gi"}},
        "TooBig",
        ("spec.memory.size is 921600 MiB and the largest host takes",),
        {"memory": {"size": "64Mi"}},
    ),
    "cpus": Fault(
        {"cpu": {"sockets": 512}},
        "TooBig",
        ("spec.cpu is 512 CPUs and the largest host takes",),
        {"cpu": None},
    ),
    "model": Fault({"cpu": {"model": "Void"}}, "UnknownCPUModel", ("spec.cpu.model is 'Void'",), {"cpu": None}),
    "image": Fault(
        {"disks": [image("absent_late")]},
        "ImageMissing",
        ("no volume 'absent_late' in pool 'images' on Hypervisor h",),
        mended=put_image,
    ),
    "kernel": Fault(
        {"boot": kernel("void")},
        "ImageMissing",
        ("no volume 'void' in pool 'images' on Hypervisor h",),
        {"boot": kernel("vmlinuz")},
    ),
}


@pytest.fixture
def changed_hypervisors(rig: Rig) -> Iterator[None]:
    rig.patch("hv", "h3", pools_of_h3("elsewhere"))
    rig.known("hv", "h3")
    yield
    rig.kubectl("label", "hv", "h2", "disk-")


def versions(rig: Rig) -> dict[str, str]:
    """Name -> resourceVersion of every VM: what has been written."""
    columns = "custom-columns=N:.metadata.name,V:.metadata.resourceVersion"
    return dict(line.split() for line in rig.kubectl("get", "vm", "--no-headers", "-o", columns).splitlines())


@pytest.mark.usefixtures("changed_hypervisors")
def test_a_vm_that_no_host_can_take_says_which_field_is_wrong_rests_and_runs_once_it_is_mended(rig: Rig) -> None:
    for name, fault in MISPLACED.items():
        rig.vm(name, **fault.spec)
    for name, fault in MISPLACED.items():
        message = rig.says(name, fault.reason)
        assert all(words in message for words in fault.words), message
        stalled = rig.condition("vm", name, "Stalled")
        assert (stalled["status"], stalled["reason"]) == ("True", fault.reason)
    written, lines = versions(rig), len(rig.operator.log.splitlines())
    rig.stays(lambda: versions(rig) == written, "what cannot be helped is not written again", 3)
    assert len(rig.operator.log.splitlines()) - lines < 3
    for name, fault in MISPLACED.items():
        if fault.mend:
            rig.patch("vm", name, {"spec": fault.mend})
        fault.mended(rig)
    for name in MISPLACED:
        rig.running(name)


# Storage that fails


def test_a_full_disk_is_told_in_the_words_of_libvirt_tried_ever_more_rarely_and_over_once_there_is_room(
    rig: Rig,
) -> None:
    host = rig.lab.hosts[0]
    rig.vm("thin", disks=[DISK | {"pool": "tiny", "size": "1Gi"}], placement={"host": "h1"})
    rig.running("thin")  # the pool has 16 MiB: a disk takes what is written to it
    host.disk_full()
    try:
        rig.vm("full", disks=[DISK | {"pool": "tiny"}], placement={"host": "h1"})
        assert "No space left on device" in rig.says("full", "DiskFailed")
        rig.until(lambda: rig.status("vm", "full")["startFailures"]["count"] == 2, "a second try")
        tries = rig.operator.log.count("full")
        rig.stays(lambda: rig.status("vm", "full")["startFailures"]["count"] == 2, "a pause", 4)
        assert rig.operator.log.count("full") - tries < 3
    finally:
        host.disk_freed()
    rig.running("full")


def test_a_pool_that_is_not_active_is_told_and_used_once_it_is(rig: Rig) -> None:
    host = rig.lab.hosts[0]
    host.virsh("pool-destroy", "tiny")
    try:
        rig.vm("idle", disks=[DISK | {"pool": "tiny"}], placement={"host": "h1"})
        assert "ool 'tiny' on Hypervisor h1" in rig.says("idle", "PoolUnavailable")
    finally:
        host.virsh("pool-start", "tiny")
    rig.running("idle")


# Hosts that cannot be used


class Silent:
    """A server on loopback that takes connections and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"qemu+tcp://127.0.0.1:{self._listener.getsockname()[1]}/system"
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.taken.append(self._listener.accept()[0])

    def close(self) -> None:
        for each in (self._listener, *self.taken):
            each.close()


def refusing(host: Host) -> str:
    return f"qemu+tcp://{host.address}:16999/system"


def black_hole(host: Host) -> str:
    return f"qemu+tcp://198.51.100.{host.network * 32 + 30}/system"


NOT_THERE: dict[Callable[[Host], str], tuple[str, tuple[str, ...]]] = {
    refusing: ("ConnectionRefused", ("nothing listens on that port", ":16999", "Connection refused")),
    black_hole: ("NoRoute ConnectTimeout", ("host",)),
}


@pytest.mark.parametrize("address", NOT_THERE)
def test_a_host_that_cannot_be_reached_says_how_and_is_used_once_its_uri_is_right(
    rig: Rig, address: Callable[[Host], str]
) -> None:
    host, (reasons, words) = rig.lab.hosts[2], NOT_THERE[address]
    uuid = rig.vm("web", placement={"host": "h3"})
    rig.running("web")
    pid = host.qemu_pid(uuid)
    rig.patch("hv", "h3", {"spec": {"uri": address(host)}})
    rig.until(lambda: rig.condition("hv", "h3", "Reachable")["reason"] in reasons.split(), "it to be told")
    reachable = rig.condition("hv", "h3", "Reachable")
    assert rig.state("hv", "h3") == "Unreachable"
    assert all(word in reachable["message"] for word in words), reachable["message"]
    rig.patch("hv", "h3", {"spec": {"uri": host.uri_tcp}})
    rig.until(lambda: rig.state("hv", "h3") == "Ready", "it to be Ready again")
    rig.running("web")
    assert host.qemu_pid(uuid) == pid


def test_a_host_that_takes_connections_and_never_answers_is_told_and_not_flooded(rig: Rig) -> None:
    silent = Silent()
    try:
        rig.apply(hypervisor("mute", silent.uri))
        rig.until(lambda: rig.state("hv", "mute") == "Unreachable", "it to be told")
        assert "does not answer to a connection attempt" in rig.condition("hv", "mute", "Ready")["message"]
        taken, begun = len(silent.taken), time.monotonic()
        rig.stays(lambda: len(silent.taken) - taken <= 2 + (time.monotonic() - begun) / 3, "not flooded", 4)
        rig.vm("here", placement={"host": "mute"})
        assert "Hypervisor mute: Unreachable" in rig.says("here", "NoHost")
        rig.vm("elsewhere")
        rig.running("elsewhere")
    finally:
        rig.delete("vm", "here")
        rig.delete("hv", "mute")
        silent.close()
    rig.gone("hv", "mute")


class OldLibvirt(Relay):
    """A host whose libvirt says that it is 8.10."""

    GET_LIB_VERSION = struct.pack(">4I", 0x20008086, 1, 157, 1)  # program, its version, procedure, a reply

    def reply(self, data: bytes) -> bytes:
        head, mark, rest = data.partition(self.GET_LIB_VERSION)
        return head + mark + rest[:8] + (8_010_000).to_bytes(8) + rest[16:] if mark else data


def test_a_host_whose_libvirt_is_too_old_says_so_and_takes_no_vm(rig: Rig) -> None:
    with OldLibvirt(rig.lab.hosts[2].address) as relay:
        rig.patch("hv", "h3", {"spec": {"uri": relay.uri}})
        rig.until(lambda: rig.reason("hv", "h3") == "LibvirtTooOld", "it to be told")
        message = rig.condition("hv", "h3", "Ready")["message"]
        assert "older than 9.0" in message
        assert "it is 8.10.0" in message.lower()
        rig.vm("web", placement={"host": "h3"})
        assert "LibvirtTooOld" in rig.says("web", "NoHost")
        rig.patch("hv", "h3", {"spec": {"uri": rig.lab.hosts[2].uri_tcp}})
        rig.running("web")


def test_a_host_without_qemu_says_so_and_takes_vms_once_it_has_one(rig: Rig) -> None:
    host = rig.lab.hosts[2]
    host.execute("mount", "--bind", "/dev/null", EMULATOR)
    try:
        host.kill_libvirtd()
        host.start_libvirtd()
        rig.until(lambda: rig.reason("hv", "h3") == "NoQEMU", "it to be told")
        rig.vm("web", placement={"host": "h3"})
        assert "NoQEMU" in rig.says("web", "NoHost")
    finally:
        host.execute("umount", EMULATOR)
        host.kill_libvirtd()
        host.start_libvirtd()
    rig.running("web")


# What is refused at once

VM = {"apiVersion": "homeostat.dev/v1alpha1", "kind": "VirtualMachine"}
REFUSED: tuple[tuple[Object, str], ...] = (
    ({"metadata": {"name": "n" * 64}}, "at most 63"),
    ({"metadata": {"name": "q"}, "spec": {"memory": {"size": "64 megs"}}}, "spec.memory.size"),
    ({"metadata": {"name": "f"}, "spec": {"memory": {"size": "64Mi"}, "disk": []}}, "unknown field"),
)


def test_what_can_never_be_right_is_refused_when_it_is_applied(rig: Rig) -> None:
    for wrong, words in REFUSED:
        with pytest.raises(ControlPlaneError, match=words):
            rig.apply(VM | {"spec": {"memory": {"size": "64Mi"}}} | wrong)


def test_a_field_that_cannot_change_is_refused_and_the_vm_runs_on(rig: Rig) -> None:
    uuid = rig.vm("web", disks=[DISK])
    pid = rig.running("web").qemu_pid(uuid)
    for change, words in (
        ({"disks": [DISK | {"size": "16Mi"}]}, "size cannot be changed"),
        ({"disks": [DISK | {"pool": "local"}]}, "a disk stays in its pool"),
        ({"domainUUID": uuid}, "domainUUID is set at creation or never"),
    ):
        with pytest.raises(ControlPlaneError, match=words):
            rig.patch("vm", "web", {"spec": change})
    assert rig.running("web").qemu_pid(uuid) == pid
