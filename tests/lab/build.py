# SPDX-License-Identifier: Apache-2.0
"""Makes what a host of a lab consists of: its network, its files, its configuration. Nothing is started here."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from tests.lab.host import POOLS, Host
from tests.lab.processes import run

LIBVIRT = Path("/etc/libvirt")
TINY_MIB = 16

# No sanity check: a libvirtd refuses to start with a certificate that has expired, but goes on with one that expires
# while it runs, and that is the host drills meet.
LIBVIRTD_CONF = """
listen_tcp = 1
auth_tcp = "none"
listen_tls = 1
ca_file = "/etc/libvirt/pki/cacert.pem"
cert_file = "/etc/libvirt/pki/servercert.pem"
key_file = "/etc/libvirt/pki/serverkey.pem"
tls_no_sanity_certificate = 1
host_uuid = "{uuid}"
"""

# What every host's QEMU has: the address and the certificates of migrations. A source notices after eight seconds that
# the target's libvirt is silent, not after thirty.
MIGRATION_CONF = """
migration_host = "{address}"
migrate_tls_x509_cert_dir = "/etc/libvirt/pki/qemu"
keepalive_interval = 1
keepalive_count = 7
"""

# Debian's own qemu.conf stays as it is: QEMU as libvirt-qemu, dynamic ownership, a mount namespace per QEMU, its
# seccomp sandbox, virtlogd. Nothing in it has to change for the lab; control groups are not used because the network
# namespace's own /sys shows none, which libvirt takes for a machine without them.
STOCK_QEMU_CONF = ""

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
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /mnt
mkdir /mnt/net /mnt/pts /mnt/shm
mknod /mnt/net/tun c 10 200
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


def build(host: Host) -> None:
    """Make a host, ready to be booted."""
    _network(host)
    for name in ("etc/qemu", "etc/storage/autostart", "lib", "run", "log", "cache"):
        (host.directory / name).mkdir(parents=True)
    _library(host.directory / "lib")
    _configuration(host)
    _pools(host)
    mounts = "\n".join(f"mount --bind {source} {target}" for target, source in host.mounts.items())
    host.boot_script.write_text(BOOT.format(mounts=mounts, name=host.name, tiny=TINY_MIB))


def _network(host: Host) -> None:
    run("ip", "netns", "add", host.link)
    run("ip", "link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.link)
    run("ip", "link", "set", host.link, "master", f"hs{host.network}br", "up")
    # The guests' bridge takes eth0 in, as a real host's does. Its MAC is fixed: a bridge without one takes the lowest
    # of its ports, so the host's own address would change under it when a guest's tap joins.
    mac = f"02:00:00:77:{host.network:02x}:{host.number:02x}"
    for command in (
        "link set lo up",
        f"link add br0 address {mac} type bridge",
        "link set eth0 master br0 up",
        f"address add {host.address}/27 dev br0",
        "link set br0 up",
    ):
        run("ip", "-n", host.link, *command.split())


def _library(library: Path) -> None:
    for name in ("boot", "recorder", "usr", *POOLS.values()):
        (library / name).mkdir(mode=0o711)
    (library / "qemu").mkdir(mode=0o750)
    shutil.chown(library / "qemu", "libvirt-qemu", "libvirt-qemu")


def _configuration(host: Host) -> None:
    etc = host.directory / "etc"
    for name in ("libvirtd.conf", "qemu.conf", "virtlogd.conf", "libvirt.conf"):
        shutil.copy2(LIBVIRT / name, etc)
    shutil.copytree(LIBVIRT / "nwfilter", etc / "nwfilter")
    with (etc / "libvirtd.conf").open("a") as file:
        file.write(LIBVIRTD_CONF.format(uuid=host.host_uuid))
    with (etc / "qemu.conf").open("a") as file:
        file.write((STOCK_QEMU_CONF if host.stock else PLAIN_QEMU_CONF) + MIGRATION_CONF.format(address=host.address))
    host.install_certificate("good")
    _qemu_certificates(host, etc / "pki/qemu")


def _qemu_certificates(host: Host, folder: Path) -> None:
    """What the host's QEMUs show each other, whichever side they are on, and `peer`, its libvirt's own certificate."""
    folder.mkdir()
    good, peer = host.lab / "pki" / f"h{host.number}-good", host.lab / "pki" / f"h{host.number}-peer"
    shutil.copy2(good / "cacert.pem", folder / "ca-cert.pem")
    for side in ("server", "client"):
        shutil.copy2(good / "servercert.pem", folder / f"{side}-cert.pem")
        shutil.copy2(good / "serverkey.pem", folder / f"{side}-key.pem")
    if host.stock:  # its QEMU is not root
        for file in folder.iterdir():
            shutil.chown(file, "libvirt-qemu", "libvirt-qemu")
    shutil.copytree(peer, folder.parent / "peer")


def _pools(host: Host) -> None:
    for name, folder in POOLS.items():
        file = host.directory / "etc/storage" / f"{name}.xml"
        pool = uuid.uuid5(uuid.UUID(host.host_uuid), name)
        file.write_text(POOL.format(name=name, uuid=pool, path=f"/var/lib/libvirt/{folder}"))
        (file.parent / "autostart" / file.name).symlink_to(f"/etc/libvirt/storage/{name}.xml")
