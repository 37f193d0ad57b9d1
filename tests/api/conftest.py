# SPDX-License-Identifier: Apache-2.0
"""One real API server with the CRDs for all tests of this ring, and a namespace for each test."""

import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.api.server import Server
from tests.controlplane import ControlPlane, ControlPlaneError, GivenControlPlane, control_plane

CRDS = Path(__file__).parents[2] / "crds"
DISCOVERY_SECONDS = 60


def await_discovery(cluster: ControlPlane | GivenControlPlane) -> None:
    """Wait until short names and explanations are published: that comes a moment after a CRD is established."""
    deadline = time.monotonic() + DISCOVERY_SECONDS
    while True:
        try:
            for kind in ("vm", "hv", "vmmig"):
                cluster.kubectl("explain", f"{kind}.spec")
            return
        except ControlPlaneError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


@pytest.fixture(scope="session")
def cluster() -> Iterator[ControlPlane | GivenControlPlane]:
    """Return a control plane of this run's own, that has the CRDs."""
    cluster = control_plane(f"test-api-{os.getpid()}")
    try:
        cluster.up()
        cluster.kubectl("apply", "--server-side", "--filename", CRDS)
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "--filename", CRDS)
        await_discovery(cluster)
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def server(cluster: ControlPlane | GivenControlPlane) -> Server:
    """Return its API server."""
    return Server(cluster.kubeconfig)


@pytest.fixture
def namespace(server: Server) -> Iterator[str]:
    """Return a namespace that nobody else uses; what is in it goes with it."""
    name = f"test-{uuid4().hex[:8]}"
    server.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    server.delete("Namespace", name)
