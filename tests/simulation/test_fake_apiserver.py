# SPDX-License-Identifier: Apache-2.0
"""The API server of the simulation is less helpful than it could be, as the real one is; each trait shown alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from homeostat.kube.transport import JSON_PATCH, MERGE_PATCH, ApiError, ApiUnreachable
from tests.simulation.bench import OTHER, SPEC, UUID, VM, Bench, simulated
from tests.simulation.clients import SimulatedSource

pytestmark = pytest.mark.simulation


@simulated
async def test_status_is_dropped_on_create_and_defaults_are_filled_in(b: Bench) -> None:
    made = await b.api.request("POST", VM, body={"metadata": {"name": "web"}, "spec": SPEC, "status": {"state": "Up"}})
    assert "status" not in made
    assert made["spec"]["runStrategy"] == "Always"
    assert made["metadata"]["generation"] == 1
    assert await b.status("POST", VM, body={"metadata": {"name": "web"}, "spec": SPEC}) == 409
    assert await b.status("POST", VM, body={"metadata": {"name": "bad"}, "spec": {"memory": {"size": "x"}}}) == 422
    assert await b.status("POST", VM, body={"metadata": {"name": "bad"}, "spec": {}}) == 422


@simulated
async def test_generation_counts_changes_of_the_spec_only(b: Bench) -> None:
    b.world.vm("web")
    await b.apply({"status": {"state": "Up"}})
    patch = {"metadata": {"labels": {"a": "b"}}, "status": {"state": "Down"}}
    seen = await b.api.request("PATCH", f"{VM}/web", body=patch, content_type=MERGE_PATCH)
    assert (seen["metadata"]["generation"], seen["status"]["state"]) == (1, "Up")
    patch = {"spec": {"runStrategy": "Halted"}, "metadata": {"labels": {"a": "c"}}}
    seen = await b.api.request("PATCH", f"{VM}/web/status", body=patch, content_type=MERGE_PATCH)
    assert (seen["spec"]["runStrategy"], seen["metadata"]["labels"]) == ("Always", {"a": "b"})
    seen = await b.api.request("PATCH", f"{VM}/web", body=patch, content_type=MERGE_PATCH)
    assert seen["metadata"]["generation"] == 2


def condition(kind: str) -> dict[str, Any]:
    return {"type": kind, "status": "True", "reason": "R", "lastTransitionTime": "2030-01-01T00:00:00Z"}


@simulated
async def test_apply_keeps_what_others_own_and_removes_what_is_left_out(b: Bench) -> None:
    b.world.vm("web")
    candidate = {"hypervisor": "h1", "uid": "u", "hostUUID": UUID}
    await b.apply({"status": {"candidates": [candidate]}}, "two")
    both = {"status": {"state": "Up", "host": "h1", "conditions": [condition("Synchronized"), condition("Stalled")]}}
    await b.apply(both)
    seen = await b.apply({"status": {"state": "Up", "conditions": [condition("Synchronized")]}})
    assert seen["status"] == {"state": "Up", "candidates": [candidate], "conditions": [condition("Synchronized")]}
    seen = await b.apply({"status": {}}, "two")
    assert "candidates" not in seen["status"] and seen["status"]["state"] == "Up"
    assert await b.status("GET", f"{VM}/web") == 200
    with pytest.raises(ApiError, match="conflicts"):
        await b.apply({"status": {"state": "Down"}}, "two", force="false")
    assert (await b.apply({"status": {"state": "Down"}}, "two"))["status"]["state"] == "Down"


@simulated
async def test_an_apply_that_changes_nothing_writes_nothing(b: Bench) -> None:
    b.world.vm("web")
    first = await b.apply({"status": {"state": "Up"}})
    assert (await b.apply({"status": {"state": "Up"}}))["metadata"] == first["metadata"]


@simulated
async def test_versions_and_uids_in_a_body(b: Bench) -> None:
    made = b.world.vm("web")
    old = {"name": "web", "resourceVersion": made["metadata"]["resourceVersion"]}
    await b.apply({"metadata": old, "status": {"state": "Up"}})
    with pytest.raises(ApiError) as stale:
        await b.apply({"metadata": old, "status": {"state": "Down"}})
    assert stale.value.status == 409
    await b.apply({"metadata": {"name": "web", "uid": OTHER}, "status": {"state": "Down"}})  # ignored there
    with pytest.raises(ApiError) as wrong:
        await b.apply({"metadata": {"name": "web", "uid": OTHER}, "spec": SPEC}, sub="")
    assert wrong.value.status == 422


@simulated
async def test_an_apply_makes_a_ghost_of_a_deleted_object_but_not_on_status(b: Bench) -> None:
    with pytest.raises(ApiError) as missing:
        await b.apply({"status": {"state": "Up"}})
    assert missing.value.status == 404
    assert (await b.apply({"metadata": {"finalizers": ["a.b/c"]}, "spec": SPEC}, sub=""))["metadata"]["uid"]


@simulated
async def test_finalizers(b: Bench) -> None:
    made = b.world.vm("web")
    patch = [
        {"op": "test", "path": "/metadata/uid", "value": made["metadata"]["uid"]},
        {"op": "add", "path": "/metadata/finalizers", "value": ["a.b/c"]},
    ]
    wrong = [{**patch[0], "value": OTHER}, patch[1]]
    assert await b.status("PATCH", f"{VM}/web", body=wrong, content_type=JSON_PATCH) == 422
    await b.api.request("PATCH", f"{VM}/web", body=patch, content_type=JSON_PATCH)
    b.world.delete("vm", "web")
    seen = await b.api.request("GET", f"{VM}/web")
    assert (seen["metadata"]["generation"], "deletionTimestamp" in seen["metadata"]) == (2, True)
    more = [patch[0], {"op": "add", "path": "/metadata/finalizers/-", "value": "d.e/f"}]
    assert await b.status("PATCH", f"{VM}/web", body=more, content_type=JSON_PATCH) == 422
    none = [patch[0], {"op": "add", "path": "/metadata/finalizers", "value": []}]
    await b.api.request("PATCH", f"{VM}/web", body=none, content_type=JSON_PATCH)
    assert await b.status("GET", f"{VM}/web") == 404


@simulated
async def test_a_namespace_that_goes_refuses_newcomers_and_waits_for_finalizers(b: Bench) -> None:
    b.world.api.create_namespace("team")
    b.world.vm("web", namespace="team")
    b.world.edit("vm", "web", namespace="team", metadata={"finalizers": ["a.b/c"]})
    b.world.delete("namespace", "team")
    path = VM.replace("default", "team")
    assert await b.status("POST", path, body={"metadata": {"name": "new"}, "spec": SPEC}) == 403
    assert await b.status("GET", "/api/v1/namespaces/team") == 200
    b.world.edit("vm", "web", namespace="team", metadata={"finalizers": []})
    assert await b.status("GET", f"{path}/web") == 404
    assert await b.status("GET", "/api/v1/namespaces/team") == 404


@simulated
async def test_a_commit_whose_reply_is_lost(b: Bench) -> None:
    b.world.vm("web")
    b.world.fault(("PATCH status vm by one", 1), "drop-reply")
    with pytest.raises(ApiUnreachable):
        await b.apply({"status": {"state": "Up"}})
    seen = b.world.get("vm", "web")
    assert seen is not None and seen["status"]["state"] == "Up"


@simulated
async def test_lists_come_in_pages(b: Bench) -> None:
    for number in range(5):
        b.world.vm(f"vm{number}")
    first = await b.api.request("GET", VM, query={"limit": "3"})
    rest = await b.api.request("GET", VM, query={"limit": "3", "continue": first["metadata"]["continue"]})
    assert [len(first["items"]), len(rest["items"]), "continue" in rest["metadata"]] == [3, 2, False]


# Watches --------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def watching(b: Bench) -> AsyncIterator[list[tuple[str, str]]]:
    seen: list[tuple[str, str]] = []
    source = SimulatedSource(b.world.api, b.world.front, b.life, b.world.effects)

    def note(plural: str, kind: str, shown: dict[str, Any]) -> None:
        seen.append((kind, shown["metadata"]["name"]))

    task = asyncio.create_task(source.run(("virtualmachines",), note))
    await asyncio.sleep(1)
    yield seen
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@simulated
async def test_a_watch_lists_and_then_streams(b: Bench) -> None:
    b.world.vm("old")
    async with watching(b) as seen:
        b.world.vm("new")
        b.world.edit("vm", "new", runStrategy="Halted")
        b.world.delete("vm", "old")
        await asyncio.sleep(1)
        assert seen == [("", "old"), ("ADDED", "new"), ("MODIFIED", "new"), ("DELETED", "old")]


@simulated
async def test_a_watch_that_was_cut_off_goes_on_where_it_was(b: Bench) -> None:
    b.world.vm("old")
    async with watching(b) as seen:
        b.world.front.connected.clear()
        b.world.delete("vm", "old")
        await asyncio.sleep(60)
        assert seen == [("", "old")]
        b.world.front.connected.set()
        await asyncio.sleep(1)
        assert seen[1:] == [("DELETED", "old")]


@simulated
async def test_a_watch_that_fell_behind_lists_again_and_never_mentions_what_is_gone(b: Bench) -> None:
    b.world.vm("old")
    b.world.vm("kept")
    async with watching(b) as seen:
        b.world.front.connected.clear()
        b.world.delete("vm", "old")
        b.world.api.compact()
        b.world.front.connected.set()
        await asyncio.sleep(1)
        assert seen == [("", "kept"), ("", "old"), ("", "kept")] or seen == [("", "old"), ("", "kept"), ("", "kept")]


@simulated
async def test_a_restored_store_gives_out_versions_again(b: Bench) -> None:
    b.world.vm("web")
    backup = b.world.api.snapshot()
    first = b.world.edit("vm", "web", runStrategy="Halted")
    b.world.vm("lost")
    async with watching(b) as seen:
        b.world.api.restore(backup)
        second = b.world.edit("vm", "web", runStrategy="Manual")
        assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]
        assert b.world.get("vm", "lost") is None
        await asyncio.sleep(1)
        assert seen[2:] == [("", "web")]
