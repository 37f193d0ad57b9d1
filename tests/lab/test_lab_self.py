# SPDX-License-Identifier: Apache-2.0
"""The lab does what drills rely on: every claim of its parts, on real hosts."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab import Host, Lab, LabError, Process
from tests.lab.lab import STATE
from tests.lab.processes import run

pytestmark = pytest.mark.lab

DOMAIN = """<domain type='qemu'>
  <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>{memory}</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type>{boot}</os>
  <features><acpi/></features>
  <devices>{disk}
    <interface type='bridge'><source bridge='br0'/><model type='virtio'/></interface>
    <serial type='pty'><log file='/var/log/libvirt/qemu/{uuid}-console.log' append='on'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
  </devices>
</domain>"""
KERNEL = """<kernel>/var/lib/libvirt/base/vmlinuz</kernel><initrd>/var/lib/libvirt/base/initrd</initrd>
<cmdline>console=ttyS0 quiet {arguments}</cmdline>"""
DISK = """<disk type='file' device='disk'><driver name='qemu' type='{format}'/><source file='{path}'/>
<target dev='vda' bus='virtio'/><serial>root</serial></disk>"""


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


def eventually(condition: Callable[[], object], what: str, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        time.sleep(0.05)


def define(host: Host, arguments: str | None = None, disk: str = "", memory: int = 64, known: str = "") -> str:
    """Define a domain, blank unless it gets kernel arguments; returns its UUID."""
    domain = known or str(uuid.uuid4())
    boot = "" if arguments is None else KERNEL.format(arguments=arguments)
    file = host.directory / "domain.xml"
    file.write_text(DOMAIN.format(name=f"d-{domain[:8]}", uuid=domain, memory=memory, boot=boot, disk=disk))
    host.virsh("define", str(file))
    return domain


def boot(host: Host, arguments: str = "", disk: str = "") -> str:
    """Start a domain with the lab's guest; returns its UUID once the guest is up."""
    domain = define(host, arguments, disk, memory=128)
    host.virsh("start", domain)
    eventually(lambda: "GUEST-UP" in host.console(domain), "guest up")
    return domain


def new_disk(host: Host, pool: str = "default", size: str = "16M") -> str:
    name = f"{uuid.uuid4()}.raw"
    host.virsh("vol-create-as", pool, name, size, "--format", "raw")
    return DISK.format(format="raw", path=host.virsh("vol-path", name, "--pool", pool).strip())


def state(host: Host, domain: str) -> str:
    return host.virsh("domstate", "--reason", domain).strip()


def answers_in_time(host: Host) -> bool:
    return bool(run("timeout", "1", "virsh", "-q", "-c", host.uri_tcp, "uri", check=False))


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
    assert set(stock) == {"migration_host"}


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
    eventually(lambda: run_agent(host, domain), "agent")
    host.virsh("shutdown", domain, "--mode", "acpi")
    eventually(lambda: host.qemu_pid(domain) is None, "powered off by ACPI", 15)
    assert state(host, domain) == "shut off (shutdown)"


def run_agent(host: Host, domain: str) -> bool:
    try:
        return host.virsh("qemu-agent-command", domain, '{"execute":"guest-ping"}').strip() == '{"return":{}}'
    except LabError:
        return False


def test_guest_obeys_its_agent(lab: Lab) -> None:
    host = lab.hosts[0]
    domain = boot(host)
    eventually(lambda: run_agent(host, domain), "agent")
    host.virsh("shutdown", domain, "--mode", "agent")
    eventually(lambda: host.qemu_pid(domain) is None, "powered off by its agent", 15)


@pytest.mark.parametrize("mode", ["acpi", "agent"])
def test_stubborn_guest_hears_and_stays(lab: Lab, mode: str) -> None:
    host = lab.hosts[0]
    domain = boot(host, "homeostat.stubborn=1")
    eventually(lambda: run_agent(host, domain), "agent")
    run("timeout", "3", "virsh", "-q", "-c", host.uri_tcp, "shutdown", domain, "--mode", mode, check=False)
    eventually(lambda: "SHUTDOWN-REQUEST" in host.console(domain), "request heard")
    time.sleep(2)
    assert host.qemu_pid(domain)
    host.virsh("destroy", domain)


def test_guest_powers_itself_off(lab: Lab) -> None:
    host = lab.hosts[0]
    domain = boot(host, "homeostat.poweroff=1")
    eventually(lambda: host.qemu_pid(domain) is None, "off by itself", 15)
    eventually(lambda: state(host, domain) == "shut off (shutdown)", "seen by libvirt")


def test_guest_panics_and_its_process_stays(lab: Lab) -> None:
    host = lab.hosts[0]
    domain = boot(host, "homeostat.panic=1")
    eventually(lambda: "Kernel panic" in host.console(domain), "panic", 15)
    assert host.qemu_pid(domain)
    host.virsh("destroy", domain)


def test_guest_reboots_in_the_same_process(lab: Lab) -> None:
    host = lab.hosts[0]
    domain = boot(host, "homeostat.reboot=1")
    pid = host.qemu_pid(domain)
    eventually(lambda: host.console(domain).count("GUEST-UP") >= 2, "second boot")
    assert host.qemu_pid(domain) == pid
    host.virsh("destroy", domain)


# The recorder


def test_a_life_is_recorded_from_start_to_end(lab: Lab, host: Host) -> None:
    domain, before = define(host), time.time()
    host.virsh("start", domain)
    pid, started = host.qemu_pid(domain), time.time()
    host.virsh("suspend", domain)
    host.virsh("resume", domain)
    running = time.time()
    host.kill_qemu(domain)
    [life] = lab.intervals(domain)
    assert (life.host, life.pid) == (host.name, pid)
    assert life.end is not None
    (first, stopped), (resumed, ended) = life.running
    assert stopped is not None
    assert before < life.start < first < started < stopped < resumed < running < life.end < time.time()
    assert ended == life.end
    lab.assert_never_two(domain)


def test_a_guest_that_ends_itself_is_recorded_to_its_end(lab: Lab) -> None:
    host = lab.hosts[1]
    domain = boot(host, "homeostat.poweroff=1")
    eventually(lambda: host.qemu_pid(domain) is None, "off by itself", 15)
    [life] = lab.intervals(domain)
    [(_, stopped)] = life.running
    assert stopped is not None
    assert life.end is not None
    assert stopped <= life.end


def test_a_stopped_qemu_counts_as_running_until_it_is_killed(lab: Lab, host: Host) -> None:
    domain = define(host)
    host.virsh("start", domain)
    host.freeze_qemu(domain)
    [life] = lab.intervals(domain)
    assert (life.end, life.running[-1][1]) == (None, None)
    killed = time.time()
    host.kill_qemu(domain)
    [life] = lab.intervals(domain)
    assert life.end is not None
    assert killed < life.end < time.time()


def test_two_at_once_are_found(lab: Lab) -> None:
    one, two = lab.hosts
    domain = define(one)
    define(two, known=domain)
    one.virsh("start", domain)
    two.virsh("start", domain)
    with pytest.raises(AssertionError, match=f"{two.name} ran from .* on {one.name} ran until now"):
        lab.assert_never_two(domain)
    one.virsh("destroy", domain)
    two.virsh("destroy", domain)
    with pytest.raises(AssertionError, match=f"on {one.name} ran until 1"):
        lab.assert_never_two(domain)


def test_one_after_the_other_is_not_two_at_once(lab: Lab) -> None:
    one, two = lab.hosts
    domain = define(one)
    define(two, known=domain)
    for host in (one, two, one):
        host.virsh("start", domain)
        host.virsh("destroy", domain)
    lab.assert_never_two(domain)
    assert [life.host for life in lab.intervals(domain)] == [one.name, two.name, one.name]


def test_a_second_process_with_its_cpus_stopped_is_allowed(lab: Lab) -> None:
    one, two = lab.hosts
    domain = define(one)
    define(two, known=domain)
    one.virsh("start", domain)
    two.virsh("start", "--paused", domain)
    lab.assert_never_two(domain)
    assert len(lab.intervals(domain)) == 2
    one.virsh("destroy", domain)
    two.virsh("destroy", domain)


def test_never_two_of_a_domain_that_never_ran_proves_nothing_and_says_so(lab: Lab) -> None:
    with pytest.raises(AssertionError, match="was ever started"):
        lab.assert_never_two(str(uuid.uuid4()))


def test_probes_of_the_emulator_are_not_recorded(lab: Lab) -> None:
    lines = (lab.directory / "recorder/qemu.jsonl").read_text().splitlines()
    assert lines
    assert all(uuid.UUID(json.loads(line)["uuid"]) for line in lines)
    assert lab.hosts[0].virsh("domcapabilities")


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
    host.virsh("destroy", domain)


def test_frozen_libvirtd_accepts_and_never_answers(host: Host) -> None:
    host.freeze_libvirtd()
    try:
        socket.create_connection((host.address, 16509), timeout=1).close()
        assert not answers_in_time(host)
    finally:
        host.thaw_libvirtd()
    assert answers_in_time(host)


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


# Labs


def traces() -> dict[str, set[str]]:
    """What there is on this machine that a lab could have left."""
    return {
        "namespaces": {name.name for name in Path("/run/netns").glob("*")},
        "links": {name.name for name in Path("/sys/class/net").glob("*")},
        "routes": set(run("ip", "route").splitlines()),
        "mounts": set(Path("/proc/self/mounts").read_text().splitlines()),
        "hosts": set(Path("/etc/hosts").read_text().splitlines()),
        "state": {name.name for name in STATE.glob("*")},
        "processes": {line for line in run("ps", "-eo", "pid,args").splitlines() if "/lab/selftest-" in line},
    }


def command(*arguments: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.lab", *arguments], cwd=root, text=True, stdout=subprocess.PIPE
    )


def test_labs_live_side_by_side_and_down_leaves_no_trace(lab: Lab) -> None:
    Lab("selftest-other").down()
    before = traces()
    first, second = (up_output("--name", "selftest-other", "--hosts", "3", "--stock", "1") for _ in range(2))
    assert first.startswith("selftest-other: ")
    assert second.startswith("lab selftest-other is already up")
    other = Lab("selftest-other")
    assert [host.stock for host in other.hosts] == [True, False, False]
    assert not other.subnet.overlaps(lab.subnet)
    assert all(host.answers() for host in other.hosts)
    running = [define(host) for host in (lab.hosts[0], other.hosts[0])]
    for host, domain in zip((lab.hosts[0], other.hosts[0]), running, strict=True):
        host.virsh("start", domain)
    with command("down", "--name", "selftest-other") as down:
        assert down.wait(60) == 0
    assert traces() == before
    assert lab.hosts[0].qemu_pid(running[0])
    lab.hosts[0].virsh("destroy", running[0])


def up_output(*arguments: str) -> str:
    with command("up", *arguments) as up:
        output = up.communicate(timeout=60)[0]
    assert up.returncode == 0
    return output


@pytest.mark.parametrize("after", [0.15, 0.3, 0.45, 0.6, 0.9, 1.2])
def test_down_removes_a_half_finished_lab(lab: Lab, after: float) -> None:
    before = traces()
    with command("up", "--name", "selftest-half") as up:
        time.sleep(after)
        up.kill()
    Lab("selftest-half").down()
    assert traces() == before


def test_up_starts_over_what_was_left_half_finished(lab: Lab) -> None:
    with command("up", "--name", "selftest-half") as up:
        eventually(lambda: Lab("selftest-half").exists, "record of the lab")
        up.kill()
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


def test_without_its_recorder_a_lab_proves_nothing_and_starts_nothing() -> None:
    lab = Lab.up("selftest-mute", hosts=1)
    try:
        assert lab.record.recorder
        Process(*lab.record.recorder).signal(signal.SIGKILL)
        Process(*lab.record.recorder).wait(5)
        domain = define(lab.hosts[0])
        with pytest.raises(LabError, match="lab recorder"):
            lab.hosts[0].virsh("start", domain)
        with pytest.raises(LabError, match="proves nothing"):
            lab.assert_never_two(domain)
        assert not lab.is_up
    finally:
        lab.down()


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
