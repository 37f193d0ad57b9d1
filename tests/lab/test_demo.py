# SPDX-License-Identifier: Apache-2.0
"""The demo, and the make targets that give its pieces alone, as somebody at a terminal would use them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controlplane import ControlPlane
from tests.files import below
from tests.lab.lab import Lab
from tests.lab.processes import run
from tests.lab.rig import ROOT, Rig
from tests.lab.test_lab_self import network_of, traces

DEMO, PIECE = f"demo-{os.getpid()}", f"piece-{os.getpid()}"
STATE = Path("/var/lib/homeostat")
STEPS = (
    "==> A control plane",
    "==> Two libvirt hosts",
    "==> The operator",
    "==> kubectl apply -f manifests/samples/",
    "==> kubectl get vm,hv",
    "==> The last lines of its console",
    "GUEST-UP",
    "==> Moving it to the other host while it runs",
    "It runs on as process",
    "==> Killing its QEMU process",
    "It is back as process",
    "==> All of it stays up",
    "export KUBECONFIG=",
)


def printed(*command: str) -> str:
    """What a command prints, both ways; AssertionError with it when it fails."""
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=400)
    assert done.returncode == 0, done.stdout
    return done.stdout


def demo(verb: str) -> str:
    return printed(sys.executable, "-m", "tests.demo", verb, "--name", DEMO)


def make(target: str, *variables: str) -> str:
    """Run a target of the Makefile, with the environment that there is."""
    return printed("make", "--old-file=venv", f"PYTHON={sys.executable}", target, f"NAME={PIECE}", *variables)


def left_of(name: str, network: int | None) -> list[str]:
    """What there is on this machine of a demo, a lab or a control plane of this name."""
    processes = [line for line in run("ps", "-ww", "-eo", "pid,args").splitlines() if name in line]
    files = [str(path) for path in below(STATE) if path.name.startswith(name)]
    return [*processes, *files, *traces(name, network)]


@pytest.fixture
def network() -> Iterator[list[int | None]]:
    """A place for the number of the subnet; whatever a drill leaves is removed after it."""
    yield []
    for name in (DEMO, PIECE):
        Lab(name).down()
        ControlPlane(name).down()


def process(lab: Lab) -> int | None:
    """The QEMU process of the demo's VM."""
    pids = [domain.pid for host in lab.hosts for domain in host.domains() if domain.name == "default_first"]
    return pids[0] if len(pids) == 1 else None


def test_the_demo_works_twice_beside_other_work_and_leaves_no_trace(rig: Rig, network: list[int | None]) -> None:
    uuid = rig.vm("bystander")
    host = rig.running("bystander")
    pid = host.qemu_pid(uuid)
    seen: list[int] = []
    try:
        for _ in range(2):
            said = demo("up")
            places = [said.find(step) for step in STEPS]
            assert places == sorted(places), said
            assert places[0] >= 0, said
            lab = Lab(DEMO)
            seen += [int(number) for number in re.findall(r"process (\d+)", said)]
            assert process(lab) == seen[-1]
            assert f"export KUBECONFIG={ControlPlane(DEMO).kubeconfig}" in said
        network.append(network_of(DEMO))
        moved, killed, back = zip(seen[:3], seen[3:], strict=True)
        assert moved == killed
        (vm,) = {domain.uuid for each in lab.hosts for domain in each.domains()}
        assert [life.pid for life in lab.intervals(vm)][1:] == [moved[0], back[0], moved[1], back[1]]
        lab.assert_never_two(vm)
        assert host.qemu_pid(uuid) == pid
        host.kill_qemu(uuid)
        rig.until(lambda: host.qemu_pid(uuid) not in (None, pid), "the bystander to be healed while the demo is up")
        pid = host.qemu_pid(uuid)
        assert process(lab) == seen[-1]
    finally:
        demo("down")
    assert left_of(DEMO, network[0]) == []
    assert host.qemu_pid(uuid) == pid


def test_hosts_and_a_control_plane_can_be_had_alone(network: list[int | None]) -> None:
    make("lab-up", "HOSTS=3")
    lab = Lab(PIECE)
    network.append(network_of(PIECE))
    assert [host.answers() for host in lab.hosts] == [True] * 3
    said = make("control-plane-up")
    kubeconfig = re.findall(r"^export KUBECONFIG=(.+)$", said, re.MULTILINE)
    plane = ControlPlane(PIECE)
    assert kubeconfig == [str(plane.kubeconfig)]
    assert "kube-system" in plane.kubectl("get", "namespaces")
    make("lab-down")
    assert traces(PIECE, network[0]) == []
    assert "kube-system" in plane.kubectl("get", "namespaces")
    make("control-plane-down")
    assert left_of(PIECE, network[0]) == []
