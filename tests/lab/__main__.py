# SPDX-License-Identifier: Apache-2.0
import argparse
import sys

from tests.lab import Lab, LabError, labs


def _show(lab: Lab) -> None:
    print(f"{lab.name}: {lab.subnet}, {'up' if lab.is_up else 'not complete, or its machine was restarted'}")
    for host in lab.hosts:
        notes = ["stock qemu.conf"] * host.stock + ["does not answer"] * (not host.answers())
        print(f"  {host.name}  {host.uri_tcp}  {host.uri_tls}  {host.host_uuid}  {', '.join(notes)}".rstrip())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="Real libvirt hosts on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start a lab; nothing happens when it is up already")
    up.add_argument("--name", required=True)
    up.add_argument("--hosts", type=int, default=2)
    up.add_argument(
        "--stock", type=int, help="number of the host that keeps Debian's qemu.conf, 0: all (default: the last)"
    )
    down = commands.add_parser("down", help="remove every trace of a lab")
    down.add_argument("--name", required=True)
    commands.add_parser("status", help="list the labs on this machine")
    return parser


def _up(name: str, hosts: int, stock: int | None) -> None:
    if Lab(name).is_up:
        print(f"lab {name} is already up")
    _show(Lab.up(name, hosts, stock))


def _run(arguments: argparse.Namespace) -> None:
    if arguments.command == "up":
        _up(arguments.name, arguments.hosts, arguments.stock)
    elif arguments.command == "down":
        Lab(arguments.name).down()
    else:
        for lab in labs():
            _show(lab)


def main() -> int:
    """Run a command; returns the exit status."""
    try:
        _run(_parser().parse_args())
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


sys.exit(main())
