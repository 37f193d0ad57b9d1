# SPDX-License-Identifier: Apache-2.0
"""Each run strategy, and each way a VM goes off: what is asked of guests, what is started again, and what says so."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.lab.host import Host
from tests.lab.processes import run
from tests.lab.rig import Rig, linux

STARTED_AGAIN = {
    "Always": {"shutdown": True, "crashed": True, "destroyed": True, "unknown": True},
    "RerunOnFailure": {"shutdown": False, "crashed": True, "destroyed": True, "unknown": True},
    "Manual": {"shutdown": False, "crashed": False, "destroyed": False, "unknown": False},
}
BOOT_SECONDS = 180
"""What three Linux guests may take to boot at once on a busy machine."""
STAYS_OFF = {"RerunOnFailure": "Finished", "Manual": "NotRequested"}


def how_off(host: Host, uuid: str) -> str:
    """The state and reason that libvirt gives of a domain, such as "shut off (crashed)"."""
    return host.virsh("domstate", "--reason", uuid).strip()


def option(host: Host, uuid: str, name: str) -> str:
    """What follows an option on the command line of a running QEMU."""
    words = Path(f"/proc/{host.qemu_pid(uuid)}/cmdline").read_text().split("\0")
    return words[words.index(name) + 1]


def up(rig: Rig, name: str) -> Host:
    """Wait until a guest has booted."""
    host, uuid = rig.running(name), rig.uuid(name)
    rig.until(lambda: "GUEST-UP" in host.console(uuid), f"guest {name} to come up", BOOT_SECONDS)
    return host


def asked(host: Host, uuid: str) -> list[str]:
    """What the guest's shutdown command was called with, each time."""
    return [words.strip() for words in re.findall("SHUTDOWN-REQUEST (.*)", host.console(uuid))]


def another(rig: Rig, uuid: str, first: int | None, name: str) -> None:
    """Wait for a process that is not the first one."""
    rig.until(lambda: (host := rig.host_of(uuid)) and host.qemu_pid(uuid) != first, f"a new process of {name}")


def halted(rig: Rig, *names: str) -> None:
    for name in names:
        rig.patch("vm", name, {"spec": {"runStrategy": "Halted"}})


# Asking guests


def test_a_guest_is_asked_by_its_agent_or_by_the_power_button_and_again_if_it_was_still_booting(rig: Rig) -> None:
    agent, button = rig.vm("agent", **linux()), rig.vm("button", **linux(guestAgent="Disabled"))
    where = {name: up(rig, name) for name in ("agent", "button")}
    booting = rig.vm("booting", **linux(guestAgent="Disabled", terminationGracePeriodSeconds=180))
    where["booting"] = rig.running("booting")
    halted(rig, "booting", "button")
    rig.until(lambda: rig.condition("vm", "agent", "AgentConnected").get("status") == "True", "the agent to connect")
    halted(rig, "agent")
    for name, uuid, words in (
        ("agent", agent, "-h -P +0 hypervisor initiated shutdown"),
        ("button", button, "-P button"),
        ("booting", booting, "-P button"),
    ):
        rig.says(name, "Halted", 200)
        host = where[name]
        assert host.qemu_pid(uuid) is None
        assert how_off(host, uuid) == "shut off (shutdown)"
        assert asked(host, uuid)[:1] == [words]
        rig.lab.assert_never_two(uuid)


def test_a_guest_that_does_not_listen_is_ended_after_its_grace_period_and_not_before(rig: Rig) -> None:
    uuid = rig.vm("stubborn", **linux("homeostat.stubborn=1", terminationGracePeriodSeconds=12))
    host = up(rig, "stubborn")
    before = time.time()
    halted(rig, "stubborn")
    assert "asked to power off" in rig.says("stubborn", "Stopping")
    assert rig.condition("vm", "stubborn", "Running")["status"] == "True"
    rig.says("stubborn", "Halted")
    (life,) = rig.lab.intervals(uuid)
    assert life.end is not None
    assert 12 <= life.end - before <= 40
    assert asked(host, uuid)
    assert how_off(host, uuid) == "shut off (destroyed)"
    rig.lab.assert_never_two(uuid)


# The guest's CPUs


def test_only_what_the_spec_paused_is_resumed_by_the_spec(rig: Rig) -> None:
    uuid = rig.vm("pausing", execution="Paused")
    rig.says("pausing", "Paused")
    host = rig.host_of(uuid)
    assert host is not None
    pid = host.qemu_pid(uuid)
    (life,) = rig.lab.intervals(uuid)
    assert not life.running
    assert rig.condition("vm", "pausing", "Ready")["status"] == "True"
    assert rig.condition("vm", "pausing", "Running")["status"] == "False"
    for execution, reason, state in (("Running", "Running", "running"), ("Paused", "Paused", "paused")):
        rig.patch("vm", "pausing", {"spec": {"execution": execution}})
        rig.says("pausing", reason)
        assert host.virsh("domstate", uuid).strip() == state
    rig.patch("vm", "pausing", {"spec": {"execution": "Running"}})
    rig.says("pausing", "Running")
    host.virsh("suspend", uuid)
    assert "not by us" in rig.says("pausing", "PausedByOthers")
    rig.stays(lambda: host.virsh("domstate", uuid).strip() == "paused", "paused by another", 3)
    host.virsh("resume", uuid)
    rig.says("pausing", "Running")
    assert host.qemu_pid(uuid) == pid
    rig.lab.assert_never_two(uuid)


# Requests


def test_a_new_request_restarts_once_and_under_manual_nothing_else_starts(rig: Rig) -> None:
    uuids = {name: rig.vm(name, runStrategy=strategy) for name, strategy in (("often", "Always"), ("once", "Manual"))}
    hosts = {name: rig.running(name) for name in uuids}
    for name, uuid in uuids.items():
        rig.request(name, "again")
        rig.until(lambda uuid=uuid: rig.processes(uuid) == 2, f"{name} to be restarted")  # type: ignore[misc]
        rig.running(name)
    hosts["once"].kill_qemu(uuids["once"])
    rig.says("once", "NotRequested")
    rig.stays(lambda: [rig.processes(uuid) for uuid in uuids.values()] == [2, 2], "one restart for one request", 3)
    rig.request("once", "third")
    rig.running("once")
    rig.request("once", "off", state="Stopped")
    rig.says("once", "StoppedAsAsked")
    rig.request("once", "on", state="Running")
    rig.running("once")
    assert [rig.processes(uuid) for uuid in uuids.values()] == [2, 4]
    for uuid in uuids.values():
        rig.lab.assert_never_two(uuid)


def test_a_halted_vm_is_nowhere_then_runs_then_stops_and_ignores_requests_made_meanwhile(rig: Rig) -> None:
    uuid = rig.vm("halted", runStrategy="Halted")
    rig.says("halted", "Halted")
    assert not any(domain.uuid == uuid for host in rig.lab.hosts for domain in host.domains())
    rig.patch("vm", "halted", {"spec": {"runStrategy": "Always"}})
    host = rig.running("halted")
    halted(rig, "halted")
    rig.says("halted", "Halted")
    rig.request("halted", "meanwhile")
    rig.known("vm", "halted")
    rig.stays(lambda: host.qemu_pid(uuid) is None, "halted", 2)
    rig.patch("vm", "halted", {"spec": {"runStrategy": "Manual"}})
    rig.says("halted", "NotRequested")
    assert rig.processes(uuid) == 1
    rig.request("halted", "now")
    rig.running("halted")
    assert rig.processes(uuid) == 2
    rig.lab.assert_never_two(uuid)


# The table


def test_what_is_started_again_is_what_the_table_of_run_strategies_says(rig: Rig) -> None:
    ends: dict[str, Callable[[Host, str], Any]] = {
        "crashed": lambda host, uuid: host.kill_qemu(uuid),
        "destroyed": lambda host, uuid: host.virsh("destroy", uuid),
        "shutdown": lambda host, uuid: host.kill_qemu(uuid, signal.SIGTERM),
    }
    cells = {f"{strategy.lower()}-{way}": (strategy, way) for strategy in STARTED_AGAIN for way in ends}
    uuids = {name: rig.vm(name, runStrategy=strategy) for name, (strategy, _) in cells.items()}
    hosts = {name: rig.running(name) for name in cells}
    for name, (_, way) in cells.items():
        ends[way](hosts[name], uuids[name])
    for name, (strategy, way) in cells.items():
        if STARTED_AGAIN[strategy][way]:
            rig.until(lambda name=name: rig.processes(uuids[name]) == 2, f"{name} to be started again")  # type: ignore[misc]
            assert rig.running(name) == hosts[name]
        else:
            rig.says(name, STAYS_OFF[strategy])
            assert how_off(hosts[name], uuids[name]) == f"shut off ({way})"
    for name, (strategy, way) in cells.items():
        assert rig.processes(uuids[name]) == 1 + STARTED_AGAIN[strategy][way]
        rig.lab.assert_never_two(uuids[name])


def test_a_guest_that_powers_itself_off_is_finished_or_started_again(rig: Rig) -> None:
    strategies = {f"self-{strategy.lower()}": strategy for strategy in STARTED_AGAIN}
    uuids = {
        name: rig.vm(name, **linux("homeostat.poweroff=1", runStrategy=strategy, guestAgent="Disabled"))
        for name, strategy in strategies.items()
    }
    rig.says("self-rerunonfailure", "Finished", BOOT_SECONDS)
    rig.says("self-manual", "NotRequested", BOOT_SECONDS)
    rig.until(lambda: rig.processes(uuids["self-always"]) >= 2, "the guest to be started again", BOOT_SECONDS)
    assert [rig.processes(uuids[f"self-{name}"]) for name in ("rerunonfailure", "manual")] == [1, 1]
    assert rig.condition("vm", "self-rerunonfailure", "Ready")["status"] == "True"
    rig.request("self-rerunonfailure", "another")
    rig.until(lambda: rig.processes(uuids["self-rerunonfailure"]) == 2, "another run, as asked for", BOOT_SECONDS)
    for uuid in uuids.values():
        rig.lab.assert_never_two(uuid)


def test_a_restart_of_libvirtd_ends_nothing_and_one_of_the_host_is_a_failure(rig: Rig) -> None:
    # With a disk: its lock is what tells that no process of before the restart is left.
    disk = {"name": "data", "pool": "shared", "size": "1Mi"}
    place: dict[str, Any] = {"placement": {"host": "h1"}, "disks": [disk]}
    strategies = {f"boot-{strategy.lower()}": strategy for strategy in STARTED_AGAIN}
    uuids = {name: rig.vm(name, runStrategy=strategy, **place) for name, strategy in strategies.items()}
    uuids["boot-finished"] = rig.vm("boot-finished", runStrategy="RerunOnFailure", **place)
    for name in uuids:
        host = rig.running(name)
    host.kill_qemu(uuids["boot-finished"], signal.SIGTERM)
    rig.says("boot-finished", "Finished")
    pids = {name: host.qemu_pid(uuid) for name, uuid in uuids.items()}

    host.kill_libvirtd()
    rig.says("boot-always", "HostUnreachable")
    host.start_libvirtd()
    for name in strategies:
        rig.says(name, "Running")
    rig.says("boot-finished", "Finished")
    assert how_off(host, uuids["boot-finished"]) == "shut off (unknown)"
    rig.stays(lambda: {name: host.qemu_pid(uuid) for name, uuid in uuids.items()} == pids, "nothing to have ended", 3)

    host.reboot()
    for name, strategy in strategies.items():
        if STARTED_AGAIN[strategy]["unknown"]:
            another(rig, uuids[name], pids[name], name)
            assert rig.running(name) == host
    rig.says("boot-manual", "NotRequested")
    rig.says("boot-finished", "Finished")
    assert [host.qemu_pid(uuids[name]) for name in ("boot-manual", "boot-finished")] == [None, None]
    for uuid in uuids.values():
        rig.lab.assert_never_two(uuid)


# The spec of a running VM


def test_a_changed_spec_takes_effect_at_the_next_start_and_leaves_devices_where_they_were(rig: Rig) -> None:
    disk = {"name": "first", "pool": "shared", "size": "8Mi"}
    nic = {"name": "eth0", "network": "lan"}
    uuid = rig.vm("changing", disks=[disk], interfaces=[nic])
    host = rig.running("changing")
    pid, before = host.qemu_pid(uuid), devices(host, uuid)
    extra = {"name": "extra", "pool": "shared", "size": "8Mi"}
    rig.patch("vm", "changing", {"spec": {"memory": {"size": "96Mi"}, "disks": [extra, disk]}})
    rig.kubectl("wait", "--for=condition=RestartRequired", "vm/changing", "--timeout=30s")
    found = rig.get("vm", "changing")
    assert found is not None
    assert sorted(found["status"]["pendingChanges"]) == [
        "disk extra: not there, wanted",
        "memory: 64 MiB running, 96 MiB wanted",
    ]
    assert rig.condition("vm", "changing", "Synchronized")["status"] == "False"
    assert rig.condition("vm", "changing", "Ready")["status"] == "True"
    rig.stays(lambda: host.qemu_pid(uuid) == pid and option(host, uuid, "-m") == "64", "nothing to change", 2)
    assert [name.split("_")[2] for name in host.volumes("shared") if name.startswith("default_changing_")] == ["first"]
    rig.request("changing", "now")
    rig.kubectl("wait", "--for=condition=RestartRequired=False", "vm/changing", "--timeout=30s")
    assert rig.running("changing") == host
    assert option(host, uuid, "-m") == "96"
    after = devices(host, uuid)
    assert {alias: after[alias] for alias in before} == before
    assert after.keys() - before.keys() == {"ua-disk-extra"}
    assert boot_order(host, uuid) == ["ua-disk-extra", "ua-disk-first"]
    rig.patch("vm", "changing", {"spec": {"disks": [disk, extra]}})
    rig.kubectl("wait", "--for=condition=RestartRequired", "vm/changing", "--timeout=30s")
    assert rig.status("vm", "changing")["pendingChanges"] == [
        "boot order: extra then first running, first then extra wanted"
    ]
    rig.request("changing", "again")
    rig.kubectl("wait", "--for=condition=RestartRequired=False", "vm/changing", "--timeout=30s")
    assert rig.running("changing") == host
    assert boot_order(host, uuid) == ["ua-disk-first", "ua-disk-extra"]
    assert devices(host, uuid) == after
    assert "pendingChanges" not in (rig.get("vm", "changing") or {})["status"]
    rig.lab.assert_never_two(uuid)


def devices(host: Host, uuid: str) -> dict[str, tuple[str, str]]:
    """Alias -> (MAC address or serial, PCI address) of the disks and interfaces in a definition."""
    definition = host.definition(uuid)
    assert definition is not None
    found = {}
    for kind in ("disk", "interface"):
        for device in definition.iterfind(f"devices/{kind}"):
            alias, mac, address = device.find("alias"), device.find("mac"), device.find("address")
            assert alias is not None
            assert address is not None
            identity = mac.get("address", "") if mac is not None else device.findtext("serial", "")
            found[alias.get("name", "")] = (identity, " ".join(f"{k}={v}" for k, v in sorted(address.items())))
    return found


def boot_order(host: Host, uuid: str) -> list[str]:
    """The aliases of the disks in the order in which the process boots from them."""
    found = re.findall(
        r'"id":"(ua-disk-[^"]*)","bootindex":(\d+)', Path(f"/proc/{host.qemu_pid(uuid)}/cmdline").read_text()
    )
    return [alias for alias, _ in sorted(found, key=lambda each: int(each[1]))]


def test_kubectl_wait_works_for_ready_and_running_and_is_right_about_the_generation(rig: Rig) -> None:
    uuid = rig.vm("waited")
    for condition in ("Ready", "Running"):
        rig.kubectl("wait", f"--for=condition={condition}", "vm/waited", "--timeout=30s")
    assert rig.host_of(uuid)
    for strategy, running in (("Halted", "False"), ("Always", "True")):
        rig.patch("vm", "waited", {"spec": {"runStrategy": strategy}})
        rig.kubectl("wait", "--for=condition=Ready", "vm/waited", "--timeout=30s")
        rig.kubectl("wait", f"--for=condition=Running={running}", "vm/waited", "--timeout=30s")
        assert (rig.host_of(uuid) is not None) == (running == "True")
    found = rig.get("vm", "waited")
    assert found is not None
    generations = {each["observedGeneration"] for each in found["status"]["conditions"]}
    assert generations | {found["status"]["observedGeneration"]} == {found["metadata"]["generation"]}
    rig.lab.assert_never_two(uuid)


# Starts that fail


def test_a_start_that_fails_is_tried_again_ever_more_rarely_in_libvirts_words_and_recovers(rig: Rig) -> None:
    disk = rig.lab.hosts[0].pool_path("shared") / "garbage_.qcow2"
    disk.write_bytes(b"no qcow2 at all".ljust(1 << 16, b"\0"))
    source = {"type": "Volume", "volume": {"name": disk.name, "format": "qcow2"}}
    uuid = rig.vm("failing", disks=[{"name": "root", "pool": "shared", "source": source}])
    message = rig.says("failing", "StartFailed")
    assert "Image is not in qcow2 format" in message
    rig.until(lambda: failures(rig, "failing") == 2, "a second try")
    assert "more and more rarely" in message
    disk.unlink()
    run("qemu-img", "create", "-q", "-f", "qcow2", disk, "1M")
    rig.running("failing")
    assert rig.condition("vm", "failing", "Ready")["status"] == "True"
    ended = [life for life in rig.lab.intervals(uuid) if life.end is not None]
    assert len(ended) == 2
    assert ended[1].start - ended[0].start < 10
    rig.lab.assert_never_two(uuid)


def failures(rig: Rig, name: str) -> int:
    found = rig.get("vm", name) or {}
    return int(found["status"].get("startFailures", {}).get("count", 0))
