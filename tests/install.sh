#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian packages that the product, its lab and its demo need; quick and silent when all are there.
# No service is left running or enabled by it: the lab starts daemons of its own, in namespaces of its own.
set -euo pipefail

packages=(
  # building
  gcc make pkg-config python3 python3-dev python3-venv libvirt-dev
  # hosts
  libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
  qemu-system-x86 qemu-utils seabios ipxe-qemu
  iproute2 iptables ebtables nftables util-linux procps
  # certificates
  openssl gnutls-bin ca-certificates
  # the health rule for Argo CD
  lua5.1
  # the guest: its initramfs, and the libraries that its qemu-guest-agent is linked with
  busybox-static cpio gzip xz-utils liburing2 libnuma1 libudev1 libglib2.0-0
)

installed=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null | sed -n 's/ installed$//p' || true)
installed() { grep -qxF "$1" <<<"$installed"; }

missing=()
for package in "${packages[@]}"; do installed "$package" || missing+=("$package"); done

# The guest's kernel and agent are unpacked, never installed: apt only has to know them.
known() { apt-cache show --no-all-versions linux-image-cloud-amd64 qemu-guest-agent >/dev/null 2>&1; }

if [ ${#missing[@]} -eq 0 ] && known; then exit 0; fi
if [ "$(id -u)" -ne 0 ]; then
  echo "install: not root, and these packages are missing: ${missing[*]:-(package lists)}" >&2
  exit 1
fi

export DEBIAN_FRONTEND=noninteractive
echo "install: reading the package lists"
apt-get update -q -o DPkg::Lock::Timeout=300
if [ ${#missing[@]} -eq 0 ]; then exit 0; fi

had_libvirt=no
installed libvirt-daemon-system && had_libvirt=yes

# While this file says 101, Debian's maintainer scripts start no service.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
  trap 'rm -f $policy' EXIT
fi

echo "install: ${missing[*]}"
apt-get install -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 --no-install-recommends "${missing[@]}"

# A libvirtd that was not wanted before must not come up at the next boot either.
if [ $had_libvirt = no ] && command -v systemctl >/dev/null; then
  units=(libvirtd.{service,socket} libvirtd-{ro,admin}.socket libvirt-guests.service virt{log,lock}d{.service,.socket,-admin.socket})
  systemctl disable --quiet "${units[@]}" 2>/dev/null || true
fi
