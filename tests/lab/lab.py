# SPDX-License-Identifier: Apache-2.0
"""A lab: several libvirt hosts on this machine, under a name, in a subnet of their own."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from ipaddress import IPv4Network, ip_network
from pathlib import Path

from tests.lab import guest, pki, recorder
from tests.lab.host import Host
from tests.lab.processes import LabError, Process, end, run

STATE = Path("/var/lib/homeostat/lab")
NETWORK, MOST_HOSTS = IPv4Network("198.51.100.0/24"), 16
SOURCE = Path(__file__).parent


@dataclass
class Record:
    """What is written down about a lab before anything of it is made, so that `down` finds it all."""

    network: int
    hosts: int
    stock: int
    ready: bool = False
    recorder: tuple[int, int] | None = None


class Lab:
    """The lab of that name, as it is on this machine."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,15}", name):
            raise LabError(f"name {name!r}: at most 16 lower-case letters, digits and '-', a letter first")
        self.name, self.directory = name, STATE / name
        self.record = self._read()

    @classmethod
    def up(cls, name: str, hosts: int = 2, stock: int | None = None) -> Lab:
        """Start a lab; one that is up is returned as it is, remains of one are removed first.

        `stock` is the number of the host that keeps Debian's qemu.conf; without it, the last.
        """
        if not 1 <= hosts <= MOST_HOSTS or not 1 <= (stock or hosts) <= hosts:
            raise LabError(f"hosts {hosts}, stock {stock}: 1 to {MOST_HOSTS} hosts, and the stock one is one of them")
        if os.geteuid():
            raise LabError("the lab makes namespaces and links: run it as root")
        lab = cls(name)
        if lab.is_up:
            return lab
        lab.down()
        with _locked():
            lab.directory.mkdir(parents=True)
            lab.record = Record(_free_network(), hosts, stock or hosts)
            lab._write()
        lab._build()
        return lab

    @property
    def is_up(self) -> bool:
        """Whether it was started completely and its network and recorder are still there."""
        if self.record is None or not self.record.ready or not Path("/sys/class/net", self.bridge).exists():
            return False
        return self._recorder() is not None

    @property
    def hosts(self) -> list[Host]:
        """Its hosts, the first one first."""
        record = self._record()
        numbers = range(1, record.hosts + 1)
        return [Host(self.directory, record.network, n, n == record.stock, self._emulator()) for n in numbers]

    @property
    def bridge(self) -> str:
        """Name of the bridge that joins its hosts."""
        return f"hs{self._record().network}br"

    @property
    def subnet(self) -> str:
        """Its subnet."""
        return f"198.51.100.{self._record().network * 32}/27"

    def down(self) -> None:
        """Remove every trace of it, whatever there is of it."""
        if self.record:
            self._unbuild()
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self.record = None

    def _build(self) -> None:
        # Nothing meant for a host of a lab may leave this machine while its link is down.
        run("ip", "route", "replace", "blackhole", self.subnet, "metric", "4242")
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "address", "add", f"198.51.100.{self._record().network * 32 + 1}/27", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        self._files()
        self._certificates()
        self._start_recorder()
        for host in self.hosts:
            host.build()
        with ThreadPoolExecutor() as threads:
            list(threads.map(Host.boot, self.hosts))
        self._record().ready = True
        self._write()

    def _unbuild(self) -> None:
        for host in self.hosts:
            host.remove()
        recorded = self._recorder()
        if recorded:
            end([recorded])
        run("ip", "link", "delete", self.bridge, check=False)
        run("ip", "route", "delete", "blackhole", self.subnet, "metric", "4242", check=False)

    def _files(self) -> None:
        for name in ("shared", "images", "recorder"):
            (self.directory / name).mkdir(mode=0o755)
        (self.directory / "shared/homeostat-storage").write_text(f"{self.name}-shared\n")
        for file in guest.files().iterdir():
            shutil.copy2(file, self.directory / "images")
        lines = [f"{host.address} {host.name}" for host in self.hosts]
        (self.directory / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))

    def _certificates(self) -> None:
        folder = self.directory / "pki"
        pki.authority(folder / "ca", f"lab {self.name}")
        pki.authority(folder / "wrong-ca", f"not lab {self.name}")
        pki.client(folder / "ca", folder / "client", "operator")
        pki.client(folder / "ca", folder / "client-expired", "operator", expired=True)
        pki.client(folder / "wrong-ca", folder / "client-wrong-ca", "operator")
        for host in self.hosts:
            for kind in ("good", "expired"):
                target = folder / f"h{host.number}-{kind}"
                pki.server(folder / "ca", target, host.name, host.address, expired=kind == "expired")

    def _emulator(self) -> Path:
        # Cached, not built per lab: libvirt keys what it knows of an emulator by the file's ctime.
        return guest.CACHE / "lab" / "emulator"

    def _start_recorder(self) -> None:
        emulator = self._emulator()
        emulator.parent.mkdir(parents=True, exist_ok=True)
        if not emulator.exists():
            run("gcc", "-O2", "-Wall", "-o", emulator, SOURCE / "emulator.c")
        folder = self.directory / "recorder"
        run("sh", "-c", f"cd {SOURCE.parent.parent} && setsid -f {sys.executable} -m tests.lab.recorder {folder} "
            f"</dev/null >{folder}/log 2>&1")
        deadline = time.monotonic() + 10
        while not (folder / recorder.SOCKET).exists():
            if time.monotonic() > deadline:
                raise LabError(f"the recorder did not start: {(folder / 'log').read_text()}")
            time.sleep(0.01)
        process = Process.of(recorder.sync(folder))
        self._record().recorder = (process.pid, process.start)
        self._write()

    def _recorder(self) -> Process | None:
        record = self._record()
        process = Process(*record.recorder) if record.recorder else None
        return process if process and process.alive else None

    def _record(self) -> Record:
        if self.record is None:
            raise LabError(f"lab {self.name} is not up")
        return self.record

    def _read(self) -> Record | None:
        try:
            return Record(**json.loads((self.directory / "lab.json").read_text()))
        except FileNotFoundError:
            return None

    def _write(self) -> None:
        draft = self.directory / "lab.json.new"
        draft.write_text(json.dumps(asdict(self._record())))
        draft.replace(self.directory / "lab.json")


def labs() -> list[Lab]:
    """All labs on this machine, half-finished ones included."""
    return [Lab(path.name) for path in sorted(STATE.glob("*")) if path.is_dir()]


def _free_network() -> int:
    taken = {lab.record.network for lab in labs() if lab.record}
    routed = [ip_network(route["dst"]) for route in json.loads(run("ip", "-json", "route")) if route["dst"] != "default"]
    for number, subnet in enumerate(NETWORK.subnets(new_prefix=27)):
        if number not in taken and not any(subnet.overlaps(other) for other in routed):
            return number
    raise LabError(f"every /27 of {NETWORK} is in use: see `python -m tests.lab status` and `ip route`")


@contextmanager
def _locked() -> Iterator[None]:
    STATE.mkdir(parents=True, exist_ok=True)
    with (STATE / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
