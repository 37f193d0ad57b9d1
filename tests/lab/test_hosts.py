# SPDX-License-Identifier: Apache-2.0
"""Hosts that are cut off, hang, lose power, come back; an operator that ends, crashes, shares its work."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.controlplane.ports import allocate
from tests.lab.host import Host
from tests.lab.rig import SHORT_OPTIONS, Rig

DISK = {"name": "data", "pool": "shared", "size": "8Mi"}
FAULTS = {"cut": Host.cut, "frozen": Host.freeze_libvirtd, "off": Host.power_off}


def unknown(rig: Rig, name: str) -> tuple[str, str, list[str]]:
    """(reason, since when, what the message says of the host): what is said of a VM whose host is silent."""
    status = rig.status("vm", name)
    return status["reason"], status["since"], re.findall(r"h1 is unknown since \S+Z", str(status["conditions"]))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_host_that_does_not_answer_makes_its_vms_unknown_and_delays_nobody_else(rig: Rig, fault: str) -> None:
    bad, good = rig.lab.hosts[0], rig.lab.hosts[1]
    there, elsewhere = rig.vm("there", placement={"host": "h1"}, disks=[DISK]), rig.vm("else", placement={"host": "h2"})
    rig.running("there")
    rig.running("else")
    pid = bad.qemu_pid(there)
    FAULTS[fault](bad)
    rig.until(lambda: rig.state("vm", "there") == "Unknown" and rig.state("hv", "h1") == "Unreachable", "silence")
    said = unknown(rig, "there")
    assert said[0] == "HostUnreachable"
    assert said[2]
    assert (
        rig.condition("vm", "there", "Ready")["status"]
        == rig.condition("vm", "there", "Running")["status"]
        == "Unknown"
    )

    rig.vm("late")
    killed = good.kill_qemu(elsewhere)
    rig.until(lambda: good.qemu_pid(elsewhere) not in (None, killed), "the VM on the good host to be healed", 30)
    assert rig.running("late").name != bad.name
    rig.delete("vm", "late")
    rig.gone("vm", "late")
    assert rig.operator.terminate() < 10
    before = len(rig.operator.log)
    rig.operator.start()
    rig.until(lambda: "h1 cannot be used" in rig.operator.log[before:], "h1 to be tried by the next operator")
    rig.stays(lambda: unknown(rig, "there") == said, "what was said of its VM to be left", 2)
    assert not [host.name for host in rig.lab.hosts[1:] for domain in host.domains() if domain.uuid == there]

    bad.heal()
    assert rig.running("there") == bad
    assert (bad.qemu_pid(there) == pid) == (fault != "off")
    rig.lab.assert_never_two(there)


def test_a_restarted_libvirtd_is_met_again_and_its_vms_run_on_and_are_kept_running(rig: Rig) -> None:
    host, uuid = rig.lab.hosts[0], rig.vm("web", placement={"host": "h1"})
    rig.running("web")
    pid = host.qemu_pid(uuid)
    host.kill_libvirtd()
    rig.until(lambda: rig.state("vm", "web") == "Unknown", "the loss of libvirtd to be seen")
    host.start_libvirtd()
    rig.running("web")
    assert host.qemu_pid(uuid) == pid
    host.kill_qemu(uuid)
    rig.until(lambda: host.qemu_pid(uuid), "a process again")
    rig.lab.assert_never_two(uuid)


def test_a_rebooted_host_gets_its_vms_back(rig: Rig) -> None:
    host = rig.lab.hosts[0]
    wanted, halted = (rig.vm(name, placement={"host": "h1"}, disks=[DISK]) for name in ("wanted", "halted"))
    for name in ("wanted", "halted"):
        rig.running(name)
    host.reboot()
    rig.patch("vm", "halted", {"spec": {"runStrategy": "Halted"}})
    assert rig.running("wanted") == host
    rig.until(lambda: rig.reason("vm", "halted") == "Halted", "the halted one to be off")
    assert len(rig.lab.intervals(wanted)) == 2
    assert not host.qemu_pid(halted)


def test_a_qemu_that_is_stopped_is_ended_as_libvirt_lets_it_and_delays_no_other_vm_of_its_host(rig: Rig) -> None:
    host = rig.lab.hosts[0]
    deleted, halted, other = (rig.vm(name, placement={"host": "h1"}) for name in ("deleted", "halted", "other"))
    for name in ("deleted", "halted", "other"):
        rig.running(name)
    for uuid in (deleted, halted):
        host.freeze_qemu(uuid)
    rig.delete("vm", "deleted")
    rig.patch("vm", "halted", {"spec": {"runStrategy": "Halted"}})
    killed = host.kill_qemu(other)
    rig.until(lambda: host.qemu_pid(other) not in (None, killed), "the other VM to be healed")
    rig.gone("vm", "deleted")
    ended = rig.lab.intervals(deleted)[0].end
    assert ended is not None
    assert rig.lab.intervals(other)[1].start < ended, "it did not wait for the frozen one"
    rig.until(lambda: rig.reason("vm", "halted") == "Halted", "the other frozen one to be off")
    assert {domain.uuid for domain in host.domains() if domain.pid} == {other}


def test_sigterm_ends_the_operator_in_the_middle_of_calls_that_do_not_return(rig: Rig) -> None:
    h1, h2 = rig.lab.hosts[0], rig.lab.hosts[1]
    stuck = rig.vm("stuck", placement={"host": "h1"})
    rig.running("stuck")
    rig.operator.terminate()
    shipped = rig.another("shipped", "--lease-seconds=0")
    try:
        shipped.start()
        rig.until(lambda: "connected to h2" in shipped.log and "connected to h1" in shipped.log, "the shipped settings")
        h1.freeze_qemu(stuck)
        rig.delete("vm", "stuck")
        rig.until(lambda: "Destroy on h1" in shipped.log, "a call that does not return")
        h2.freeze_libvirtd()
        rig.vm("new", placement={"host": "h2"})
        time.sleep(1)
        assert shipped.terminate() < 10
        assert "ending on a signal" in shipped.log
    finally:
        shipped.kill()
    h2.thaw_libvirtd()
    rig.operator.start()
    rig.running("new")
    rig.gone("vm", "stuck")
    assert not h1.domains()


def test_an_operator_that_was_killed_goes_on_where_the_world_is(rig: Rig) -> None:
    names = ("deleted", "edited", "broken")
    deleted, edited, broken = (rig.vm(name) for name in names)
    hosts = {name: rig.running(name) for name in names}
    rig.operator.kill()
    rig.delete("vm", "deleted")
    rig.patch("vm", "edited", {"spec": {"runStrategy": "Halted"}})
    hosts["broken"].kill_qemu(broken)
    rig.apply({"apiVersion": "homeostat.dev/v1alpha1", "kind": "VirtualMachine", "metadata": {"name": "new"},
               "spec": {"memory": {"size": "64Mi"}}})  # fmt: skip
    rig.operator.start()
    rig.gone("vm", "deleted")
    rig.until(lambda: rig.reason("vm", "edited") == "Halted" and not hosts["edited"].qemu_pid(edited), "edited is off")
    rig.until(lambda: hosts["broken"].qemu_pid(broken), "broken to be healed")
    rig.running("new")
    assert not any(domain.uuid == deleted for host in rig.lab.hosts for domain in host.domains())
    rig.lab.assert_never_two(broken)


class Replica:
    """An operator with a Lease and endpoints of its own."""

    def __init__(self, rig: Rig, name: str) -> None:
        (rig.directory / f"{name}-port").mkdir(exist_ok=True)
        self.port = allocate(rig.directory / f"{name}-port", ("endpoints",))["endpoints"]
        listen, lease, identity = f"--listen=127.0.0.1:{self.port}", "--lease-seconds=20", f"--identity={name}"
        self.process = rig.another(name, listen, lease, identity, *SHORT_OPTIONS)

    def answers(self, path: str) -> int:
        """HTTP status of an endpoint; 0 when nobody answers."""
        try:
            return int(self.open(path).status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def open(self, path: str) -> Any:
        """The response of an endpoint."""
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return direct.open(f"http://127.0.0.1:{self.port}{path}", timeout=20)


@contextmanager
def replicas(rig: Rig, *names: str) -> Iterator[list[Replica]]:
    made = [Replica(rig, name) for name in names]
    try:
        yield made
    finally:
        for replica in made:
            replica.process.kill()


def test_one_operator_works_at_a_time_and_health_says_which(rig: Rig) -> None:
    rig.operator.terminate()
    with replicas(rig, "first", "second") as (first, second):
        rig.plane.kill_apiserver()
        first.process.start()
        rig.until(lambda: first.answers("/healthz") == 200, "the endpoints")
        rig.stays(lambda: first.answers("/readyz") == 503, "not ready without a list", 1)
        rig.plane.start_apiserver()
        rig.until(lambda: first.answers("/readyz") == 200, "the first to be ready")
        assert b"workqueue_depth" in first.open("/metrics").read()
        second.process.start()
        rig.until(lambda: "which first holds" in second.process.log, "the second to wait")
        uuid = rig.vm("web")
        host = rig.running("web")
        assert (second.answers("/healthz"), second.answers("/readyz")) == (200, 503)
        assert "default/web" not in second.process.log

        assert first.process.terminate() < 10
        # Sooner than one that was not given back: that is waited for.
        rig.until(lambda: second.answers("/readyz") == 200, "the second to take over", 12)
        first.process.start()
        rig.until(lambda: "which second holds" in first.process.log, "the first to wait")
        second.process.kill()
        killed = host.kill_qemu(uuid)
        rig.until(lambda: first.answers("/readyz") == 200, "the first to take over after the lease time")
        rig.until(lambda: host.qemu_pid(uuid) not in (None, killed), "the VM to be healed")
    rig.lab.assert_never_two(uuid)
