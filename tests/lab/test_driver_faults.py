# SPDX-License-Identifier: Apache-2.0
"""The driver when hosts, daemons, networks and QEMUs do not do their part."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import replace

import pytest

from homeostat.api import actions as act
from homeostat.hosts import links
from homeostat.hosts.domain_xml import render
from homeostat.hosts.driver import HostUnreachable
from homeostat.hosts.reasons import explain
from tests.lab import Host
from tests.lab.driving import QUICK, defined, driving, eventually, failure, guest, hung, libvirt_threads, run, settled
from tests.lab.relay import Relay

pytestmark = pytest.mark.lab


# Connections that are lost


@pytest.mark.parametrize("fault", ["cut", "freeze_libvirtd", "kill_libvirtd", "power_off"])
def test_a_lost_host_is_noticed_once_and_ends_every_call(host: Host, fault: str) -> None:
    async def drill() -> None:
        async with driving(host.uri_tcp, replace(QUICK, connect_timeout=60)) as driven:
            getattr(host, fault)()
            begun = time.monotonic()
            calls = [
                driven.connection.domains(),
                driven.connection.volumes("default"),
                driven.connection.refresh_pool("tiny"),
            ]
            errors = await asyncio.gather(*map(failure, calls))
            assert {type(error) for error in errors} == {HostUnreachable}
            assert time.monotonic() - begun < 30, "it is keep-alive that notices, long before any deadline"
            await eventually(lambda: driven.closed, "the loss is told")
            assert isinstance(await failure(driven.connection.domains()), HostUnreachable)
            assert len(driven.closed) == 1
            assert explain(HostUnreachable(0, driven.closed[0]))[0] in {"NotResponding", "ConnectionLost"}

    run(drill())


def test_reconnecting_leaks_neither_descriptors_nor_threads(host: Host) -> None:
    async def connect(relay: Relay, lose: bool) -> None:
        async with driving(relay.uri, QUICK) as driven:
            await driven.connection.volumes("default")
            await failure(driven.connection.destroy("00000000-0000-4000-8000-000000000000"))
            await failure(driven.connection.addresses("00000000-0000-4000-8000-000000000000"))
            if lose:
                relay.hang_up()
                await eventually(lambda: driven.closed, "the loss is told")

    async def drill() -> None:
        earlier = Counter(libvirt_threads())
        with Relay(host.address) as relay:
            await connect(relay, lose=True)
            await eventually(lambda: relay.open == 0, "its connections are closed")
            before = await settled()
            assert Counter(before[1]) - earlier <= Counter({"libvirt-events": 1}), "one thread of libvirt's, for good"
            for number in range(20):
                await connect(relay, lose=bool(number % 2))
            await eventually(lambda: relay.open == 0, "its connections are closed")
            descriptors_now, threads = await settled()
            assert descriptors_now <= before[0], "descriptors leak"
            assert Counter(threads) <= Counter(before[1]), "threads leak"

    run(drill())


def test_connections_that_are_not_needed_any_more_are_closed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def drill() -> None:
        with Relay(host.address) as relay:
            async with driving(relay.uri) as driven:
                await asyncio.gather(*(driven.connection.volumes("default") for _ in range(4)))
                assert relay.open >= 6
                monkeypatch.setattr(links, "IDLE_SECONDS", 0.5)
                calls = [driven.connection.facts(), *(driven.connection.volumes("default") for _ in range(4))]
                await asyncio.gather(*calls)
                await eventually(lambda: relay.open == 1, "only the one for events is left")
                await driven.connection.domains()
                assert driven.closed == []

    run(drill())


# Calls that do not come back


def test_a_call_that_hangs_ends_at_its_deadline_and_harms_no_other_kind(host: Host) -> None:
    async def drill() -> None:
        async with hung(host, deadline=6) as (driven, uuid):
            begun, answered = time.monotonic(), 0
            call = asyncio.create_task(failure(driven.connection.suspend(uuid)))
            while not call.done():
                assert uuid in {row.uuid for row in await driven.connection.domains()}
                await driven.connection.volumes("default")
                answered += not call.done()
                await asyncio.sleep(0.1)
            error = await call
            assert answered > 1, "others do not wait for what hangs"
            assert isinstance(error, HostUnreachable)
            assert "not answered within 6 s" in error.message
            assert time.monotonic() - begun > 5.9
            assert driven.closed == [], "the host itself is still there"
            host.thaw_qemu(uuid)
            await driven.do(act.Destroy("", uuid))
            assert host.qemu_pid(uuid) is None

    run(drill())


def test_a_call_given_up_on_holds_its_caller_until_it_has_ended(host: Host) -> None:
    async def drill() -> None:
        async with hung(host) as (driven, uuid):
            call = asyncio.create_task(driven.connection.suspend(uuid))
            await asyncio.sleep(0.3)
            call.cancel()
            await asyncio.sleep(0.5)
            call.cancel()
            await asyncio.sleep(0.5)
            assert not call.done(), "the call is still under way on the host"
            host.thaw_qemu(uuid)
            with pytest.raises(asyncio.CancelledError):
                await call
            row = await driven.connection.domain(uuid)
            assert row is not None
            assert row.state == "Paused", "it was carried out, as a call given up on may be"

    run(drill())


def test_a_call_that_has_not_begun_is_taken_back(host: Host) -> None:
    async def drill() -> None:
        async with hung(host) as (driven, uuid):
            stuck = [asyncio.create_task(failure(driven.connection.suspend(uuid))) for _ in range(8)]
            await asyncio.sleep(0.3)
            late = guest()
            queued = asyncio.create_task(driven.do(late.define()))
            await asyncio.sleep(0.3)
            queued.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(queued, 10)
            host.thaw_qemu(uuid)
            await asyncio.gather(*stuck, return_exceptions=True)
            assert await driven.connection.domain(late.uuid) is None

    run(drill())


def test_the_connection_of_an_overdue_call_is_really_closed(host: Host) -> None:
    """Else a request that waits in it might still be carried out when nobody expects it any more."""

    async def drill() -> None:
        one = guest()
        with Relay(host.address) as relay:
            patient = replace(QUICK, keepalive_interval=60, deadline=6)
            async with driving(host.uri_tcp) as steady, defined(steady, one), driving(relay.uri, patient) as driven:
                await failure(driven.connection.destroy(one.uuid))  # opens a connection for effects
                connections = relay.open
                relay.muted.set()
                changed = replace(one.config, memory_mib=96)
                call = driven.connection.define(render(one.uuid, one.name, changed, one.owner, None))
                assert isinstance(await failure(call), HostUnreachable)
                await eventually(lambda: relay.open < connections, "the connection is closed")
                definition = host.definition(one.uuid)
                assert definition is not None
                assert definition.findtext("memory") == str(96 * 1024), (
                    "it was carried out: nothing follows from the error"
                )
                relay.muted.clear()

    run(drill())
