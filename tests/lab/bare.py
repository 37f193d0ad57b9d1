# SPDX-License-Identifier: Apache-2.0
"""Domains made by hand, for the lab's own tests and for bare comparisons: no operator is involved."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from tests.lab.host import Host
from tests.lab.processes import LabError, run

DOMAIN = """<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <devices>{disk}
    <interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>
    <serial type='pty'><log file='/var/log/libvirt/qemu/{uuid}-console.log' append='on'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>"""
KERNEL = """<kernel>/var/lib/libvirt/base/vmlinuz</kernel><initrd>/var/lib/libvirt/base/initrd</initrd>
<cmdline>console=ttyS0 quiet {arguments}</cmdline>"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{path}'/>
<target dev='vda' bus='virtio'/><serial>root</serial></disk>"""


def eventually(condition: Callable[[], object], what: str, timeout: float = 60) -> None:
    """Wait for a condition; AssertionError when it does not come true within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)


def domain_xml(domain: str, arguments: str | None = None, disk: str = "", memory: int = 64) -> str:
    """The definition of a domain, blank unless it gets kernel arguments."""
    boot = "" if arguments is None else KERNEL.format(arguments=arguments)
    return DOMAIN.format(name=f"d-{domain[:8]}", uuid=domain, memory=memory, boot=boot, disk=disk)


def define(host: Host, arguments: str | None = None, disk: str = "", memory: int = 64, known: str = "") -> str:
    """Define a domain, of a UUID known before or a new one; returns its UUID."""
    domain = known or str(uuid.uuid4())
    file = host.directory / "domain.xml"
    file.write_text(domain_xml(domain, arguments, disk, memory))
    host.virsh("define", str(file))
    return domain


def boot(host: Host, arguments: str = "", disk: str = "") -> str:
    """Start a domain with the lab's guest; returns its UUID once the guest is up."""
    domain = define(host, arguments, disk, memory=128)
    host.virsh("start", domain)
    eventually(lambda: "GUEST-UP" in host.console(domain), "guest up")
    return domain


def new_disk(host: Host, pool: str = "default", size: str = "16M") -> str:
    """Create a raw volume; returns the XML of a disk on it."""
    name = f"{uuid.uuid4()}.raw"
    host.virsh("vol-create-as", pool, name, size, "--format", "raw")
    return DISK.format(format="raw", path=host.virsh("vol-path", name, "--pool", pool).strip())


def state(host: Host, domain: str) -> str:
    """State and reason as virsh says them, such as `shut off (crashed)`."""
    return host.virsh("domstate", "--reason", domain).strip()


def answers_in_time(host: Host) -> bool:
    """Whether its libvirt answers within a second."""
    return bool(run("timeout", "1", "virsh", "-q", "-c", host.uri_tcp, "uri", check=False))


def agent_answers(host: Host, domain: str) -> bool:
    """Whether the agent in the guest answers a ping."""
    try:
        return host.virsh("qemu-agent-command", domain, '{"execute":"guest-ping"}').strip() == '{"return":{}}'
    except LabError:
        return False
