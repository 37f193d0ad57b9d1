# SPDX-License-Identifier: Apache-2.0
"""Start and end real Kubernetes control planes on this machine.

The programs are taken from the first of: KUBEBUILDER_ASSETS and PATH, the cache in ~/.cache/homeostat/controlplane,
a build from tests/controlplane/gomod, a download. It is said which, and why.

environment:
  CONTROL_PLANE             force a way: given, build or download
  KUBECONFIG_GIVEN          as --kubeconfig
  HOMEOSTAT_CONTROL_PLANES  where instances keep their state (/var/lib/homeostat/controlplane)
  KUBERNETES_RELEASE_URL    instead of https://dl.k8s.io/release
  ETCD_RELEASE_URL          instead of https://github.com/etcd-io/etcd/releases/download
"""

import argparse
import sys

from tests.controlplane.binaries import BinariesError, obtain
from tests.controlplane.instance import ControlPlane, ControlPlaneError, GivenControlPlane, control_plane
from tests.controlplane.output import say


def _up(plane: ControlPlane | GivenControlPlane) -> bool:
    plane.up()
    print(f"export KUBECONFIG={plane.kubeconfig}")
    return True


def _down(plane: ControlPlane | GivenControlPlane) -> bool:
    plane.down()
    return True


def _status(plane: ControlPlane | GivenControlPlane) -> bool:
    is_healthy = plane.is_healthy()
    if isinstance(plane, ControlPlane) and plane.directory.exists():
        for process in plane.processes:
            print(f"{process.name}: {f'pid {process.pid}' if process.pid else 'down'}, log {process.log}")
    print(f"{'healthy' if is_healthy else 'not healthy'}, kubeconfig {plane.kubeconfig}")
    return is_healthy


def _build(plane: ControlPlane | GivenControlPlane) -> bool:
    if isinstance(plane, GivenControlPlane):
        say(f"nothing to build: {plane.kubeconfig} is given")
    else:
        for path in obtain(plane.way).values():
            print(path)
    return True


COMMANDS = {"up": _up, "down": _down, "status": _status, "build": _build}


def main() -> int:
    """Run one command; return 0 when it did what it says."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.controlplane",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help="build only makes sure that the programs are there")
    parser.add_argument("--name", default="dev", help="which instance (default: %(default)s)")
    parser.add_argument("--kubeconfig", help="a cluster that is there already (also: KUBECONFIG_GIVEN)")
    arguments = parser.parse_args()
    try:
        return 0 if COMMANDS[arguments.command](control_plane(arguments.name, kubeconfig=arguments.kubeconfig)) else 1
    except (BinariesError, ControlPlaneError) as error:
        say(str(error))
        return 1


sys.exit(main())
