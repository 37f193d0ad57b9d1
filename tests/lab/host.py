# SPDX-License-Identifier: Apache-2.0
"""One libvirt host of a lab: what is seen in it, and the faults that can be done to it.

A host is a network, PID, mount and UTS namespace in which virtlogd and libvirtd run. Faults act on its processes, files
and cable, and return when they are done. What a host reports comes from its files and processes, never from its
libvirt: it is there for judging what libvirt and the operator say.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from tests.files import below
from tests.lab.processes import LabError, Process, end, in_namespace, inner_pid, run

NAMESPACE = uuid.UUID("6c61622e-686f-4d65-8f73-746174000000")
STREAMS = "49152:49215"  # where a QEMU listens for a migration
POOLS = {"default": "images", "shared": "shared", "images": "base", "tiny": "tiny"}
LIBRARY = "/var/lib/libvirt"
EMULATOR = "/usr/bin/qemu-system-x86_64"
FILLER = "filler"


class Domain(NamedTuple):
    """A domain as a host's files and processes show it."""

    uuid: str
    name: str
    defined: bool  # there is a persistent definition
    recorded: bool  # libvirt's record of a running process is there
    pid: int | None  # of its QEMU


@dataclass(frozen=True)
class Host:
    """A host of the lab with the state directory `lab`. `network` is the number of the lab's subnet."""

    lab: Path
    network: int
    number: int
    stock: bool

    @property
    def name(self) -> str:
        """Its host name."""
        return f"{self.lab.name}-h{self.number}"

    @property
    def address(self) -> str:
        """Its IP address, reachable from this machine and from the lab's other hosts."""
        return f"198.51.100.{self.network * 32 + 10 + self.number}"

    @property
    def link(self) -> str:
        """Name of its network namespace, and of this machine's end of its cable."""
        return f"hs{self.network}-{self.number}"

    @property
    def host_uuid(self) -> str:
        """The UUID that its libvirt reports."""
        return str(uuid.uuid5(NAMESPACE, self.name))

    @property
    def uri_tcp(self) -> str:
        """URI without encryption or authentication."""
        return f"qemu+tcp://{self.address}/system"

    @property
    def uri_tls(self) -> str:
        """URI that needs a client certificate of the lab's authority."""
        return f"qemu+tls://{self.address}/system"

    @property
    def uri_tls_peer(self) -> str:
        """URI for the libvirt of another host of the lab, which has a certificate of its own at this path."""
        return f"{self.uri_tls}?pkipath=/etc/libvirt/pki/peer"

    # Its files

    @property
    def directory(self) -> Path:
        """Where its files are on this machine."""
        return self.lab / f"h{self.number}"

    @property
    def boot_script(self) -> Path:
        """What its first process executes."""
        return self.directory / "boot.sh"

    @property
    def mounts(self) -> dict[str, Path]:
        """Path in the host -> path on this machine that is seen there, in the order of mounting."""
        return {
            "/etc/hosts": self.lab / "hosts",
            "/etc/libvirt": self.directory / "etc",
            LIBRARY: self.directory / "lib",
            f"{LIBRARY}/shared": self.lab / "shared",
            f"{LIBRARY}/base": self.lab / "images",
            f"{LIBRARY}/recorder": self.lab / "recorder",
            f"{LIBRARY}/usr": Path("/usr"),  # the real emulator stays reachable, with its data beside it
            EMULATOR: self.lab / "emulator",
            "/var/cache": self.directory / "cache",
            "/var/log": self.directory / "log",
            "/run": self.directory / "run",
        }

    def outside(self, path: str) -> Path:
        """The path on this machine of a file of the host."""
        init = self._process(1)
        if init:
            return Path(f"/proc/{init.pid}/root{path}")
        for inside, source in reversed(self.mounts.items()):
            if path == inside or path.startswith(f"{inside}/"):
                return source / path[len(inside) + 1 :]
        return Path(path)

    def pool_path(self, pool: str) -> Path:
        """The folder of a pool, as a path on this machine."""
        return self.outside(f"{LIBRARY}/{POOLS[pool]}")

    # Its processes

    def processes(self) -> list[Process]:
        """All of them, its process 1 first."""
        return sorted(in_namespace(Path("/run/netns") / self.link), key=lambda process: inner_pid(process) != 1)

    def execute(self, *command: str) -> str:
        """Run a command in the host and return its output. LabError when it fails or the host is off."""
        init = self._process(1)
        if init is None:
            raise LabError(f"{self.name} is powered off")
        return run("nsenter", "-t", str(init.pid), "-m", "-u", "-n", "-p", "--", *command)

    def daemon(self, name: str) -> Process | None:
        """Its process `libvirtd` or `virtlogd`."""
        try:
            return self._process(int((self.directory / "run" / f"{name}.pid").read_text()))
        except (FileNotFoundError, ValueError):
            return None

    def _process(self, inner: int) -> Process | None:
        """The process that the host itself knows as `inner`."""
        return next((process for process in self.processes() if inner_pid(process) == inner), None)

    @property
    def powered(self) -> bool:
        """Whether it is on."""
        return self._process(1) is not None

    def _running(self, name: str) -> Process:
        process = self.daemon(name)
        if process is None:
            raise LabError(f"{self.name} has no {name} running")
        return process

    def _qemus(self) -> list[tuple[Process, list[str]]]:
        """Its QEMU processes that have a guest, with their command lines."""
        found = [(process, _command_line(process)) for process in self.processes()]
        return [(process, words) for process, words in found if "-uuid" in words]

    def _qemu(self, domain: str) -> Process:
        for process, words in self._qemus():
            if _after(words, "-uuid") == domain:
                return process
        raise LabError(f"{self.name} runs no QEMU of {domain}")

    # Power, libvirtd, cable

    def power_on(self) -> None:
        """Boot it, unless it is on; returns when libvirt answers."""
        if self.powered:
            return
        run_directory = self.directory / "run"
        shutil.rmtree(run_directory)  # as a real one, it starts empty
        run_directory.mkdir()
        self.join()
        log = self.directory / "boot.log"
        unshare = "unshare --mount --uts --pid --fork --kill-child"
        command = f"ip netns exec {self.link} {unshare} bash {self.boot_script}"
        run("sh", "-c", f"setsid -f {command} </dev/null >{log} 2>&1")
        self._until((run_directory / "booted").exists, "boot", log)
        self.execute("virtlogd", "-d")
        self.start_libvirtd()

    def heal(self) -> None:
        """Undo every fault: on, joined, virtlogd and libvirtd running and answering, with the good certificate."""
        self.install_certificate("good")
        self.power_on()
        self.join()
        self.unfilter()
        self.limit_memory(0)
        for name in ("virtlogd", "libvirtd"):
            process = self.daemon(name)
            if process:
                process.signal(signal.SIGCONT)
            else:
                self.execute(name, "-d", *["--listen"] * (name == "libvirtd"))
        self._until(self.answers, "libvirtd", self.directory / "log/libvirt/libvirtd.log")

    def power_off(self) -> None:
        """Pull its plug: every process ends at once, nothing answers at its address, /run is lost."""
        self.cut()
        end(self.processes())

    def reboot(self) -> None:
        """Pull its plug and boot it again."""
        self.power_off()
        self.power_on()

    def kill_libvirtd(self) -> None:
        """End libvirtd with SIGKILL; QEMU processes stay."""
        end([self._running("libvirtd")])

    def start_libvirtd(self) -> None:
        """Start libvirtd; returns when it answers."""
        self.execute("libvirtd", "-d", "--listen")
        self._until(self.answers, "libvirtd", self.directory / "log/libvirt/libvirtd.log")

    def freeze_libvirtd(self) -> None:
        """Stop libvirtd with SIGSTOP: TCP connections are accepted and never answered."""
        self._running("libvirtd").signal(signal.SIGSTOP)

    def thaw_libvirtd(self) -> None:
        """Let a stopped libvirtd go on."""
        self._running("libvirtd").signal(signal.SIGCONT)

    def restart_virtlogd(self) -> None:
        """End virtlogd with SIGKILL and start it anew: it forgets which log files are being written."""
        end([self._running("virtlogd")])
        self.execute("virtlogd", "-d")

    def cut(self) -> None:
        """Pull its network cable."""
        run("ip", "link", "set", self.link, "down")

    def join(self) -> None:
        """Plug its network cable in again."""
        run("ip", "link", "set", self.link, "up")

    def mute(self, peer: Host) -> None:
        """Lose what its libvirtd answers a peer's: requests of the peer arrive and are carried out."""
        # Bare acknowledgments (52 bytes, up to 72 of what came twice) pass, or the peer's TCP would hold back what it
        # sends after the first loss. The shortest answer, to a keep-alive, has 80; new connections are not answered.
        for answers in (("-m", "length", "--length", "73:65535"), ("--tcp-flags", "SYN", "SYN")):
            self._filter("-A", "OUTPUT", "--sport", "16509", "-d", peer.address, *answers, "-j", "DROP")

    def shun(self) -> None:
        """Lose what its libvirtd says to this machine, and so to an operator; the other hosts hear it."""
        self._filter("-A", "OUTPUT", "--sport", "16509", "-d", f"198.51.100.{self.network * 32 + 1}", "-j", "DROP")

    def refuse(self, peer: Host) -> None:
        """Lose what a peer's libvirtd says to its own, but not that the peer is gone."""
        said = ("--dport", "16509", "-s", peer.address, "!", "--tcp-flags", "RST", "RST")
        self._filter("-A", "INPUT", *said, "-j", "DROP")

    def part(self, peer: Host) -> None:
        """Reset the streams of migrations to and from a peer, and new ones; their libvirts still talk."""
        for port in ("--sport", "--dport"):
            # Resets pass, or one side would never hear of the other's end.
            stream = (port, STREAMS, "-s", peer.address, "!", "--tcp-flags", "RST", "RST")
            self._filter("-A", "INPUT", *stream, "-j", "REJECT", "--reject-with", "tcp-reset")

    def swallow(self, peer: Host) -> None:
        """Lose what a peer sends to migrations that come in here: a connection to them takes as long as TCP tries."""
        self._filter("-A", "INPUT", "--dport", STREAMS, "-s", peer.address, "-j", "DROP")

    def unfilter(self) -> None:
        """Undo `mute`, `shun`, `refuse`, `part` and `swallow`."""
        for chain in ("OUTPUT", "INPUT"):
            run("ip", "netns", "exec", self.link, "iptables", "-w", "-F", chain)

    def _filter(self, do: str, chain: str, *rule: str) -> None:
        run("ip", "netns", "exec", self.link, "iptables", "-w", do, chain, "-p", "tcp", *rule)

    def install_certificate(self, kind: str) -> None:
        """Make its `good` or its `expired` server certificate the one its libvirtd reads at its next start."""
        shutil.copytree(self.lab / "pki" / f"h{self.number}-{kind}", self.directory / "etc/pki", dirs_exist_ok=True)

    def use_certificate(self, kind: str) -> None:
        """Change to its `good` or its `expired` server certificate; libvirtd is started anew."""
        self.install_certificate(kind)
        self.kill_libvirtd()
        self.start_libvirtd()

    def answers(self) -> bool:
        """Whether its libvirt answers within a few seconds."""
        try:
            socket.create_connection((self.address, 16509), timeout=2).close()
        except OSError:
            return False
        return bool(run("timeout", "5", "virsh", "-q", "-c", self.uri_tcp, "uri", check=False))

    def _until(self, done: Callable[[], bool], what: str, log: Path) -> None:
        deadline = time.monotonic() + 90
        while not done():
            if time.monotonic() > deadline:
                words = log.read_text()[-2000:] if log.exists() else ""
                raise LabError(f"{self.name}: no {what} after 90 s: {words}")
            time.sleep(0.02)

    def remove(self) -> None:
        """End all its processes and remove its namespaces and links; its files are its lab's to remove."""
        end(self.processes())
        run("ip", "netns", "delete", self.link, check=False)
        run("ip", "link", "delete", self.link, check=False)

    # QEMU

    def qemu_pid(self, domain: str) -> int | None:
        """The pid, on this machine, of the QEMU process of a domain UUID."""
        pids = [process.pid for process, words in self._qemus() if _after(words, "-uuid") == domain]
        return pids[0] if pids else None

    def kill_qemu(self, domain: str, number: int = signal.SIGKILL) -> int:
        """End a QEMU by a signal; returns its pid once it is gone."""
        process = self._qemu(domain)
        process.signal(number)
        if not process.wait(60):
            raise LabError(f"QEMU {process.pid} of {domain} did not end within 60 s of signal {number}")
        return process.pid

    def freeze_qemu(self, domain: str) -> None:
        """Stop a QEMU with SIGSTOP: its monitor never answers."""
        self._qemu(domain).signal(signal.SIGSTOP)

    def thaw_qemu(self, domain: str) -> None:
        """Let a stopped QEMU go on."""
        self._qemu(domain).signal(signal.SIGCONT)

    def lose_record(self, domain: str) -> None:
        """Restart libvirtd without its record of a running domain: it then takes it for off while its QEMU runs."""
        name = _after(_command_line(self._qemu(domain)), "-name").removeprefix("guest=").partition(",")[0]
        self.kill_libvirtd()
        (self.directory / "run/libvirt/qemu" / f"{name}.xml").unlink()
        self.start_libvirtd()

    def forget(self, domain: str) -> None:
        """Remove a domain, whatever it is in the middle of; a libvirtd that does not let go of it is started anew."""
        with suppress(LabError):  # it may have none, or lose it while that is looked up
            self.kill_qemu(domain)
        name = next((each.name for each in self.domains() if each.uuid == domain), None)
        if name is None:
            return
        try:
            run("timeout", "10", "virsh", "-q", "-c", self.uri_tcp, "undefine", "--managed-save", domain)
        except LabError:
            if self.daemon("libvirtd"):
                self.kill_libvirtd()
            for folder in ("etc/qemu", "run/libvirt/qemu"):
                (self.directory / folder / f"{name}.xml").unlink(missing_ok=True)
            (self.directory / "lib/qemu/save" / f"{name}.save").unlink(missing_ok=True)
            self.start_libvirtd()

    def limit_memory(self, size: int) -> None:
        """Let the next QEMUs of guests have at most so many bytes of address space each, and none when it is 0."""
        file = self.directory / "run/lab-memory"
        if size:
            file.write_text(str(size))
            file.chmod(0o644)
        else:
            file.unlink(missing_ok=True)

    # What it holds

    def virsh(self, *arguments: str) -> str:
        """Output of virsh, connected from this machine. LabError with libvirt's words when it fails."""
        return run("timeout", "60", "virsh", "-q", "-c", self.uri_tcp, *arguments)

    def domains(self) -> list[Domain]:
        """All domains, defined or running, by UUID."""
        defined = {uuid: name for uuid, name, _ in self._xml("etc/qemu")}
        recorded = {uuid for uuid, _, _ in self._xml("run/libvirt/qemu")}
        live = {_after(words, "-uuid"): (process.pid, words) for process, words in self._qemus()}
        names = {
            uuid: _after(words, "-name").removeprefix("guest=").partition(",")[0] for uuid, (_, words) in live.items()
        }
        return [
            Domain(uuid, name, uuid in defined, uuid in recorded, live[uuid][0] if uuid in live else None)
            for uuid, name in sorted((names | defined).items())
        ]

    def _xml(self, folder: str) -> list[tuple[str, str, ElementTree.Element]]:
        """(UUID, name, element) of every domain that a file of the folder describes."""
        found = []
        for file in (self.directory / folder).glob("*.xml"):
            try:
                domain = next(ElementTree.parse(file).iter("domain"), None)
            except (FileNotFoundError, ElementTree.ParseError):  # going away, or a record that libvirt is writing
                continue
            if domain is not None:
                found.append((domain.findtext("uuid", ""), domain.findtext("name", ""), domain))
        return found

    def definition(self, domain: str) -> ElementTree.Element | None:
        """The persistent definition of a domain UUID, as it is on disk."""
        return next((element for uuid, _, element in self._xml("etc/qemu") if uuid == domain), None)

    def console(self, domain: str) -> str:
        """What the guest of a defined domain wrote to the file its serial console is logged to."""
        definition = self.definition(domain)
        if definition is None:
            raise LabError(f"{self.name} has no definition of {domain}")
        for port in definition.iterfind("devices/serial"):
            path = _attribute(port, "log", "file") or _attribute(port, "source", "path")
            if path and self.outside(path).exists():
                return self.outside(path).read_text(errors="replace")
        return ""

    def writes(self, domain: str) -> bool:
        """Whether a guest that restless.S describes has begun: the first page that it writes to was zero before."""
        shown = self.virsh("qemu-monitor-command", domain, "--hmp", "xp /1xw 0x1000000")
        return shown.split()[-1] != "0x00000000"

    def volumes(self, pool: str) -> dict[str, int]:
        """File name -> size in bytes of everything in a pool's folder."""
        found = below(self.pool_path(pool))
        return {file.name: each.st_size for file, each in found.items() if stat.S_ISREG(each.st_mode)}

    def disk_full(self, pool: str = "tiny") -> None:
        """Fill a pool's storage to the last byte. LabError unless the pool has storage of its own."""
        folder = self.pool_path(pool)
        if folder.stat().st_dev == self.lab.stat().st_dev:
            raise LabError(f"pool {pool} is on this machine's own disk: only pool tiny can be filled")
        with (folder / FILLER).open("wb", buffering=0) as file:
            for size in (1 << 16, 1):
                _fill(file.fileno(), b"\0" * size)

    def disk_freed(self, pool: str = "tiny") -> None:
        """Undo `disk_full`."""
        (self.pool_path(pool) / FILLER).unlink()


def _fill(file: int, chunk: bytes) -> None:
    try:
        while os.write(file, chunk):
            pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def _command_line(process: Process) -> list[str]:
    try:
        return Path(f"/proc/{process.pid}/cmdline").read_text(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _after(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


def _attribute(port: ElementTree.Element, child: str, name: str) -> str | None:
    element = port.find(child)
    return None if element is None else element.get(name)
