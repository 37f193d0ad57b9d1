# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D103 - the name of a probe is its sentence
"""Is the simulated API server honest? Probes as in `honesty`, for a transport and a namespace of its own.

`python -m tests.simulation.honesty_api KUBECONFIG [PROBE ...]` runs them on both and prints where they differ.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from homeostat.kube.http import HttpTransport
from homeostat.kube.transport import APPLY, JSON_PATCH, MERGE_PATCH, ApiError, Transport
from tests.simulation.clients import SimulatedTransport
from tests.simulation.clock import run_virtual
from tests.simulation.effects import Life
from tests.simulation.world import World

Seen = list[Any]
Probe = Callable[["Api"], Awaitable[Seen]]
PROBES: list[tuple[str, Probe]] = []
NAMESPACES = "/api/v1/namespaces"
SPEC: dict[str, Any] = {"memory": {"size": "64Mi"}}
OTHER = "00000000-0000-4000-8000-00000000000b"
CANDIDATE = {"hypervisor": "h1", "uid": "u", "hostUUID": OTHER}


def probe(script: Probe) -> Probe:
    """Enters a script into PROBES."""
    PROBES.append((script.__name__, script))
    return script


@dataclass
class Api:
    """A transport, and a namespace that nothing else uses."""

    transport: Transport
    namespace: str

    @property
    def vms(self) -> str:
        """Path of the list of VMs."""
        return f"/apis/homeostat.dev/v1alpha1/namespaces/{self.namespace}/virtualmachines"

    async def do(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        """The answer; the status of a refusal as {"refused": …}."""
        try:
            return await self.transport.request(method, path, **request)
        except ApiError as error:
            return {"refused": error.status, "reason": error.reason}

    async def refused(self, method: str, path: str, **request: Any) -> Any:
        """The status and reason of a refusal, None when it is none."""
        answer = await self.do(method, path, **request)
        return (answer["refused"], answer["reason"]) if "refused" in answer else None

    async def vm(self, name: str = "web", **metadata: Any) -> dict[str, Any]:
        """Creates a VM."""
        return await self.do("POST", self.vms, body=body({"name": name} | metadata, spec=SPEC))

    async def get(self, name: str = "web") -> dict[str, Any]:
        """Reads a VM."""
        return await self.do("GET", f"{self.vms}/{name}")

    async def apply(self, status: Any, manager: str = "one", *, force: bool = True, **metadata: Any) -> dict[str, Any]:
        """Applies a status."""
        query = {"fieldManager": manager, "force": "true"} if force else {"fieldManager": manager}
        applied = body({"name": "web"} | metadata, status=status)
        return await self.do("PATCH", f"{self.vms}/web/status", query=query, body=applied, content_type=APPLY)

    async def apply_main(self, manager: str = "one", **parts: Any) -> dict[str, Any]:
        """Applies to the object itself."""
        query = {"fieldManager": manager, "force": "true"}
        metadata = {"name": "web"} | parts.pop("metadata", {})
        return await self.do("PATCH", f"{self.vms}/web", query=query, body=body(metadata, **parts), content_type=APPLY)

    async def patch(self, operations: list[dict[str, Any]]) -> dict[str, Any]:
        """JSON patch."""
        return await self.do("PATCH", f"{self.vms}/web", body=operations, content_type=JSON_PATCH)

    async def merge(self, patch: Any, sub: str = "") -> dict[str, Any]:
        """JSON merge patch."""
        return await self.do("PATCH", f"{self.vms}/web{sub}", body=patch, content_type=MERGE_PATCH)


def body(metadata: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A VM as it is sent."""
    return {"apiVersion": "homeostat.dev/v1alpha1", "kind": "VirtualMachine", "metadata": metadata, **parts}


def condition(kind: str, status: str = "True") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": "R", "lastTransitionTime": "2030-01-01T00:00:00Z"}


def version(answer: dict[str, Any]) -> Any:
    return answer.get("metadata", {}).get("resourceVersion")


def short(answer: dict[str, Any]) -> Any:
    return answer.get("refused") or answer.get("status")


# Creating -------------------------------------------------------------------------------------------------------------


@probe
async def status_is_dropped_and_defaults_are_filled_in(api: Api) -> Seen:
    made = await api.do("POST", api.vms, body=body({"name": "web"}, spec=SPEC, status={"state": "Up"}))
    return [made.get("status"), made["metadata"]["generation"], made["spec"]]


@probe
async def creations_that_are_refused(api: Api) -> Seen:
    await api.vm()
    wrong: list[dict[str, Any]] = [
        {"spec": SPEC},
        {"metadata": {"name": "a"}},
        {"metadata": {"name": "a"}, "spec": {}},
        {"metadata": {"name": "a"}, "spec": SPEC | {"runStrategy": "Sometimes"}},
        {"metadata": {"name": "a"}, "spec": {"memory": {"size": "much"}}},
        {"metadata": {"name": "a"}, "spec": SPEC | {"terminationGracePeriodSeconds": -1}},
        {"metadata": {"name": "a", "resourceVersion": "1"}, "spec": SPEC},
    ]
    seen = [await api.refused("POST", api.vms, body=body(each.pop("metadata", {}), **each)) for each in wrong]
    nowhere = api.vms.replace(api.namespace, "not-there")
    seen += [await api.refused("POST", api.vms, body=body({"name": "web"}, spec=SPEC))]
    return [*seen, await api.refused("POST", nowhere, body=body({"name": "web"}, spec=SPEC))]


@probe
async def unknown_fields_are_pruned(api: Api) -> Seen:
    made = await api.do("POST", api.vms, body=body({"name": "web"}, spec=SPEC | {"colour": "red"}, extra=1))
    return [made.get("refused"), "colour" in made.get("spec", {}), "extra" in made]


@probe
async def what_is_not_there(api: Api) -> Seen:
    path = f"{api.vms}/web"
    seen = [await api.refused(method, path) for method in ("GET", "DELETE")]
    seen += [await api.refused("PATCH", path, body={}, content_type=MERGE_PATCH)]
    return [*seen, await api.refused("PUT", path, body=body({"name": "web", "resourceVersion": "1"}, spec=SPEC))]


# Versions and generations ---------------------------------------------------------------------------------------------


@probe
async def generations(api: Api) -> Seen:
    await api.vm()
    await api.apply({"state": "Up"})
    seen = []
    for patch in (
        {"metadata": {"labels": {"a": "b"}}},
        {"spec": {"runStrategy": "Halted"}},
        {"status": {"state": "Down"}},
    ):
        after = await api.merge(patch)
        seen += [after["metadata"]["generation"], after["status"]["state"]]
    after = await api.merge({"spec": {"runStrategy": "Always"}, "metadata": {"labels": {"a": "c"}}}, "/status")
    return [*seen, after["metadata"]["generation"], after["spec"]["runStrategy"], after["metadata"]["labels"]]


@probe
async def writes_that_change_nothing(api: Api) -> Seen:
    await api.vm()
    first = await api.apply({"state": "Up", "conditions": [condition("Ready")]})
    same = await api.apply({"state": "Up", "conditions": [condition("Ready")]})
    merged = await api.merge({"spec": {"runStrategy": "Always"}})
    patched = await api.patch([{"op": "add", "path": "/metadata/finalizers", "value": []}])
    return [version(first) == version(same), version(same) == version(merged), version(same) == version(patched)]


@probe
async def stale_versions(api: Api) -> Seen:
    old = version(await api.vm())
    seen = [short(await api.apply({"state": "Up"}, resourceVersion=old))]
    seen += [short(await api.apply({"state": "Down"}, resourceVersion=old))]
    seen += [short(await api.merge({"metadata": {"resourceVersion": old}, "spec": {"runStrategy": "Halted"}}))]
    test = [{"op": "test", "path": "/metadata/resourceVersion", "value": old}]
    seen += [short(await api.patch([*test, {"op": "add", "path": "/metadata/finalizers", "value": ["a.b/c"]}]))]
    whole = await api.get()
    whole["metadata"]["resourceVersion"] = old
    return [*seen, await api.refused("PUT", f"{api.vms}/web", body=whole)]


@probe
async def a_put_without_a_version(api: Api) -> Seen:
    await api.vm()
    return [await api.refused("PUT", f"{api.vms}/web", body=body({"name": "web"}, spec=SPEC))]


@probe
async def uids_in_a_body(api: Api) -> Seen:
    await api.vm()
    seen = [short(await api.apply({"state": "Up"}, uid=OTHER))]
    seen += [(await api.apply_main(metadata={"uid": OTHER}, spec=SPEC)).get("refused")]
    return [*seen, (await api.merge({"metadata": {"uid": OTHER}})).get("refused")]


# Server-side apply ----------------------------------------------------------------------------------------------------


@probe
async def fields_of_several_managers(api: Api) -> Seen:
    await api.vm()
    seen = [short(await api.apply({"candidates": [CANDIDATE]}, "two"))]
    both = {"state": "Up", "host": "h1", "conditions": [condition("Ready"), condition("Stalled")]}
    seen += [short(await api.apply(both)), short(await api.apply({"state": "Up", "conditions": [condition("Ready")]}))]
    seen += [short(await api.apply({"conditions": [condition("Ready", "False")]}, "three"))]
    seen += [
        short(await api.apply({"state": "Up"})),
        short(await api.apply({}, "two")),
        short(await api.apply({}, "three")),
    ]
    return seen


@probe
async def what_an_apply_leaves_out_goes(api: Api) -> Seen:
    await api.vm()
    full = {"state": "Up", "startFailures": {"count": 1, "lastMessage": "m"}, "addresses": [{"ip": "198.51.100.1"}]}
    seen = [short(await api.apply(full)), short(await api.apply({"state": "Up", "startFailures": {"count": 2}}))]
    return [*seen, short(await api.apply({"state": "Up"})), short(await api.apply({}))]


@probe
async def atomic_lists_are_replaced(api: Api) -> Seen:
    await api.vm()
    await api.apply({"addresses": [{"ip": "198.51.100.1"}, {"ip": "198.51.100.2"}]})
    return [short(await api.apply({"addresses": [{"ip": "198.51.100.3"}]}))]


@probe
async def conflicts(api: Api) -> Seen:
    await api.vm()
    await api.apply({"state": "Up"})
    seen = [short(await api.apply({"state": "Down"}, "two", force=False))]
    seen += [short(await api.apply({"state": "Up"}, "two", force=False))]
    seen += [short(await api.apply({"state": "Down"}, "two"))]
    return [*seen, short(await api.apply({}))]


@probe
async def a_status_by_merge_patch_has_an_owner_too(api: Api) -> Seen:
    await api.vm()
    await api.merge({"status": {"state": "Up"}}, "/status")
    return [short(await api.apply({"state": "Down"}, force=False)), short(await api.apply({"host": "h1"}))]


@probe
async def applying_to_what_is_not_there(api: Api) -> Seen:
    seen = [short(await api.apply({"state": "Up"}))]
    seen += [(await api.apply_main(metadata={"uid": OTHER}, spec=SPEC)).get("refused")]
    seen += [(await api.apply_main(metadata={"resourceVersion": "7"}, spec=SPEC)).get("refused")]
    ghost = await api.apply_main(metadata={"finalizers": ["a.b/c"]}, spec=SPEC)
    return [*seen, ghost.get("refused"), ghost.get("metadata", {}).get("finalizers")]


@probe
async def finalizers_by_apply(api: Api) -> Seen:
    await api.vm()
    seen = []
    for manager, finalizers in (("one", ["a.b/c"]), ("two", ["d.e/f"]), ("one", [])):
        after = await api.apply_main(manager, metadata={"finalizers": finalizers})
        seen.append(sorted(after.get("metadata", {}).get("finalizers", [])) or after.get("refused"))
    return seen


@probe
async def invalid_statuses(api: Api) -> Seen:
    await api.vm()
    wrong: list[Any] = [
        {"conditions": [{"type": "Ready"}]},
        {"conditions": [condition("Ready", "Perhaps")]},
        {"candidates": [{"hypervisor": "h1"}]},
        {"state": "x" * 64},
        {"state": 7},
        {"conditions": [condition("Ready"), condition("Ready")]},
    ]
    return [(await api.apply(each)).get("refused") for each in wrong]


# Patches --------------------------------------------------------------------------------------------------------------


@probe
async def json_patches_that_cannot_be_done(api: Api) -> Seen:
    await api.vm()
    operations: list[list[dict[str, Any]]] = [
        [{"op": "test", "path": "/metadata/uid", "value": OTHER}],
        [{"op": "remove", "path": "/metadata/finalizers"}],
        [{"op": "add", "path": "/metadata/finalizers/-", "value": "a.b/c"}],
        [{"op": "replace", "path": "/spec/nothing", "value": 1}],
        [{"op": "add", "path": "/spec/memory/size", "value": "much"}],
    ]
    return [(each.get("refused"), each.get("reason")) for each in [await api.patch(each) for each in operations]]


@probe
async def merge_patches(api: Api) -> Seen:
    await api.vm()
    disks = [{"name": name, "pool": "p", "size": "1Gi"} for name in ("a", "b")]
    one = await api.merge({"spec": {"disks": disks}})
    two = await api.merge({"spec": {"disks": disks[1:], "guestAgent": None}})
    return [len(one["spec"]["disks"]), len(two["spec"]["disks"]), two["spec"].get("guestAgent")]


# Deleting -------------------------------------------------------------------------------------------------------------


@probe
async def deleting_without_finalizers(api: Api) -> Seen:
    first = await api.vm()
    seen = [await api.refused("DELETE", f"{api.vms}/web"), (await api.get()).get("refused")]
    return [*seen, (await api.vm())["metadata"]["uid"] == first["metadata"]["uid"]]


@probe
async def deleting_with_finalizers(api: Api) -> Seen:
    made = await api.vm(finalizers=["a.b/c"])
    uid = made["metadata"]["uid"]
    wrong = {"preconditions": {"uid": OTHER}}
    seen = [await api.refused("DELETE", f"{api.vms}/web", body=wrong), await api.refused("DELETE", f"{api.vms}/web")]
    there = await api.get()
    seen += ["deletionTimestamp" in there["metadata"], there["metadata"]["generation"]]
    again = await api.do("DELETE", f"{api.vms}/web")
    seen += [again.get("refused"), (await api.get())["metadata"]["generation"], (await api.vm()).get("reason")]
    more = [{"op": "add", "path": "/metadata/finalizers/-", "value": "d.e/f"}]
    seen += [(await api.patch(more)).get("refused"), short(await api.apply({"state": "Down"}))]
    seen += [(await api.merge({"spec": {"runStrategy": "Halted"}})).get("refused")]
    test = [{"op": "test", "path": "/metadata/uid", "value": uid}]
    gone = await api.patch([*test, {"op": "add", "path": "/metadata/finalizers", "value": []}])
    return [*seen, gone.get("refused"), (await api.get()).get("refused")]


@probe
async def a_namespace_that_goes(api: Api) -> Seen:
    await api.vm(finalizers=["a.b/c"])
    space = f"{NAMESPACES}/{api.namespace}"
    seen = [await api.refused("DELETE", space)]
    for _ in range(100):
        if "deletionTimestamp" in (await api.get()).get("metadata", {}):
            break
        await asyncio.sleep(0.2)
    seen += [(await api.vm("new")).get("refused"), (await api.do("GET", space)).get("refused")]
    event = {"metadata": {"name": "e"}, "involvedObject": {"namespace": api.namespace}, "reason": "R", "message": "m"}
    seen += [await api.refused("POST", f"{space}/events", body=event | {"apiVersion": "v1", "kind": "Event"})]
    await api.merge({"metadata": {"finalizers": None}})
    for _ in range(200):
        if (await api.do("GET", space)).get("refused"):
            break
        await asyncio.sleep(0.2)
    return [*seen, (await api.do("GET", space)).get("refused"), (await api.get()).get("refused")]


# Others ---------------------------------------------------------------------------------------------------------------


@probe
async def pages(api: Api) -> Seen:
    for number in range(5):
        await api.vm(f"vm{number}")
    first = await api.do("GET", api.vms, query={"limit": "3"})
    rest = await api.do("GET", api.vms, query={"limit": "3", "continue": first["metadata"]["continue"]})
    names = [item["metadata"]["name"] for item in [*first["items"], *rest["items"]]]
    return [names, bool(rest["metadata"].get("continue")), bool(version(first))]


@probe
async def leases(api: Api) -> Seen:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{api.namespace}/leases"
    head = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
    lease = head | {"metadata": {"name": "l"}, "spec": {"holderIdentity": "a", "leaseDurationSeconds": 15}}
    seen = [await api.refused("POST", path, body=lease), await api.refused("POST", path, body=lease)]
    there = await api.do("GET", f"{path}/l")
    mine = there | {"spec": there["spec"] | {"holderIdentity": "b"}}
    return [*seen, await api.refused("PUT", f"{path}/l", body=mine), await api.refused("PUT", f"{path}/l", body=mine)]


# Running --------------------------------------------------------------------------------------------------------------


def simulated(name: str) -> Seen:
    """What a probe sees in memory."""

    async def run() -> Seen:
        async with World(hosts=1) as world:
            world.invariants.protocol = False
            world.api.create_namespace("probe")
            transport = SimulatedTransport(world.api, world.front, Life(1), world.effects)
            seen = await dict(PROBES)[name](Api(transport, "probe"))
            world.effects.violations.clear()  # a probe says of VMs what it likes
            return seen

    return run_virtual(run())


def real(name: str, kubeconfig: str) -> Seen:
    """What a probe sees on an API server that has the CRDs, in a namespace made for it."""

    async def run() -> Seen:
        transport = await HttpTransport.connect(kubeconfig)
        space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "probe-"}}
        namespace = (await transport.request("POST", NAMESPACES, body=space))["metadata"]["name"]
        api = Api(transport, namespace)
        try:
            return await dict(PROBES)[name](api)
        finally:
            await api.merge({"metadata": {"finalizers": None}})
            await api.do("DELETE", f"{NAMESPACES}/{namespace}")
            await transport.close()

    return asyncio.run(run())


def main(kubeconfig: str, *probes: str) -> int:
    """Runs probes on both and prints where they differ; returns how many do."""
    differing = 0
    for each in probes or [each for each, _ in PROBES]:
        there, here = _attempt(partial(real, each, kubeconfig)), _attempt(partial(simulated, each))
        differing += there != here
        print(
            f"{'same  ' if there == here else 'DIFFER'} {each}: {there}" + ("" if there == here else f"\n  not {here}")
        )
    return differing


def _attempt(run: Callable[[], Seen]) -> Any:
    try:
        return run()
    except (ApiError, AssertionError, LookupError) as error:
        return f"failed: {error!r}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
