# SPDX-License-Identifier: Apache-2.0
"""The simulation is less helpful than the real thing: each unhelpfulness that a scenario relies on, shown alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from homeostat.hosts.driver import HostError, HostUnreachable
from homeostat.kube.transport import APPLY, JSON_PATCH, MERGE_PATCH, ApiError, ApiUnreachable
from tests.simulation.clients import SimulatedSource, SimulatedTransport
from tests.simulation.clock import Stuck, run_virtual
from tests.simulation.connection import SimulatedConnection, SimulatedDriver
from tests.simulation.effects import Life, current
from tests.simulation.qemu import Guest
from tests.simulation.world import World

pytestmark = pytest.mark.simulation

UUID, OTHER = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
VM = "/apis/homeostat.dev/v1alpha1/namespaces/default/virtualmachines"
SPEC: dict[str, Any] = {"memory": {"size": "64Mi"}}


def domain(uuid: str = UUID, name: str = "web", *disks: str) -> str:
    devices = "".join(
        f"<disk type='file' device='disk'><source file='{path}'/><target dev='vd{letter}' bus='virtio'/></disk>"
        for letter, path in zip("abc", disks, strict=False)
    )
    return (
        f"<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>"
        f"<os><type machine='q35'>hvm</type></os><devices>{devices}</devices></domain>"
    )


@dataclass
class Bench:
    """A world with one client that is not an operator."""

    world: World
    life: Life
    driver: SimulatedDriver
    api: SimulatedTransport

    async def connect(self, host: str = "h1") -> SimulatedConnection:
        return await self.driver.open(f"qemu+tcp://{host}/system", None)

    async def refused(self, call: Awaitable[object]) -> int:
        """The code of the error that a call raises; 0 when it raises none."""
        try:
            await call
        except HostError as error:
            return error.code
        return 0

    async def status(self, method: str, path: str, **request: Any) -> int:
        """The HTTP status of a request."""
        try:
            await self.api.request(method, path, **request)
        except ApiError as error:
            return error.status
        return 200

    async def apply(self, body: dict[str, Any], manager: str = "one", sub: str = "/status", force: str = "true") -> Any:
        query = {"fieldManager": manager, "force": force}
        return await self.api.request("PATCH", f"{VM}/web{sub}", query=query, body=body, content_type=APPLY)


@asynccontextmanager
async def bench(**options: Any) -> AsyncIterator[Bench]:
    async with World(**options) as world:
        life = Life(1)
        world.lives.append(life)
        token = current.set(life)
        driver = SimulatedDriver(world.addresses, life, world.effects, world.events)
        yield Bench(world, life, driver, SimulatedTransport(world.api, world.front, life, world.effects))
        current.reset(token)
        life.alive = False


def simulated(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
    """Runs a test in a world of its own, in virtual time."""

    def run() -> None:
        async def main() -> None:
            async with bench() as made:
                await test(made)

        run_virtual(main())

    run.__name__ = test.__name__
    return run


# The clock ------------------------------------------------------------------------------------------------------------


def test_time_jumps_past_cancelled_timers() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(5, print).cancel()
        await asyncio.sleep(3600)
        return loop.time()

    assert run_virtual(main()) == 3600


def test_a_deadlock_is_an_error_and_not_a_hang() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Stuck, match="no timer is left"):
        run_virtual(main())


# Domains --------------------------------------------------------------------------------------------------------------


@simulated
async def test_a_definition_is_not_what_was_written(b: Bench) -> None:
    host = await b.connect()
    await host.define(domain(UUID, "web", "/var/lib/libvirt/shared/a"))
    row, xml = await host.domain(UUID), await host.xml(UUID, inactive=True)
    assert row is not None and (row.state, row.reason, row.persistent) == ("Shutoff", "Unknown", True)
    assert xml is not None and "pc-q35-7.2" in xml and "<address" in xml and 'unit="KiB">65536' in xml


@simulated
async def test_live_and_persistent_definition_are_two(b: Bench) -> None:
    host = await b.connect()
    await host.define(domain())
    await host.create(UUID, paused=False)
    await host.set_metadata(UUID, "<vm note='live'/>", live=True)
    await host.define(domain().replace("64", "128"))
    live, kept = await host.xml(UUID, inactive=False), await host.xml(UUID, inactive=True)
    assert live and kept
    assert "note" in live and "65536" in live
    assert "note" not in kept and "131072" in kept


@simulated
async def test_uuid_and_name_are_unique_on_one_host_only(b: Bench) -> None:
    one, two = await b.connect("h1"), await b.connect("h2")
    await one.define(domain())
    assert await b.refused(one.define(domain(UUID, "other"))) == 9
    assert await b.refused(one.define(domain(OTHER, "web"))) == 9
    await two.define(domain())
    assert [row.uuid for row in await two.domains()] == [UUID]


@simulated
async def test_the_codes_of_calls_that_do_not_fit_the_state(b: Bench) -> None:
    host = await b.connect()
    assert await b.refused(host.create(UUID, paused=False)) == 42
    await host.define(domain())
    for call in (host.destroy(UUID), host.shutdown(UUID, agent=False), host.suspend(UUID), host.resume(UUID)):
        assert await b.refused(call) == 55
    assert await b.refused(host.set_metadata(UUID, "<vm/>", live=True)) == 55
    await host.create(UUID, paused=True)
    assert await b.refused(host.create(UUID, paused=False)) == 55
    assert await b.refused(host.shutdown(UUID, agent=False)) == 55
    await host.undefine(UUID)
    assert await b.refused(host.set_metadata(UUID, "<vm/>", live=False)) == 55
    await host.destroy(UUID)
    assert await host.domain(UUID) is None, "a transient domain goes with its process"


@simulated
async def test_reasons_are_forgotten_when_the_daemon_restarts(b: Bench) -> None:
    host = await b.connect()
    await host.define(domain())
    await host.create(UUID, paused=False)
    await host.destroy(UUID)
    row = await host.domain(UUID)
    assert row is not None and row.reason == "Destroyed"
    b.world.hosts["h1"].restart_daemon()
    assert await b.refused(host.domain(UUID)) == 1
    row = await (await b.connect()).domain(UUID)
    assert row is not None and (row.state, row.reason) == ("Shutoff", "Unknown")


@simulated
async def test_a_lost_record_lets_a_second_process_start_and_the_world_notices(b: Bench) -> None:
    host = await b.connect()
    await host.define(domain())
    await host.create(UUID, paused=False)
    survivor = b.world.hosts["h1"].lose_record(UUID)
    assert survivor is not None and not survivor.ended
    host = await b.connect()
    row = await host.domain(UUID)
    assert row is not None and (row.state, row.reason) == ("Shutoff", "Unknown")
    await host.create(UUID, paused=False)
    assert len(b.world.ledger.running(UUID)) == 2
    assert any("run twice" in each for each in b.world.effects.violations)
    b.world.effects.violations.clear()


def test_image_locks_refuse_a_second_writer_on_any_host() -> None:
    async def main() -> None:
        async with bench(locks=True) as b:
            one, two = await b.connect("h1"), await b.connect("h2")
            await one.create_volume("shared", "<volume><name>a</name><capacity>1</capacity></volume>")
            for host in (one, two):
                await host.define(domain(UUID, "web", "/var/lib/libvirt/shared/a"))
            await one.create(UUID, paused=False)
            with pytest.raises(HostError, match='Failed to get "write" lock'):
                await two.create(UUID, paused=False)
            row = await two.domain(UUID)
            assert row is not None and (row.state, row.reason) == ("Shutoff", "Failed")
            assert len(b.world.ledger.running(UUID)) == 1

    run_virtual(main())


@simulated
async def test_managed_save_blocks_undefine_and_is_restored_by_a_start(b: Bench) -> None:
    host = await b.connect()
    await host.define(domain())
    await host.create(UUID, paused=False)
    b.world.hosts["h1"].managed_save(UUID)
    assert await b.refused(host.undefine(UUID)) == 55
    await host.create(UUID, paused=False)
    row = await host.domain(UUID)
    assert row is not None and (row.state, row.reason, row.managed_save) == ("Running", "Restored", False)


@simulated
async def test_a_guest_loses_requests_while_it_boots(b: Bench) -> None:
    b.world.hosts["h1"].default_guest = Guest(boots=10, obeys=5)
    host = await b.connect()
    await host.define(domain())
    await host.create(UUID, paused=False)
    await host.shutdown(UUID, agent=False)
    await asyncio.sleep(30)
    assert b.world.ledger.running(UUID)
    await host.shutdown(UUID, agent=False)
    await asyncio.sleep(4)
    assert b.world.ledger.running(UUID)
    await asyncio.sleep(2)
    row = await host.domain(UUID)
    assert row is not None and (row.state, row.reason) == ("Shutoff", "Shutdown")


@simulated
async def test_a_stopped_qemu_is_destroyed_by_a_call_that_raises(b: Bench) -> None:
    host = await b.connect()
    await host.define(domain())
    await host.create(UUID, paused=False)
    b.world.hosts["h1"].process(UUID).stop()
    b.world.hosts["h1"].destroy_of_stopped_raises = True
    hung = asyncio.create_task(host.shutdown(UUID, agent=False))
    await asyncio.sleep(5)
    assert not hung.done()
    assert await b.refused(host.destroy(UUID)) == 55
    assert not b.world.ledger.running(UUID)
    assert await b.refused(hung) == 38


@simulated
async def test_intervals_of_processes_and_cpus_are_kept(b: Bench) -> None:
    host = await b.connect()
    await host.define(domain())
    await host.create(UUID, paused=True)
    await asyncio.sleep(10)
    assert not b.world.ledger.cpus
    await host.resume(UUID)
    await asyncio.sleep(10)
    await host.destroy(UUID)
    (process,), (cpus,) = b.world.ledger.processes, b.world.ledger.cpus
    assert process.end == cpus.end is not None
    assert process.start + 10 < cpus.start < cpus.end - 10


# Storage --------------------------------------------------------------------------------------------------------------


@simulated
async def test_a_pool_is_a_cached_view(b: Bench) -> None:
    one, two = await b.connect("h1"), await b.connect("h2")
    await one.create_volume("shared", "<volume><name>a</name><capacity>1</capacity></volume>")
    assert await two.volumes("shared") == []
    assert await b.refused(two.delete_volume("shared", "a")) == 50
    assert await b.refused(two.create_volume("shared", "<volume><name>a</name></volume>")) == 55
    await two.refresh_pool("shared")
    assert [volume.name for volume in await two.volumes("shared")] == ["a"]
    assert await b.refused(two.create_volume("shared", "<volume><name>a</name></volume>")) == 90


@simulated
async def test_a_volume_is_deleted_under_a_running_guest(b: Bench) -> None:
    host = await b.connect()
    await host.create_volume("shared", "<volume><name>a</name><capacity>1</capacity></volume>")
    await host.define(domain(UUID, "web", "/var/lib/libvirt/shared/a"))
    await host.create(UUID, paused=False)
    await host.delete_volume("shared", "a")
    assert b.world.ledger.running(UUID)
    assert not b.world.storages["shared"].files
    await host.destroy(UUID)
    assert await b.refused(host.create(UUID, paused=False)) == 38


# Calls in phases ------------------------------------------------------------------------------------------------------


@simulated
async def test_a_host_that_is_cut_off_is_noticed_after_twenty_seconds(b: Bench) -> None:
    host = await b.connect()
    closed: list[str] = []
    host.subscribe(lambda event: None, closed.append)
    b.world.hosts["h1"].cut()
    began = b.world.time
    with pytest.raises(HostUnreachable):
        await host.define(domain())
    assert 19 < b.world.time - began < 21
    await asyncio.sleep(1)
    assert closed
    b.world.hosts["h1"].restore()
    await asyncio.sleep(60)
    assert not b.world.hosts["h1"].records, "a request that never arrived is not carried out"


@simulated
async def test_a_frozen_host_carries_out_what_it_took_in(b: Bench) -> None:
    host = await b.connect()
    b.world.hosts["h1"].freeze()
    with pytest.raises(HostUnreachable):
        await host.define(domain())
    opening = asyncio.create_task(b.connect())
    await asyncio.sleep(3600)
    assert not opening.done()
    b.world.hosts["h1"].thaw()
    await opening
    assert UUID in b.world.hosts["h1"].records


@pytest.mark.parametrize(
    ("do", "raises", "executed"),
    [
        ("drop-request", HostUnreachable, False),
        ("drop-reply", HostUnreachable, True),
        ("raise-after-success", HostError, True),
        ("stall=30", HostUnreachable, False),
    ],
)
def test_request_execution_and_reply_have_fates_of_their_own(do: str, raises: type[Exception], executed: bool) -> None:
    async def main() -> None:
        async with bench() as b:
            b.world.fault(("h1 define", 1), do)
            host = await b.connect()
            with pytest.raises(raises):
                await host.define(domain())
            assert (UUID in b.world.hosts["h1"].records) == executed
            await asyncio.sleep(31)
            assert (UUID in b.world.hosts["h1"].records) == (do != "drop-request")

    run_virtual(main())


@pytest.mark.parametrize(("do", "at_once", "later"), [("kill-before", 0, 0), ("kill-after", 1, 1), ("late=60", 0, 1)])
def test_an_operator_dies_at_an_effect(do: str, at_once: int, later: int) -> None:
    async def main() -> None:
        async with bench() as b:
            b.world.fault(("h1 define", 1), do)
            calls: list[str] = []

            async def operator() -> None:
                host = await b.connect()
                try:
                    await host.define(domain())
                finally:
                    calls.append("died")
                    await host.undefine(UUID)  # the dead make no calls
                    calls.append("unheard of")

            task = asyncio.create_task(operator())
            await asyncio.sleep(10)
            assert len(b.world.hosts["h1"].records) == at_once
            await asyncio.sleep(60)
            assert len(b.world.hosts["h1"].records) == later
            assert calls == ["died"]
            task.cancel()

    run_virtual(main())


def test_a_fault_that_was_not_reached_fails_the_run() -> None:
    async def main() -> None:
        async with bench() as b:
            b.world.fault(("h1 define", 2), "drop-reply")
            await (await b.connect()).define(domain())

    with pytest.raises(AssertionError, match="never happened"):
        run_virtual(main())


@simulated
async def test_events_can_be_lost_doubled_and_late(b: Bench) -> None:
    host = await b.connect()
    seen: list[str] = []
    host.subscribe(lambda event: seen.append(event.kind), lambda why: None)
    await host.define(domain())
    await asyncio.sleep(1)
    assert seen == ["LIFECYCLE"]
    b.world.events.lost = 1.0
    await host.set_metadata(UUID, "<vm/>", live=False)
    await asyncio.sleep(10)
    assert seen == ["LIFECYCLE"]
    b.world.events.lost, b.world.events.doubled = 0.0, 1.0
    await host.set_metadata(UUID, "<vm/>", live=False)
    await asyncio.sleep(10)
    assert seen == ["LIFECYCLE", "METADATA_CHANGE", "METADATA_CHANGE"]


# The API server -------------------------------------------------------------------------------------------------------


@simulated
async def test_status_is_dropped_on_create_and_defaults_are_filled_in(b: Bench) -> None:
    made = await b.api.request("POST", VM, body={"metadata": {"name": "web"}, "spec": SPEC, "status": {"state": "Up"}})
    assert "status" not in made
    assert made["spec"]["runStrategy"] == "Always"
    assert made["metadata"]["generation"] == 1
    assert await b.status("POST", VM, body={"metadata": {"name": "web"}, "spec": SPEC}) == 409
    assert await b.status("POST", VM, body={"metadata": {"name": "bad"}, "spec": {"memory": {"size": "x"}}}) == 422
    assert await b.status("POST", VM, body={"metadata": {"name": "bad"}, "spec": {}}) == 422


@simulated
async def test_generation_counts_changes_of_the_spec_only(b: Bench) -> None:
    b.world.vm("web")
    await b.apply({"status": {"state": "Up"}})
    patch = {"metadata": {"labels": {"a": "b"}}, "status": {"state": "Down"}}
    seen = await b.api.request("PATCH", f"{VM}/web", body=patch, content_type=MERGE_PATCH)
    assert (seen["metadata"]["generation"], seen["status"]["state"]) == (1, "Up")
    patch = {"spec": {"runStrategy": "Halted"}, "metadata": {"labels": {"a": "c"}}}
    seen = await b.api.request("PATCH", f"{VM}/web/status", body=patch, content_type=MERGE_PATCH)
    assert (seen["spec"]["runStrategy"], seen["metadata"]["labels"]) == ("Always", {"a": "b"})
    seen = await b.api.request("PATCH", f"{VM}/web", body=patch, content_type=MERGE_PATCH)
    assert seen["metadata"]["generation"] == 2


def condition(kind: str) -> dict[str, Any]:
    return {"type": kind, "status": "True", "reason": "R", "lastTransitionTime": "2030-01-01T00:00:00Z"}


@simulated
async def test_apply_keeps_what_others_own_and_removes_what_is_left_out(b: Bench) -> None:
    b.world.vm("web")
    candidate = {"hypervisor": "h1", "uid": "u", "hostUUID": UUID}
    await b.apply({"status": {"candidates": [candidate]}}, "two")
    both = {"status": {"state": "Up", "host": "h1", "conditions": [condition("Ready"), condition("Stalled")]}}
    await b.apply(both)
    seen = await b.apply({"status": {"state": "Up", "conditions": [condition("Ready")]}})
    assert seen["status"] == {"state": "Up", "candidates": [candidate], "conditions": [condition("Ready")]}
    seen = await b.apply({"status": {}}, "two")
    assert "candidates" not in seen["status"] and seen["status"]["state"] == "Up"
    assert await b.status("GET", f"{VM}/web") == 200
    with pytest.raises(ApiError, match="conflicts"):
        await b.apply({"status": {"state": "Down"}}, "two", force="false")
    assert (await b.apply({"status": {"state": "Down"}}, "two"))["status"]["state"] == "Down"


@simulated
async def test_an_apply_that_changes_nothing_writes_nothing(b: Bench) -> None:
    b.world.vm("web")
    first = await b.apply({"status": {"state": "Up"}})
    assert (await b.apply({"status": {"state": "Up"}}))["metadata"] == first["metadata"]


@simulated
async def test_versions_and_uids_in_a_body(b: Bench) -> None:
    made = b.world.vm("web")
    old = {"name": "web", "resourceVersion": made["metadata"]["resourceVersion"]}
    await b.apply({"metadata": old, "status": {"state": "Up"}})
    with pytest.raises(ApiError) as stale:
        await b.apply({"metadata": old, "status": {"state": "Down"}})
    assert stale.value.status == 409
    await b.apply({"metadata": {"name": "web", "uid": OTHER}, "status": {"state": "Down"}})  # ignored there
    with pytest.raises(ApiError) as wrong:
        await b.apply({"metadata": {"name": "web", "uid": OTHER}, "spec": SPEC}, sub="")
    assert wrong.value.status == 409


@simulated
async def test_an_apply_makes_a_ghost_of_a_deleted_object_but_not_on_status(b: Bench) -> None:
    with pytest.raises(ApiError) as missing:
        await b.apply({"status": {"state": "Up"}})
    assert missing.value.status == 404
    assert (await b.apply({"metadata": {"finalizers": ["a.b/c"]}, "spec": SPEC}, sub=""))["metadata"]["uid"]


@simulated
async def test_finalizers(b: Bench) -> None:
    made = b.world.vm("web")
    patch = [
        {"op": "test", "path": "/metadata/uid", "value": made["metadata"]["uid"]},
        {"op": "add", "path": "/metadata/finalizers", "value": ["a.b/c"]},
    ]
    wrong = [{**patch[0], "value": OTHER}, patch[1]]
    assert await b.status("PATCH", f"{VM}/web", body=wrong, content_type=JSON_PATCH) == 422
    await b.api.request("PATCH", f"{VM}/web", body=patch, content_type=JSON_PATCH)
    b.world.delete("vm", "web")
    seen = await b.api.request("GET", f"{VM}/web")
    assert (seen["metadata"]["generation"], "deletionTimestamp" in seen["metadata"]) == (2, True)
    more = [patch[0], {"op": "add", "path": "/metadata/finalizers/-", "value": "d.e/f"}]
    assert await b.status("PATCH", f"{VM}/web", body=more, content_type=JSON_PATCH) == 422
    none = [patch[0], {"op": "add", "path": "/metadata/finalizers", "value": []}]
    await b.api.request("PATCH", f"{VM}/web", body=none, content_type=JSON_PATCH)
    assert await b.status("GET", f"{VM}/web") == 404


@simulated
async def test_a_namespace_that_goes_refuses_newcomers_and_waits_for_finalizers(b: Bench) -> None:
    b.world.api.create_namespace("team")
    b.world.vm("web", namespace="team")
    b.world.edit("vm", "web", namespace="team", metadata={"finalizers": ["a.b/c"]})
    b.world.delete("namespace", "team")
    path = VM.replace("default", "team")
    assert await b.status("POST", path, body={"metadata": {"name": "new"}, "spec": SPEC}) == 403
    assert await b.status("GET", "/api/v1/namespaces/team") == 200
    b.world.edit("vm", "web", namespace="team", metadata={"finalizers": []})
    assert await b.status("GET", f"{path}/web") == 404
    assert await b.status("GET", "/api/v1/namespaces/team") == 404


@simulated
async def test_a_commit_whose_reply_is_lost(b: Bench) -> None:
    b.world.vm("web")
    b.world.fault(("PATCH status vm by one", 1), "drop-reply")
    with pytest.raises(ApiUnreachable):
        await b.apply({"status": {"state": "Up"}})
    seen = b.world.get("vm", "web")
    assert seen is not None and seen["status"]["state"] == "Up"


@simulated
async def test_lists_come_in_pages(b: Bench) -> None:
    for number in range(5):
        b.world.vm(f"vm{number}")
    first = await b.api.request("GET", VM, query={"limit": "3"})
    rest = await b.api.request("GET", VM, query={"limit": "3", "continue": first["metadata"]["continue"]})
    assert [len(first["items"]), len(rest["items"]), "continue" in rest["metadata"]] == [3, 2, False]


# Watches --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def watching(b: Bench) -> AsyncIterator[list[tuple[str, str]]]:
    seen: list[tuple[str, str]] = []
    source = SimulatedSource(b.world.api, b.world.front, b.life, b.world.effects)

    def note(plural: str, kind: str, shown: dict[str, Any]) -> None:
        seen.append((kind, shown["metadata"]["name"]))

    task = asyncio.create_task(source.run(("virtualmachines",), note))
    await asyncio.sleep(1)
    yield seen
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@simulated
async def test_a_watch_lists_and_then_streams(b: Bench) -> None:
    b.world.vm("old")
    async with watching(b) as seen:
        b.world.vm("new")
        b.world.edit("vm", "new", runStrategy="Halted")
        b.world.delete("vm", "old")
        await asyncio.sleep(1)
        assert seen == [("", "old"), ("ADDED", "new"), ("MODIFIED", "new"), ("DELETED", "old")]


@simulated
async def test_a_watch_that_was_cut_off_goes_on_where_it_was(b: Bench) -> None:
    b.world.vm("old")
    async with watching(b) as seen:
        b.world.front.connected.clear()
        b.world.delete("vm", "old")
        await asyncio.sleep(60)
        assert seen == [("", "old")]
        b.world.front.connected.set()
        await asyncio.sleep(1)
        assert seen[1:] == [("DELETED", "old")]


@simulated
async def test_a_watch_that_fell_behind_lists_again_and_never_mentions_what_is_gone(b: Bench) -> None:
    b.world.vm("old")
    b.world.vm("kept")
    async with watching(b) as seen:
        b.world.front.connected.clear()
        b.world.delete("vm", "old")
        b.world.api.compact()
        b.world.front.connected.set()
        await asyncio.sleep(1)
        assert seen == [("", "kept"), ("", "old"), ("", "kept")] or seen == [("", "old"), ("", "kept"), ("", "kept")]


@simulated
async def test_a_restored_store_gives_out_versions_again(b: Bench) -> None:
    b.world.vm("web")
    backup = b.world.api.snapshot()
    first = b.world.edit("vm", "web", runStrategy="Halted")
    b.world.vm("lost")
    async with watching(b) as seen:
        b.world.api.restore(backup)
        second = b.world.edit("vm", "web", runStrategy="Manual")
        assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
        assert b.world.get("vm", "lost") is None
        await asyncio.sleep(1)
        assert seen[2:] == [("", "web")]
