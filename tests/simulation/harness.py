# SPDX-License-Identifier: Apache-2.0
"""How a test gets a world."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from tests.simulation.clock import run_virtual
from tests.simulation.world import World

Scenario = Callable[..., Awaitable[None]]


def in_world(**options: Any) -> Callable[[Scenario], Callable[..., None]]:
    """Runs an `async def test(world, …)` in virtual time, in a world made with these options, an operator at work."""

    def decorate(scenario: Scenario) -> Callable[..., None]:
        @functools.wraps(scenario)
        def run(**parameters: Any) -> None:
            run_virtual(_run(scenario, options, parameters))

        signature = inspect.signature(scenario)
        run.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=list(signature.parameters.values())[1:], return_annotation=None
        )
        return run

    return decorate


async def _run(scenario: Scenario, options: dict[str, Any], parameters: dict[str, Any]) -> None:
    async with World(**options) as world:
        world.start()
        await scenario(world, **parameters)
