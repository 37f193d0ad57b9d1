#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# make fresh: the README's `make demo`, twice, and `make demo-down`, on a Debian 12 on which nothing was ever installed
# but what a clone takes (git, make), in a folder of this machine. Fails when a step fails or a trace is left.
#
# It sees this machine's package sources, certificates and Go, and the programs of the control plane are built there, or
# taken from KUBEBUILDER_ASSETS when that is set. It has mounts and processes of its own, which end with this script.
set -euo pipefail
cd "$(dirname "$0")/.."

root=${FRESH_ROOT:-/var/lib/homeostat/fresh}
say() { printf '\n=== fresh: %s (%d s)\n' "$*" $SECONDS; }
fail() { printf 'fresh: %s\n' "$*" >&2; exit 1; }
traces() { ip -o link show type bridge | grep -o '\bhs[0-9]*br\b' | sort || true; }

[ "$(id -u)" -eq 0 ] || fail "not root"
command -v debootstrap >/dev/null || apt-get install -q -y --no-install-recommends debootstrap
before=$(traces)
trap 'rm -rf --one-file-system "$root"
  # What a step that failed has left: the rest ended with its processes.
  for bridge in $(comm -13 <(echo "$before") <(traces)); do ip link delete "$bridge"; done' EXIT

say "a Debian 12 in $root"
rm -rf --one-file-system "$root"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' 'Component: main' | head -n 1)
debootstrap --variant=minbase --include=git,make,ca-certificates bookworm "$root" "${mirror:?no package source}" |
  awk 'NR % 40 == 0 { print "    " $0; fflush() }'
for path in /etc/apt /etc/pip.conf /etc/ssl/certs /usr/local/share/ca-certificates /etc/hosts /etc/resolv.conf; do
  if [ -e "$path" ]; then
    rm -rf "${root:?}$path"  # what is a link there would lead out of it
    cp -aL --parents "$path" "$root"
  fi
done
git clone -q . "$root/root/homeostat"

mounts="mount --bind '$root' '$root'; cd '$root'
mount -t proc proc proc; mount --rbind /sys sys; mount --rbind /dev dev; mount -t tmpfs run run; mount -t tmpfs tmp tmp"
if [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
  mkdir "$root/assets"
  mounts+="; mount --bind '$KUBEBUILDER_ASSETS' assets"
elif [ -d /usr/local/go ]; then
  mkdir -p "$root/usr/local/go"
  mounts+="; mount --bind /usr/local/go usr/local/go"
fi

say "make demo, twice, and make demo-down in it"
unshare --mount --pid --fork --kill-child --propagation private bash -euc "$mounts
mkdir .outside; pivot_root . .outside; umount --lazy .outside
exec /usr/bin/env ${KUBEBUILDER_ASSETS:+KUBEBUILDER_ASSETS=/assets} HOME=/root LANG=C.UTF-8 \
  PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash -euc '
    cd /root/homeostat
    if command -v libvirtd qemu-system-x86_64 python3; then echo \"this is not fresh\"; exit 1; fi
    make demo
    echo \"=== fresh: once more\"
    make demo
    make demo-down
    for folder in /var/lib/homeostat/lab /var/lib/homeostat/demo /run/netns; do
      if [ -n \"\$(ls -A \$folder 2>/dev/null)\" ]; then echo \"left in \$folder:\"; ls -A \$folder; exit 1; fi
    done
    # Not the first line, and not process 1, which is this.
    if ps -ww -eo pid,args | tail -n +3 | grep -E \"[q]emu-system|[l]ibvirtd|[v]irtlogd|[e]tcd |[k]ube-|[h]omeostat run\"; then
      echo \"these are left\"; exit 1
    fi'"
[ "$(traces)" = "$before" ] || fail "bridges are left: $(traces)"

say "it works, and nothing is left"
