# SPDX-License-Identifier: Apache-2.0
"""No crash point of any scenario leaves anything behind, runs anything twice, or keeps from coming to rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.rings import FIGURE
from tests.simulation.crash_points import SCENARIOS, Scenario, clean, outcomes, pair, points

pytestmark = pytest.mark.simulation

ACTIONS = {
    "create": {"create_volume", "define", "create", "PATCH vm", "PATCH status vm by homeostat-candidates"},
    "start": {"define", "create", "PATCH status vm by homeostat-vm"},
    "stop": {"shutdown", "set_metadata", "PATCH status vm by homeostat-vm"},
    "restart": {"shutdown", "define", "create", "PATCH status vm by homeostat-vm"},
    "reschedule": {"undefine", "define", "create", "PATCH status vm by homeostat-candidates"},
    "delete": {"shutdown", "undefine", "delete_volume", "PATCH vm"},
    "evacuate": {"shutdown", "set_metadata", "PATCH status vm by homeostat-vm"},
    "return": {"define", "create"},
    "copy": {"create_volume", "delete_volume", "migrate", "PATCH status vmmig by homeostat-migration"},
    "copy stopped": {"create_volume", "delete_volume", "migrate", "abort_job"},
    "migrate": {
        "create_volume",
        "migrate",
        "redefine_checkpoint",
        "PATCH vmmig",
        "PATCH status vmmig by homeostat-migration",
    },
}
"""What a scenario is made of at the least: one that is done in other ways would not be tried where it matters."""


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_every_crash_point(scenario: Scenario, record_property: Callable[[str, object], None]) -> None:
    effects = clean(scenario)
    found = list(outcomes(scenario, points(scenario, effects)))
    reached, pairs = len(found), {pair(point) for point, _ in found}
    failed = [f"{point}: {wrong}" for point, wrong in found if wrong]
    said = f"{len(effects)} effects, {reached} points, {len(pairs)} pairs of action and fault"
    record_property(FIGURE, f"{scenario.name}, simulated: {said}")
    assert not failed, f"{len(failed)} of {reached} points, the first: {failed[0]}\nall:\n" + "\n".join(
        each.partition("\n")[0] for each in failed
    )
    assert ACTIONS[scenario.name] <= {action for action, _ in pairs}
