# SPDX-License-Identifier: Apache-2.0
"""The lab does what drills rely on: every claim of its parts, on real hosts."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import Host, Lab, LabError, Process, labs
from tests.lab.bare import DISK, agent_answers, answers_in_time, boot, define, eventually, new_disk, state
from tests.lab.lab import STATE
from tests.lab.processes import run

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    Lab("selftest").down()
    lab = Lab.up("selftest", hosts=2)
    try:
        yield lab
    finally:
        lab.down()


@pytest.fixture(params=[0, 1], ids=["plain", "stock"])
def host(lab: Lab, request: pytest.FixtureRequest) -> Host:
    return lab.hosts[int(request.param)]


# Hosts


def test_each_host_reports_the_identity_the_lab_says(lab: Lab) -> None:
    reported = [host.execute("virsh", "-q", "-c", "qemu:///system", "capabilities") for host in lab.hosts]
    for host, capabilities in zip(lab.hosts, reported, strict=True):
        assert f"<uuid>{host.host_uuid}</uuid>" in capabilities
        assert host.virsh("hostname").strip() == host.name
    assert len({host.host_uuid for host in lab.hosts}) == 2


def test_no_host_offers_kvm(host: Host) -> None:
    assert "<domain type='kvm'" not in host.virsh("capabilities")
    assert "<domain type='qemu'" in host.virsh("capabilities")


def test_stock_host_runs_qemu_as_debian_does_and_the_other_as_root(host: Host) -> None:
    domain = define(host)
    host.virsh("start", domain)
    assert Path(f"/proc/{host.qemu_pid(domain)}").owner() == ("libvirt-qemu" if host.stock else "root")
    host.virsh("destroy", domain)


def test_the_last_host_is_the_stock_one(lab: Lab) -> None:
    assert [host.stock for host in lab.hosts] == [False, True]
    plain, stock = (dict(_settings(host.directory / "etc/qemu.conf")) for host in lab.hosts)
    assert plain["user"] == '"root"'
    assert set(stock) == {"migration_host", "migrate_tls_x509_cert_dir", "keepalive_interval", "keepalive_count"}


def _settings(file: Path) -> Iterator[tuple[str, str]]:
    for line in file.read_text().splitlines():
        name, equals, value = line.partition(" = ")
        if equals and not name.startswith("#"):
            yield name, value


@pytest.mark.parametrize(
    ("folder", "refusal"),
    [
        ("client", None),
        ("client-expired", "authentication failed|certificate|handshake|GnuTLS|End of file"),
        ("client-wrong-ca", "certificate"),
    ],
)
def test_tls_takes_the_good_client_only(lab: Lab, host: Host, folder: str, refusal: str | None) -> None:
    command = ("timeout", "10", "virsh", "-q", "-c", f"{host.uri_tls}?pkipath={lab.pki / folder}", "uri")
    if refusal:
        with pytest.raises(LabError, match=refusal):
            run(*command)
    else:
        assert run(*command).startswith(host.uri_tls)


def test_an_expired_server_certificate_is_refused_and_a_good_one_works_again(lab: Lab) -> None:
    host = lab.hosts[0]
    command = ("timeout", "10", "virsh", "-q", "-c", f"{host.uri_tls}?pkipath={lab.pki / 'client'}", "uri")
    host.use_certificate("expired")
    try:
        with pytest.raises(LabError, match="Failed to verify peer's certificate"):
            run(*command)
    finally:
        host.use_certificate("good")
    assert run(*command)


def test_shared_storage_is_the_same_and_the_default_pool_is_not(lab: Lab) -> None:
    one, two = lab.hosts
    one.virsh("vol-create-as", "shared", "both.raw", "1M")
    one.virsh("vol-create-as", "default", "mine.raw", "1M")
    assert one.volumes("shared") == two.volumes("shared")
    assert {"both.raw", "homeostat-storage"} <= set(two.volumes("shared"))
    assert "mine.raw" in one.volumes("default")
    assert "mine.raw" not in two.volumes("default")
    for host in lab.hosts:
        host.virsh("pool-refresh", "shared")
        assert "homeostat-storage" in host.virsh("vol-list", "shared")
        assert {"vmlinuz", "initrd", "base.qcow2"} <= set(host.volumes("images"))


def test_a_full_disk_is_full_and_only_the_small_one_can_be(host: Host) -> None:
    host.disk_full("tiny")
    with pytest.raises(LabError, match=r"No space left on device|cannot allocate"):
        host.virsh("vol-create-as", "tiny", "one.raw", "1M")
    host.disk_freed("tiny")
    host.virsh("vol-create-as", "tiny", "one.raw", "1M")
    with pytest.raises(LabError, match="own disk"):
        host.disk_full("default")


# The guest


def test_guest_boots_sees_its_disk_answers_its_agent_and_obeys_acpi(host: Host) -> None:
    overlay = f"{uuid.uuid4()}.qcow2"
    base = ("--backing-vol", "/var/lib/libvirt/base/base.qcow2", "--backing-vol-format", "qcow2")
    host.virsh("vol-create-as", "default", overlay, "8M", "--format", "qcow2", *base)
    domain = boot(host, disk=DISK.format(format="qcow2", path=f"/var/lib/libvirt/images/{overlay}"))
    assert "DISK vda size=16384 serial=root head=HOMEOSTAT-BASE" in host.console(domain)
    eventually(lambda: agent_answers(host, domain), "agent")
    host.virsh("shutdown", domain, "--mode", "acpi")
    eventually(lambda: host.qemu_pid(domain) is None, "powered off by ACPI")
    eventually(lambda: state(host, domain) == "shut off (shutdown)", "told so by libvirt")


def test_guest_obeys_its_agent(lab: Lab) -> None:
    host = lab.hosts[0]
    domain = boot(host)
    eventually(lambda: agent_answers(host, domain), "agent")
    host.virsh("shutdown", domain, "--mode", "agent")
    eventually(lambda: host.qemu_pid(domain) is None, "powered off by its agent")


def test_stubborn_guest_hears_and_stays(lab: Lab) -> None:
    host = lab.hosts[0]
    domain = boot(host, "homeostat.stubborn=1")
    eventually(lambda: agent_answers(host, domain), "agent")
    ask_to_shut_down(host, domain, "acpi", "SHUTDOWN-REQUEST -P button")
    ask_to_shut_down(host, domain, "agent", "SHUTDOWN-REQUEST -h -P")
    time.sleep(2)
    assert host.qemu_pid(domain)
    host.virsh("destroy", domain)


def ask_to_shut_down(host: Host, domain: str, mode: str, heard: str) -> None:
    # virsh waits for a guest that says yes to its agent and then stays.
    run("timeout", "5", "virsh", "-q", "-c", host.uri_tcp, "shutdown", domain, "--mode", mode, check=False)
    eventually(lambda: re.search(heard, host.console(domain)), f"{mode} request heard")


def test_guest_panics_and_its_process_stays(lab: Lab) -> None:
    host = lab.hosts[0]
    domain = boot(host, "homeostat.panic=5")
    eventually(lambda: "Kernel panic" in host.console(domain), "panic")
    assert host.qemu_pid(domain)
    host.virsh("destroy", domain)


def test_guest_reboots_in_the_same_process(lab: Lab) -> None:
    host = lab.hosts[0]
    domain = boot(host, "homeostat.reboot=1")
    pid = host.qemu_pid(domain)
    eventually(lambda: host.console(domain).count("GUEST-UP") >= 2, "second boot")
    assert host.qemu_pid(domain) == pid
    host.virsh("destroy", domain)


# Faults


def test_killed_libvirtd_leaves_qemu_and_comes_back(lab: Lab, host: Host) -> None:
    domain = define(host)
    host.virsh("start", domain)
    pid = host.qemu_pid(domain)
    host.kill_libvirtd()
    assert not host.answers()
    assert host.qemu_pid(domain) == pid
    host.start_libvirtd()
    assert state(host, domain).startswith("running")
    host.forget(domain)  # not destroyed: libvirt may say that this failed when it has worked (measured)


def test_frozen_libvirtd_accepts_and_never_answers(host: Host) -> None:
    host.freeze_libvirtd()
    try:
        socket.create_connection((host.address, 16509), timeout=1).close()
        assert not answers_in_time(host)
    finally:
        host.thaw_libvirtd()
    eventually(lambda: answers_in_time(host), "an answer")


def test_cut_host_is_silent_and_keeps_running(host: Host) -> None:
    domain = define(host)
    host.virsh("start", domain)
    host.cut()
    try:
        with pytest.raises(OSError, match=r"timed out|No route to host|unreachable"):
            socket.create_connection((host.address, 16509), timeout=1)
        assert host.qemu_pid(domain)
    finally:
        host.join()
    eventually(lambda: answers_in_time(host), "back on the network")
    host.virsh("destroy", domain)


def test_a_domain_is_forgotten_whether_or_not_libvirtd_lets_go_of_it(host: Host) -> None:
    plain, held, other = define(host), define(host), define(host)
    for domain in (plain, held):
        host.virsh("start", domain)
    host.forget(plain)
    libvirtd = host.daemon("libvirtd")
    host.freeze_libvirtd()
    host.forget(held)
    assert host.daemon("libvirtd") != libvirtd
    assert {plain, held} & {found.uuid for found in host.domains()} == set()
    assert (host.qemu_pid(plain), host.qemu_pid(held)) == (None, None)
    assert {plain, held, other} & set(host.virsh("list", "--all", "--uuid").split()) == {other}


def test_reboot_ends_everything_and_keeps_what_is_on_disk(lab: Lab, host: Host) -> None:
    domain = define(host)
    host.virsh("start", domain)
    old = host.processes()
    host.reboot()
    assert not any(process.alive for process in old)
    [found] = [found for found in host.domains() if found.uuid == domain]
    assert (found.defined, found.recorded, found.pid) == (True, False, None)
    assert state(host, domain) == "shut off (unknown)"
    [life] = lab.intervals(domain)
    assert life.end is not None


def test_powered_off_host_is_gone_until_powered_on(host: Host) -> None:
    domain = define(host)
    host.power_off()
    assert host.processes() == []
    with pytest.raises(OSError, match=r"timed out|No route to host|unreachable"):
        socket.create_connection((host.address, 16509), timeout=1)
    assert domain in {found.uuid for found in host.domains()}
    assert "homeostat-storage" in host.volumes("shared")
    host.power_on()
    assert state(host, domain).startswith("shut off")


def test_lost_record_hides_a_running_qemu_that_its_image_lock_protects(lab: Lab, host: Host) -> None:
    domain = define(host, disk=new_disk(host))
    host.virsh("start", domain)
    pid = host.qemu_pid(domain)
    host.lose_record(domain)
    [found] = [found for found in host.domains() if found.uuid == domain]
    assert (found.recorded, found.pid) == (False, pid)
    assert state(host, domain) == "shut off (unknown)"
    with pytest.raises(LabError, match="Device or resource busy"):  # virtlogd: the log has a writer
        host.virsh("start", domain)
    host.restart_virtlogd()
    with pytest.raises(LabError, match='Failed to get "write" lock'):
        host.virsh("start", domain)
    lab.assert_never_two(domain)
    host.kill_qemu(domain)


def test_lost_record_of_a_domain_without_disks_lets_a_second_one_start(lab: Lab, host: Host) -> None:
    domain = define(host)
    host.virsh("start", domain)
    host.lose_record(domain)
    host.restart_virtlogd()
    host.virsh("start", domain)
    with pytest.raises(AssertionError, match="ran until now"):
        lab.assert_never_two(domain)
    host.kill_qemu(domain)
    host.kill_qemu(domain)


@pytest.mark.parametrize(("number", "reason"), [(signal.SIGKILL, "crashed"), (signal.SIGTERM, "shutdown")])
def test_killed_qemu_is_gone_and_libvirt_says_how(host: Host, number: int, reason: str) -> None:
    domain = define(host)
    host.virsh("start", domain)
    pid = host.qemu_pid(domain)
    assert host.kill_qemu(domain, number) == pid
    assert host.qemu_pid(domain) is None
    eventually(lambda: state(host, domain) == f"shut off ({reason})", reason)


def test_heal_undoes_whatever_was_done(host: Host) -> None:
    domain = define(host)
    host.virsh("start", domain)
    host.use_certificate("expired")
    host.freeze_libvirtd()
    host.cut()
    host.heal()
    assert host.answers()
    host.kill_libvirtd()
    host.heal()
    assert state(host, domain).startswith("running")
    host.power_off()
    host.heal()
    assert state(host, domain) == "shut off (unknown)"
    assert host.uri_tls in run("virsh", "-q", "-c", f"{host.uri_tls}?pkipath={host.lab / 'pki/client'}", "uri")


# Labs


def traces(name: str, network: int | None) -> list[str]:
    """What there is on this machine of a lab that had a name and the number of a subnet."""
    # Links and routes before labs, which record the number of a subnet first: another may be given it meanwhile.
    links = [
        str(path) for folder in ("/run/netns", "/sys/class/net") for path in Path(folder).glob(f"hs{network}[-b]*")
    ]
    routes = run("ip", "route").splitlines()
    found = [f"state {path}" for path in STATE.glob(f"{name}*")]
    found += [line for line in run("ps", "-ww", "-eo", "pid,args").splitlines() if f"/lab/{name}/" in line]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if name in line]
    found += [line for line in Path("/etc/hosts").read_text().splitlines() if name in line]
    if network is None or network in {
        lab.record.network for lab in labs() if lab.name != name
    }:  # or somebody has it again
        return found
    subnet = f"198.51.100.{network * 32}/27"
    return found + links + [line for line in routes if subnet in line]


def network_of(name: str) -> int | None:
    return Lab(name).record.network if Lab(name).exists else None


def command(*arguments: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.lab", *arguments],
        cwd=root,
        text=True,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def ended(killed: subprocess.Popen[str]) -> None:
    """Wait for the commands that it was waiting for when it was killed: they go on making what they were to make."""

    def over() -> bool:
        states = run("ps", "--sid", str(killed.pid), "-o", "stat=", check=False).split()
        return all(state.startswith("Z") for state in states)

    eventually(over, "what it had begun to end")


def test_labs_live_side_by_side_and_down_leaves_no_trace(lab: Lab) -> None:
    Lab("selftest-other").down()
    first, second = (up_output("--name", "selftest-other", "--hosts", "3", "--stock", "1") for _ in range(2))
    assert first.startswith("selftest-other: ")
    assert second.startswith("lab selftest-other is already up")
    other = Lab("selftest-other")
    assert [host.stock for host in other.hosts] == [True, False, False]
    assert not other.subnet.overlaps(lab.subnet)
    network = other.record.network
    assert len(traces("selftest-other", network)) > 10
    assert all(host.answers() for host in other.hosts)
    running = [define(host) for host in (lab.hosts[0], other.hosts[0])]
    for host, domain in zip((lab.hosts[0], other.hosts[0]), running, strict=True):
        host.virsh("start", domain)
    with command("down", "--name", "selftest-other") as down:
        assert down.wait(60) == 0
    assert traces("selftest-other", network) == []
    assert lab.hosts[0].qemu_pid(running[0])
    lab.hosts[0].virsh("destroy", running[0])


def up_output(*arguments: str) -> str:
    with command("up", *arguments) as up:
        output = up.communicate(timeout=60)[0]
    assert up.returncode == 0
    return output


@pytest.mark.parametrize("after", [0.15, 0.3, 0.45, 0.6, 0.9, 1.2])
def test_down_removes_a_half_finished_lab(after: float) -> None:
    with command("up", "--name", "selftest-half") as up:
        time.sleep(after)
        up.kill()
    ended(up)
    network = network_of("selftest-half")
    Lab("selftest-half").down()
    # A command that `up` was waiting for when it was killed has outlived it, and makes nothing any more.
    eventually(lambda: traces("selftest-half", network) == [], "nothing to be left", 10)


def test_up_starts_over_what_was_left_half_finished() -> None:
    for _attempt in range(5):
        with command("up", "--name", "selftest-half") as up:
            eventually(lambda: Lab("selftest-half").exists, "record of the lab")
            up.kill()
        ended(up)
        if not Lab("selftest-half").is_up:
            break
        Lab("selftest-half").down()  # it was quicker than this process
    assert not Lab("selftest-half").is_up
    again = Lab.up("selftest-half")
    try:
        assert again.is_up
        assert all(host.answers() for host in again.hosts)
    finally:
        again.down()


def test_nothing_leaves_the_machine_when_the_labs_link_is_gone(lab: Lab) -> None:
    host = lab.hosts[0]
    run("ip", "link", "set", lab.bridge, "down")
    try:
        with pytest.raises(OSError, match=r"Invalid argument|unreachable"):
            socket.create_connection((host.address, 16509), timeout=1)
    finally:
        run("ip", "link", "set", lab.bridge, "up")
    eventually(lambda: answers_in_time(host), "back")


@pytest.mark.parametrize("name", ["", "Upper", "-x", "x" * 17, "a/b", ".."])
def test_names_that_cannot_be_are_refused(name: str) -> None:
    with pytest.raises(LabError, match="at most 16"):
        Lab(name)


def test_a_recycled_pid_is_never_signaled() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        process = Process.of(child.pid)
        later = Process(child.pid, process.start + 1)
        assert not later.signal(signal.SIGKILL)
        assert not later.alive
        assert process.signal(signal.SIGKILL)
        assert process.wait(5)
        assert Path(f"/proc/{child.pid}").exists()  # a zombie until it is reaped
        assert not process.alive
