# SPDX-License-Identifier: Apache-2.0
"""What is measured on: a control plane, libvirt hosts and the operator, with the shipped settings.

Two hosts, as they may differ; the third is like the first, and only migrations use it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.bench.qemus import Qemus
from tests.bench.watch import Watch
from tests.controlplane import ControlPlane
from tests.lab.lab import Lab
from tests.lab.rig import ROOT, Object, hypervisor
from tests.operator_process import NAMESPACE, OperatorProcess

POOL = "default"
LOGICAL_POOL = "local"
MEMORY, DISK = "64Mi", "64Mi"


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


class Profiled(OperatorProcess):
    """The operator under a profiler, which writes what it has measured when the operator ends on a signal."""

    def __init__(self, directory: Path, kubeconfig: Path, profile: Path) -> None:
        super().__init__(directory, kubeconfig)
        _python, _m, _homeostat, *words = self._command
        # So slowed down it may not be answered about its lease in time; there is no other operator here.
        self._command = [sys.executable, "-m", "tests.bench.profiled", str(profile), *words, "--lease-seconds=0"]


class Bed:
    """Everything there is to measure on; gone after the context."""

    def __init__(self, profile: Path | None) -> None:
        self.name = f"bench-{os.getpid()}"
        self.directory = Path("/var/lib/homeostat") / self.name
        self.plane = ControlPlane(self.name)
        self._profile = profile

    def __enter__(self) -> Self:
        self.down()
        say("starting a control plane and hosts")
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self.plane.up()
            self.lab = Lab.up(self.name, hosts=3, stock=2)
            self.hosts = self.lab.hosts[:2]
            self.qemus = Qemus(self.lab)
            self.operator = self._operator()
            self._declare()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            print(self.operator.process.last_words(20), file=sys.stderr)
        self.down()

    def down(self) -> None:
        """Remove every trace."""
        OperatorProcess(self.directory, self.plane.kubeconfig).kill()
        Lab(self.name).down()
        self.plane.down()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _operator(self) -> OperatorProcess:
        if self._profile is None:
            return OperatorProcess(self.directory, self.plane.kubeconfig)
        return Profiled(self.directory, self.plane.kubeconfig, self._profile)

    def _declare(self) -> None:
        self.plane.kubectl("apply", "-f", str(ROOT / "crds"))
        self.plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", str(ROOT / "crds"))
        self.apply([{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}])
        many = {"cpuPercent": 2000}
        self.apply(
            [hypervisor(f"h{n}", host.uri_tcp, overcommit=many) for n, host in enumerate(self.hosts, 1)]
        )  # fmt: skip

    def apply(self, objects: list[Object]) -> None:
        """`kubectl apply` of one file with all of them."""
        file = self.directory / "objects.yaml"
        file.write_text(yaml.dump_all(objects, Dumper=yaml.CSafeDumper))
        self.plane.kubectl("apply", "-f", str(file))

    # The operator

    def start_operator(self) -> None:
        """Start it and wait until it uses both hosts."""
        self.operator.start()
        self.until_ready("h1", "h2")

    def until_ready(self, *names: str) -> None:
        """Wait until Hypervisors are Ready."""
        for name in names:
            self.plane.kubectl("wait", f"hv/{name}", "--for=condition=Ready", "--timeout=60s")

    def stop_operator(self) -> None:
        """End it as a person would."""
        self.operator.terminate()

    # VMs

    def uuids(self) -> dict[str, str]:
        """Domain UUID by name of all VMs."""
        listed = json.loads(self.plane.kubectl("get", "vm", "-n", "default", "-o", "json"))
        return {item["metadata"]["name"]: item["metadata"]["uid"] for item in listed["items"]}

    def run(self, objects: list[Object], seconds: float = 300) -> None:
        """Create VMs and wait until all are Running."""
        names = {item["metadata"]["name"] for item in objects}
        with Watch(self.plane, "virtualmachines") as watch:
            self.apply(objects)
            watch.until(
                lambda changes: names <= {change.name for change in changes if change.state == "Running"},
                f"{len(names)} VMs to run",
                seconds,
            )

    def remove_vms(self) -> None:
        """Delete all VMs and wait until nothing is left of them."""
        self.plane.kubectl("delete", "vm", "--all", "-n", "default", "--timeout=300s")
        left = [domain.name for host in self.lab.hosts for domain in host.domains()]
        if left:
            raise RuntimeError(f"still there after their deletion: {', '.join(left)}")


def vm(name: str, **spec: Any) -> Object:
    """A VM of 64 MiB with a blank disk, nothing to boot, and no grace period."""
    disk = {"name": "data", "pool": LOGICAL_POOL, "size": DISK, "deletionPolicy": "Delete"}
    return {
        "apiVersion": "homeostat.dev/v1alpha1",
        "kind": "VirtualMachine",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {"memory": {"size": MEMORY}, "disks": [disk], "terminationGracePeriodSeconds": 0} | spec,
    }
