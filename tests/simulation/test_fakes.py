# SPDX-License-Identifier: Apache-2.0
"""The simulation is less helpful than the real thing: each unhelpfulness that a scenario relies on, shown alone."""

from __future__ import annotations

import asyncio

import pytest

from homeostat.hosts.driver import HostError, HostUnreachable
from tests.simulation.bench import OTHER, UUID, Bench, bench, domain, simulated
from tests.simulation.clock import Stuck, run_virtual
from tests.simulation.qemu import Guest

pytestmark = pytest.mark.simulation

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
