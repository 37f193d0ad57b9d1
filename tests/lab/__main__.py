# SPDX-License-Identifier: Apache-2.0
import argparse
import sys

from tests.lab import Lab, LabError, labs


def show(lab: Lab) -> None:
    print(f"{lab.name}: {lab.subnet if lab.record else 'no record'} {'up' if lab.is_up else 'not complete'}")
    for host in lab.hosts if lab.record else []:
        print(f"  {host.name}  {host.address}  {host.uri_tcp}  {host.host_uuid}{'  stock qemu.conf' * host.stock}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="Real libvirt hosts on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a lab; nothing happens when it is up already")
    up.add_argument("--name", required=True)
    up.add_argument("--hosts", type=int, default=2)
    up.add_argument("--stock", type=int, help="number of the host that keeps Debian's qemu.conf (default: the last)")
    down = commands.add_parser("down", help="remove every trace of a lab")
    down.add_argument("--name", required=True)
    commands.add_parser("status", help="list the labs on this machine")
    arguments = parser.parse_args()
    try:
        if arguments.command == "up":
            if Lab(arguments.name).is_up:
                print(f"{arguments.name}: already up")
            show(Lab.up(arguments.name, arguments.hosts, arguments.stock))
        elif arguments.command == "down":
            Lab(arguments.name).down()
        else:
            for lab in labs():
                show(lab)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
