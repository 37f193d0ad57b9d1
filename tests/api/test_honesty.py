# SPDX-License-Identifier: Apache-2.0
"""The API server in memory answers as the real one does. No expectation stands here: the real one is the expectation.

What a probe sees (codes, reasons, what is left of an object, what changed) has to be the same on both.
"""

import pytest

from tests.api import probes  # which enters its probes beside those of the simulation
from tests.api.server import Server
from tests.api.serving import await_storage
from tests.controlplane import ControlPlane, GivenControlPlane
from tests.simulation import honesty_api


@pytest.fixture(scope="module", autouse=True)
def storage(server: Server) -> None:
    await_storage(server)


@pytest.mark.parametrize("name", [name for name, _ in honesty_api.PROBES])
def test_both_answer_alike(cluster: ControlPlane | GivenControlPlane, name: str) -> None:
    memory, server = honesty_api.simulated(name), honesty_api.real(name, str(cluster.kubeconfig))
    assert memory == server, f"{name}: in memory {memory}, on the server {server}"


def test_a_watch_is_told_alike(cluster: ControlPlane | GivenControlPlane, namespace: str) -> None:
    there = probes.told_by_server(probes.a_life, cluster.kubeconfig, namespace)
    assert len(there) > 5
    assert probes.told_in_memory(probes.a_life) == there
