# SPDX-License-Identifier: Apache-2.0
"""Watching with kopf: it supplies login, the watch streams and signals, nothing else.

kopf's handlers for creation, update and deletion, its indices, daemons, timers and peering lose updates or deletions
(measured),
so an event only says that an object should be looked at, and a resync lists what no event told.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

import kopf

from homeostat.api.meta import GROUP, VERSION

Seen = Callable[[str, str, dict[str, Any]], None]
"""Called with (plural, event type: "" for listed, ADDED, MODIFIED, DELETED, and the object)."""


class Source(Protocol):
    """Tells of objects that should be looked at."""

    async def run(self, plurals: tuple[str, ...], seen: Seen) -> None:
        """Call `seen` for every object listed and every event, until cancelled; raises when watching cannot go on."""


class KopfSource:
    """A source on kopf."""

    def __init__(self, kubeconfig: str | None, secrets_namespace: str) -> None:
        self._kubeconfig, self._secrets_namespace = kubeconfig, secrets_namespace

    async def run(self, plurals: tuple[str, ...], seen: Seen) -> None:
        """See Source."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._login)
        for plural in plurals:
            self._watch(registry, plural, seen)
        stop = asyncio.Event()
        try:
            await kopf.operator(
                registry=registry,
                settings=_settings(),
                clusterwide=True,
                standalone=True,
                stop_flag=stop,
                identity=None,
            )
        finally:
            stop.set()
        raise RuntimeError("watching the API server ended")

    def _watch(self, registry: kopf.OperatorRegistry, plural: str, seen: Seen) -> None:
        async def handler(event: Any, **_: Any) -> None:
            seen(plural, event["type"] or "", dict(event["object"]))

        if plural == "secrets":
            kopf.on.event("v1", "secrets", registry=registry, id=plural, when=self._ours)(handler)
        else:
            kopf.on.event(GROUP, VERSION, plural, registry=registry, id=plural)(handler)

    def _ours(self, namespace: str | None = None, **_: Any) -> bool:
        return namespace == self._secrets_namespace

    def _login(self, **kwargs: Any) -> Any:
        from kubernetes import client, config

        settings = client.Configuration()
        if self._kubeconfig is not None:
            config.load_kube_config(config_file=self._kubeconfig, client_configuration=settings)
        else:
            try:
                config.load_incluster_config(client_configuration=settings)
            except config.ConfigException:
                config.load_kube_config(client_configuration=settings)
        token = settings.get_api_key_with_prefix("authorization") or settings.get_api_key_with_prefix("BearerToken")
        scheme, _, value = (token or "").partition(" ")
        return kopf.ConnectionInfo(
            server=settings.host,
            ca_path=settings.ssl_ca_cert,
            insecure=not settings.verify_ssl,
            certificate_path=settings.cert_file,
            private_key_path=settings.key_file,
            scheme=scheme or None if value else None,
            token=value or (scheme or None),
        )


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # own events, on transitions only
    settings.scanning.disabled = True  # no rights on CRDs and namespaces are needed
    settings.queueing.worker_limit = None  # a slot stays taken for the idle time-out of its object (measured)
    settings.queueing.idle_timeout = 0.05
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    logging.getLogger("kopf").setLevel(logging.ERROR)
    return settings
