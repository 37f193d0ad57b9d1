# SPDX-License-Identifier: Apache-2.0
"""Is the simulated hypervisor honest? Small scripts that run on it and on real hosts; what they observe must agree.

A probe is written against the driver's port and `Machine`, and returns what it saw: codes, states, reasons, flags. No
expectation stands here: the real host is the expectation.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from homeostat.hosts.driver import Connection, Event, HostError

Seen = list[Any]
Probe = Callable[["Rig"], Awaitable[Seen]]
PROBES: list[tuple[str, Probe]] = []


class Machine(Protocol):
    """One host, and what can be done to it from outside. `pool` is storage that both machines have."""

    pool: str

    async def connect(self) -> Connection:
        """A new connection."""

    async def restart_daemon(self) -> None:
        """Kill libvirtd and start it again."""

    async def stop_daemon(self) -> None:
        """Kill libvirtd."""

    async def start_daemon(self) -> None:
        """Start libvirtd."""

    async def freeze_daemon(self) -> None:
        """Stop libvirtd with SIGSTOP."""

    async def thaw_daemon(self) -> None:
        """Let libvirtd go on."""

    async def lose_record(self, uuid: str) -> None:
        """Restart libvirtd without its record of a running domain."""

    async def kill_qemu(self, uuid: str) -> None:
        """SIGKILL to the QEMU of a domain."""

    async def terminate_qemu(self, uuid: str) -> None:
        """SIGTERM to the QEMU of a domain."""

    async def freeze_qemu(self, uuid: str) -> None:
        """SIGSTOP to the QEMU of a domain."""

    async def thaw_qemu(self, uuid: str) -> None:
        """SIGCONT to the QEMU of a domain."""

    async def managed_save(self, uuid: str) -> None:
        """`virsh managedsave`."""

    async def qemus(self, uuid: str) -> int:
        """How many QEMU processes of a domain there are."""


def probe(script: Probe) -> Probe:
    """Enters a script into PROBES."""
    PROBES.append((script.__name__, script))
    return script


@dataclass
class Rig:
    """Two machines with common storage, and names that nothing else has."""

    one: Machine
    two: Machine
    host: Connection = field(init=False)
    uuids: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    async def again(self) -> Connection:
        """A new connection to the first machine, once it answers."""
        self.host = await self.one.connect()
        return self.host

    def fresh(self) -> tuple[str, str]:
        """A UUID and a name."""
        self.uuids.append(str(uuid.uuid4()))
        return self.uuids[-1], f"probe-{self.uuids[-1][:8]}"

    async def volume(self, host: Connection | None = None, name: str = "") -> str:
        """Creates a volume of 1 MiB on the common storage and returns its name."""
        name = name or f"probe-{uuid.uuid4().hex[:8]}"
        self.files.append(name)
        await (host or self.host).create_volume(self.one.pool, volume_xml(name))
        return name

    async def path(self, name: str) -> str:
        """The path of a file on the common storage."""
        return f"{(await self.host.pool(self.one.pool)).path}/{name}"

    async def defined(self, *disks: str, extra: str = "") -> str:
        """Defines a domain and returns its UUID."""
        number, name = self.fresh()
        await self.host.define(domain_xml(number, name, *disks, extra=extra))
        return number

    async def started(self, *disks: str, extra: str = "") -> str:
        """Defines and starts a domain and returns its UUID."""
        number = await self.defined(*disks, extra=extra)
        await self.host.create(number, paused=False)
        return number

    async def row(self, number: str, host: Connection | None = None) -> Any:
        """What libvirt shows of a domain: state, reason, persistent, managed save; None when there is none."""
        row = await (host or self.host).domain(number)
        return None if row is None else (row.state, row.reason, row.persistent, row.managed_save)

    async def until_off(self, number: str) -> Any:
        """The row of a domain once it is off, or after 20 s."""
        for _ in range(200):
            row = await self.row(number)
            if row is None or row[0] == "Shutoff":
                break
            await asyncio.sleep(0.1)
        return row

    async def clean(self) -> None:
        """Removes what the probe made."""
        for machine in (self.one, self.two):
            host = await machine.connect()
            for number in self.uuids:
                with suppress(HostError, Exception):
                    await machine.kill_qemu(number)
                for call in (host.destroy, host.remove_managed_save, host.undefine):
                    with suppress(HostError):
                        await call(number)
            with suppress(HostError):
                await host.refresh_pool(machine.pool)
            for name in self.files:
                with suppress(HostError):
                    await host.delete_volume(machine.pool, name)
            await host.close()


async def code(call: Awaitable[object]) -> int:
    """The code of the error a call raises, 0 if none."""
    try:
        await call
    except HostError as error:
        return error.code
    return 0


def volume_xml(name: str, size: int = 2**20) -> str:
    """A raw volume."""
    mode = "<permissions><mode>0666</mode></permissions>"
    target = f"<target><format type='raw'/>{mode}</target>"
    return f"<volume><name>{name}</name><capacity>{size}</capacity>{target}</volume>"


def domain_xml(number: str, name: str, *disks: str, extra: str = "", memory: int = 64, kernel: str = "") -> str:
    """A small domain that any host can run."""
    devices = "".join(
        f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{path}'/>"
        f"<target dev='vd{letter}' bus='virtio'/></disk>"
        for letter, path in zip("abc", disks, strict=False)
    )
    boot = f"<kernel>{kernel}</kernel>" if kernel else ""
    return (
        f"<domain type='qemu'><name>{name}</name><uuid>{number}</uuid><memory unit='MiB'>{memory}</memory>"
        f"<os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os><features><acpi/></features>"
        f"<devices>{devices}{extra}<controller type='usb' model='none'/></devices></domain>"
    )


AGENT = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"


async def run(one: Machine, two: Machine, name: str) -> Seen:
    """What the probe of this name sees on these machines."""
    rig = Rig(one, two)
    await rig.again()
    try:
        return await dict(PROBES)[name](rig)
    finally:
        await rig.clean()


# Definitions ----------------------------------------------------------------------------------------------------------


@probe
async def a_new_definition(rig: Rig) -> Seen:
    number, name = rig.fresh()
    absent = [await rig.row(number), await rig.host.domain_named(name), await rig.host.xml(number, inactive=True)]
    await rig.host.define(domain_xml(number, name))
    return [*absent, await rig.row(number), await rig.host.domain_named(name) == number]


@probe
async def what_libvirt_makes_of_a_definition(rig: Rig) -> Seen:
    number = await rig.defined(await rig.path(await rig.volume()))
    xml = await rig.host.xml(number, inactive=True) or ""
    return [
        "machine='q35'" in xml,
        "pc-q35-" in xml,
        "KiB" in xml,
        "currentMemory" in xml,
        "<address" in xml,
        "65536" in xml,
    ]


@probe
async def same_name_other_uuid(rig: Rig) -> Seen:
    (first, name), (second, _) = rig.fresh(), rig.fresh()
    await rig.host.define(domain_xml(first, name))
    return [await code(rig.host.define(domain_xml(second, name))), await rig.row(first), await rig.row(second)]


@probe
async def same_uuid_other_name(rig: Rig) -> Seen:
    (number, name), (_, other) = rig.fresh(), rig.fresh()
    await rig.host.define(domain_xml(number, name))
    return [await code(rig.host.define(domain_xml(number, other))), await rig.host.domain_named(other)]


@probe
async def same_domain_on_two_hosts(rig: Rig) -> Seen:
    number, name = rig.fresh()
    two = await rig.two.connect()
    await rig.host.define(domain_xml(number, name))
    seen = [await rig.row(number, two), await code(two.define(domain_xml(number, name))), await rig.row(number, two)]
    await two.close()
    return seen


@probe
async def definitions_that_are_refused(rig: Rig) -> Seen:
    number, name = rig.fresh()
    wrong = [
        domain_xml(number, name).replace("<memory", "<remembrance").replace("</memory", "</remembrance"),
        domain_xml(number, "a/b"),
        "<domain",
        "<network><name>x</name></network>",
    ]
    return [await code(rig.host.define(xml)) for xml in wrong] + [await rig.row(number)]


@probe
async def a_shared_alias_is_refused(rig: Rig) -> Seen:
    number, name = rig.fresh()
    alias = "<alias name='ua-same'/>"
    xml = domain_xml(number, name, "/a", "/b").replace("</disk>", f"{alias}</disk>")
    return [await code(rig.host.define(xml)), await rig.row(number)]


@probe
async def an_alias_with_a_dot_is_dropped(rig: Rig) -> Seen:
    number, name = rig.fresh()
    seen: Seen = []
    for alias in ("ua-a.b", "ua-a-b", "other"):
        xml = domain_xml(number, name, "/a").replace("</disk>", f"<alias name='{alias}'/></disk>")
        seen += [await code(rig.host.define(xml)), alias in (await rig.host.xml(number, inactive=True) or "")]
    return seen


@probe
async def undefining(rig: Rig) -> Seen:
    number = await rig.defined()
    return [await code(rig.host.undefine(number)), await rig.row(number), await code(rig.host.undefine(number))]


@probe
async def undefining_a_running_domain(rig: Rig) -> Seen:
    number = await rig.started()
    seen = [await code(rig.host.undefine(number)), await rig.row(number), await code(rig.host.undefine(number))]
    inactive = await rig.host.xml(number, inactive=True)
    return [*seen, inactive is not None, await code(rig.host.destroy(number)), await rig.row(number)]


@probe
async def redefining_a_transient_domain(rig: Rig) -> Seen:
    number, name = rig.fresh()
    await rig.host.define(domain_xml(number, name))
    await rig.host.create(number, paused=False)
    await rig.host.undefine(number)
    return [await code(rig.host.define(domain_xml(number, name))), await rig.row(number)]


@probe
async def redefining_a_running_domain(rig: Rig) -> Seen:
    number, name = rig.fresh()
    await rig.host.define(domain_xml(number, name))
    await rig.host.create(number, paused=False)
    await rig.host.define(domain_xml(number, name, memory=96))
    live, kept = await rig.host.xml(number, inactive=False) or "", await rig.host.xml(number, inactive=True) or ""
    seen = [await rig.row(number), "65536" in live, "98304" in kept]
    await rig.host.destroy(number)
    return [*seen, "98304" in (await rig.host.xml(number, inactive=False) or "")]


@probe
async def redefining_keeps_state_and_reason(rig: Rig) -> Seen:
    number, name = rig.fresh()
    await rig.host.define(domain_xml(number, name))
    await rig.host.create(number, paused=False)
    await rig.host.destroy(number)
    before = await rig.row(number)
    await rig.host.define(domain_xml(number, name, memory=96))
    return [before, await rig.row(number)]


@probe
async def metadata_of_a_domain_that_is_off(rig: Rig) -> Seen:
    number = await rig.defined()
    seen = [await code(rig.host.set_metadata(number, "<vm note='first'/>", live=True))]
    seen += [
        await code(rig.host.set_metadata(number, f"<vm note='{note}'/>", live=False)) for note in ("first", "again")
    ]
    xml = await rig.host.xml(number, inactive=True) or ""
    return [*seen, "first" in xml, xml.count("again"), await rig.row(number)]


@probe
async def metadata_of_a_running_domain(rig: Rig) -> Seen:
    number = await rig.started()
    seen = [await code(rig.host.set_metadata(number, "<vm note='live'/>", live=True))]
    seen += [await code(rig.host.set_metadata(number, "<vm note='kept'/>", live=False))]
    live, kept = await rig.host.xml(number, inactive=False) or "", await rig.host.xml(number, inactive=True) or ""
    seen += ["note" in live and "live" in live, "kept" in live, "kept" in kept]
    await rig.host.destroy(number)
    return [*seen, "kept" in (await rig.host.xml(number, inactive=False) or "")]


@probe
async def metadata_of_a_transient_domain_and_of_none(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.host.undefine(number)
    seen = [await code(rig.host.set_metadata(number, "<vm/>", live=False))]
    seen += [await code(rig.host.set_metadata(number, "<vm/>", live=True))]
    await rig.host.destroy(number)
    return [*seen, await code(rig.host.set_metadata(number, "<vm/>", live=False))]


# Running --------------------------------------------------------------------------------------------------------------


@probe
async def starting(rig: Rig) -> Seen:
    number = await rig.defined()
    seen = [await code(rig.host.create(number, paused=False)), await rig.row(number)]
    live, kept = await rig.host.xml(number, inactive=False) or "", await rig.host.xml(number, inactive=True) or ""
    return [*seen, " id=" in live.split(">")[0], " id=" in kept.split(">")[0], await rig.one.qemus(number)]


@probe
async def starting_twice(rig: Rig) -> Seen:
    number = await rig.started()
    return [await code(rig.host.create(number, paused=False)), await rig.row(number)]


@probe
async def two_starts_at_once(rig: Rig) -> Seen:
    number = await rig.defined()
    codes = await asyncio.gather(*(code(rig.host.create(number, paused=False)) for _ in range(2)))
    return [sorted(codes), await rig.row(number), await rig.one.qemus(number)]


@probe
async def starting_what_is_not_there(rig: Rig) -> Seen:
    number, _ = rig.fresh()
    return [await code(rig.host.create(number, paused=False)), await code(rig.host.destroy(number))]


@probe
async def starting_paused(rig: Rig) -> Seen:
    number = await rig.defined()
    await rig.host.create(number, paused=True)
    seen = [await rig.row(number), await code(rig.host.shutdown(number, agent=False))]
    return [*seen, await code(rig.host.resume(number)), await rig.row(number)]


@probe
async def pausing_and_resuming_twice(rig: Rig) -> Seen:
    number = await rig.started()
    seen: Seen = []
    for call in (rig.host.suspend, rig.host.suspend, rig.host.resume, rig.host.resume):
        seen += [await code(call(number)), await rig.row(number)]
    return seen


@probe
async def calls_on_a_domain_that_is_off(rig: Rig) -> Seen:
    number = await rig.defined()
    calls = (rig.host.destroy, rig.host.suspend, rig.host.resume)
    return [await code(call(number)) for call in calls] + [await code(rig.host.shutdown(number, agent=False))]


@probe
async def calls_on_a_domain_that_is_not_there(rig: Rig) -> Seen:
    number, _ = rig.fresh()
    calls = (rig.host.suspend, rig.host.resume, rig.host.undefine, rig.host.remove_managed_save, rig.host.addresses)
    return [await code(call(number)) for call in calls] + [await code(rig.host.shutdown(number, agent=False))]


@probe
async def destroying(rig: Rig) -> Seen:
    number = await rig.started()
    return [await code(rig.host.destroy(number)), await rig.row(number), await rig.one.qemus(number)]


@probe
async def destroying_a_paused_domain(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.host.suspend(number)
    return [await code(rig.host.destroy(number)), await rig.row(number)]


@probe
async def asking_an_agent_that_is_not_there(rig: Rig) -> Seen:
    without, with_channel = await rig.started(), await rig.started(extra=AGENT)
    seen = [await code(rig.host.shutdown(number, agent=True)) for number in (without, with_channel)]
    return [*seen, *[await code(rig.host.addresses(number)) for number in (without, with_channel)]]


@probe
async def an_agent_that_is_not_connected(rig: Rig) -> Seen:
    number = await rig.started(extra=AGENT)
    live, kept = await rig.host.xml(number, inactive=False) or "", await rig.host.xml(number, inactive=True) or ""
    return ["disconnected" in live, "connected" in kept]


@probe
async def killed(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.kill_qemu(number)
    return [await rig.until_off(number)]


@probe
async def terminated(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.terminate_qemu(number)
    return [await rig.until_off(number)]


@probe
async def starting_without_the_disk(rig: Rig) -> Seen:
    number = await rig.defined(await rig.path("not-there"))
    return [await code(rig.host.create(number, paused=False)), await rig.row(number)]


@probe
async def starting_without_the_kernel(rig: Rig) -> Seen:
    number, name = rig.fresh()
    await rig.host.define(domain_xml(number, name, kernel=await rig.path("not-there")))
    return [await code(rig.host.create(number, paused=False)), await rig.row(number)]


@probe
async def a_failed_start_forgets_how_it_went_off(rig: Rig) -> Seen:
    name = await rig.volume()
    number = await rig.started(await rig.path(name))
    await rig.host.destroy(number)
    await rig.host.delete_volume(rig.one.pool, name)
    return [await rig.row(number), await code(rig.host.create(number, paused=False)), await rig.row(number)]


@probe
async def one_disk_of_two_domains(rig: Rig) -> Seen:
    path = await rig.path(await rig.volume())
    await rig.started(path)
    second = await rig.defined(path)
    two = await rig.two.connect()
    number, name = rig.fresh()
    await two.define(domain_xml(number, name, path))
    seen = [await code(rig.host.create(second, paused=False)), await rig.row(second)]
    seen += [await code(two.create(number, paused=False)), await rig.row(number, two)]
    await two.close()
    return seen


# The daemon -----------------------------------------------------------------------------------------------------------


@probe
async def reasons_after_a_restart_of_the_daemon(rig: Rig) -> Seen:
    destroyed, running, paused = await rig.started(), await rig.started(), await rig.started()
    await rig.host.destroy(destroyed)
    await rig.host.suspend(paused)
    await rig.one.restart_daemon()
    await rig.again()
    return [await rig.row(number) for number in (destroyed, running, paused)]


@probe
async def a_connection_after_a_restart_of_the_daemon(rig: Rig) -> Seen:
    closed: list[str] = []
    rig.host.subscribe(lambda event: None, closed.append)
    await rig.one.restart_daemon()
    await asyncio.sleep(1)
    seen = [await code(rig.host.domains()) != 0, len(closed)]
    await rig.again()
    return seen


@probe
async def a_transient_domain_and_a_restart_of_the_daemon(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.host.undefine(number)
    await rig.one.restart_daemon()
    await rig.again()
    return [await rig.row(number)]


@probe
async def killed_while_the_daemon_is_down(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.stop_daemon()
    await rig.one.kill_qemu(number)
    await rig.one.start_daemon()
    await rig.again()
    return [await rig.until_off(number)]


@probe
async def a_lost_record(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.lose_record(number)
    await rig.again()
    seen = [await rig.row(number), await rig.one.qemus(number), await code(rig.host.destroy(number))]
    return [*seen, await code(rig.host.undefine(number)), await rig.row(number), await rig.one.qemus(number)]


@probe
async def a_lost_record_of_a_transient_domain(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.host.undefine(number)
    await rig.one.lose_record(number)
    await rig.again()
    return [await rig.row(number), await rig.one.qemus(number)]


@probe
async def starting_after_a_lost_record(rig: Rig) -> Seen:
    number = await rig.started(await rig.path(await rig.volume()))
    await rig.one.lose_record(number)
    await rig.again()
    # Refused for the image lock, or before that because virtlogd still has the survivor's log open.
    return [await code(rig.host.create(number, paused=False)) != 0, await rig.row(number), await rig.one.qemus(number)]


@probe
async def a_call_that_is_carried_out_late(rig: Rig) -> Seen:
    await rig.defined()  # a connection for changes is open from here on
    number, name = rig.fresh()
    await rig.one.freeze_daemon()
    call = asyncio.ensure_future(rig.host.define(domain_xml(number, name)))
    await asyncio.sleep(2)
    pending = not call.done()
    closing = rig.host
    await closing.close()
    refused = await code(call) != 0
    await rig.one.thaw_daemon()
    await rig.again()
    await asyncio.sleep(1)
    return [pending, refused, await rig.row(number)]


# A QEMU that does not answer ------------------------------------------------------------------------------------------


@probe
async def a_call_that_outlives_its_connection(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.freeze_qemu(number)
    calls = [asyncio.ensure_future(code(rig.host.suspend(number)))]
    await asyncio.sleep(1)
    calls += [asyncio.ensure_future(code(rig.host.set_metadata(number, "<vm note='late'/>", live=True)))]
    await asyncio.sleep(1)
    await rig.host.close()
    seen = [await call != 0 for call in calls]
    await rig.again()
    seen += ["late" in (await rig.host.xml(number, inactive=False) or "")]
    await rig.one.thaw_qemu(number)
    await asyncio.sleep(2)
    return [*seen, await rig.row(number), "late" in (await rig.host.xml(number, inactive=False) or "")]


@probe
async def destroying_a_stopped_qemu(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.freeze_qemu(number)
    began = asyncio.get_running_loop().time()
    seen = [await code(rig.host.destroy(number)), asyncio.get_running_loop().time() - began > 8]
    return [*seen, await rig.until_off(number), await rig.one.qemus(number)]


@probe
async def asking_a_stopped_qemu(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.freeze_qemu(number)
    call = asyncio.ensure_future(code(rig.host.shutdown(number, agent=False)))
    await asyncio.sleep(3)
    seen = [call.done(), await rig.row(number), (await rig.host.xml(number, inactive=False)) is not None]
    await rig.one.thaw_qemu(number)
    return [*seen, await call]


@probe
async def changing_a_domain_whose_qemu_hangs(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.freeze_qemu(number)
    before = await code(rig.host.set_metadata(number, "<vm note='a'/>", live=True))
    call = asyncio.ensure_future(code(rig.host.suspend(number)))
    await asyncio.sleep(1)
    began = asyncio.get_running_loop().time()
    after = await code(rig.host.set_metadata(number, "<vm note='b'/>", live=True))
    waited = asyncio.get_running_loop().time() - began > 25
    await rig.one.thaw_qemu(number)
    return [before, after, waited, await call]


@probe
async def killing_a_qemu_that_hangs_a_call(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.freeze_qemu(number)
    call = asyncio.ensure_future(code(rig.host.suspend(number)))
    await asyncio.sleep(1)
    await rig.one.kill_qemu(number)
    return [await call != 0, await rig.until_off(number)]


# Managed save ---------------------------------------------------------------------------------------------------------


@probe
async def a_managed_save(rig: Rig) -> Seen:
    number, name = rig.fresh()
    await rig.host.define(domain_xml(number, name))
    await rig.host.create(number, paused=False)
    await rig.one.managed_save(number)
    seen = [await rig.row(number), await code(rig.host.undefine(number)), await rig.row(number)]
    seen += [await code(rig.host.define(domain_xml(number, name, memory=96))), await rig.row(number)]
    seen += [await code(rig.host.create(number, paused=False)), await rig.row(number)]
    live = await rig.host.xml(number, inactive=False) or ""
    return [*seen, "65536" in live, "98304" in live]


@probe
async def a_managed_save_after_a_restart_of_the_daemon(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.managed_save(number)
    await rig.one.restart_daemon()
    await rig.again()
    return [await rig.row(number)]


@probe
async def removing_a_managed_save(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.managed_save(number)
    seen = [await code(rig.host.remove_managed_save(number)), await rig.row(number)]
    return [*seen, await code(rig.host.remove_managed_save(number)), await code(rig.host.undefine(number))]


# Storage --------------------------------------------------------------------------------------------------------------


@probe
async def a_pool_is_a_cached_view(rig: Rig) -> Seen:
    two = await rig.two.connect()
    name = await rig.volume()

    async def shown() -> bool:
        return name in [volume.name for volume in await two.volumes(rig.two.pool)]

    seen = [await shown(), await code(two.delete_volume(rig.two.pool, name))]
    await two.refresh_pool(rig.two.pool)
    seen += [await shown()]
    await rig.host.delete_volume(rig.one.pool, name)
    seen += [await shown(), await code(two.delete_volume(rig.two.pool, name)), await shown()]
    await two.close()
    return seen


@probe
async def creating_a_volume_that_exists(rig: Rig) -> Seen:
    two = await rig.two.connect()
    name = await rig.volume()
    again = await code(rig.host.create_volume(rig.one.pool, volume_xml(name)))
    elsewhere = await code(two.create_volume(rig.two.pool, volume_xml(name)))
    await two.refresh_pool(rig.two.pool)
    seen = [again, elsewhere, await code(two.create_volume(rig.two.pool, volume_xml(name)))]
    await two.close()
    return seen


@probe
async def a_created_volume(rig: Rig) -> Seen:
    name = await rig.volume()
    (volume,) = [each for each in await rig.host.volumes(rig.one.pool) if each.name == name]
    return [volume.capacity, volume.path == await rig.path(name)]


@probe
async def deleting_a_volume_in_use(rig: Rig) -> Seen:
    name = await rig.volume()
    number = await rig.started(await rig.path(name))
    seen = [await code(rig.host.delete_volume(rig.one.pool, name)), await rig.row(number)]
    await rig.host.destroy(number)
    return [*seen, await code(rig.host.create(number, paused=False)), await rig.row(number)]


@probe
async def volumes_and_pools_that_are_not_there(rig: Rig) -> Seen:
    state = (await rig.host.pool("not-there")).state
    seen = [state, await code(rig.host.volumes("not-there")), await code(rig.host.refresh_pool("not-there"))]
    seen += [await code(rig.host.create_volume("not-there", volume_xml("x")))]
    return [*seen, await code(rig.host.delete_volume(rig.one.pool, "not-there"))]


@probe
async def volumes_that_are_refused(rig: Rig) -> Seen:
    return [await code(rig.host.create_volume(rig.one.pool, volume_xml(name))) for name in ("a/b", "")]


# Events ---------------------------------------------------------------------------------------------------------------


@probe
async def kinds_of_events(rig: Rig) -> Seen:
    seen: list[Event] = []
    rig.host.subscribe(seen.append, lambda why: None)
    number, name = rig.fresh()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: rig.host.define(domain_xml(number, name)),
        lambda: rig.host.create(number, paused=False),
        lambda: rig.host.set_metadata(number, "<vm/>", live=True),
        lambda: rig.host.suspend(number),
        lambda: rig.host.resume(number),
        lambda: rig.host.destroy(number),
        lambda: rig.host.set_metadata(number, "<vm/>", live=False),
        lambda: rig.host.undefine(number),
    ]
    kinds: Seen = []
    for call in calls:
        seen.clear()
        await call()
        await asyncio.sleep(0.5)
        kinds.append(sorted({event.kind for event in seen if event.uuid == number}))
    return kinds
