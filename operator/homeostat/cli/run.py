# SPDX-License-Identifier: Apache-2.0
"""`homeostat run`: the lease, the operator, the endpoints, and an end within seconds whatever hosts do."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import os
import resource
import signal
import sys
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, NoReturn

from pydantic import ValidationError

from homeostat.api.migration_policy import MigrationPolicy
from homeostat.cli.endpoints import Endpoints
from homeostat.hosts import uri
from homeostat.hosts.libvirt_driver import DriverSettings, LibvirtDriver
from homeostat.kube.http import HttpTransport
from homeostat.kube.lease import Lease, LeaseLost
from homeostat.kube.source import KopfSource
from homeostat.kube.transport import ApiError, ApiUnreachable
from homeostat.reconcile.operator import Operator
from homeostat.reconcile.settings import COUNTS, Settings, numbers
from homeostat.runtime import logs

log = logging.getLogger("homeostat")
END_SECONDS, RELEASE_SECONDS = 5.0, 2.0
WORDS = {int: "whole number", float: "number"}


def run(args: argparse.Namespace) -> None:
    """Run until a signal; never returns. Exit status 0 after a signal, 1 after a failure."""
    logs.configure(args.log_format, args.log_level)
    try:
        chosen = settings(args)
    except ValueError as error:
        sys.exit(f"homeostat: {error}")
    raise_file_limit()
    uri.remove_leftovers()
    asyncio.run(_main(args, chosen))


def raise_file_limit() -> None:
    """Allow as many open files as the system lets: a host takes dozens of connections, and the usual 1024 are few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _exit(code: int) -> NoReturn:
    """End now. Calls to hosts that never answer cannot be ended, neither their threads nor the tasks that wait."""
    uri.remove_credentials()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def settings(args: argparse.Namespace) -> Settings:
    """What the command line says; ValueError with a sentence for what cannot be."""
    chosen = Settings(lease_seconds=args.lease_seconds, migration_policy=_migration_policy(args.migration_policy))
    return replace(chosen, **dict(_number(item) for item in args.set))


def _number(item: str) -> tuple[str, Any]:
    """Name and value of one --set."""
    shipped = numbers()
    name, _, text = item.partition("=")
    if name not in shipped:
        raise ValueError(f"--set {name}: there is no such setting; there are {', '.join(sorted(shipped))}")
    kind, least = type(shipped[name]), 1 if name in COUNTS else 0
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"--set {name}: it has to be a {WORDS[kind]}, and is {text!r}") from None
    if not least <= value < math.inf:
        raise ValueError(f"--set {name}: it has to be at least {least}, and is {text}")
    return name, value


def _migration_policy(text: str) -> MigrationPolicy | None:
    """The policy in a --migration-policy, which is JSON; None for ""."""
    if not text:
        return None
    try:
        policy = MigrationPolicy.model_validate_json(text)
    except ValidationError as error:
        told = [(*map(str, each["loc"]), each["msg"].removeprefix("Value error, ")) for each in error.errors()]
        raise ValueError("--migration-policy: " + "; ".join(": ".join(each) for each in told)) from None
    if unknown := json.loads(text).keys() - {field.alias for field in MigrationPolicy.model_fields.values()}:
        raise ValueError(f"--migration-policy: there is no field {', '.join(sorted(unknown))}")
    return policy


def _driver_settings(settings: Settings) -> DriverSettings:
    return DriverSettings(
        keepalive_interval=settings.keepalive_interval_seconds,
        keepalive_count=settings.keepalive_count,
        connect_timeout=settings.connect_timeout_seconds,
        effect_threads=settings.host_calls,
        deadline=settings.call_deadline_seconds,
        long_deadline=settings.call_deadline_seconds * 3,
    )


def now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


async def _main(args: argparse.Namespace, settings: Settings) -> NoReturn:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    work = asyncio.create_task(_work(args, settings), name="work")
    stopping = asyncio.create_task(stop.wait(), name="signal")
    await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not work.done():
        log.info("ending on a signal")
        work.cancel()
        await asyncio.wait({work}, timeout=END_SECONDS)
        _exit(0)
    _exit(_failed(work))


def _failed(work: asyncio.Task[None]) -> int:
    error = work.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, ApiError | ApiUnreachable | LeaseLost | RuntimeError):
        log.error("ending: %s", error)
    else:
        log.error("ending: %s: %s", type(error).__name__, error)
        log.debug("ending", exc_info=error)
    return 1


async def _work(args: argparse.Namespace, settings: Settings) -> None:
    transport = await HttpTransport.connect(args.kubeconfig, settings.api_timeout_seconds)
    log.info("using the API server at %s", transport.server)
    operator = Operator(
        transport=transport,
        driver=LibvirtDriver(_driver_settings(settings)),
        source=KopfSource(args.kubeconfig, args.namespace),
        now=now,
        settings=settings,
        namespace=args.namespace,
    )
    # Connections of its own: workers that wait for a slow API server must not keep it from being renewed.
    leases = await HttpTransport.connect(args.kubeconfig, lease_timeout(settings))
    lease = Lease(leases, args.namespace, args.identity, now, seconds=settings.lease_seconds)
    held = asyncio.Event()
    work = [_hold(lease, settings, held), _operate(operator, held)]
    if args.listen:
        work.append(Endpoints(operator, args.listen).run())
    try:
        await together(*work)
    finally:
        if settings.lease_seconds:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(lease.release(), RELEASE_SECONDS)
        await leases.close()
        await transport.close()


def lease_timeout(settings: Settings) -> float:
    """Seconds for a request about the lease: one that hangs leaves time for another before the lease is lost."""
    return min(settings.api_timeout_seconds, settings.lease_seconds / 6 or math.inf)


async def _hold(lease: Lease, settings: Settings, held: asyncio.Event) -> None:
    """Hold the lease, if there is to be one, and say when it is held; LeaseLost ends it."""
    if settings.lease_seconds:
        await lease.acquire()
    held.set()
    await (lease.keep() if settings.lease_seconds else asyncio.Event().wait())


async def _operate(operator: Operator, held: asyncio.Event) -> None:
    await held.wait()
    await operator.run()


async def together(*work: Coroutine[Any, Any, object]) -> None:
    """Run all until one ends, or this is cancelled; the others then have END_SECONDS to end, and are left to it.

    Not a TaskGroup, which waits for them: a call to a host may take minutes, and another operator may be at work.
    """
    tasks = [asyncio.create_task(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=END_SECONDS)
    for task in done:
        task.result()
