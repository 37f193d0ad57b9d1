# SPDX-License-Identifier: Apache-2.0
"""An operator that takes over from a newer version, whose CRDs stay: it goes on from the hosts."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation.apiserver import Object
from tests.simulation.harness import in_world
from tests.simulation.schema import clone
from tests.simulation.test_upgrade import MOMENTS, ends, patch_status, stage
from tests.simulation.world import World

pytestmark = pytest.mark.simulation

TIME = "2030-01-01T00:00:00Z"
NEW = {"type": "Entangled", "status": "True", "reason": "Spin", "message": "", "lastTransitionTime": TIME}
WORDS = {"owner": "Arbiter", "answer": "Suspected", "mode": "Adaptive", "row": "99", "tls": "Quantum"}
WORDS |= {"active": "Hibernating", "present": "Foreseen", "phase": "Teleporting", "state": "Entangled"}
WORDS |= {"next": "Disentangle", "reason": "Spin"}

MANAGERS = {"vm": "homeostat-vm", "hv": "homeostat-hypervisor", "vmmig": "homeostat-migration"}


def upgrade(world: World) -> None:
    """Install the CRDs of a newer version: more fields everywhere in a status, and more words for those there are."""
    world.api.definitions = clone(world.api.definitions)
    for definition in world.api.definitions.values():
        properties = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
        _widen(properties["status"])


def _widen(schema: Object) -> None:
    schema.pop("enum", None)
    if "properties" in schema:
        schema["properties"]["novelty"] = {"type": "string"}
    for each in [*schema.get("properties", {}).values(), *([schema["items"]] if "items" in schema else [])]:
        _widen(each)


def newer(value: Any, *, words: bool) -> Any:
    """What a newer version would have written: more fields, and (`words`) others for what is not to be kept."""
    if isinstance(value, list):
        return [newer(each, words=words) for each in value]
    if not isinstance(value, dict):
        return value
    parts = {name: newer(each, words=words and name not in ("intent", "domain")) for name, each in value.items()}
    return parts | ({name: WORDS[name] for name in parts if words and name in WORDS}) | {"novelty": "new"}


def take_over(world: World, kind: str, name: str) -> None:
    """Make an object's status one that a newer version has written, under the same names."""
    status = newer(world.status(name, kind), words=True)
    candidates = {"candidates": status.pop("candidates")} if kind == "vm" else {}
    status["conditions"].append(newer(NEW, words=False))
    patch_status(world, kind, name, status, MANAGERS[kind])
    patch_status(world, kind, name, candidates, "homeostat-candidates")


@pytest.mark.parametrize("moment", MOMENTS)
@in_world(locks=True)
async def test_a_status_of_a_newer_version_is_gone_on_with(world: World, moment: str) -> None:
    there = await stage(world, moment)
    upgrade(world)
    await MOMENTS[moment](there, {})
    for kind, name in (("vmmig", "go"), ("vm", "web"), ("hv", "h1"), ("hv", "h2")):
        if "conditions" in world.status(name, kind):
            take_over(world, kind, name)
            assert world.condition(kind, name, "Entangled")
    world.start()
    await ends(there, "Migrated")
    for kind, name in (("vmmig", "go"), ("vm", "web"), ("hv", "h1"), ("hv", "h2")):
        assert world.status(name, kind)["reason"] not in WORDS.values()


@in_world(locks=True)
async def test_an_intent_that_cannot_be_read_is_not_guessed_at(world: World) -> None:
    there = await stage(world, "copying")
    upgrade(world)
    await MOMENTS["copying"](there, {})
    before = [(effect.name, effect.object) for effect in world.writes()]
    for field in ({"locks": "Leased"}, {"targetUUID": None}):
        intent = world.status("go", "vmmig")["intent"]
        definition = world.api.definitions["virtualmachinemigrations"]
        schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
        schema["properties"]["intent"].pop("required", None)
        patch_status(world, "vmmig", "go", {"intent": field})
        world.start()
        await world.settle(300)
        world.kill()
        done = [(effect.name, effect.object) for effect in world.writes()][len(before) :]
        assert not [each for each in done if not each[0].startswith("PATCH status hv")]
        patch_status(world, "vmmig", "go", {"intent": intent})
    world.start()
    await ends(there, "Migrated")


@in_world()
async def test_a_candidate_that_somebody_else_wrote_too_is_kept_and_not_asked_away_without_end(world: World) -> None:
    there = await stage(world, "copying")
    upgrade(world)
    await MOMENTS["copying"](there, {})
    rows = [row | {"novelty": "new"} for row in world.status("web")["candidates"]]
    patch_status(world, "vm", "web", {"candidates": rows})
    world.start()
    await ends(there, "Migrated")
    before = len(world.writes())
    await world.settle(1800)
    assert len(world.status("web")["candidates"]) == 2
    assert len(world.writes()) - before < 100
