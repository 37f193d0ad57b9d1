# SPDX-License-Identifier: Apache-2.0
"""Watching with kopf: it supplies login, the watch streams and signals, nothing else.

kopf's handlers for creation, update and deletion, its indices, daemons, timers and peering lose updates or deletions
(measured), so an event only says that an object should be looked at, and a resync lists what no event told.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

import kopf
from kopf._cogs.structs.references import Insights  # what kopf.operator takes; it has no public name

from homeostat.api.meta import GROUP, VERSION

log = logging.getLogger(__name__)
AGAIN_SECONDS = 2.0
ENDING_SECONDS = 10.0

Seen = Callable[[str, str, dict[str, Any]], None]
"""Called with (plural, event type: "" for listed, ADDED, MODIFIED, DELETED, and the object)."""


class Source(Protocol):
    """Tells of objects that should be looked at."""

    async def run(self, plurals: tuple[str, ...], seen: Seen) -> None:
        """Call `seen` for every object listed and every event, until cancelled."""


class KopfSource:
    """A source on kopf, in a thread and an event loop of its own.

    kopf takes over the signals of a main thread, and when it ends it cancels every younger task of its loop.
    """

    def __init__(self, kubeconfig: str | None, secrets_namespace: str) -> None:
        self._kubeconfig, self._secrets_namespace = kubeconfig, secrets_namespace

    async def run(self, plurals: tuple[str, ...], seen: Seen) -> None:
        """See Source. Never ends by itself: where watching cannot go on it begins anew, with a list."""
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def relay(plural: str, kind: str, item: dict[str, Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(seen, plural, kind, item)

        try:
            while True:
                stop = threading.Event()
                ended: asyncio.Future[str] = loop.create_future()
                run = functools.partial(self._run, plurals, relay, stop, functools.partial(_settle, loop, ended))
                threading.Thread(target=run, name="kopf", daemon=True).start()
                log.warning("watching the API server ended and begins anew: %s", await ended)
                await asyncio.sleep(AGAIN_SECONDS)
        finally:
            stop.set()

    def _run(self, plurals: tuple[str, ...], seen: Seen, stop: threading.Event, settle: Callable[[str], None]) -> None:
        """In a thread: watch until `stop`, or until it fails; why it ended goes to `settle`."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry)(self._login)
        for plural in plurals:
            self._watch(registry, plural, seen)
        try:
            asyncio.run(_operate(registry, plurals, stop))
        except Exception as error:
            log.debug("kopf ended", exc_info=error)
            settle(str(getattr(error, "message", None) or error) or type(error).__name__)
        else:
            settle("kopf ended without an error")

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


async def _operate(registry: kopf.OperatorRegistry, plurals: tuple[str, ...], stop: threading.Event) -> None:
    """Watch until `stop`. LookupError when the API server does not serve all that is to be watched.

    kopf asks once what there is, and never watches what was not there. An API server that has just begun answers that
    before it knows of its CRDs.
    """
    insights = Insights()
    watching = asyncio.create_task(
        kopf.operator(
            registry=registry,
            settings=_settings(),
            insights=insights,
            clusterwide=True,
            standalone=True,
            stop_flag=stop,
        )
    )
    scanned = asyncio.create_task(insights.ready_resources.wait())
    try:
        await asyncio.wait({watching, scanned}, return_when=asyncio.FIRST_COMPLETED)
        unserved = set(plurals) - {resource.plural for resource in insights.watched_resources}
        if unserved and not watching.done():
            raise LookupError(f"the API server does not serve {', '.join(sorted(unserved))}")
        await watching
    finally:
        scanned.cancel()
        # kopf has a thread of this loop wait for it, also when it has failed, and the loop does not end before that.
        stop.set()
        await asyncio.wait({watching}, timeout=ENDING_SECONDS)  # what has not ended by then is cancelled with the loop


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # own events, on transitions only
    settings.scanning.disabled = True  # no rights on CRDs and namespaces are needed
    settings.queueing.worker_limit = None  # a slot stays taken for the idle time-out of its object (measured)
    settings.queueing.idle_timeout = 0.05
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = (1, 2)
    # Its errors are tracebacks and reprs; what they come to is said by whoever lists, and by run().
    if not log.isEnabledFor(logging.DEBUG):
        logging.getLogger("kopf").setLevel(logging.CRITICAL)
    return settings


def _settle(loop: asyncio.AbstractEventLoop, ended: asyncio.Future[str], why: str) -> None:
    def settle() -> None:
        if not ended.done():
            ended.set_result(why)

    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(settle)
