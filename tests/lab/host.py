# SPDX-License-Identifier: Apache-2.0
"""One libvirt host of a lab: a network namespace, a mount and UTS namespace, and what runs in them."""

from __future__ import annotations

import shutil
import socket
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.processes import LabError, Process, end, in_namespace, inner_pid, run

LIBVIRT = Path("/etc/libvirt")
EMULATOR = Path("/usr/bin/qemu-system-x86_64")
NAMESPACE = uuid.UUID("6c61622e-686f-4d65-8f73-746174000000")
POOLS = {"default": "images", "shared": "shared", "images": "base", "tiny": "tiny"}
TINY_MIB = 16

LIBVIRTD_CONF = """
listen_tcp = 1
auth_tcp = "none"
listen_tls = 1
ca_file = "/etc/libvirt/pki/cacert.pem"
cert_file = "/etc/libvirt/pki/servercert.pem"
key_file = "/etc/libvirt/pki/serverkey.pem"
host_uuid = "{uuid}"
"""

# What a hypervisor set up by hand often has: QEMU is root, nothing is relabeled, nothing is confined.
PLAIN_QEMU_CONF = """
user = "root"
group = "root"
security_driver = "none"
dynamic_ownership = 0
remember_owner = 0
namespaces = []
cgroup_controllers = []
stdio_handler = "logd"
migration_host = "{address}"
"""
STOCK_QEMU_CONF = """
migration_host = "{address}"
"""

POOL = """<pool type='dir'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <target><path>{path}</path></target>
</pool>
"""

# Process 1 of the host. bash, because it reaps the orphans that come to it: libvirt takes a process for alive until it
# is reaped, and waits. Not every machine's own process 1 is quick at that.
BOOT = """set -eu
{mounts}
mount -t tmpfs -o size={tiny}m,mode=0711 tiny /var/lib/libvirt/tiny
mount -t proc proc /proc
# A /dev without kvm: on every machine the guests are emulated, and nothing says otherwise.
mount -t tmpfs -o mode=0755 dev /mnt
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/net /mnt
mkdir /mnt/pts /mnt/shm
ln -s pts/ptmx /mnt/ptmx
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts /mnt/pts
mount -t tmpfs shm /mnt/shm
# Not just covered: libvirt moves every mount it finds listed below /dev into the mount namespace it gives a QEMU.
umount --recursive --lazy /dev
mount --move /mnt /dev
hostname {name}
mkdir -p /run/libvirt /run/lock /var/log/libvirt/qemu /var/cache/libvirt
touch /run/booted
while :; do sleep 86400 & wait $! || :; done
"""


@dataclass(frozen=True)
class Host:
    """A host of the lab in `lab` (its state directory). `network` is the number of the lab's subnet."""

    lab: Path
    network: int
    number: int
    stock: bool
    emulator: Path = field(repr=False, default=Path())

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
    def directory(self) -> Path:
        """Where its files are on this machine."""
        return self.lab / f"h{self.number}"

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

    # Building and starting

    def build(self) -> None:
        """Make its files and its network; it is not running yet."""
        self._network()
        for name in ("etc/qemu", "etc/storage/autostart", "lib", "run", "log", "cache"):
            (self.directory / name).mkdir(parents=True)
        self._library()
        self._configuration()
        self._pools()
        mounts = "\n".join(f"mount --bind {source} {target}" for target, source in self._mounts().items())
        boot = BOOT.format(mounts=mounts, name=self.name, tiny=TINY_MIB)
        (self.directory / "boot.sh").write_text(boot)

    def _network(self) -> None:
        bridge, mac = f"hs{self.network}br", f"02:00:00:77:{self.network:02x}:{self.number:02x}"
        run("ip", "netns", "add", self.link)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", "eth0", "netns", self.link)
        run("ip", "link", "set", self.link, "master", bridge, "up")
        # The guests' bridge takes eth0 in, as a real host's does. Its MAC is fixed: a bridge without one takes the
        # lowest of its ports, so the host's own address would change under it when a guest's tap joins.
        for command in ("link set lo up", f"link add br0 address {mac} type bridge", "link set eth0 master br0 up",
                        f"address add {self.address}/27 dev br0", "link set br0 up"):
            run("ip", "-n", self.link, *command.split())

    def _library(self) -> None:
        library = self.directory / "lib"
        library.chmod(0o755)
        for name in ("boot", "recorder", "usr", *POOLS.values()):
            (library / name).mkdir(mode=0o711)
        (library / "qemu").mkdir(mode=0o750)
        shutil.chown(library / "qemu", "libvirt-qemu", "libvirt-qemu")

    def _configuration(self) -> None:
        etc = self.directory / "etc"
        for name in ("libvirtd.conf", "qemu.conf", "virtlogd.conf", "libvirt.conf"):
            shutil.copy2(LIBVIRT / name, etc)
        shutil.copytree(LIBVIRT / "nwfilter", etc / "nwfilter")
        with (etc / "libvirtd.conf").open("a") as file:
            file.write(LIBVIRTD_CONF.format(uuid=self.host_uuid))
        with (etc / "qemu.conf").open("a") as file:
            file.write((STOCK_QEMU_CONF if self.stock else PLAIN_QEMU_CONF).format(address=self.address))
        self.use_certificate("good", restart=False)

    def _pools(self) -> None:
        for name, folder in POOLS.items():
            file = self.directory / "etc/storage" / f"{name}.xml"
            pool = uuid.uuid5(uuid.UUID(self.host_uuid), name)
            file.write_text(POOL.format(name=name, uuid=pool, path=f"/var/lib/libvirt/{folder}"))
            (file.parent / "autostart" / file.name).symlink_to(f"/etc/libvirt/storage/{name}.xml")

    def _mounts(self) -> dict[str, Path]:
        """Where in the host what of this machine is seen, in the order of mounting."""
        return {
            "/etc/hosts": self.lab / "hosts",
            "/etc/libvirt": self.directory / "etc",
            "/var/lib/libvirt": self.directory / "lib",
            "/var/lib/libvirt/shared": self.lab / "shared",
            "/var/lib/libvirt/base": self.lab / "images",
            "/var/lib/libvirt/recorder": self.lab / "recorder",
            "/var/lib/libvirt/usr": Path("/usr"),  # the real emulator stays reachable, with its data beside it
            str(EMULATOR): self.emulator,
            "/var/cache": self.directory / "cache",
            "/var/log": self.directory / "log",
            "/run": self.directory / "run",
        }

    def boot(self) -> None:
        """Start it: its namespaces, virtlogd and libvirtd; returns when libvirt answers."""
        for entry in (self.directory / "run").iterdir():  # as a real /run, it starts empty
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        log = self.directory / "boot.log"
        unshare = "unshare --mount --uts --pid --fork --kill-child"
        run("sh", "-c", f"setsid -f ip netns exec {self.link} {unshare} bash {self.directory}/boot.sh </dev/null >{log} 2>&1")
        self._until((self.directory / "run/booted").exists, "boot", log)
        self._enter("/usr/sbin/virtlogd", "-d")
        self.start_libvirtd()

    def start_libvirtd(self) -> None:
        """Start libvirtd; returns when it answers."""
        self._enter("/usr/sbin/libvirtd", "-d", "--listen")
        self._until(self.answers, "libvirtd", self.directory / "log/libvirt/libvirtd.log")

    def _enter(self, *command: str) -> str:
        """Run a command in the host."""
        init = self._process(1)
        if init is None:
            raise LabError(f"{self.name} is powered off")
        return run("nsenter", "-t", str(init.pid), "-m", "-u", "-n", "-p", "--", *command)

    def _until(self, done: object, what: str, log: Path) -> None:
        deadline = time.monotonic() + 30
        while not done():  # type: ignore[operator]
            if time.monotonic() > deadline:
                words = log.read_text()[-2000:] if log.exists() else ""
                raise LabError(f"{self.name}: no {what} after 30 s: {words}")
            time.sleep(0.02)

    def answers(self) -> bool:
        """Whether its libvirt answers now."""
        try:
            socket.create_connection((self.address, 16509), timeout=2).close()
            return bool(run("timeout", "5", "virsh", "-q", "-c", self.uri_tcp, "uri", check=False))
        except OSError:
            return False

    def _process(self, inner: int) -> Process | None:
        """The process that the host itself knows as `inner`."""
        return next((process for process in self.processes() if inner_pid(process) == inner), None)

    def _daemon(self, name: str) -> Process | None:
        try:
            return self._process(int((self.directory / "run" / f"{name}.pid").read_text()))
        except (FileNotFoundError, ValueError):
            return None

    def processes(self) -> list[Process]:
        """All processes of the host."""
        return in_namespace(Path("/run/netns") / self.link)

    def remove(self) -> None:
        """End all its processes and remove its namespaces and links; its files are its lab's to remove."""
        end(self.processes())
        run("ip", "netns", "delete", self.link, check=False)
        run("ip", "link", "delete", self.link, check=False)

    def use_certificate(self, kind: str, *, restart: bool = True) -> None:
        """Give it its `good` or its `expired` server certificate."""
        source = self.lab / "pki" / f"h{self.number}-{kind}"
        shutil.copytree(source, self.directory / "etc/pki", dirs_exist_ok=True)
