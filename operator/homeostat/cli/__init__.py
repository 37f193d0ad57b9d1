# SPDX-License-Identifier: Apache-2.0
"""The command `homeostat`."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from homeostat import __version__


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a subcommand; exits with its status."""
    args = parser().parse_args(arguments)
    if args.command == "crds":
        from homeostat.api.crd import manifests

        print("---\n".join(manifests().values()), end="")
        sys.exit(0)
    from homeostat.cli.run import run

    run(args)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    root = argparse.ArgumentParser(prog="homeostat", description="Keeps virtual machines on libvirt hosts as declared.")
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(dest="command", required=True)
    commands.add_parser("crds", help="print the CustomResourceDefinitions")
    run = commands.add_parser("run", help="run the operator", formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    run.add_argument(
        "--namespace",
        default=os.environ.get("POD_NAMESPACE", "homeostat-system"),
        help="where its Secrets and its Lease are",
    )
    run.add_argument(
        "--kubeconfig",
        default=os.environ.get("KUBECONFIG") or None,
        help="unset: the pod's account, else ~/.kube/config",
    )
    run.add_argument(
        "--listen", default="127.0.0.1:8080", help="address of /healthz, /readyz and /metrics; empty: none"
    )
    run.add_argument("--identity", default=f"{socket.gethostname()}_{os.getpid()}", help="its name in the Lease")
    run.add_argument("--lease-seconds", type=int, default=15, help="0: work without a Lease")
    run.add_argument("--log-format", choices=("text", "json"), default="text", help="how logs are written")
    run.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="least level that is logged"
    )
    run.add_argument(
        "--set", action="append", default=[], metavar="NAME=NUMBER", help="change a setting, such as resync_seconds=60"
    )
    run.add_argument(
        "--migration-policy",
        default="",
        metavar="JSON",
        help="what holds for migrations where neither they nor their source's Hypervisor say otherwise, in the words of"
        ' spec.policy, such as {"mode": "Auto", "bandwidth": "1Gi"}',
    )
    return root
