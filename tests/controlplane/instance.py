# SPDX-License-Identifier: Apache-2.0
"""One control plane: up, down, and the faults that tests put it through from outside."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from tests.controlplane.binaries import OLDEST, WAYS, Binaries, BinariesError, Cache, minor, obtain
from tests.controlplane.certificates import client_certificate, issue, write_kubeconfig
from tests.controlplane.locks import locked
from tests.controlplane.output import say
from tests.controlplane.ports import allocate
from tests.controlplane.processes import Process

ROOT = Path("/var/lib/homeostat/controlplane")
START_SECONDS = 120.0
CONTROLLERS = (
    "namespace-controller",
    "garbage-collector-controller",
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
)


class ControlPlaneError(Exception):
    """The control plane cannot do what was asked; the message says which part and shows its last words."""


def _kubectl(program: Path, kubeconfig: Path, arguments: tuple[str | Path, ...], stdin: str | None) -> str:
    command = [str(program), f"--kubeconfig={kubeconfig}", *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if done.returncode != 0:
        raise ControlPlaneError(f"kubectl {' '.join(command[2:])}: {done.stderr.strip()}")
    return done.stdout


def _forced_way() -> str | None:
    way = os.environ.get("CONTROL_PLANE")
    return way if way in WAYS else None


class ControlPlane:
    """A control plane of our own, known by its name; any number of them live side by side.

    All state is in `root`/`name`, so an object made by another process for the same name is the same control plane.
    """

    def __init__(self, name: str, *, root: Path | None = None, way: str | None = None) -> None:
        self.name = name
        self.directory = (root or Path(os.environ.get("HOMEOSTAT_CONTROL_PLANES", ROOT))) / name
        self.way = way or _forced_way()
        self._binaries: Binaries | None = None

    @property
    def kubeconfig(self) -> Path:
        """The kubeconfig of its administrator."""
        return self.directory / "admin.kubeconfig"

    @property
    def etcd(self) -> Process:
        """The store."""
        return Process("etcd", self.directory)

    @property
    def apiserver(self) -> Process:
        """The API server."""
        return Process("kube-apiserver", self.directory)

    @property
    def manager(self) -> Process:
        """The controllers of namespaces, garbage and service accounts."""
        return Process("kube-controller-manager", self.directory)

    @property
    def processes(self) -> tuple[Process, ...]:
        """All of it, in the order in which it starts."""
        return self.etcd, self.apiserver, self.manager

    @property
    def ports(self) -> Mapping[str, int]:
        """Port by role: "apiserver", "etcd", "etcd-peer"."""
        return allocate(self.directory, ("apiserver", "etcd", "etcd-peer"))

    @property
    def server(self) -> str:
        """The address of the API server."""
        return f"https://127.0.0.1:{self.ports['apiserver']}"

    @property
    def binaries(self) -> Binaries:
        """The programs it runs, the same over its whole life."""
        record = self.directory / "binaries.json"
        if self._binaries is None and record.exists():
            self._binaries = {name: Path(path) for name, path in json.loads(record.read_text()).items()}
        if self._binaries is None or not all(map(Path.exists, self._binaries.values())):
            self._binaries = obtain(self.way)
        return self._binaries

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    def up(self) -> None:
        """Start what of it is not running and wait until it serves. Raises ControlPlaneError or BinariesError."""
        binaries = self.binaries
        with locked(self.directory):
            if self.is_healthy():
                say(f"{self.name} is already up at {self.server}")
                return
            began = time.monotonic()
            self._prepare(binaries)
            self.start_etcd()
            self.start_apiserver()
            self.start_manager()
            say(f"{self.name} is up at {self.server} after {time.monotonic() - began:.1f} s")

    def down(self) -> None:
        """End it and remove every trace of it; harmless when there is none."""
        if not self.directory.exists():
            return
        with locked(self.directory):
            for process in reversed(self.processes):
                process.kill()
            shutil.rmtree(self.directory)
        for parent in (self.directory.parent, self.directory.parent.parent):
            if parent.name in ("controlplane", "homeostat"):
                with suppress(OSError):  # it holds another, or another removed it
                    parent.rmdir()

    def is_healthy(self) -> bool:
        """Return whether every process lives and the API server says it is ready."""
        return all(process.pid for process in self.processes) and self._is_ready()

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Return what kubectl prints as the administrator. Raises ControlPlaneError with its complaint."""
        return _kubectl(self.binaries["kubectl"], self.kubeconfig, arguments, stdin)

    def service_account_kubeconfig(self, namespace: str, name: str, *, seconds: int = 86400) -> Path:
        """Return a kubeconfig with a fresh token of an existing service account."""
        token = self.kubectl("create", "token", name, f"--namespace={namespace}", f"--duration={seconds}s").strip()
        path = self.directory / f"{namespace}.{name}.kubeconfig"
        write_kubeconfig(path, self.server, self.directory / "ca.crt", {"token": token})
        return path

    def kill_apiserver(self) -> None:
        """SIGKILL the API server; etcd and the controllers stay."""
        self.apiserver.kill()

    def start_apiserver(self) -> None:
        """Start the API server, if it is down, and wait until it is ready."""
        self.apiserver.start(self._apiserver_command())
        self._await(self.apiserver, self._is_ready)

    def start_etcd(self) -> None:
        """Start etcd, if it is down, and wait until it is healthy."""
        self.etcd.start(self._etcd_command())
        self._await(self.etcd, lambda: self._answers(f"{self._etcd_url}/health"))

    def start_manager(self) -> None:
        """Start the controllers, if they are down, and wait until their work shows."""
        if self.manager.pid is None:  # what those before them have left would show that they work
            self.kubectl("delete", "configmap/kube-root-ca.crt", "--namespace=default", "--ignore-not-found")
        self.manager.start(self._manager_command())
        self._await(self.manager, self._has_service_account)

    def compact(self) -> int:
        """Drop all of etcd's history but the present, and return the revision of that: older watches get 410 Gone."""
        revision = int(self._etcd_call("kv/range", {"key": "AA=="})["header"]["revision"])
        self._etcd_call("kv/compaction", {"revision": str(revision), "physical": True})
        return revision

    def save(self, label: str) -> None:
        """Keep a copy of etcd's data under a label, for `roll_back`; the control plane goes on meanwhile."""
        copy = self.directory / "saved" / label
        shutil.rmtree(copy, ignore_errors=True)
        self.etcd.signal(signal.SIGSTOP)  # so that the files are of one moment: what a crash would have left
        try:
            shutil.copytree(self._data, copy)
        finally:
            self.etcd.signal(signal.SIGCONT)

    def roll_back(self, label: str) -> None:
        """Put etcd back to what was kept under a label, as a restored backup does: later writes are lost."""
        copy = self.directory / "saved" / label
        if not copy.exists():
            raise ControlPlaneError(f"{self.name} has nothing saved as {label!r}")
        for process in reversed(self.processes):
            process.kill()
        shutil.rmtree(self._data)
        shutil.copytree(copy, self._data)
        self.start_etcd()
        self.start_apiserver()
        self.start_manager()

    @property
    def _data(self) -> Path:
        return self.directory / "etcd"

    @property
    def _etcd_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['etcd']}"

    def _prepare(self, binaries: Binaries) -> None:
        issue(self.directory)
        record = {name: str(path) for name, path in binaries.items()}
        (self.directory / "binaries.json").write_text(json.dumps(record))
        for name in ("admin", "manager"):
            path = self.directory / f"{name}.kubeconfig"
            write_kubeconfig(path, self.server, self.directory / "ca.crt", client_certificate(self.directory, name))

    def _etcd_command(self) -> list[str]:
        peer = f"http://127.0.0.1:{self.ports['etcd-peer']}"
        options = {
            "data-dir": self._data,
            "listen-client-urls": self._etcd_url,
            "advertise-client-urls": self._etcd_url,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": f"default={peer}",
            "unsafe-no-fsync": "true",
            "log-level": "error",
        }
        return self._command("etcd", options)

    def _apiserver_command(self) -> list[str]:
        options = {
            "etcd-servers": self._etcd_url,
            "bind-address": "127.0.0.1",
            # Without it and its reconciler off, the server wants an address of the machine that others could reach.
            "advertise-address": "127.0.0.1",
            "endpoint-reconciler-type": "none",
            "secure-port": self.ports["apiserver"],
            "client-ca-file": self.directory / "ca.crt",
            "tls-cert-file": self.directory / "server.crt",
            "tls-private-key-file": self.directory / "server.key",
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": self.directory / "sa.key",
            "service-account-signing-key-file": self.directory / "sa.key",
            "authorization-mode": "RBAC",
            "service-cluster-ip-range": "10.0.0.0/24",
        }
        return self._command("kube-apiserver", options)

    def _manager_command(self) -> list[str]:
        options = {
            "kubeconfig": self.directory / "manager.kubeconfig",
            "leader-elect": "false",
            "secure-port": 0,  # its default is one port for all instances
            "service-account-private-key-file": self.directory / "sa.key",
            "root-ca-file": self.directory / "ca.crt",
            "controllers": ",".join(CONTROLLERS),
        }
        return self._command("kube-controller-manager", options)

    def _command(self, name: str, options: Mapping[str, object]) -> list[str]:
        return [str(self.binaries[name]), *(f"--{option}={value}" for option, value in options.items())]

    def _await(self, process: Process, is_done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not is_done():
            if process.pid is None or time.monotonic() > deadline:
                state = "died" if process.pid is None else f"did not become ready in {START_SECONDS:.0f} s"
                raise ControlPlaneError(f"{self.name}: {process.name} {state}\n{process.last_words()}")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        return self._answers(f"{self.server}/readyz")

    def _has_service_account(self) -> bool:
        try:
            self.kubectl("get", "serviceaccount/default", "configmap/kube-root-ca.crt", "--namespace=default")
        except ControlPlaneError:
            return False
        return True

    def _open(self, request: str | Request) -> bytes:
        trust = ssl.create_default_context(cafile=self.directory / "ca.crt")
        direct = build_opener(ProxyHandler({}), HTTPSHandler(context=trust))
        with direct.open(request, timeout=10) as response:
            return bytes(response.read())

    def _answers(self, url: str) -> bool:
        try:
            self._open(url)
        except OSError:
            return False
        return True

    def _etcd_call(self, method: str, body: Mapping[str, object]) -> dict[str, Any]:
        request = Request(f"{self._etcd_url}/v3/{method}", json.dumps(body).encode())
        answer: dict[str, Any] = json.loads(self._open(request))
        return answer


class GivenControlPlane:
    """A cluster that somebody gave us a kubeconfig for: looked at, never started, stopped or removed."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def up(self) -> None:
        """Check that it answers and is new enough. Raises ControlPlaneError."""
        version = json.loads(self.kubectl("version", "--output=json"))["serverVersion"]["gitVersion"]
        if minor(version) < OLDEST:
            raise ControlPlaneError(f"{self.kubeconfig}: Kubernetes {version}, but 1.32 is the oldest that will do")
        say(f"given: {self.kubeconfig} answers with Kubernetes {version}")

    def down(self) -> None:
        """Leave it as it is."""
        say(f"given: {self.kubeconfig} is left as it is")

    def is_healthy(self) -> bool:
        """Return whether it says that it is ready."""
        try:
            self.kubectl("get", "--raw=/readyz")
        except ControlPlaneError:
            return False
        return True

    def kubectl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """Return what kubectl prints with the given kubeconfig. Raises ControlPlaneError with its complaint."""
        program = shutil.which("kubectl") or (Cache.default().get() or {}).get("kubectl")
        if program is None:
            raise ControlPlaneError("kubectl is neither on PATH nor in the cache")
        return _kubectl(Path(program), self.kubeconfig, arguments, stdin)


def control_plane(name: str, *, kubeconfig: str | None = None) -> ControlPlane | GivenControlPlane:
    """Return the control plane that the environment asks for.

    A kubeconfig, as argument or in KUBECONFIG_GIVEN, wins; CONTROL_PLANE=given|build|download forces a way.
    """
    way = os.environ.get("CONTROL_PLANE") or None
    given = kubeconfig or os.environ.get("KUBECONFIG_GIVEN")
    if way not in (None, "given", *WAYS):
        raise BinariesError(f"CONTROL_PLANE={way}: it is one of given, {', '.join(WAYS)}")
    if way == "given" and not given:
        raise BinariesError("CONTROL_PLANE=given, but neither --kubeconfig nor KUBECONFIG_GIVEN names one")
    if given and way in (None, "given"):
        return GivenControlPlane(Path(given))
    return ControlPlane(name)
