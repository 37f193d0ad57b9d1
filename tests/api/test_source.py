# SPDX-License-Identifier: Apache-2.0
"""Watching a real API server that does not serve everything yet, as one that was just restarted does not."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import suppress

import pytest

from homeostat.api.meta import GROUP, VERSION
from homeostat.kube.source import KopfSource
from tests.controlplane import ControlPlane, ControlPlaneError, GivenControlPlane

PLURAL = "gadgets"
NAME = f"{PLURAL}.{GROUP}"
SCHEMA = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": NAME},
    "spec": {
        "group": GROUP,
        "scope": "Cluster",
        "names": {"plural": PLURAL, "singular": "gadget", "kind": "Gadget"},
        "versions": [{"name": VERSION, "served": True, "storage": True, "schema": {"openAPIV3Schema": SCHEMA}}],
    },
}
GADGET = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "Gadget", "metadata": {"name": "one"}}
SECONDS = 60


@pytest.fixture
def removed(cluster: ControlPlane | GivenControlPlane) -> Iterator[None]:
    """Nothing of this is left."""
    yield
    cluster.kubectl("delete", "crd", NAME, "--ignore-not-found", "--timeout=60s")


@pytest.mark.usefixtures("removed")
def test_what_is_served_later_is_watched_then(
    cluster: ControlPlane | GivenControlPlane, caplog: pytest.LogCaptureFixture
) -> None:
    """By a look that came too early and was the only one, nothing would ever be seen."""
    found: list[tuple[str, str]] = []

    def seen(plural: str, kind: str, item: dict[str, object]) -> None:
        metadata = item["metadata"]
        assert isinstance(metadata, dict)
        found.append((plural, metadata["name"]))

    async def until(done: object, what: str) -> None:
        assert callable(done)
        for _ in range(SECONDS * 10):
            if done():
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"waited {SECONDS} s for {what}")

    def created() -> bool:
        try:
            cluster.kubectl("apply", "-f", "-", stdin=json.dumps(GADGET))
        except ControlPlaneError:
            return False
        return True

    async def watch() -> None:
        source = KopfSource(str(cluster.kubeconfig), "default")
        running = asyncio.create_task(source.run((PLURAL, "hypervisors"), seen))
        await until(lambda: f"does not serve {PLURAL}" in caplog.text, "a look that is too early")
        await asyncio.to_thread(cluster.kubectl, "create", "-f", "-", stdin=json.dumps(CRD))
        await asyncio.to_thread(cluster.kubectl, "wait", "crd", NAME, "--for=condition=Established")
        await until(created, "the API server to serve what it has established")
        await until(lambda: (PLURAL, "one") in found, "it to be seen")
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    with caplog.at_level(logging.WARNING):
        asyncio.run(watch())
