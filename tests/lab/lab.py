# SPDX-License-Identifier: Apache-2.0
"""A lab: several libvirt hosts on this machine, under a name, in a subnet of their own."""

from __future__ import annotations

import contextlib
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
from dataclasses import asdict, dataclass, fields
from ipaddress import IPv4Network, ip_network
from pathlib import Path

from tests.lab import guest, pki, recorder
from tests.lab.build import build
from tests.lab.host import Host
from tests.lab.intervals import Life, lives, overlap
from tests.lab.processes import LabError, Process, end, run

STATE = Path("/var/lib/homeostat/lab")
NETWORK, MOST_HOSTS = IPv4Network("198.51.100.0/24"), 16
MARKER = "homeostat-storage"
SOURCE = Path(__file__).parent


@dataclass
class Record:
    """What is written down about a lab before anything of it is made, so that `down` finds all of it."""

    network: int
    hosts: int
    stock: int
    ready: bool = False


class Lab:
    """The lab of that name, as it is on this machine."""

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9-]{0,15}", name):
            raise LabError(f"name {name!r}: at most 16 lower-case letters, digits and '-', a letter first")
        self.name, self.directory = name, STATE / name
        self._record = self._read()

    @classmethod
    def up(cls, name: str, hosts: int = 2, stock: int | None = None) -> Lab:
        """Start a lab; one that is up is returned as it is, remains of one are removed first.

        `stock` is the number of the host that keeps Debian's qemu.conf, 0 for all of them; without it, the last.
        """
        stock = hosts if stock is None else stock
        if not 1 <= hosts <= MOST_HOSTS or not 0 <= stock <= hosts:
            what = f"1 to {MOST_HOSTS} hosts, and the stock one is one of them, or 0 for all"
            raise LabError(f"hosts {hosts}, stock {stock}: {what}")
        if os.geteuid():
            raise LabError("the lab makes namespaces and links: run it as root")
        with _locked():
            lab = cls(name)
            if not lab.is_up:
                lab._remove()
                lab._record = Record(_free_network(), hosts, stock)
                lab._build()
        return lab

    def down(self) -> None:
        """Remove every trace of it, whatever there is of it."""
        with _locked():
            self._record = self._read()
            self._remove()
            with contextlib.suppress(OSError):  # not empty: other labs
                STATE.rmdir()
                STATE.parent.rmdir()

    @property
    def exists(self) -> bool:
        """Whether there is anything of it on this machine."""
        return self._record is not None

    @property
    def is_up(self) -> bool:
        """Whether it was started completely and its network and recorder are still there."""
        if self._record is None or not self._record.ready or not Path("/sys/class/net", self.bridge).exists():
            return False
        return self.recorder is not None

    @property
    def record(self) -> Record:
        """What is written down about it. LabError when there is no such lab."""
        if self._record is None:
            raise LabError(f"there is no lab {self.name}: `python -m tests.lab up --name {self.name}`")
        return self._record

    @property
    def hosts(self) -> list[Host]:
        """Its hosts, the first one first."""
        numbers = range(1, self.record.hosts + 1)
        stock = self.record.stock
        return [Host(self.directory, self.record.network, number, stock in (0, number)) for number in numbers]

    @property
    def bridge(self) -> str:
        """Name of the bridge that joins its hosts."""
        return f"hs{self.record.network}br"

    @property
    def subnet(self) -> IPv4Network:
        """Its subnet. This machine has the first address in it."""
        return _subnets()[self.record.network]

    @property
    def pki(self) -> Path:
        """Folders client, client-expired and client-wrong-ca: cacert.pem, clientcert.pem, clientkey.pem each."""
        return self.directory / "pki"

    def intervals(self, uuid: str) -> list[Life]:
        """The QEMU processes a domain UUID has had on all hosts: everything that happened before the call."""
        folder = self.directory / "recorder"
        try:
            recorder.sync(folder)
        except OSError as error:
            said = (folder / "log").read_text()
            raise LabError(f"the recorder of lab {self.name} is gone, so its record proves nothing: {said}") from error
        with (folder / recorder.LOG).open() as lines:
            return lives(lines, uuid)

    def assert_never_two(self, uuid: str) -> None:
        """AssertionError when CPUs of two QEMU processes of a domain ever ran at once, or none was ever started."""
        found = self.intervals(uuid)
        if not found:
            raise AssertionError(f"no QEMU of {uuid} was ever started in lab {self.name}")
        sentence = overlap(found)
        if sentence:
            raise AssertionError(f"domain {uuid}: {sentence}")

    def _build(self) -> None:
        self.directory.mkdir(parents=True)
        self._write()
        # Nothing meant for a host of a lab may leave this machine while its link is down.
        run("ip", "route", "replace", "blackhole", str(self.subnet), "metric", "4242")
        run("ip", "link", "add", self.bridge, "type", "bridge")
        run("ip", "address", "add", f"{self.subnet[1]}/{self.subnet.prefixlen}", "dev", self.bridge)
        run("ip", "link", "set", self.bridge, "up")
        self._files()
        self._certificates()
        self._start_recorder()
        for host in self.hosts:
            build(host)
        with ThreadPoolExecutor() as threads:
            list(threads.map(Host.power_on, self.hosts))
        self.record.ready = True
        self._write()

    def _remove(self) -> None:
        if self._record:
            for host in self.hosts:
                host.remove()
            if self.recorder:
                end([self.recorder])
            run("ip", "link", "delete", self.bridge, check=False)
            run("ip", "route", "delete", "blackhole", str(self.subnet), "metric", "4242", check=False)
        if self.directory.exists():
            shutil.rmtree(self.directory)
        self._record = None

    def _files(self) -> None:
        for name in ("shared", "images", "recorder"):
            (self.directory / name).mkdir()
        (self.directory / "shared" / MARKER).write_text(f"{self.name}-shared\n")
        for file in guest.files().iterdir():
            shutil.copy2(file, self.directory / "images")
        lines = [f"{host.address} {host.name}" for host in self.hosts]
        (self.directory / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        run("gcc", "-O2", "-Wall", "-o", self.directory / "emulator", SOURCE / "emulator.c")
        self._restless()

    def _restless(self) -> None:
        """The disk `restless.raw` of a guest that never stops writing to its memory."""
        image = self.directory / "images" / "restless.raw"
        run("gcc", "-c", "-m32", "-o", image.with_suffix(".o"), SOURCE / "restless.S")
        run("ld", "-m", "elf_i386", "-Ttext=0x7c00", "--oformat=binary", "-o", image, image.with_suffix(".o"))
        image.with_suffix(".o").unlink()
        os.truncate(image, 1 << 20)
        image.chmod(0o644)

    def _certificates(self) -> None:
        ca, wrong = self.pki / "ca", self.pki / "wrong-ca"
        pki.authority(ca, f"lab {self.name}")
        pki.authority(wrong, f"not lab {self.name}")
        pki.client(ca, self.pki / "client", "operator")
        pki.client(ca, self.pki / "client-expired", "operator", expired=True)
        pki.client(wrong, self.pki / "client-wrong-ca", "operator")
        for host in self.hosts:
            pki.server(ca, self.pki / f"h{host.number}-good", host.name, host.address)
            pki.server(ca, self.pki / f"h{host.number}-expired", host.name, host.address, expired=True)
            pki.client(ca, self.pki / f"h{host.number}-peer", host.name)

    def _start_recorder(self) -> None:
        folder, program = self.directory / "recorder", SOURCE / "recorder.py"
        log = folder / "log"
        run("sh", "-c", f"setsid -f {sys.executable} -I {program} {folder} </dev/null >{log} 2>&1")
        deadline = time.monotonic() + 60
        while not self.recorder:
            if time.monotonic() > deadline:
                raise LabError(f"the recorder did not start: {log.read_text()}")
            time.sleep(0.01)

    @property
    def recorder(self) -> Process | None:
        """The process that records the lives of its QEMU processes: whoever listens at its socket."""
        try:
            with recorder.connect(self.directory / "recorder") as connection:
                return Process.of(recorder.peer_pid(connection))
        except (OSError, ProcessLookupError):
            return None

    def _read(self) -> Record | None:
        try:
            written = json.loads((self.directory / "lab.json").read_text())
        except FileNotFoundError:
            return None
        return Record(**{field.name: written[field.name] for field in fields(Record) if field.name in written})

    def _write(self) -> None:
        draft = self.directory / "lab.json.new"
        draft.write_text(json.dumps(asdict(self.record)))
        draft.replace(self.directory / "lab.json")


def labs() -> list[Lab]:
    """All labs on this machine, half-finished ones included."""
    return [lab for path in sorted(STATE.glob("*/lab.json")) if (lab := Lab(path.parent.name)).exists]


def _subnets() -> list[IPv4Network]:
    return list(NETWORK.subnets(new_prefix=27))


def _free_network() -> int:
    """Number of a /27 that no lab and no route of this machine has."""
    routes = [route["dst"] for route in json.loads(run("ip", "-json", "route"))]
    routed = [ip_network(destination) for destination in routes if destination != "default"]
    taken = {lab.record.network for lab in labs()}
    for number, subnet in enumerate(_subnets()):
        if number not in taken and not any(subnet.overlaps(other) for other in routed):
            return number
    raise LabError(f"every /27 of {NETWORK} is in use: see `python -m tests.lab status` and `ip route`")


@contextmanager
def _locked() -> Iterator[None]:
    """One up or down at a time on this machine. The lock is on a directory that is always there, to leave no file."""
    directory = os.open("/var/lib", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)
