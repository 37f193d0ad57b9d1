# SPDX-License-Identifier: Apache-2.0
"""A world with a client that is no operator, to try the simulation itself on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from homeostat.hosts.driver import HostError
from homeostat.kube.transport import APPLY, ApiError
from tests.simulation.clients import SimulatedTransport
from tests.simulation.clock import run_virtual
from tests.simulation.connection import SimulatedConnection, SimulatedDriver
from tests.simulation.effects import Life, current
from tests.simulation.world import World

UUID, OTHER = "00000000-0000-4000-8000-00000000000a", "00000000-0000-4000-8000-00000000000b"
VM = "/apis/homeostat.dev/v1alpha1/namespaces/default/virtualmachines"
SPEC: dict[str, Any] = {"memory": {"size": "64Mi"}}


def domain(uuid: str = UUID, name: str = "web", *disks: str) -> str:
    """XML of a domain with 64 MiB and these disks."""
    devices = "".join(
        f"<disk type='file' device='disk'><source file='{path}'/><target dev='vd{letter}' bus='virtio'/></disk>"
        for letter, path in zip("abc", disks, strict=False)
    )
    return (
        f"<domain type='kvm'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>"
        f"<os><type machine='q35'>hvm</type></os><devices>{devices}</devices></domain>"
    )


@dataclass
class Bench:
    """A world with one client that is not an operator."""

    world: World
    life: Life
    driver: SimulatedDriver
    api: SimulatedTransport

    async def connect(self, host: str = "h1") -> SimulatedConnection:
        """A connection to a host."""
        return await self.driver.open(f"qemu+tcp://{host}/system", None)

    async def refused(self, call: Awaitable[object]) -> int:
        """The code of the error that a call raises; 0 when it raises none."""
        try:
            await call
        except HostError as error:
            return error.code
        return 0

    async def status(self, method: str, path: str, **request: Any) -> int:
        """The HTTP status of a request."""
        try:
            await self.api.request(method, path, **request)
        except ApiError as error:
            return error.status
        return 200

    async def apply(self, body: dict[str, Any], manager: str = "one", sub: str = "/status", force: str = "true") -> Any:
        """Server-side apply to the VM web, by default to its status."""
        query = {"fieldManager": manager, "force": force}
        return await self.api.request("PATCH", f"{VM}/web{sub}", query=query, body=body, content_type=APPLY)


@asynccontextmanager
async def bench(**options: Any) -> AsyncIterator[Bench]:
    """A bench in a world made with these options."""
    async with World(**options) as world:
        life = Life(1)
        world.lives.append(life)
        token = current.set(life)
        driver = SimulatedDriver(world.addresses, life, world.effects, world.events)
        yield Bench(world, life, driver, SimulatedTransport(world.api, world.front, life, world.effects))
        current.reset(token)
        life.alive = False


def simulated(test: Callable[[Bench], Awaitable[None]]) -> Callable[[], None]:
    """Runs a test in a world of its own, in virtual time."""

    def run() -> None:
        async def main() -> None:
            async with bench() as made:
                await test(made)

        run_virtual(main())

    run.__name__ = test.__name__
    return run
