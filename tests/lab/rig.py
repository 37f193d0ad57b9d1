# SPDX-License-Identifier: Apache-2.0
"""A control plane, a lab and the real operator between them: what drills use, as a person would with kubectl."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from homeostat.decide.wanted import CONSOLE_FOLDER
from tests.controlplane import ControlPlane
from tests.controlplane.instance import ControlPlaneError
from tests.lab.host import Host
from tests.lab.lab import Lab
from tests.operator_process import NAMESPACE, OperatorProcess

ROOT = Path(__file__).parent.parent.parent
SHORT = {
    "resync_seconds": 10,
    "host_resync_seconds": 2,
    "sweep_seconds": 20,
    "connect_timeout_seconds": 3,
    "reconnect_seconds": 1,
    "keepalive_interval_seconds": 1,
    "keepalive_count": 3,
    "secret_resync_seconds": 1,
    "migration_grace_seconds": 5,
    "migration_resume_seconds": 3,
    "migration_write_seconds": 1,
}
SHORT_OPTIONS = [f"--set={name}={value}" for name, value in SHORT.items()]
Object = dict[str, Any]


class Rig:
    """Everything a drill needs. Hosts are Hypervisors h1, h2, ... over plain TCP, in the order of the lab's hosts."""

    def __init__(self, plane: ControlPlane, lab: Lab, directory: Path) -> None:
        self.plane, self.lab, self.directory = plane, lab, directory
        self.operator = OperatorProcess(directory, plane.kubeconfig, "--lease-seconds=0", *SHORT_OPTIONS)

    def prepare(self) -> None:
        """CRDs, the operator's namespace, a Hypervisor for each host; the operator is started."""
        self.kubectl("apply", "-f", str(ROOT / "crds"))
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(ROOT / "crds"))
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        for number, host in enumerate(self.lab.hosts, 1):
            self.apply(hypervisor(f"h{number}", host.uri_tcp))
        self.operator.start()
        for number in range(1, len(self.lab.hosts) + 1):
            self.until(lambda n=number: self.state("hv", f"h{n}") == "Ready", f"h{number} to be Ready")  # type: ignore[misc]

    def another(self, name: str, *options: str, kubeconfig: Path | None = None) -> OperatorProcess:
        """An operator beside the rig's own, not started, with a log of its own and the shipped settings."""
        directory = self.directory / name
        shutil.rmtree(directory, ignore_errors=True)
        return OperatorProcess(directory, kubeconfig or self.plane.kubeconfig, *options)

    @contextmanager
    def operated(self, *options: str) -> Iterator[OperatorProcess]:
        """Another operator at work instead of the rig's own, with settings of its own."""
        own, other = self.operator, self.another("other", "--lease-seconds=0", *SHORT_OPTIONS, *options)
        own.kill()
        self.operator = other
        other.start()
        try:
            yield other
        finally:
            other.kill()
            self.operator = own
            own.start()

    def restore(self) -> None:
        """Bring back what a drill may have left.

        Hosts that answer, Hypervisors as declared at first, a running operator.
        """
        self._recover()
        for number in range(1, len(self.lab.hosts) + 1):
            self.until(lambda n=number: self.state("hv", f"h{n}") == "Ready", f"h{number} to be Ready")  # type: ignore[misc]

    def _recover(self) -> None:
        for host in self.lab.hosts:
            self._answering(host)
        wanted = [hypervisor(f"h{number}", host.uri_tcp) for number, host in enumerate(self.lab.hosts, 1)]
        self.apply(*wanted)
        found = {
            item["metadata"]["name"]: item for item in json.loads(self.kubectl("get", "hv", "-o", "json"))["items"]
        }
        for one in wanted:
            spec = found[one["metadata"]["name"]]["spec"]
            extra = spec.keys() - one["spec"].keys() - {"overcommit", "maintenance"}
            if extra or spec["maintenance"] != "Off":
                self.patch("hv", one["metadata"]["name"], {"spec": dict.fromkeys(extra | {"maintenance"})})
        self.operator.start()

    @staticmethod
    def _answering(host: Host) -> None:
        host.join()
        host.unfilter()
        host.limit_memory(0)
        if not host.processes():
            host.power_on()
        elif host.daemon("libvirtd") is None:
            host.start_libvirtd()
        else:
            host.thaw_libvirtd()

    def clean(self, seconds: float = 60) -> None:
        """Delete every VM and wait until no host has a domain of one; then forget volumes that were retained.

        What has not gone after so long is removed by force, for the drills that follow, and fails the one it is of.
        """
        try:
            self._delete(seconds)
        except Exception:
            self._force()
            raise
        finally:
            for host in self.lab.hosts:
                for domain in host.domains():  # of no VM: a drill made it, or a VM released it
                    host.forget(domain.uuid)
                for file in host.outside(CONSOLE_FOLDER).glob("*-console.log*"):
                    file.unlink(missing_ok=True)  # the next VM of the name would go on with it
                for pool in ("default", "shared", "tiny"):
                    for volume in [name for name in host.volumes(pool) if "_" in name]:
                        (host.pool_path(pool) / volume).unlink(missing_ok=True)

    def _delete(self, seconds: float) -> None:
        self._recover()
        self.kubectl("delete", "vmmig", "--all", "-A", "--wait=false")
        names = self._names("vm")
        for namespace, name in names:
            self._end(name, namespace)
        for namespace, name in names:
            self.gone("vm", name, namespace, seconds)
        for item in json.loads(self.kubectl("get", "hv", "-o", "json"))["items"]:
            if "deletionTimestamp" in item["metadata"]:
                self.gone("hv", item["metadata"]["name"])

    def _end(self, name: str, namespace: str) -> None:
        """Have a VM deleted at once. One that a drill has deleted may go at any moment."""
        try:
            own = {"metadata": {"annotations": {"homeostat.dev/reconcile": None}}}
            self.patch("vm", name, own | {"spec": {"terminationGracePeriodSeconds": 0}}, namespace)
            self._confirm_off(name, namespace)
            self.delete("vm", name, namespace)
        except ControlPlaneError:
            if self.get("vm", name, namespace) is not None:
                raise

    def _force(self) -> None:
        self.operator.kill()
        for kind in ("vmmig", "vm"):
            for namespace, name in self._names(kind):
                self.patch(kind, name, {"metadata": {"finalizers": None}}, namespace)
                self.kubectl("delete", kind, name, "-n", namespace, "--ignore-not-found")

    def _names(self, kind: str) -> list[list[str]]:
        columns = "custom-columns=N:.metadata.namespace,M:.metadata.name"
        return [line.split() for line in self.kubectl("get", kind, "-A", "--no-headers", "-o", columns).splitlines()]

    def _confirm_off(self, name: str, namespace: str) -> None:
        """Say of a VM whose record was lost, and that has no disk, that nothing of it runs: nobody else can."""
        status = self.status("vm", name, namespace)
        if status.get("reason") == "RecordLost" and self.host_of(self.uuid(name, namespace)) is None:
            since = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            host = status["candidates"][0]["hypervisor"]
            self.patch("vm", name, {"spec": {"confirmedOff": {"host": host, "since": since}}}, namespace)

    # kubectl

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Output of kubectl; raises with its words when it fails."""
        return self.plane.kubectl(*arguments, stdin=stdin)

    def apply(self, *objects: Object) -> None:
        """As kubectl apply does."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def patch(self, kind: str, name: str, patch: Object, namespace: str = "default") -> None:
        """As kubectl patch --type merge does."""
        self.kubectl("patch", kind, name, "-n", namespace, "--type", "merge", "-p", json.dumps(patch))

    def delete(self, kind: str, name: str, namespace: str = "default") -> None:
        """As kubectl delete --wait=false does."""
        self.kubectl("delete", kind, name, "-n", namespace, "--wait=false")

    def get(self, kind: str, name: str, namespace: str = "default") -> Object | None:
        """The object, None when there is none."""
        text = self.kubectl("get", kind, name, "-n", namespace, "--ignore-not-found", "-o", "json")
        return dict(json.loads(text)) if text.strip() else None

    def state(self, kind: str, name: str, namespace: str = "default") -> str | None:
        """The word in status.state."""
        return self.status(kind, name, namespace).get("state")

    def reason(self, kind: str, name: str, namespace: str = "default") -> str | None:
        """The word in status.reason."""
        return self.status(kind, name, namespace).get("reason")

    def condition(self, kind: str, name: str, type_: str, namespace: str = "default") -> Object:
        """One condition; an empty one when it is not there."""
        conditions = self.status(kind, name, namespace).get("conditions", [])
        return next((each for each in conditions if each["type"] == type_), {})

    def status(self, kind: str, name: str, namespace: str = "default") -> Object:
        """The whole status; an empty one when there is no such object."""
        return dict((self.get(kind, name, namespace) or {}).get("status", {}))

    def known(self, kind: str, name: str) -> None:
        """Wait until the operator has decided on the object as it is declared now."""

        def decided() -> bool:
            found = self.get(kind, name) or {}
            return bool(found["metadata"]["generation"] == found.get("status", {}).get("observedGeneration"))

        self.until(decided, f"{kind} {name} to be decided on as it is now")

    # VMs

    def vm(self, name: str, namespace: str = "default", **spec: Any) -> str:
        """Create a VM (64 MiB, nothing to boot, force-stopped at once unless `spec` says otherwise).

        Returns its UID.
        """
        self.declare(name, namespace, **spec)
        return self.uuid(name, namespace)

    def declare(self, name: str, namespace: str = "default", **spec: Any) -> None:
        """As `vm`, without looking whether it is there."""
        whole = {"memory": {"size": "64Mi"}, "terminationGracePeriodSeconds": 0} | spec
        self.apply(
            {
                "apiVersion": "homeostat.dev/v1alpha1",
                "kind": "VirtualMachine",
                "metadata": {"name": name, "namespace": namespace},
                "spec": whole,
            }
        )

    def request(self, name: str, request: str, **power: str) -> None:
        """Ask once for a start or a restart of a VM, as spec.power.request does."""
        self.patch("vm", name, {"spec": {"power": {"request": request} | power}})

    def says(self, name: str, reason: str, seconds: float = 60) -> str:
        """Wait until status.reason of a VM is this; returns the message that Ready had then."""
        status: Object = {}

        def said() -> bool:
            status.clear()
            status.update(self.status("vm", name))
            return status.get("reason") == reason

        self.until(said, f"VM {name} to say {reason}", seconds)
        ready = [each for each in status.get("conditions", []) if each["type"] == "Ready"]
        return str(ready[0].get("message", "")) if ready else ""

    def processes(self, uuid: str) -> int:
        """How many QEMU processes of this domain were ever started, on all hosts."""
        return len(self.lab.intervals(uuid))

    def uuid(self, name: str, namespace: str = "default") -> str:
        """UUID of a VM's domain."""
        found = self.get("vm", name, namespace)
        assert found is not None, f"there is no VM {name}"
        return str(found["spec"].get("domainUUID") or found["metadata"]["uid"])

    def running(self, name: str, namespace: str = "default", seconds: float = 60) -> Host:
        """Wait until a VM is reported Running and its process is there; returns its host."""
        uuid = self.uuid(name, namespace)
        self.until(
            lambda: self.state("vm", name, namespace) == "Running" and self.host_of(uuid), f"VM {name} to run", seconds
        )
        host = self.host_of(uuid)
        assert host is not None
        return host

    def host_of(self, uuid: str) -> Host | None:
        """The host that has a QEMU process of this domain."""
        return next((host for host in self.lab.hosts if host.qemu_pid(uuid)), None)

    def gone(self, kind: str, name: str, namespace: str = "default", seconds: float = 60) -> None:
        """Wait until an object is gone."""
        self.until(lambda: self.get(kind, name, namespace) is None, f"{kind} {name} to go", seconds)

    def until(self, done: Callable[[], Any], what: str, seconds: float = 60) -> None:
        """Wait for something of the world; AssertionError with the operator's last words when it does not come."""
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                state = self.kubectl("get", "vm,hv", "-A")
                raise AssertionError(
                    f"waited {seconds:.0f} s for {what}\n{state}\n{self.operator.process.last_words(30)}"
                )
            time.sleep(0.1)

    @staticmethod
    def unreadable(log: str) -> list[str]:
        """What of an operator's log is no line of its own, or a warning that is no sentence for a person."""
        lines = [line for line in log.splitlines() if line]
        own = re.compile(r"\d\d:\d\d:\d\d\.\d{3} (INFO|WARNING|ERROR) ")
        odd = re.compile(r"Traceback|0x[0-9a-f]{4}|[A-Za-z]+(Error|Exception)\b|\bNone\b|[{}]|\(\'")
        warnings = [line for line in lines if re.match(r"\S+ (WARNING|ERROR) ", line)]
        return [line for line in lines if not own.match(line)] + [line for line in warnings if odd.search(line)]

    def stays(self, holds: Callable[[], Any], what: str, seconds: float = 5) -> None:
        """Check again and again that something stays true; AssertionError when it does not."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert holds(), f"{what}\n{self.operator.process.last_words(30)}"
            time.sleep(0.2)


def hypervisor(name: str, uri: str, **spec: Any) -> Object:
    """A Hypervisor of the lab that lets every namespace use its pools default, shared, images, tiny and its bridge."""
    everyone = {"allowedNamespaces": ["*"]}
    pools = [
        {"name": "local", "pool": "default"} | everyone,
        {"name": "shared", "pool": "shared", "storageID": "lab-shared"} | everyone,
        {"name": "images", "pool": "images", "storageID": "lab-images"} | everyone,
        {"name": "tiny", "pool": "tiny"} | everyone,
    ]
    lan = {"name": "lan", "type": "Bridge", "bridge": {"name": "br0"}} | everyone
    whole = {
        "uri": uri,
        "acceleration": "Emulation",
        "reservedMemory": "256Mi",
        "pools": pools,
        "networks": [lan],
    } | spec
    return {"apiVersion": "homeostat.dev/v1alpha1", "kind": "Hypervisor", "metadata": {"name": name}, "spec": whole}


def linux(command_line: str = "", **spec: Any) -> Object:
    """The spec of a VM that boots the lab's Linux: 128 MiB, agent and ACPI, a console that says GUEST-UP."""
    kernel = {
        "pool": "images",
        "kernel": "vmlinuz",
        "initrd": "initrd",
        "commandLine": f"console=ttyS0 quiet {command_line}".strip(),
    }
    return {
        "memory": {"size": "128Mi"},
        "boot": {"type": "Kernel", "kernel": kernel},
        "terminationGracePeriodSeconds": 60,
    } | spec
