# SPDX-License-Identifier: Apache-2.0
"""One real API server with the CRDs for all tests of this ring, and a namespace for each test."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.api.server import Server
from tests.controlplane import ControlPlane, GivenControlPlane, control_plane

CRDS = Path(__file__).parents[2] / "crds"


@pytest.fixture(scope="session")
def cluster() -> Iterator[ControlPlane | GivenControlPlane]:
    """Return a control plane of this run's own, that has the CRDs."""
    cluster = control_plane(f"test-api-{os.getpid()}")
    try:
        cluster.up()
        cluster.kubectl("apply", "--server-side", "--filename", CRDS)
        cluster.kubectl("wait", "--for=condition=Established", "--timeout=60s", "--filename", CRDS)
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
