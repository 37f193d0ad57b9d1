# SPDX-License-Identifier: Apache-2.0
"""The driver and the informer when hosts, daemons, networks and QEMUs do not do their part."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from homeostat.api import actions as act
from homeostat.api.observed import Absent, Credentials, Present, Unknown
from homeostat.hosts import links
from homeostat.hosts.domain_xml import render
from homeostat.hosts.driver import HostError, HostUnreachable
from homeostat.hosts.informer import HostInformer
from homeostat.hosts.libvirt_driver import LibvirtDriver
from homeostat.hosts.reasons import explain
from homeostat.reconcile.settings import Settings
from tests.lab import Host, Lab
from tests.lab.driving import QUICK, Driven, credentials, defined, driving, eventually, guest, make, remove
from tests.lab.relay import Relay

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    lab = Lab.up("driverfaults", hosts=2)
    try:
        for host in lab.hosts:  # a run that was killed leaves its faults behind
            host.heal()
        yield lab
    finally:
        lab.down()


@pytest.fixture
def host(lab: Lab) -> Iterator[Host]:
    host = lab.hosts[0]
    yield host
    host.heal()


def run(drill: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(drill, 120))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def libvirt_threads() -> list[str]:
    return sorted(one.name for one in threading.enumerate() if one.name.startswith("libvirt-"))


async def settled() -> tuple[int, list[str]]:
    """Descriptors and threads of this process, once both have stopped changing."""
    before: tuple[int, list[str]] = (0, [])
    while (found := (descriptors(), libvirt_threads())) != before:
        before = found
        await asyncio.sleep(1.5)
    return found


async def failure(attempt: Coroutine[Any, Any, Any]) -> HostError:
    with pytest.raises(HostError) as caught:
        await attempt
    return caught.value


async def attempt(uri: str, secret: Credentials | None = None) -> tuple[str, str]:
    """Reason and sentence of an attempt to connect that fails."""
    return explain(await failure(LibvirtDriver(QUICK).open(uri, secret)))


# Connections that are lost


@pytest.mark.parametrize("fault", ["cut", "freeze_libvirtd", "kill_libvirtd", "power_off"])
def test_a_lost_host_is_noticed_once_and_ends_every_call(host: Host, fault: str) -> None:
    async def drill() -> None:
        async with driving(host.uri_tcp, QUICK) as driven:
            getattr(host, fault)()
            begun = time.monotonic()
            calls = [
                driven.connection.domains(),
                driven.connection.volumes("default"),
                driven.connection.refresh_pool("tiny"),
            ]
            errors = await asyncio.gather(*map(failure, calls))
            assert {type(error) for error in errors} == {HostUnreachable}
            assert time.monotonic() - begun < 8
            await eventually(lambda: driven.closed, "the loss is told", 8)
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
        with Relay(host.address) as relay:
            await connect(relay, lose=True)
            await eventually(lambda: relay.open == 0, "its connections are closed")
            before = await settled()
            for number in range(20):
                await connect(relay, lose=bool(number % 2))
            await eventually(lambda: relay.open == 0, "its connections are closed")
            descriptors_now, threads = await settled()
            assert descriptors_now <= before[0], "descriptors leak"
            assert threads == before[1] == ["libvirt-events"]

    run(drill())


# Calls that do not come back


@asynccontextmanager
async def hung(host: Host) -> AsyncIterator[tuple[Driven, str]]:
    """A running VM whose QEMU is stopped: a call to its monitor does not come back."""
    one = guest()
    async with driving(host.uri_tcp) as steady, defined(steady, one):
        async with driving(host.uri_tcp, QUICK) as driven:
            await driven.do(act.Start("", one.uuid))
            host.freeze_qemu(one.uuid)
            try:
                yield driven, one.uuid
            finally:
                with contextlib.suppress(Exception):
                    host.thaw_qemu(one.uuid)
        await asyncio.sleep(0.5)


def test_a_call_that_hangs_ends_at_its_deadline_and_harms_no_other_kind(host: Host) -> None:
    async def drill() -> None:
        async with hung(host) as (driven, uuid):
            begun = time.monotonic()
            call = asyncio.create_task(failure(driven.connection.suspend(uuid)))
            while not call.done():
                asked = time.monotonic()
                assert uuid in {row.uuid for row in await driven.connection.domains()}
                await driven.connection.volumes("default")
                assert time.monotonic() - asked < 1
                await asyncio.sleep(0.1)
            error = await call
            assert isinstance(error, HostUnreachable)
            assert "not answered within 3 s" in error.message
            assert 2.9 < time.monotonic() - begun < 6
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
                await asyncio.wait_for(queued, 0.5)
            host.thaw_qemu(uuid)
            await asyncio.gather(*stuck, return_exceptions=True)
            assert await driven.connection.domain(late.uuid) is None

    run(drill())


def test_the_connection_of_an_overdue_call_is_really_closed(host: Host) -> None:
    """Else a request that waits in it might still be carried out when nobody expects it any more."""

    async def drill() -> None:
        one = guest()
        with Relay(host.address) as relay:
            patient = replace(QUICK, keepalive_interval=60)
            async with driving(host.uri_tcp) as steady, defined(steady, one), driving(relay.uri, patient) as driven:
                await failure(driven.connection.destroy(one.uuid))  # opens a connection for effects
                connections = relay.open
                relay.muted.set()
                changed = replace(one.config, memory_mib=96)
                call = driven.connection.define(render(one.uuid, one.name, changed, one.owner, None))
                assert isinstance(await failure(call), HostUnreachable)
                await eventually(lambda: relay.open < connections, "the connection is closed", 3)
                definition = host.definition(one.uuid)
                assert definition is not None
                assert definition.findtext("memory") == str(96 * 1024), (
                    "it was carried out: nothing follows from the error"
                )
                relay.muted.clear()

    run(drill())


# Hosts that take connections and are silent

OPENER = """
import asyncio, sys
from homeostat.hosts.libvirt_driver import LibvirtDriver

async def main():
    async with asyncio.timeout(1):
        await LibvirtDriver().open(sys.argv[1], None)

try:
    asyncio.run(main())
except TimeoutError:
    print("gave up")
"""


def test_a_silent_host_keeps_no_process_from_ending(host: Host) -> None:
    host.freeze_libvirtd()
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", OPENER, host.uri_tcp], capture_output=True, text=True, timeout=10)
    assert (done.stdout, done.stderr, done.returncode) == ("gave up\n", "", 0)
    assert time.monotonic() - begun < 5


def test_attempts_that_were_given_up_on_are_cut_off(host: Host) -> None:
    async def drill() -> None:
        driver = LibvirtDriver(QUICK)
        before = await settled()
        with Relay(host.address) as relay:
            relay.muted.set()
            for _attempt in range(6):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(driver.open(relay.uri, None), 0.3)
                assert relay.open <= 4
                await asyncio.sleep(0.5)
            await eventually(lambda: relay.open == 0, "nothing is left of the attempts", 5)
        assert await settled() <= before

    run(drill())


def test_attempts_that_cannot_be_cut_off_do_not_pile_up(host: Host) -> None:
    async def drill() -> None:
        host.cut()
        driver = LibvirtDriver(QUICK)
        for _attempt in range(8):
            with contextlib.suppress(TimeoutError, HostUnreachable):
                await asyncio.wait_for(driver.open(host.uri_tcp, None), 0.1)
        assert libvirt_threads().count("libvirt-open") <= 4
        error = await failure(asyncio.wait_for(driver.open(host.uri_tcp, None), 0.1))
        assert explain(error)[0] == "ConnectTimeout"

    run(drill())


# What is said of a host that cannot be connected to


def test_each_way_not_to_be_there_has_its_sentence(host: Host) -> None:
    async def drill() -> None:
        assert (await attempt(f"qemu+tcp://{host.address}:1/system"))[0] == "ConnectionRefused"
        assert (await attempt("qemu+tcp://no-such-host.invalid/system"))[0] == "NameNotFound"
        with Relay(host.address, 16514) as relay:  # a port that speaks something else
            assert (await attempt(relay.uri))[0] in {"ConnectionLost", "NotLibvirt"}
        for uri in ("qemu+ext:///system?command=/bin/sh", "xen:///system", "qemu+tcp://[/system", "nonsense", ""):
            assert (await attempt(uri))[0] == "InvalidURI"

    run(drill())


@pytest.mark.parametrize(
    ("folder", "authority", "words"),
    [
        ("client-expired", None, "tls.crt has expired"),
        ("client-wrong-ca", None, "local issuer"),
        ("client-wrong-ca", "client", "failed validation against ca.crt"),
    ],
)
def test_a_certificate_that_is_not_accepted_is_named(
    lab: Lab, host: Host, folder: str, authority: str | None, words: str
) -> None:
    async def drill() -> None:
        secret = credentials(lab.pki / folder, lab.pki / authority if authority else None)
        first = await attempt(host.uri_tls, secret)
        assert first[0] == "TLSFailed"
        assert words in first[1]
        assert tempfile.gettempdir() not in first[1]
        assert await attempt(host.uri_tls, secret) == first, "a message that changes each time is written each time"

    run(drill())


def test_a_host_with_an_expired_certificate_or_another_name_is_not_trusted(lab: Lab, host: Host) -> None:
    async def drill() -> None:
        secret = credentials(lab.pki / "client")
        with Relay(host.address, 16514) as relay:
            reason, message = await attempt(relay.uri.replace("tcp", "tls"), secret)
        assert reason == "TLSFailed"
        assert "not valid for '127.0.0.1'" in message
        await asyncio.to_thread(host.use_certificate, "expired")
        try:
            reason, message = await attempt(host.uri_tls, secret)
        finally:
            await asyncio.to_thread(host.use_certificate, "good")
        assert reason == "TLSFailed"
        assert "certificate has expired" in message

    run(drill())


def modes(folder: Path) -> list[int]:
    """Modes of everything below a folder."""
    return [path.stat().st_mode & 0o777 for path in sorted(folder.rglob("*"))]


def test_tls_works_and_leaves_no_key_behind(
    lab: Lab, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drill() -> None:
        secret = credentials(lab.pki / "client")
        one = guest()
        with Relay(host.address, 16514) as relay:
            relay.muted.set()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(LibvirtDriver().open(relay.uri.replace("tcp", "tls"), secret), 0.5)
            assert modes(tmp_path) == [0o700, 0o600, 0o600, 0o600]
            await eventually(lambda: modes(tmp_path) == [], "the files of the attempt are gone", 5)
        async with driving(host.uri_tls, QUICK, secret) as driven, defined(driven, one):
            await driven.do(act.Start("", one.uuid))
            assert host.qemu_pid(one.uuid)
            assert modes(tmp_path) == []

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run(drill())


def test_a_host_without_qemu_says_so_and_is_no_error(host: Host) -> None:
    async def drill() -> None:
        async with driving(host.uri_tcp) as driven:
            facts = driven.facts
        assert (facts.host_uuid, facts.qemu_version) == (host.host_uuid, "")
        assert (facts.kvm, facts.cpu_models, facts.emulated_cpu_model) == (False, (), "")
        assert facts.cpus > 0

    def restart() -> None:
        host.kill_libvirtd()
        host.start_libvirtd()

    emulators = [f"/usr/bin/{file.name}" for file in Path("/usr/bin").glob("qemu-system-*") if not file.is_symlink()]
    for emulator in emulators:
        host.execute("mount", "--bind", "/dev/null", emulator)
    try:
        restart()
        run(drill())
    finally:
        for emulator in emulators:
            host.execute("umount", emulator)
        restart()


# The informer


@asynccontextmanager
async def informed(host: Host, **settings: float) -> AsyncIterator[HostInformer]:
    informer = HostInformer(
        host.name,
        LibvirtDriver(QUICK),
        lambda: datetime.now(UTC),
        replace(Settings(), **{"connect_timeout_seconds": 2.0, "reconnect_seconds": 2.0, **settings}),  # type: ignore[arg-type]
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
            await eventually(lambda: informer.answer.reachable is False, "the loss is noticed", 10)
            since = informer.answer.since
            assert isinstance((await informer.look(one.uuid, one.name)).answer, Unknown)
            await eventually(lambda: informer.answer.reason in reasons, f"{reasons}", 15)
            assert informer.answer.since == since
            await asyncio.to_thread(getattr(host, mend))
            await eventually(lambda: informer.answer.reachable, "the host is back", 40)
            assert informer.answer.domains[one.uuid].inactive == one.config
            answer = await informer.look(guest().uuid, one.name)
            assert (answer.answer, answer.name_holder) == (Absent(), one.uuid)
        async with driving(host.uri_tcp) as last:
            await remove(last, one)

    run(drill())


def test_what_happens_on_a_host_is_known_within_a_moment(host: Host) -> None:
    async def drill() -> None:
        one = guest()
        async with informed(host) as informer, driving(host.uri_tcp) as driven:
            async with defined(driven, one):
                await eventually(lambda: one.uuid in informer.answer.domains, "the definition is seen", 2)
                await driven.do(act.Start("", one.uuid))
                await eventually(lambda: informer.answer.domains[one.uuid].state == "Running", "the start is seen", 2)
                await asyncio.to_thread(host.kill_qemu, one.uuid)
                await eventually(lambda: informer.answer.domains[one.uuid].reason == "Crashed", "the end is seen", 2)
            await eventually(lambda: one.uuid not in informer.answer.domains, "the end of it is seen", 2)

    run(drill())


def test_a_stopped_qemu_delays_nobody_who_looks(host: Host) -> None:
    async def drill() -> None:
        async with informed(host, host_resync_seconds=0.2) as informer, hung(host) as (driven, uuid):
            call = asyncio.create_task(failure(driven.connection.suspend(uuid)))
            while not call.done():
                begun = time.monotonic()
                assert isinstance((await informer.look(uuid, "")).answer, Present)
                assert time.monotonic() - begun < 1
                await asyncio.sleep(0.1)
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
            begun = time.monotonic()
            looks = [asyncio.create_task(informer.look(one.uuid, "")) for _ in range(3)]
            await asyncio.sleep(0.1)
            assert isinstance((await informer.look(other.uuid, "")).answer, Present)
            await asyncio.to_thread(host.kill_qemu, other.uuid)
            await eventually(lambda: informer.answer.domains[other.uuid].reason == "Crashed", "the end is seen", 2)
            await driven.do(act.Start("", other.uuid))
            assert time.monotonic() - begun < 4
            assert not destroying.done(), "what was to be slow was not: this shows nothing"
            await asyncio.gather(destroying, *looks, return_exceptions=True)

    run(drill())


def test_connections_that_are_not_needed_any_more_are_closed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def drill() -> None:
        with Relay(host.address) as relay:
            async with driving(relay.uri) as driven:
                await asyncio.gather(*(driven.connection.volumes("default") for _ in range(4)))
                assert relay.open >= 6
                await eventually(lambda: relay.open == 1, "only the one for events is left", 5)
                await driven.connection.domains()
                assert driven.closed == []

    monkeypatch.setattr(links, "IDLE_SECONDS", 0.5)
    run(drill())
