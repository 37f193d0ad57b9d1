# SPDX-License-Identifier: Apache-2.0
"""The driver on real hosts: what it does is seen on them, what is done to them is seen by it."""

from __future__ import annotations

import asyncio
import os
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from homeostat.api import actions as act
from homeostat.api.observed import DiskConfig, NicConfig, Pool, Volume
from homeostat.hosts import libvirt_driver
from homeostat.hosts.domain_xml import SPARE_PORTS, parse
from homeostat.hosts.driver import (
    AGENT_UNRESPONSIVE,
    NO_DOMAIN,
    NO_STORAGE_POOL,
    NO_STORAGE_VOL,
    OPERATION_INVALID,
    STORAGE_VOL_EXIST,
    HostError,
)
from tests.files import below
from tests.lab import Host, Lab
from tests.lab.driving import BASE, IMAGES, Driven, Guest, defined, driving, eventually, failure, guest, run
from tests.lab.relay import Relay

pytestmark = pytest.mark.lab


@pytest.fixture(params=[0, 1], ids=["plain", "stock"])
def host(lab: Lab, request: pytest.FixtureRequest) -> Host:
    return lab.hosts[int(request.param)]


@asynccontextmanager
async def on(host: Host, one: Guest) -> AsyncIterator[Driven]:
    """A connection to a host on which a VM is defined."""
    async with driving(host.uri_tcp) as driven, defined(driven, one):
        yield driven


async def inactive(driven: Driven, one: Guest) -> str:
    text = await driven.connection.xml(one.uuid, inactive=True)
    assert text is not None
    return text


def addresses(text: str) -> dict[str, dict[str, str]]:
    found = {}
    for device in ET.fromstring(text).findall("devices/*"):
        alias, address = device.find("alias"), device.find("address")
        name = alias.get("name", "") if alias is not None else f"{device.tag}{device.get('type')}{device.get('index')}"
        if address is not None:
            found[name] = {key: value for key, value in address.attrib.items() if key != "multifunction"}
    return found


async def refused(action: Coroutine[Any, Any, Any]) -> int:
    error = await failure(action)
    assert error.message
    return error.code


def test_facts_are_those_of_the_host(host: Host) -> None:
    async def drill() -> None:
        async with driving(host.uri_tcp) as driven:
            facts = driven.facts
        assert (facts.host_uuid, facts.hostname) == (host.host_uuid, host.name)
        assert int(facts.libvirt_version.partition(".")[0]) >= 9
        assert facts.qemu_version[0] != "0"
        assert facts.cpus == os.cpu_count()
        assert facts.emulated_cpu_model == "Westmere"
        assert facts.disk_owner == ((64055, 64055) if host.stock else (0, 0))
        pools = {pool.name: (pool.state, pool.path) for pool in facts.pools}
        assert pools["default"] == ("Active", IMAGES)
        assert facts.bridges_known
        assert "br0" in facts.bridges

    run(drill())


def test_a_vm_lives_and_ends(host: Host) -> None:
    async def drill() -> None:
        one = guest()
        async with driving(host.uri_tcp) as driven:
            async with defined(driven, one):
                parsed = parse(await inactive(driven, one))
                assert (parsed.config, parsed.owner, parsed.name) == (one.config, one.owner, one.name)
                assert await driven.connection.domain_named(one.name) == one.uuid
                await driven.do(act.Start("", one.uuid))
                assert host.qemu_pid(one.uuid)
                live = await driven.connection.xml(one.uuid, inactive=False)
                assert live is not None
                assert parse(live).config == one.config
                assert parse(live).chains[0][1] == (one.config.disks[0].path, f"{BASE}/base.qcow2")
                assert await listed(driven, one) == ("Running", "Booted")
                await driven.do(act.Suspend("", one.uuid))
                assert await listed(driven, one) == ("Paused", "User")
                await driven.do(act.Resume("", one.uuid))
                assert await listed(driven, one) == ("Running", "Unpaused")
                await driven.do(act.Destroy("", one.uuid))
                assert await listed(driven, one) == ("Shutoff", "Destroyed")
                assert host.qemu_pid(one.uuid) is None
                assert not driven.facts.disk_owner[0] or owners(host, one) == {driven.facts.disk_owner}
                assert {event.uuid for event in driven.events} == {one.uuid}
            assert await driven.connection.domain(one.uuid) is None
        assert [name for name in host.volumes("default") if name.startswith(one.uuid)] == []
        assert one.uuid not in {domain.uuid for domain in host.domains()}

    run(drill())


async def seen(driven: Driven, one: Guest) -> tuple[str, str]:
    row = await driven.connection.domain(one.uuid)
    assert row is not None
    return row.state, row.reason


async def listed(driven: Driven, one: Guest) -> tuple[str, str]:
    (row,) = [row for row in await driven.connection.domains() if row.uuid == one.uuid]
    assert row == await driven.connection.domain(one.uuid)
    return row.state, row.reason


def owners(host: Host, one: Guest) -> set[tuple[int, int]]:
    """Who owns the files of its disks."""
    found = [stat for file, stat in below(host.pool_path("default")).items() if file.name.startswith(one.uuid)]
    assert len(found) == 2
    return {(file.st_uid, file.st_gid) for file in found}


def test_a_guest_is_asked_to_power_off_by_acpi_and_by_its_agent(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_driver, "_REFUSAL_SECONDS", 20.0)  # on a busy machine libvirt is asked later

    async def drill(by_agent: bool) -> None:
        one = guest(boots=True)
        async with on(host, one) as driven:
            await driven.do(act.Start("", one.uuid))
            await eventually(lambda: "GUEST-UP" in host.console(one.uuid), "the guest is up", 60)
            if by_agent:
                await until_agent(driven, one)
                nic = one.config.nics[0]
                found = await driven.connection.addresses(one.uuid)
                assert not found or nic.mac in {mac for _name, mac, _ip in found}
            await driven.do(act.Shutdown("", one.uuid, agent=by_agent))
            await eventually(lambda: host.qemu_pid(one.uuid) is None, "the guest is off", 60)
            await eventually_seen(driven, one, ("Shutoff", "Shutdown"))

    run(drill(False))
    run(drill(True))


async def until_agent(driven: Driven, one: Guest) -> None:
    for _attempt in range(600):
        text = await driven.connection.xml(one.uuid, inactive=False)
        if text is not None and parse(text).agent_connected:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the agent never connected")


async def eventually_seen(driven: Driven, one: Guest, state: tuple[str, str]) -> None:
    for _attempt in range(400):
        if await seen(driven, one) == state:
            return
        await asyncio.sleep(0.05)
    assert await seen(driven, one) == state


def test_a_paused_start_runs_no_cpu(lab: Lab) -> None:
    async def drill() -> None:
        one = guest()
        async with on(lab.hosts[0], one) as driven:
            await driven.do(act.Start("", one.uuid, paused=True))
            assert (await seen(driven, one))[0] == "Paused"
            await driven.do(act.Destroy("", one.uuid))
        (life,) = lab.intervals(one.uuid)
        assert life.running == []

    run(drill())


def test_metadata_is_written_to_the_one_definition_that_was_meant(host: Host) -> None:
    async def drill() -> None:
        one = guest()
        async with on(host, one) as driven:
            await driven.do(act.Start("", one.uuid))
            live, lasting = replace(one.owner, request="live"), replace(one.owner, request="lasting\n", off="Crashed")
            await driven.do(act.Mark("", one.uuid, live, live=True))
            await driven.do(act.Mark("", one.uuid, lasting))
            text = await driven.connection.xml(one.uuid, inactive=False)
            assert text is not None
            assert (parse(text).owner, parse(await inactive(driven, one)).owner) == (live, lasting)
            redefined = replace(one, owner=replace(one.owner, generation=7))
            await driven.do(redefined.define())
            assert parse(await inactive(driven, one)).owner == redefined.owner

    run(drill())


def test_no_device_moves_when_disks_and_interfaces_come_and_go(host: Host) -> None:
    async def drill() -> None:
        one = guest()
        async with on(host, one) as driven:
            before = addresses(await inactive(driven, one))
            root, data = one.config.disks
            nic = NicConfig("ua-nic-two", "Network", "lan", "52:54:00:00:00:09", "e1000e")
            grown = replace(
                one.config,
                disks=(root, one.disk("new", "raw"), data, DiskConfig("ua-disk-cold", f"{IMAGES}/cold", "raw", "sata")),
                nics=(nic, *one.config.nics),
            )
            await driven.do(one.define(grown))
            text = await inactive(driven, one)
            assert parse(text).config == grown
            after = addresses(text)
            assert {name: after[name] for name in before} == before
            ports = sum(name.startswith("controllerpci") for name in after)
            taken = {each["bus"] for each in after.values() if each["type"] == "pci" and each["bus"] != "0x00"}
            assert ports - len(taken) == SPARE_PORTS
            shrunk = replace(grown, disks=(data,), nics=(nic,))
            await driven.do(one.define(shrunk))
            text = await inactive(driven, one)
            assert parse(text).config == shrunk
            kept = addresses(text)
            assert {kept[name] == after[name] for name in ("ua-disk-data", "ua-nic-two")} == {True}
            await driven.do(one.define())

    run(drill())


def test_devices_can_be_plugged_into_a_running_guest(lab: Lab) -> None:
    async def drill() -> None:
        one, host = guest(), lab.hosts[0]
        async with on(host, one) as driven:
            await driven.do(act.Start("", one.uuid))
            for number in range(SPARE_PORTS):
                name = one.volume(f"hot{number}")
                await driven.do(act.CreateVolume("", "default", name, "raw", 1 << 20))
                host.virsh("attach-disk", one.uuid, f"{IMAGES}/{name}", f"vd{'cdefghijkl'[number]}", "--live")
            text = await driven.connection.xml(one.uuid, inactive=False)
            assert text is not None
            assert len(parse(text).config.disks) == 2 + SPARE_PORTS

    run(drill())


def test_libvirt_keeps_every_kind_of_disk_and_interface(host: Host) -> None:
    async def drill() -> None:
        one = guest()
        config = replace(
            one.config,
            kernel=f"{BASE}/vmlinuz",
            initrd=f"{BASE}/initrd",
            command_line="console=ttyS0 quiet 'a & b <c>'",
            cores=2,
            sockets=2,
            disks=(
                DiskConfig("ua-disk-c", f"{IMAGES}/c", "raw", "sata", "cold"),
                *one.config.disks,
                DiskConfig(
                    "ua-disk-b", "/dev/null", "qcow2", "virtio", "x" * 20, False, (("/a", "raw"), ("/b", "raw"))
                ),
            ),
            nics=(
                NicConfig("ua-nic-c", "OpenVSwitch", "ovs0", "52:54:00:00:00:03", "virtio", 4094),
                NicConfig("ua-nic-b", "Network", "lan", "52:54:00:00:00:02", "e1000e"),
                *one.config.nics,
            ),
            agent=False,
            console_log="",
        )
        async with on(host, replace(one, config=config)) as driven:
            for _again in range(2):
                assert parse(await inactive(driven, one)).config == config
                await driven.do(one.define(config))

    run(drill())


def test_what_others_do_is_heard(lab: Lab) -> None:
    async def drill() -> None:
        one, host = guest(), lab.hosts[0]
        async with on(host, one) as driven:
            for command in (["start"], ["suspend"], ["resume"], ["desc", "--title"], ["destroy"]):
                await asyncio.sleep(0.2)
                driven.events.clear()
                verb, *options = command
                await asyncio.to_thread(host.virsh, verb, one.uuid, *options, *["x"] * (verb == "desc"))
                await eventually(lambda: driven.events, f"an event for {verb}")
                assert {event.uuid for event in driven.events} == {one.uuid}

    run(drill())


def test_a_crash_is_told_from_an_end_by_request(host: Host) -> None:
    async def drill() -> None:
        one = guest()
        async with on(host, one) as driven:
            await driven.do(act.Start("", one.uuid))
            await asyncio.to_thread(host.kill_qemu, one.uuid)
            await eventually_seen(driven, one, ("Shutoff", "Crashed"))

    run(drill())


def test_managed_save_is_seen_blocks_undefine_and_can_be_discarded(lab: Lab) -> None:
    async def drill() -> None:
        one, host = guest(), lab.hosts[0]
        async with on(host, one) as driven:
            await driven.do(act.Start("", one.uuid))
            await asyncio.to_thread(host.virsh, "managedsave", one.uuid)
            row = await driven.connection.domain(one.uuid)
            assert row is not None
            assert (row.managed_save, row.reason) == (True, "Saved")
            assert row in await driven.connection.domains()
            assert await refused(driven.do(act.Undefine("", one.uuid))) == OPERATION_INVALID
            await driven.do(act.DiscardManagedSave("", one.uuid))
            row = await driven.connection.domain(one.uuid)
            assert row is not None
            assert not row.managed_save

    run(drill())


def test_volumes_come_go_and_are_seen(host: Host) -> None:
    async def drill() -> None:
        one = guest()
        name, path = one.volume("v"), f"{IMAGES}/{one.volume('v')}"
        async with driving(host.uri_tcp) as driven:
            make = act.CreateVolume("", "default", name, "qcow2", 10 << 20)
            await driven.do(make)
            assert name in host.volumes("default")
            (volume,) = [each for each in await driven.connection.volumes("default") if each.name == name]
            assert volume == Volume(name, path)
            assert await refused(driven.do(make)) == STORAGE_VOL_EXIST
            await driven.do(act.DeleteVolume("", "default", name))
            assert name not in host.volumes("default")
            assert await refused(driven.do(act.DeleteVolume("", "default", name))) == NO_STORAGE_VOL
            file = host.pool_path("default") / name  # as if another host had made it
            file.write_bytes(bytes(1 << 20))
            assert name not in {each.name for each in await driven.connection.volumes("default")}
            await driven.connection.refresh_pool("default")
            assert Volume(name, path) in await driven.connection.volumes("default")
            file.unlink()
            assert name in {each.name for each in await driven.connection.volumes("default")}
            assert name not in {each.name for each in await driven.connection.volumes("default", frozenset({name}))}

    run(drill())


def test_pools_missing_and_inactive_are_told_apart(lab: Lab) -> None:
    async def drill() -> None:
        host = lab.hosts[0]
        async with driving(host.uri_tcp) as driven:
            assert await driven.connection.pool("nowhere") == Pool("nowhere", "Missing")
            assert (await driven.connection.pool("tiny")).state == "Active"
            assert await refused(driven.connection.volumes("nowhere")) == NO_STORAGE_POOL
            await asyncio.to_thread(host.virsh, "pool-destroy", "tiny")
            try:
                assert (await driven.connection.pool("tiny")).state == "Inactive"
                assert await refused(driven.connection.volumes("tiny")) == OPERATION_INVALID
            finally:
                await asyncio.to_thread(host.virsh, "pool-start", "tiny")

    run(drill())


def test_what_is_not_there_or_not_possible_is_said_in_libvirts_words(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libvirt_driver, "_REFUSAL_SECONDS", 20.0)  # what refuses late, on a busy machine, refuses

    async def drill() -> None:
        one = guest()
        async with on(lab.hosts[0], one) as driven:
            nobody = guest()
            assert await driven.connection.domain(nobody.uuid) is None
            assert await driven.connection.domain_named("nobody") is None
            assert await driven.connection.xml(nobody.uuid, inactive=True) is None
            for action in (act.Start, act.Destroy, act.Suspend, act.Resume, act.Undefine, act.Shutdown):
                assert await refused(driven.do(action("", nobody.uuid))) == NO_DOMAIN
            assert await refused(driven.do(act.Destroy("", one.uuid))) == OPERATION_INVALID
            with pytest.raises(HostError, match="already exists with uuid"):
                await driven.do(act.Define("", nobody.uuid, one.name, one.config, one.owner))
            with pytest.raises(HostError, match="already defined with uuid"):
                await driven.do(act.Define("", one.uuid, "another", one.config, one.owner))
            await driven.do(act.Start("", one.uuid))
            assert await refused(driven.do(act.Start("", one.uuid))) == OPERATION_INVALID
            assert await refused(driven.do(act.Shutdown("", one.uuid, agent=True))) == AGENT_UNRESPONSIVE
            assert await refused(driven.connection.addresses(one.uuid)) == AGENT_UNRESPONSIVE

    run(drill())


def test_the_list_of_domains_costs_the_same_for_one_and_for_many(lab: Lab) -> None:
    async def cost(relay: Relay, driven: Driven) -> tuple[int, int]:
        before = relay.requests
        rows = await driven.connection.domains()
        return relay.requests - before, len(rows)

    async def drill() -> None:
        many = [guest() for _ in range(20)]
        with Relay(lab.hosts[0].address) as relay:
            async with driving(relay.uri) as driven, defined(driven, many[0]):
                await driven.connection.domains()  # opens what lists are read from
                few, alone = await cost(relay, driven)
                for each in many[1:]:
                    await driven.do(each.define())
                assert await cost(relay, driven) == (few, alone + 19)
                assert 0 < few <= 6
                for each in many[1:]:
                    await driven.do(act.Undefine("", each.uuid))

    run(drill())


def test_a_redefinition_starts_from_what_is_there_now(lab: Lab) -> None:
    async def drill() -> None:
        one = guest()
        async with on(lab.hosts[0], one) as driven:
            await asyncio.to_thread(lab.hosts[0].virsh, "desc", one.uuid, "--config", "--title", "mine")
            await driven.do(one.define())
            assert ET.fromstring(await inactive(driven, one)).findtext("title") == "mine"

    run(drill())
