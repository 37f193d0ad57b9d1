# SPDX-License-Identifier: Apache-2.0
"""The driver at hosts that cannot be connected to, or that are not what they should be."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from homeostat.api import actions as act
from homeostat.api.observed import Credentials
from homeostat.hosts.driver import HostUnreachable
from homeostat.hosts.libvirt_driver import LibvirtDriver
from homeostat.hosts.reasons import explain
from tests.files import below
from tests.lab import Host, Lab
from tests.lab.driving import (
    QUICK,
    credentials,
    defined,
    driving,
    eventually,
    failure,
    guest,
    libvirt_threads,
    run,
    settled,
)
from tests.lab.relay import Relay

pytestmark = pytest.mark.lab


async def attempt(uri: str, secret: Credentials | None = None) -> tuple[str, str]:
    """Reason and sentence of an attempt to connect that fails."""
    return explain(await failure(LibvirtDriver(QUICK).open(uri, secret)))


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
    done = subprocess.run([sys.executable, "-c", OPENER, host.uri_tcp], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("gave up\n", "", 0)


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
            await eventually(lambda: relay.open == 0, "nothing is left of the attempts")
        after = await settled()
        assert after[0] <= before[0], "descriptors leak"
        assert Counter(after[1]) <= Counter(before[1]), "threads leak"

    run(drill())


def test_attempts_that_cannot_be_cut_off_do_not_pile_up(host: Host) -> None:
    async def drill() -> None:
        host.cut()
        driver, refused = LibvirtDriver(QUICK), set()
        for _attempt in range(16):
            try:
                await asyncio.wait_for(driver.open(host.uri_tcp, None), 0.1)
            except HostUnreachable as error:
                refused.add(explain(error)[0])
            except TimeoutError:
                pass
            assert libvirt_threads().count("libvirt-open") <= 4
        assert "ConnectTimeout" in refused

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
    return [stat.st_mode & 0o777 for stat in below(folder).values()]


def test_tls_works_and_leaves_no_key_behind(
    lab: Lab, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drill() -> None:
        secret = credentials(lab.pki / "client")
        one = guest()
        with Relay(host.address, 16514) as relay:
            relay.muted.set()
            opening = asyncio.create_task(LibvirtDriver().open(relay.uri.replace("tcp", "tls"), secret))
            await eventually(lambda: len(modes(tmp_path)) == 4, "the files of the attempt")
            await asyncio.sleep(0.2)
            assert modes(tmp_path) == [0o700, 0o600, 0o600, 0o600]
            opening.cancel()
            await eventually(lambda: modes(tmp_path) == [], "the files of the attempt are gone", 20)
            assert opening.cancelled()
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
