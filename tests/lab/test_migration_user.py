# SPDX-License-Identifier: Apache-2.0
"""What a person sees of a migration and sets for one, on real hosts and with kubectl."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import libvirt
import pytest

from homeostat.decide.wanted import CONSOLE_FOLDER
from homeostat.hosts.migration import PeerUnreachable
from tests.lab.host import Host
from tests.lab.moving import RUNS, Move, drilled
from tests.lab.processes import LabError
from tests.lab.rig import Object, Rig, linux
from tests.lab.test_migration import (
    LAST_PASSES,
    SLOW,
    copying,
    finished,
    lose_the_answer,
    move,
    only_on,
    placed,
    running,
    switch,
)

H2 = {"host": "h2"}
SLOWEST = {"bandwidth": "1Mi", "maxDowntimeMilliseconds": 20}
"""With this a restless guest is gone through once for a minute."""
LAN = {"name": "lan", "network": "lan"}
COLUMNS = 120
"""How wide a terminal may be asked to be."""


@contextmanager
def kubectl(rig: Rig, name: str, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A kubectl that runs beside the drill, and the file it prints to; ended with it."""
    path = rig.directory / f"{name}.out"
    command = [str(rig.plane.binaries["kubectl"]), f"--kubeconfig={rig.plane.kubeconfig}", *arguments]
    with path.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            yield process, path
        finally:
            process.kill()


def percents(path: Path) -> list[int]:
    """What the lines of `kubectl get vmmig -w` say in their column %."""
    head, *rows = [line.split() for line in path.read_text().splitlines()] or [[]]
    # By their number, not by their place: kubectl makes a column wider from the row on that needs it.
    return [int(row[head.index("%")]) for row in rows if len(row) == len(head)]


def configure(rig: Rig, name: str, spec: Object) -> None:
    """Change a Hypervisor's spec; returns when the operator knows of it."""
    rig.patch("hv", name, {"spec": spec})
    rig.known("hv", name)


def sentences(rig: Rig, name: str) -> str:
    """What `kubectl describe` says of a migration, whose messages have to be sentences."""
    text = rig.kubectl("describe", "vmmig", name)
    said = re.findall(r"^ +Message: +(.+)$", text, re.MULTILINE)
    assert len(said) == 4, text
    assert all(re.fullmatch(r"[A-Z][^{}]*\.", each) and "None" not in each for each in said), said
    return text


def test_kubectl_waits_for_the_end_and_watches_the_percent_rise(rig: Rig) -> None:
    uuid = placed(rig, "web")
    move(rig, "web-to-h2", "web", target=H2, policy=SLOWEST)
    with (
        kubectl(rig, "watch", "get", "vmmig", "-w") as (_, seen),
        kubectl(rig, "wait", "wait", "--for=condition=Succeeded", "vmmig/web-to-h2", "--timeout=300s") as (waits, said),
    ):
        copying(rig, "web-to-h2")
        assert "The guest runs on the source while its memory is copied." in sentences(rig, "web-to-h2")
        rig.until(lambda: len(set(percents(seen))) >= 4, "four percents to be printed")
        assert waits.poll() is None, said.read_text()
        switch(rig, uuid)
        finished(rig, "web-to-h2", "Migrated")
        assert waits.wait(30) == 0, said.read_text()
        rig.until(lambda: "Succeeded" in seen.read_text(), "the end to be printed", 20)
        assert percents(seen)[:4] == sorted(percents(seen)[:4])
        lines = seen.read_text().splitlines()
    assert lines[0].split() == ["NAME", "PHASE", "SOURCE", "TARGET", "%", "MIB", "DIRTY", "LIMIT", "SECS"]
    assert max(len(line.rstrip()) for line in lines) <= COLUMNS
    assert "The VM is on the target." in sentences(rig, "web-to-h2")
    only_on(rig, "web", rig.lab.hosts[1])


# What is left of it


def test_a_selector_names_the_hosts_that_will_do_and_without_a_target_any_other_host_does(rig: Rig) -> None:
    placed(rig, "web")
    rig.patch("hv", "h2", {"metadata": {"labels": {"generation": "new"}}})
    configure(rig, "h2", {"migration": {"maxInbound": 3}})  # what is noted is noted with the labels
    move(rig, "selected", "web", target={"hostSelector": {"matchLabels": {"generation": "new"}}})
    finished(rig, "selected", "Migrated")
    only_on(rig, "web", rig.lab.hosts[1])
    move(rig, "any", "web")
    finished(rig, "any", "Migrated")
    host = rig.running("web")
    assert host != rig.lab.hosts[1]
    only_on(rig, "web", host)
    rig.patch("hv", "h2", {"metadata": {"labels": {"generation": None}}})


def test_one_that_has_ended_goes_by_itself(rig: Rig) -> None:
    placed(rig, "web")
    move(rig, "go", "web", target=H2, ttlSecondsAfterFinished=15)
    finished(rig, "go", "Migrated")
    rig.gone("vmmig", "go")
    only_on(rig, "web", rig.lab.hosts[1])


def test_memory_comes_on_the_targets_ports_and_costs_what_libvirt_says(rig: Rig) -> None:
    uuid = placed(rig, "web")
    h1, h2 = rig.lab.hosts[:2]
    configure(rig, "h2", {"migration": {"ports": {"first": 50100, "last": 50101}}})
    move(rig, "go", "web", target=H2, policy=SLOW)
    copying(rig, "go")
    assert streams(h2, h1) == {rig.status("vmmig", "go")["intent"]["port"]} <= {50100, 50101}
    switch(rig, uuid)
    status = finished(rig, "go", "Migrated")
    cost = status["cost"]
    told = statistics(h2, uuid)
    assert told["data_processed"] > 1 << 20
    assert cost["transferredMiB"] == told["data_processed"] >> 20
    assert cost["downtimeMilliseconds"] == told["downtime"] > 0
    begun, ended = (datetime.fromisoformat(status[f"{each}Time"]) for each in ("start", "completion"))
    assert abs((ended - begun).total_seconds() - cost["totalSeconds"]) <= 1
    only_on(rig, "web", h2)


def streams(host: Host, peer: Host) -> set[int]:
    """The ports of this host, but for libvirt's, that a peer is connected to."""
    pairs = [line.split()[-2:] for line in host.execute("ss", "-Htn", "state", "established").splitlines()]
    here = {int(own.rsplit(":", 1)[1]) for own, other in pairs if other.rsplit(":", 1)[0].strip("[]f:") == peer.address}
    return {port for port in here if port != 16509 and port < 60000}


def statistics(host: Host, uuid: str) -> dict[str, int]:
    """What libvirt says of the job that ended last."""
    virt = libvirt.open(host.uri_tcp)
    try:
        flags = libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
        return dict(virt.lookupByUUIDString(uuid).jobStats(flags))
    finally:
        virt.close()


def test_an_attempt_that_was_stopped_says_what_was_sent_until_then(rig: Rig) -> None:
    placed(rig, "web")
    move(rig, "go", "web", target=H2, policy=SLOW)
    copying(rig, "go")
    rig.until(lambda: rig.status("vmmig", "go").get("cost", {}).get("transferredMiB", 0) > 4, "some to be sent")
    rig.patch("vmmig", "go", {"spec": {"abort": "Requested"}})
    cost = finished(rig, "go", "Aborted")["cost"]
    assert 4 < cost["transferredMiB"] < 1000
    assert cost["totalSeconds"] >= 0
    assert "The migration was stopped before the VM was moved. spec.abort is Requested." in sentences(rig, "go")
    only_on(rig, "web", rig.lab.hosts[0])


# What follows the VM


def say(rig: Rig, host: Host, uuid: str, line: str, answer: str) -> None:
    """Type a line at the guest's serial console until its answer is in the console's log.

    Again and again: a shell that starts throws away what was typed before. The stream is open until the guest has it.
    """
    virt, typed = libvirt.open(host.uri_tcp), 0.0

    def heard() -> bool:
        nonlocal typed
        if answer not in console(host, uuid) and time.monotonic() - typed > 5:
            stream.send(f"{line}\n".encode())
            typed = time.monotonic()
        return answer in console(host, uuid)

    try:
        stream = virt.newStream(libvirt.VIR_STREAM_NONBLOCK)
        virt.lookupByUUIDString(uuid).openConsole(None, stream, 0)
        rig.until(heard, f"the guest to say {answer}")
        stream.abort()
    finally:
        virt.close()


def console(host: Host, uuid: str) -> str:
    """What is in the guest's console log on this host; "" before there is a definition."""
    with suppress(LabError):
        return host.console(uuid)
    return ""


def logged(host: Host) -> str:
    """What there is of the console of `web` on a host, whether it has the VM or not."""
    return (host.outside(CONSOLE_FOLDER) / "default_web-console.log").read_text(errors="replace")


def test_addresses_and_console_follow_a_vm(rig: Rig) -> None:
    """By an operator that asks a guest for its addresses once only, unless it is somewhere else."""
    h1, h2 = rig.lab.hosts[:2]
    with rig.operated("--set=sweep_seconds=3600"):
        uuid = placed(rig, "web", disks=[], interfaces=[LAN], **linux())
        rig.until(lambda: "GUEST-UP" in console(h1, uuid), "the guest to come up")
        say(rig, h1, uuid, "ip address add 198.51.100.201/32 dev eth0; echo here-$((1 + 1))", "here-2")
        move(rig, "go", "web", target=H2)
        finished(rig, "go", "Migrated")
        only_on(rig, "web", h2)
        rig.until(lambda: "198.51.100.201" in addresses(rig), "its address to be asked for on its new host")
    before = logged(h1)
    assert "here-2" in before
    say(rig, h2, uuid, "echo there-$((1 + 2))", "there-3")
    assert logged(h1) == before
    assert rig.processes(uuid) == 2


def addresses(rig: Rig) -> set[str]:
    """What the VM's status says of its guest's addresses."""
    return {each["ip"] for each in rig.status("vm", "web").get("addresses", [])}


# What a person decides


def test_an_ambiguous_one_stays_and_the_source_is_kept_when_a_person_says_so(rig: Rig) -> None:
    """Row 11, whose CPUs have run on both hosts before anybody could be asked."""
    uuid = placed(rig, "web", disks=[], **linux())
    h1, h2 = rig.lab.hosts[:2]
    pid = h1.qemu_pid(uuid)
    move(rig, "go", "web", target=H2, policy=LAST_PASSES, ttlSecondsAfterFinished=1)
    lose_the_answer(rig, uuid)
    rig.until(lambda: rig.reason("vmmig", "go") == "SplitBrain", "the split brain to be seen", 90)
    h2.unfilter()
    rig.until(lambda: not running(rig, uuid, h1), "the source's CPUs to be stopped")
    rig.stays(lambda: rig.get("vmmig", "go"), "it does not expire", 5)
    assert "Both hosts have run the VM since the switchover." in sentences(rig, "go")
    evidence = rig.status("vmmig", "go")["decision"]["evidence"]
    rig.patch("vmmig", "go", {"spec": {"resolve": {"keep": "KeepSource", "evidence": evidence}}})
    rig.until(lambda: h2.qemu_pid(uuid) is None, "the target's process to be ended")
    rig.until(lambda: running(rig, uuid, h1), "the source's CPUs to run")
    rig.gone("vmmig", "go")
    assert h1.qemu_pid(uuid) == pid
    assert [host.number for host in rig.lab.hosts if host.definition(uuid)] == [1]
    rig.until(lambda: rig.state("vm", "web") == "Running" and rig.status("vm", "web")["host"] == "h1", "it to be said")
    assert rig.processes(uuid) == 2


# What a Hypervisor says


def test_a_target_that_the_source_cannot_connect_to_ends_it_before_anything_is_begun(rig: Rig) -> None:
    uuid = placed(rig, "web", disks=[])
    h1, h2, h3 = rig.lab.hosts
    pid = h1.qemu_pid(uuid)
    for number, (uri, words) in enumerate(
        (("qemu+tcp://198.51.100.250/system", "unable to connect"), (h2.uri_tls, "Cannot read CA certificate"))
    ):
        configure(rig, "h2", {"migration": {"peerURI": uri}})
        move(rig, f"go-{number}", "web", target=H2)
        status = finished(rig, f"go-{number}", "PeerUnreachable")
        assert "intent" not in status
        assert f"From h1 to {uri}: {words}" in sentences(rig, f"go-{number}")
        only_on(rig, "web", h1)
        assert (h1.qemu_pid(uuid), rig.processes(uuid), running(rig, uuid, h1)) == (pid, 1, True)
    move(rig, "anywhere", "web")
    assert finished(rig, "anywhere", "Migrated")["target"] == "h3"
    only_on(rig, "web", h3)
    configure(rig, "h2", {"migration": {"peerURI": None}})
    move(rig, "mended", "web", target=H2)
    finished(rig, "mended", "Migrated")
    only_on(rig, "web", h2)


def test_a_certificate_that_is_refused_is_told_and_nothing_comes_of_trying(rig: Rig) -> None:
    folder = rig.lab.hosts[0].directory / "etc/pki"

    async def drill(move: Move) -> None:
        source, h2 = move.source.connection, move.hosts[1]
        h2.use_certificate("expired")
        with pytest.raises(PeerUnreachable, match="Failed to verify peer's certificate"):
            await source.reach(move.one.uuid, h2.uri_tls_peer)
        h2.use_certificate("good")
        for kind, words in (("client-expired", "has expired"), ("client-wrong-ca", "verify peer's certificate")):
            shutil.copytree(rig.lab.pki / kind, folder / kind)
            with pytest.raises(PeerUnreachable, match=words):
                await source.reach(move.one.uuid, f"{h2.uri_tls}?pkipath=/etc/libvirt/pki/{kind}")
        await source.reach(move.one.uuid, h2.uri_tls_peer)
        await move.connect()
        assert await move.seen() == (RUNS, None)
        assert (move.qemus(), move.definitions(), move.running()) == ((True, False), (True, False), (True, False))
        assert len(rig.lab.intervals(move.one.uuid)) == 1

    try:
        drilled(rig.lab, drill)
    finally:
        for kind in ("client-expired", "client-wrong-ca"):
            shutil.rmtree(folder / kind, ignore_errors=True)


def test_a_vm_that_a_wrong_uri_led_to_a_third_host_is_started_nowhere_else(rig: Rig) -> None:
    uuid = placed(rig, "web", disks=[])
    h3 = rig.lab.hosts[2]
    configure(rig, "h2", {"migration": {"peerURI": h3.uri_tcp}})
    move(rig, "go", "web", target=H2)
    rig.until(lambda: rig.reason("vmmig", "go") == "MovedElsewhere", "it to be missed")
    rig.stays(lambda: rig.host_of(uuid) == h3 and rig.processes(uuid) == 2, "it runs where it was moved to", 8)
    assert "The VM has left the source, and the target never had it" in sentences(rig, "go")
    evidence = rig.status("vmmig", "go")["decision"]["evidence"]
    rig.patch("vmmig", "go", {"spec": {"resolve": {"keep": "KeepTarget", "evidence": evidence}}})
    finished(rig, "go", "VMDown")
    only_on(rig, "web", h3)
    assert rig.processes(uuid) == 2


# What holds for all


def test_the_operators_settings_hold_where_nobody_says_otherwise(rig: Rig) -> None:
    h2 = rig.lab.hosts[1]
    policy = '{"bandwidth": "3Mi", "maxDowntimeMilliseconds": 20}'
    with rig.operated(f"--migration-policy={policy}", "--set=migrations=1"):
        configure(rig, "h1", {"migration": {"policy": {"bandwidth": "4Mi"}}})
        uuid = placed(rig, "web")
        placed(rig, "db")
        move(rig, "first", "web", target=H2, policy={"progressTimeoutSeconds": 77})
        copying(rig, "first")
        chosen = rig.status("vmmig", "first")["policy"]
        assert (chosen["bandwidth"], chosen["maxDowntimeMilliseconds"]) == ("4Mi", 20)
        assert (chosen["progressTimeoutSeconds"], chosen["completionTimeoutSecondsPerGiB"]) == (77, 150)
        move(rig, "second", "db", target=H2, policy={"bandwidth": "1Gi", "maxDowntimeMilliseconds": 10000})
        rig.until(lambda: rig.reason("vmmig", "second") == "Queued", "the second to wait")
        said = rig.condition("vmmig", "second", "Queued")["message"]
        assert "The cluster's limit of 1 is reached, behind default/first." in said
        switch(rig, uuid)
        finished(rig, "first", "Migrated")
        finished(rig, "second", "Migrated")
    only_on(rig, "web", h2)
    only_on(rig, "db", h2)
