# SPDX-License-Identifier: Apache-2.0
"""The recorder sees every QEMU from its start to its end, and two at once are found."""

from __future__ import annotations

import json
import time
import uuid

import pytest

from tests.lab import Host, Lab, LabError
from tests.lab.bare import boot, define, eventually, state
from tests.lab.processes import end

pytestmark = pytest.mark.lab


@pytest.fixture(params=[0, 1], ids=["plain", "stock"])
def host(lab: Lab, request: pytest.FixtureRequest) -> Host:
    return lab.hosts[int(request.param)]


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
    domain = boot(host, "homeostat.poweroff=5")
    eventually(lambda: host.qemu_pid(domain) is None, "off by itself")
    eventually(lambda: state(host, domain) == "shut off (shutdown)", "seen by libvirt")
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


def test_a_live_migration_runs_one_after_the_other(lab: Lab) -> None:
    one, two = lab.hosts
    domain = boot(one)
    moved = ("migrate", "--live", "--p2p", "--persistent", "--undefinesource", "--unsafe", domain)
    one.virsh(*moved, two.uri_tcp)
    two.virsh(*moved, one.uri_tcp)
    lab.assert_never_two(domain)
    lives = lab.intervals(domain)
    assert [(life.host, len(life.running)) for life in lives] == [(one.name, 1), (two.name, 1), (one.name, 1)]
    assert lives[0].end is not None
    assert lives[0].end > lives[1].start  # two processes, yet never two that run
    one.virsh("destroy", domain)


def test_never_two_of_a_domain_that_never_ran_proves_nothing_and_says_so(lab: Lab) -> None:
    with pytest.raises(AssertionError, match="was ever started"):
        lab.assert_never_two(str(uuid.uuid4()))


def test_probes_of_the_emulator_are_not_recorded(lab: Lab) -> None:
    host, domain = lab.hosts[0], str(uuid.uuid4())
    define(host, known=domain)
    host.virsh("start", domain)
    host.virsh("destroy", domain)
    cached = list((host.directory / "cache/libvirt/qemu/capabilities").glob("*.xml"))
    assert cached, "libvirt has probed no emulator"
    events = [json.loads(line) for line in (lab.directory / "recorder/qemu.jsonl").read_text().splitlines()]
    assert domain in {event["uuid"] for event in events}
    assert all(uuid.UUID(event["uuid"]).version for event in events)


def test_without_its_recorder_a_lab_proves_nothing_and_starts_nothing() -> None:
    lab = Lab.up("selftest-mute", hosts=1)
    try:
        assert lab.recorder
        end([lab.recorder])
        domain = define(lab.hosts[0])
        with pytest.raises(LabError, match="lab recorder"):
            lab.hosts[0].virsh("start", domain)
        with pytest.raises(LabError, match="proves nothing"):
            lab.assert_never_two(domain)
        assert not lab.is_up
    finally:
        lab.down()
