# SPDX-License-Identifier: Apache-2.0
"""The informer when hosts, daemons, networks and QEMUs do not do their part."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from homeostat.api import actions as act
from homeostat.api.observed import Absent, Present, Unknown
from homeostat.hosts.informer import HostInformer
from homeostat.hosts.libvirt_driver import LibvirtDriver
from homeostat.reconcile.settings import Settings
from tests.lab import Host
from tests.lab.driving import QUICK, defined, driving, eventually, failure, guest, hung, make, remove, run

pytestmark = pytest.mark.lab


@asynccontextmanager
async def informed(host: Host, **settings: float) -> AsyncIterator[HostInformer]:
    informer = HostInformer(
        host.name,
        LibvirtDriver(QUICK),
        lambda: datetime.now(UTC),
        replace(Settings(), **{"connect_timeout_seconds": 5.0, "reconnect_seconds": 2.0, **settings}),  # type: ignore[arg-type]
        lambda name, uuids: None,
    )
    informer.configure(host.uri_tcp, None, host.host_uuid)
    try:
        await eventually(lambda: informer.answer.reachable, "the host is reached")
        yield informer
    finally:
        await informer.close()


@pytest.mark.parametrize(
    ("fault", "mend", "reasons"),
    [
        ("kill_libvirtd", "start_libvirtd", {"ConnectionRefused"}),
        ("freeze_libvirtd", "thaw_libvirtd", {"ConnectTimeout"}),
        ("cut", "join", {"ConnectTimeout", "NoRoute"}),
        ("power_off", "power_on", {"ConnectTimeout", "NoRoute"}),
    ],
)
def test_a_host_that_goes_and_comes_back_is_unknown_meanwhile(
    host: Host, fault: str, mend: str, reasons: set[str]
) -> None:
    async def drill() -> None:
        one = guest()
        async with driving(host.uri_tcp) as first:
            await make(first, one)
        async with informed(host) as informer:
            assert isinstance((await informer.look(one.uuid, one.name)).answer, Present)
            await asyncio.to_thread(getattr(host, fault))
            await eventually(lambda: informer.answer.reachable is False, "the loss is noticed")
            since = informer.answer.since
            assert isinstance((await informer.look(one.uuid, one.name)).answer, Unknown)
            await eventually(lambda: informer.answer.reason in reasons, f"{reasons}")
            assert informer.answer.since == since
            await asyncio.to_thread(getattr(host, mend))
            await eventually(lambda: informer.answer.reachable, "the host is back")
            assert informer.answer.domains[one.uuid].inactive == one.config
            answer = await informer.look(guest().uuid, one.name)
            assert (answer.answer, answer.name_holder) == (Absent(), one.uuid)
        async with driving(host.uri_tcp) as last:
            await remove(last, one)

    run(drill())


def test_what_happens_on_a_host_is_known_within_a_moment(host: Host) -> None:
    async def drill() -> None:
        one = guest()
        async with informed(host, host_resync_seconds=600.0) as informer, driving(host.uri_tcp) as driven:
            async with defined(driven, one):
                await eventually(lambda: one.uuid in informer.answer.domains, "the definition is seen", 20)
                await driven.do(act.Start("", one.uuid))
                await eventually(lambda: informer.answer.domains[one.uuid].state == "Running", "the start is seen", 20)
                await asyncio.to_thread(host.kill_qemu, one.uuid)
                await eventually(lambda: informer.answer.domains[one.uuid].reason == "Crashed", "the end is seen", 20)
            await eventually(lambda: one.uuid not in informer.answer.domains, "the end of it is seen", 20)

    run(drill())


def test_a_stopped_qemu_delays_nobody_who_looks(host: Host) -> None:
    async def drill() -> None:
        async with informed(host, host_resync_seconds=0.2) as informer, hung(host, deadline=6) as (driven, uuid):
            call, answered = asyncio.create_task(failure(driven.connection.suspend(uuid))), 0
            while not call.done():
                assert isinstance((await informer.look(uuid, "")).answer, Present)
                answered += not call.done()
                await asyncio.sleep(0.1)
            assert answered > 1, "who looks does not wait for what hangs"
            assert informer.answer.reachable

    run(drill())


def test_a_domain_that_is_hard_to_destroy_delays_nothing_of_another(host: Host) -> None:
    async def drill() -> None:
        one, other = guest(), guest()
        async with (
            informed(host) as informer,
            driving(host.uri_tcp) as driven,
            defined(driven, one),
            defined(driven, other),
        ):
            for each in (one, other):
                await driven.do(act.Start("", each.uuid))
            host.freeze_qemu(one.uuid)
            destroying = asyncio.create_task(driven.connection.destroy(one.uuid))
            await asyncio.sleep(0.3)
            looks = [asyncio.create_task(informer.look(one.uuid, "")) for _ in range(3)]
            await asyncio.sleep(0.1)
            assert isinstance((await informer.look(other.uuid, "")).answer, Present)
            await asyncio.to_thread(host.kill_qemu, other.uuid)
            await eventually(lambda: informer.answer.domains[other.uuid].reason == "Crashed", "the end is seen", 8)
            await driven.do(act.Start("", other.uuid))
            assert not destroying.done(), "what was to be slow was not: this shows nothing"
            await asyncio.gather(destroying, *looks, return_exceptions=True)

    run(drill())
