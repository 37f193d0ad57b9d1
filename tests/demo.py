# SPDX-License-Identifier: Apache-2.0
"""The demo: a VM is declared, runs, is moved, is killed behind the operator's back, and comes back. All stays up."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.controlplane import ControlPlane
from tests.controlplane.instance import ControlPlaneError
from tests.lab import Lab
from tests.lab.processes import LabError
from tests.operator_process import NAMESPACE, OperatorProcess

STATE = Path("/var/lib/homeostat")
ROOT = Path(__file__).parent.parent


def main() -> None:
    """`python -m tests.demo up|down`."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("verb", choices=("up", "down"))
    parser.add_argument("--name", default="demo", help="of its control plane and its hosts (default: demo)")
    chosen = parser.parse_args()
    try:
        (up if chosen.verb == "up" else down)(chosen.name)
    except (LabError, ControlPlaneError, TimeoutError) as error:
        sys.exit(f"demo: {error}")


def step(text: str) -> None:
    """Print what is done next."""
    print(f"\n==> {text}", flush=True)


def up(name: str) -> None:
    """Start what is not up yet, then show it."""
    step("A control plane: etcd, kube-apiserver, kube-controller-manager")
    plane = ControlPlane(name)
    plane.up()
    step("Two libvirt hosts, in network namespaces of this machine")
    lab = Lab.up(name, hosts=2, stock=0)
    for host in lab.hosts:
        print(f"    {host.name}: {host.uri_tcp}")
    step("The operator: kubectl apply -f crds/, then `homeostat run`")
    plane.kubectl("apply", "-f", ROOT / "crds")
    plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", ROOT / "crds")
    _namespace(plane, NAMESPACE)
    operator = OperatorProcess(STATE / name, plane.kubeconfig)
    operator.start()
    step("kubectl apply -f manifests/samples/ (with these two hosts' addresses)")
    print(_indented(plane.kubectl("apply", "-f", "-", stdin=samples(lab))))
    _await(plane, operator, "the VM to be Running", lambda: _running(lab, plane))
    _show(plane)
    _console(lab, plane)
    moved = _move(lab, plane, operator)
    _kill(lab, plane, operator, moved)
    step("All of it stays up. Go on exploring with:")
    print(f"    export KUBECONFIG={plane.kubeconfig}")
    print(f"    export PATH=$PATH:{plane.binaries['kubectl'].parent}    # kubectl")
    print("    kubectl get vm,hv        kubectl describe vm first        kubectl explain vm.spec")
    print(f"    The operator's log: {operator.process.log}")
    print("    make demo-down removes every trace.\n")


def _move(lab: Lab, plane: ControlPlane, operator: OperatorProcess) -> int:
    """Have it moved; the pid of its QEMU then."""
    manifest = ROOT / "manifests/samples/migration/first-away.yaml"
    plane.kubectl("delete", "vmmig", "first-away", "-n", "default", "--ignore-not-found")  # of a demo before this one
    source = _vm(plane)["status"]["host"]
    step("Moving it to the other host while it runs: kubectl apply -f manifests/samples/migration/")
    print(_indented(plane.kubectl("apply", "-f", manifest)))
    began = time.monotonic()
    pid = _await(plane, operator, "it to be moved", lambda: _moved(lab, plane, source))
    print(f"    It runs on as process {pid} on {_vm(plane)['status']['host']} after {time.monotonic() - began:.1f} s.")
    print(_indented(plane.kubectl("get", "vm,vmmig", "-n", "default")))
    return pid


def _kill(lab: Lab, plane: ControlPlane, operator: OperatorProcess, pid: int) -> None:
    """End its QEMU, and see it boot again."""
    step(f"Killing its QEMU process {pid} on the host, behind the operator's back")
    boots = _boots(lab, plane)
    _host(lab, plane).kill_qemu(_uuid(plane))
    began = time.monotonic()
    # Looked at once: the status may still say Running of the process that was killed, and say Starting a moment later.
    back = _await(plane, operator, "it to come back", lambda: _another(_running(lab, plane), pid))
    print(f"    It is back as process {back} after {time.monotonic() - began:.1f} s.")
    _show(plane)
    _await(plane, operator, "its guest to boot", lambda: back if _boots(lab, plane) > boots else None)


def _moved(lab: Lab, plane: ControlPlane, source: str) -> int | None:
    """The pid of the VM's QEMU once it is another host's and the migration is over; LabError when that failed."""
    migration = json.loads(plane.kubectl("get", "vmmig", "first-away", "-n", "default", "-o", "json"))
    says = {each["type"]: each for each in migration.get("status", {}).get("conditions", [])}
    if says.get("Succeeded", {}).get("status") == "False":
        raise LabError(says["Succeeded"]["message"])
    over = says.get("Succeeded", {}).get("status") == "True" and _vm(plane)["status"]["host"] != source
    return _running(lab, plane) if over else None


def down(name: str) -> None:
    """Remove every trace."""
    step("Ending the operator, the hosts and the control plane of the demo")
    OperatorProcess(STATE / name, Path("/nonexistent")).kill()
    Lab(name).down()
    ControlPlane(name).down()
    for file in (STATE / name).glob("*"):
        file.unlink()
    (STATE / name).rmdir()
    print("    Nothing is left of it.")


def samples(lab: Lab) -> str:
    """The sample manifests with the URIs of a lab's hosts."""
    text = "---\n".join(file.read_text() for file in sorted((ROOT / "manifests/samples").glob("*.yaml")))
    for number, host in enumerate(lab.hosts, 1):
        text = text.replace(f"qemu+tcp://host-{number}.example/system", host.uri_tcp)
    return text


def _namespace(plane: ControlPlane, name: str) -> None:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(body))


def _vm(plane: ControlPlane) -> dict[str, Any]:
    return dict(json.loads(plane.kubectl("get", "vm", "first", "-n", "default", "-o", "json")))


def _uuid(plane: ControlPlane) -> str:
    return str(_vm(plane)["metadata"]["uid"])


def _host(lab: Lab, plane: ControlPlane) -> Any:
    name = _vm(plane)["status"]["host"]
    return lab.hosts[int(name.removeprefix("host-")) - 1]


def _running(lab: Lab, plane: ControlPlane) -> int | None:
    """The pid of the VM's QEMU, once its status says Running."""
    vm = _vm(plane)
    if vm.get("status", {}).get("state") != "Running":
        return None
    pid: int | None = _host(lab, plane).qemu_pid(vm["metadata"]["uid"])
    return pid


def _another(pid: int | None, first: int) -> int | None:
    return pid if pid != first else None


def _await(
    plane: ControlPlane, operator: OperatorProcess, what: str, found: Callable[[], int | None], seconds: float = 120
) -> int:
    """The first pid that is found."""
    began, said = time.monotonic(), 0.0
    while (pid := found()) is None:
        waited = time.monotonic() - began
        if operator.process.pid is None:
            raise LabError(f"the operator ended: {operator.process.last_words()}")
        if waited > seconds:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}\n{plane.kubectl('describe', 'vm', 'first')}")
        if waited - said >= 3:
            said = waited
            print(
                f"    waiting for {what}: {waited:.0f} s, {_vm(plane).get('status', {}).get('reason', 'not seen yet')}",
                flush=True,
            )
        time.sleep(0.2)
    return pid


def _show(plane: ControlPlane) -> None:
    step("kubectl get vm,hv")
    print(_indented(plane.kubectl("get", "vm,hv", "-n", "default")))


def _console(lab: Lab, plane: ControlPlane, seconds: float = 60) -> None:
    step("The last lines of its console, from the file that its host keeps")
    deadline = time.monotonic() + seconds
    while "GUEST-UP" not in (text := _host(lab, plane).console(_uuid(plane))):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the guest did not come up within {seconds:.0f} s; its console says: {text[-500:]}")
        time.sleep(0.2)
    lines = text.replace("\r", "").splitlines()
    up = max(number for number, line in enumerate(lines) if "GUEST-UP" in line)
    print(_indented("\n".join(lines[max(0, up - 3) : up + 1])))


def _boots(lab: Lab, plane: ControlPlane) -> int:
    return str(_host(lab, plane).console(_uuid(plane))).count("GUEST-UP")


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines())


if __name__ == "__main__":
    main()
