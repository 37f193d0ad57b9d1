# SPDX-License-Identifier: Apache-2.0
"""What is written down: what a guest keeps through its life, where a VM stands, how often, on which version."""

from __future__ import annotations

import base64
import json
import logging
from dataclasses import replace
from typing import Any

import pytest

from homeostat.hosts.driver import HostError
from homeostat.kube.transport import ApiError
from homeostat.runtime.logs import JsonFormatter
from tests.simulation import libvirt_xml
from tests.simulation.apiserver import ApiServer
from tests.simulation.harness import in_world
from tests.simulation.paths import Target, target
from tests.simulation.qemu import Guest
from tests.simulation.world import World

pytestmark = pytest.mark.simulation

NICS = [{"name": "eth0", "network": "lan"}, {"name": "eth1", "network": "lan"}]


def macs(world: World) -> list[str]:
    """The MAC addresses that the running guest sees."""
    process = world.process("web")
    assert process is not None
    return [mac.get("address", "") for mac in process.live.iterfind("devices/interface/mac")]


async def restarted(world: World, request: str, **spec: Any) -> None:
    """Have the VM restarted with this spec."""
    first = world.process("web")
    world.edit("vm", "web", power={"request": request}, **spec)
    await world.run_until(lambda: world.ready("web") and world.process("web") not in (None, first), 200)


# What a guest keeps ---------------------------------------------------------------------------------------------------


@in_world(hosts=2)
async def test_a_mac_that_nobody_gave_stays_through_restarts_and_moves_and_is_nobody_elses(world: World) -> None:
    world.vm("web", interfaces=NICS, placement={"host": "h1"})
    world.vm("other", interfaces=NICS)
    await world.running("web")
    await world.running("other")
    first, other = macs(world), world.process("other")
    assert other is not None
    assert all(mac.startswith("52:54:00:") for mac in first)
    others = {mac.get("address") for mac in other.live.iterfind("devices/interface/mac")}
    assert len({*first, *others}) == 4
    await restarted(world, "again")
    assert macs(world) == first
    await restarted(world, "elsewhere", placement={"host": "h2"})
    assert world.host_of("web").name == "h2"
    assert macs(world) == first
    given = [NICS[0], NICS[1] | {"mac": "52:54:00:12:34:56"}]
    await restarted(world, "given", interfaces=given)
    assert macs(world) == [first[0], "52:54:00:12:34:56"]


@in_world(hosts=2)
async def test_machine_type_and_cpu_model_stay_what_they_were_at_the_first_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.vm("web", placement={"host": "h1"})
    await world.running("web")
    kept = {"machineType": "pc-q35-7.2", "cpuModel": "Nehalem"}
    assert kept.items() <= world.status("web").items()
    monkeypatch.setitem(libvirt_xml.MACHINES, "q35", "pc-q35-9.2")
    for host in world.hosts.values():
        host.facts = replace(host.facts, libvirt_version="11.3.0", qemu_version="9.2.0", default_cpu_model="EPYC")
        host.restart_daemon()
    await world.settle(60)
    for request, spec in (("again", {}), ("elsewhere", {"placement": {"host": "h2"}})):
        await restarted(world, request, **spec)
        process = world.process("web")
        assert process is not None
        kind, model = process.live.find("os/type"), process.live.findtext("cpu/model")
        assert kind is not None
        assert (kind.get("machine"), model) == ("pc-q35-7.2", "Nehalem")
        assert kept.items() <= world.status("web").items()
        assert not world.status("web").get("pendingChanges")
    world.vm("young")
    await world.running("young")
    assert {"machineType": "pc-q35-9.2", "cpuModel": "EPYC"}.items() <= world.status("young").items()


@in_world()
async def test_addresses_are_what_the_agent_says_of_the_process_there_is(world: World) -> None:
    for host in world.hosts.values():
        host.default_guest = Guest(agent=True)
    world.vm("web", interfaces=NICS)
    await world.running("web")
    await world.settle(5)
    host = world.host_of("web")
    host.tell(host.records[world.uuid("web")], "AGENT_LIFECYCLE")  # as libvirt does when the agent connects
    await world.run_until(lambda: world.status("web").get("addresses"), 10)
    assert world.condition("vm", "web", "AgentConnected")["status"] == "True"
    found = world.status("web")["addresses"]
    assert [(each["interface"], each["mac"]) for each in found] == list(zip(["eth0", "eth1"], macs(world), strict=True))
    assert all(each["ip"].startswith("198.51.100.") for each in found)
    await world.rest(quiet=1500)
    world.edit("vm", "web", runStrategy="Halted")
    await world.run_until(lambda: not world.process("web"))
    await world.run_until(lambda: not world.status("web").get("addresses"))


# Where it stands ------------------------------------------------------------------------------------------------------


@in_world(hosts=1)
async def test_a_call_that_takes_long_is_told_of_before_it_returns(world: World) -> None:
    world.vm("web")
    host = world.hosts["h1"]
    await world.run_until(lambda: any(each.name == "h1 create" for each in world.effects.log))
    host.freeze()
    await world.settle(8)
    assert (world.status("web")["state"], world.status("web")["reason"]) == ("Starting", "Starting")
    assert "It has been so since 2030-01-01T00:00:" in world.condition("vm", "web")["message"]
    host.thaw()
    await world.running("web")
    await world.rest()
    reported = [each for each in world.effects.log if each.name == "PATCH status vm by homeostat-vm"]
    assert len(reported) == 2


@in_world(hosts=1)
async def test_figures_of_a_host_are_written_once_in_ten_seconds(world: World) -> None:
    await world.settle(60)
    before = len(world.effects.log)
    for number in range(60):
        world.vm(f"vm{number}", disks=[])
        await world.settle(1)
    writes = [each for each in world.effects.log[before:] if each.name.startswith("PATCH status hv")]
    assert 5 <= len(writes) <= 7, writes
    await world.settle(10)
    assert world.status("h1", "hv")["allocated"]["domains"] == 60


# On which version -----------------------------------------------------------------------------------------------------


class Contest:
    """Somebody else writes to the object a moment before the first write of each sort arrives."""

    def __init__(self, world: World) -> None:
        self._api, self._patch = world.api, world.api.patch
        self.refused: dict[str, int] = {}
        self.went_through: list[str] = []

    def patch(self, at: Target, body: Any, content_type: str, manager: str, *, force: bool) -> Any:
        """See ApiServer.patch."""
        sort = self._sort(at, body, manager)
        if at.resource not in ("virtualmachines", "hypervisors") or sort in self.refused:
            return self._patch(at, body, content_type, manager, force=force)
        there = replace(at, subresource="")
        live = self._api.get(there)
        live["metadata"]["annotations"] = {"touched": sort}
        self._api.update(there, live)
        try:
            result = self._patch(at, body, content_type, manager, force=force)
        except ApiError as error:
            self.refused[sort] = error.status
            raise
        self.went_through.append(sort)
        return result

    @staticmethod
    def _sort(at: Target, body: Any, manager: str) -> str:
        if at.subresource:
            return f"{at.short} {at.subresource} by {manager}"
        finalizers = next(each["value"] for each in body if each["path"] == "/metadata/finalizers")
        return f"{at.short} {'with' if finalizers else 'without'} finalizer"


@in_world(hosts=2)
async def test_every_write_is_refused_when_the_object_has_changed_since_it_was_decided_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = Contest(world)
    monkeypatch.setattr(ApiServer, "patch", contest.patch)
    world.vm("web", placement={"host": "h1"})
    await world.running("web", 120)
    await restarted(world, "elsewhere", placement={"host": "h2"})
    world.delete("vm", "web")
    await world.gone("web")
    world.delete("hv", "h1")
    await world.run_until(lambda: world.get("hv", "h1") is None, 120)
    assert contest.went_through == []
    assert contest.refused.keys() == {
        "vm status by homeostat-candidates",
        "vm status by homeostat-vm",
        "vm with finalizer",
        "vm without finalizer",
        "hv status by homeostat-hypervisor",
        "hv with finalizer",
        "hv without finalizer",
    }
    assert set(contest.refused.values()) <= {409, 422}
    ways = {each.name.split()[0] for each in world.writes() if each.name.split()[-1] in ("vm", "hv")}
    assert ways <= {"PATCH"}, "there is no other way to write, such as one that knows no version"


# What is kept from it -------------------------------------------------------------------------------------------------

FILES = {"ca.crt": "AUTHORITY-4711", "tls.crt": "CERTIFICATE-4711", "tls.key": "KEY-4711"}


@in_world(hosts=1)
async def test_nothing_of_a_secret_is_logged_or_written_anywhere(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in FILES.items()}
    where = target("secrets", "", "homeostat-system")
    world.api.create(where, {"metadata": {"name": "keys"}, "data": encoded})
    world.edit("hv", "h1", credentials={"secretRef": {"name": "keys"}})
    world.vm("web")
    await world.running("web")
    host = world.hosts["h1"]
    host.refuse_open = HostError(8, "authentication failed: access denied", 7)
    host.restart_daemon()
    await world.settle(300)
    assert world.condition("hv", "h1")["status"] == "False"
    host.refuse_open = None
    await world.running("web", 120)
    logged = [*map(JsonFormatter().format, caplog.records), caplog.text, *(repr(each.args) for each in caplog.records)]
    assert any("h1" in line for line in logged)
    stored = [json.dumps(each) for key, each in world.api.objects.items() if key[0] != "secrets"]
    for text in (*FILES.values(), *encoded.values()):
        assert not [line for line in (*logged, *stored) if text.rstrip("=") in line]


@in_world(hosts=2)
async def test_that_a_host_is_empty_is_written_at_once(world: World) -> None:
    """Other figures of an evacuation wait for ten seconds like all others."""
    world.start()
    world.vm("web", disks=[{"name": "root", "pool": "shared", "size": "1Gi"}])
    await world.running("web")
    await world.settle(60)
    home = world.host_of("web").name
    world.edit("hv", home, maintenance="Evacuate")
    await world.run_until(lambda: world.ready("web") and world.status("web")["host"] != home, 60)
    await world.run_until(lambda: world.status(home, "hv")["evacuation"]["remaining"] == 0, 2)
    await world.run_until(lambda: world.status(home, "hv")["evacuation"]["moved"] == 1, 2)
