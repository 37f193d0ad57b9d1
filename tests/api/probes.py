# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D103 - the name of a probe is its sentence
"""More probes for both API servers, beside those that the simulation brings; and what a watch tells on either."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kubernetes import client, config

from homeostat.kube.http import HttpTransport
from homeostat.kube.transport import APPLY
from tests.simulation.clients import SimulatedTransport
from tests.simulation.clock import run_virtual
from tests.simulation.effects import Life
from tests.simulation.honesty_api import (
    CANDIDATE,
    NAMESPACES,
    OTHER,
    SPEC,
    Api,
    Seen,
    body,
    condition,
    probe,
    short,
    version,
)
from tests.simulation.world import World

HYPERVISORS = "/apis/homeostat.dev/v1alpha1/hypervisors"
WATCH_SECONDS = 10
Script = Callable[[Api], Awaitable[None]]
Told = list[tuple[str, str, Any, Any]]
"""What a watch tells: (type, name, finalizers, state)."""


# The two endpoints ----------------------------------------------------------------------------------------------------


@probe
async def a_put_to_each_endpoint_changes_its_own_part_only(api: Api) -> Seen:
    there = await api.vm()
    changed = there | {"spec": there["spec"] | {"runStrategy": "Halted"}, "status": {"state": "Up"}}
    after = await api.do("PUT", f"{api.vms}/web/status", body=changed)
    seen = [after["spec"]["runStrategy"], after["status"], after["metadata"]["generation"]]
    changed["metadata"] = after["metadata"]
    changed["status"] = {"state": "Down"}
    after = await api.do("PUT", f"{api.vms}/web", body=changed)
    seen += [after["spec"]["runStrategy"], after["status"], after["metadata"]["generation"]]
    again = await api.do("PUT", f"{api.vms}/web", body=after)
    return [*seen, version(again) == version(after)]


@probe
async def a_put_of_metadata_to_status(api: Api) -> Seen:
    there = await api.vm(labels={"a": "b"})
    metadata = there["metadata"] | {"labels": {"a": "c"}, "finalizers": ["a.b/c"]}
    after = await api.do("PUT", f"{api.vms}/web/status", body=there | {"metadata": metadata})
    return [after["metadata"].get("labels"), after["metadata"].get("finalizers"), version(after) == version(there)]


@probe
async def puts_of_other_objects(api: Api) -> Seen:
    there = await api.vm()
    other = there | {"metadata": there["metadata"] | {"uid": OTHER}}
    seen = [await api.refused("PUT", f"{api.vms}/web{sub}", body=other) for sub in ("", "/status")]
    named = there | {"metadata": there["metadata"] | {"name": "other"}}
    return [*seen, await api.refused("PUT", f"{api.vms}/web", body=named)]


@probe
async def an_apply_to_each_endpoint_leaves_the_other_part(api: Api) -> Seen:
    await api.vm()
    seen = [(await api.apply_main(spec=SPEC, status={"state": "Up"})).get("status")]
    query = {"fieldManager": "one", "force": "true"}
    both = body({"name": "web", "labels": {"a": "b"}}, spec={"runStrategy": "Halted"}, status={"state": "Up"})
    after = await api.do("PATCH", f"{api.vms}/web/status", query=query, body=both, content_type=APPLY)
    return [*seen, after["spec"]["runStrategy"], after["status"], after["metadata"].get("labels")]


@probe
async def applies_that_make_no_sense(api: Api) -> Seen:
    await api.vm()
    path, query = f"{api.vms}/web/status", {"fieldManager": "one", "force": "true"}
    bodies = [body({"name": "other"}, status={"state": "Up"}), body({"name": "web", "managedFields": [{}]})]
    seen = [await api.refused("PATCH", path, query=query, body=each, content_type=APPLY) for each in bodies]
    return [*seen, await api.refused("PATCH", path, body=body({"name": "web"}), content_type=APPLY)]


# Who has which field --------------------------------------------------------------------------------------------------


@probe
async def a_field_that_two_managers_apply_stays_until_both_leave_it_out(api: Api) -> Seen:
    await api.vm()
    await api.apply({"state": "Up", "host": "h1"})
    await api.apply({"state": "Up"}, "two")
    seen = [short(await api.apply({"host": "h1"})), short(await api.apply({"host": "h1"}, "two"))]
    return [*seen, short(await api.apply({"reason": "R"}, "two")), short(await api.apply({"reason": "R"}))]


@probe
async def items_of_a_list_map_belong_to_whom_they_are_applied_by(api: Api) -> Seen:
    await api.vm()
    other = CANDIDATE | {"hypervisor": "h2", "uid": "v"}
    await api.apply({"candidates": [CANDIDATE]})
    seen = [short(await api.apply({"candidates": [other]}, "two"))]
    seen += [short(await api.apply({"candidates": []})), short(await api.apply({"candidates": []}, "two"))]
    return [*seen, short(await api.apply({"state": "Up"}))]


@probe
async def a_candidate_that_is_replaced(api: Api) -> Seen:
    await api.vm()
    candidates = (CANDIDATE, CANDIDATE | {"uid": "v"}, CANDIDATE | {"hypervisor": "h2"})
    return [short(await api.apply({"candidates": [each]})) for each in candidates]


@probe
async def a_condition_that_two_managers_share(api: Api) -> Seen:
    await api.vm()
    await api.apply({"conditions": [condition("Ready") | {"message": "m"}]})
    part = {"type": "Ready", "status": "False"}
    seen = [short(await api.apply({"conditions": [part]}, "two", force=False))]
    seen += [short(await api.apply({"conditions": [part]}, "two"))]
    seen += [short(await api.apply({"conditions": [condition("Ready")]})), short(await api.apply({}, "two"))]
    return [*seen, short(await api.apply({"state": "Up"}))]


@probe
async def a_field_that_a_merge_patch_takes_over(api: Api) -> Seen:
    await api.vm()
    await api.apply({"state": "Up", "host": "h1"})
    await api.merge({"status": {"state": "Down"}}, "/status")
    seen = [short(await api.apply({"host": "h1"}))]
    await api.merge({"status": {"host": None}}, "/status")
    return [*seen, short(await api.apply({"reason": "R"}))]


@probe
async def labels_by_apply(api: Api) -> Seen:
    await api.vm(labels={"a": "b"})
    seen = []
    for manager, labels in (("one", {"c": "d"}), ("two", {"c": "d", "e": "f"}), ("one", {}), ("two", {})):
        after = await api.apply_main(manager, metadata={"labels": labels})
        seen += [after["metadata"].get("labels"), after["metadata"]["generation"]]
    return seen


@probe
async def a_spec_by_apply(api: Api) -> Seen:
    disks = [{"name": name, "pool": "p", "size": "1Gi"} for name in ("a", "b")]
    seen = []
    for spec in ({"disks": disks, "runStrategy": "Halted"}, {"disks": disks[1:]}, {}):
        after = await api.apply_main(spec=SPEC | spec)
        names = [each["name"] for each in after["spec"].get("disks", [])]
        seen += [names, after["spec"]["runStrategy"], after["metadata"]["generation"]]
    return seen


# Objects that come, go and come again ---------------------------------------------------------------------------------


@probe
async def writes_that_were_decided_on_an_earlier_object_of_the_name(api: Api) -> Seen:
    first = (await api.vm())["metadata"]
    await api.do("DELETE", f"{api.vms}/web")
    old = {"uid": first["uid"], "resourceVersion": first["resourceVersion"]}
    seen = [short(await api.apply({"state": "Up"}, **old))]
    await api.vm()
    seen += [short(await api.apply({"state": "Up"}, **old)), short(await api.apply({"state": "Up"}, uid=old["uid"]))]
    seen += [(await api.apply_main(metadata=old, spec=SPEC)).get("refused")]
    tests = [{"op": "test", "path": f"/metadata/{name}", "value": value} for name, value in old.items()]
    patch = [*tests[:1], {"op": "add", "path": "/metadata/finalizers", "value": ["a.b/c"]}]
    seen += [(await api.patch(patch)).get("refused")]
    seen += [await _delete(api, {name: value}) for name, value in old.items()]
    return [*seen, (await api.get()).get("refused")]


async def _delete(api: Api, preconditions: dict[str, Any]) -> Any:
    return await api.refused("DELETE", f"{api.vms}/web", body={"preconditions": preconditions})


@probe
async def a_deletion_on_conditions_that_hold(api: Api) -> Seen:
    made = (await api.vm())["metadata"]
    return [await _delete(api, {name: made[name] for name in ("uid", "resourceVersion")}), short(await api.get())]


@probe
async def the_last_finalizer_by_each_kind_of_write(api: Api) -> Seen:
    seen: Seen = []
    for way in ("merge", "put", "apply"):
        await api.vm(finalizers=["a.b/c"])
        await api.do("DELETE", f"{api.vms}/web")
        there = await api.get()
        if way == "merge":
            after = await api.merge({"metadata": {"finalizers": None}})
        elif way == "put":
            without = there | {"metadata": there["metadata"] | {"finalizers": []}}
            after = await api.do("PUT", f"{api.vms}/web", body=without)
        else:
            after = await api.apply_main(metadata={"finalizers": []})
        seen += [after.get("refused"), (await api.get()).get("refused")]
        await api.merge({"metadata": {"finalizers": None}})
    return seen


@probe
async def finalizers_while_deleting(api: Api) -> Seen:
    await api.vm(finalizers=["a.b/c", "d.e/f"])
    await api.do("DELETE", f"{api.vms}/web")
    seen: Seen = []
    for finalizers in (["a.b/c", "d.e/f", "g.h/i"], ["d.e/f", "a.b/c"], ["g.h/i"], ["a.b/c"], ["d.e/f"], []):
        after = await api.patch([{"op": "add", "path": "/metadata/finalizers", "value": finalizers}])
        seen += [after.get("refused") or after["metadata"].get("finalizers")]
    return [*seen, (await api.get()).get("refused")]


@probe
async def a_deletion_time_is_nothing_one_can_write(api: Api) -> Seen:
    made = await api.vm(deletionTimestamp="2030-01-01T00:00:00Z", uid=OTHER, generation=7)
    seen = ["deletionTimestamp" in made["metadata"], made["metadata"]["uid"] == OTHER, made["metadata"]["generation"]]
    after = await api.merge({"metadata": {"deletionTimestamp": "2030-01-01T00:00:00Z", "generation": 7}})
    return [*seen, after.get("refused") or ("deletionTimestamp" in after["metadata"], after["metadata"]["generation"])]


@probe
async def names_by_the_server(api: Api) -> Seen:
    made = [await api.do("POST", api.vms, body=body({"generateName": "web-"}, spec=SPEC)) for _ in range(2)]
    names = [each["metadata"]["name"] for each in made]
    refused = await api.refused("POST", api.vms, body=body({"name": "Web_1"}, spec=SPEC))
    return [len(set(names)), [(name[:4], len(name)) for name in names], refused]


# Other kinds ----------------------------------------------------------------------------------------------------------


@probe
async def a_hypervisor_has_no_namespace(api: Api) -> Seen:
    name = f"{api.namespace}-host"
    item = {"apiVersion": "homeostat.dev/v1alpha1", "kind": "Hypervisor", "metadata": {"name": name}}
    made = await api.do("POST", HYPERVISORS, body=item | {"spec": {"uri": "qemu+tcp://198.51.100.11/system"}})
    query = {"fieldManager": "one", "force": "true"}
    status = item | {"status": {"hostUUID": OTHER, "conditions": [condition("Reachable")]}}
    path = f"{HYPERVISORS}/{name}"
    after = await api.do("PATCH", f"{path}/status", query=query, body=status, content_type=APPLY)
    seen = [made.get("spec"), "namespace" in made.get("metadata", {}), after.get("status")]
    return [*seen, await api.refused("DELETE", path), await api.refused("GET", path)]


@probe
async def secrets(api: Api) -> Seen:
    path = f"{NAMESPACES}/{api.namespace}/secrets"
    seen = [await api.refused("GET", f"{path}/tls")]
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "tls"}, "data": {"key": "a2V5"}}
    made = await api.do("POST", path, body=secret)
    read = await api.do("GET", f"{path}/tls")
    after = await api.do("PUT", f"{path}/tls", body=read | {"data": {"key": "bmV3"}})
    seen += [read.get("data"), version(made) == version(read), version(after) == version(read), after.get("data")]
    seen += [after["metadata"]["uid"] == made["metadata"]["uid"]]
    return [*seen, await api.refused("DELETE", f"{path}/tls"), await api.refused("GET", f"{path}/tls")]


@probe
async def events_of_kubernetes(api: Api) -> Seen:
    path = f"{NAMESPACES}/{api.namespace}/events"
    event = {"apiVersion": "v1", "kind": "Event", "reason": "R", "message": "m", "metadata": {"name": "e"}}
    about = {"kind": "VirtualMachine", "name": "web", "namespace": api.namespace}
    return [await api.refused("POST", path, body=event | {"involvedObject": about}) for _ in range(2)]


@probe
async def a_lease_that_is_given_back(api: Api) -> Seen:
    path = f"/apis/coordination.k8s.io/v1/namespaces/{api.namespace}/leases"
    head = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"}}
    made = await api.do("POST", path, body=head | {"spec": {"holderIdentity": "a", "leaseTransitions": 0}})
    after = await api.do("PUT", f"{path}/l", body=made | {"spec": made["spec"] | {"holderIdentity": ""}})
    same = await api.do("PUT", f"{path}/l", body=after)
    seen = [after["spec"], version(after) == version(made), version(same) == version(after)]
    await api.do("DELETE", f"{path}/l")
    return [*seen, await api.refused("PUT", f"{path}/l", body=after), await api.refused("GET", f"{path}/l")]


@probe
async def the_id_of_the_cluster(api: Api) -> Seen:
    first, second = [await api.do("GET", f"{NAMESPACES}/kube-system") for _ in range(2)]
    seen = [first["metadata"]["uid"] == second["metadata"]["uid"], first["status"]]
    again = await api.refused("POST", NAMESPACES, body={"metadata": {"name": "kube-system"}})
    return [*seen, again, await api.refused("GET", f"{NAMESPACES}/not-there")]


@probe
async def paths_that_are_not_served(api: Api) -> Seen:
    paths = (f"{api.vms}/web/nothing", f"{api.vms}things", "/apis/homeostat.dev/v1/virtualmachines")
    return [await api.refused("GET", path) for path in paths]


@probe
async def a_list_over_all_namespaces(api: Api) -> Seen:
    await api.vm("one")
    await api.vm("two")
    everywhere = "/apis/homeostat.dev/v1alpha1/virtualmachines"
    found = await api.do("GET", everywhere, query={"limit": "500"})
    mine = [each["metadata"]["name"] for each in found["items"] if each["metadata"]["namespace"] == api.namespace]
    nowhere = await api.do("GET", api.vms.replace(api.namespace, "not-there"))
    return [mine, found["kind"], nowhere.get("items")]


# Watching -------------------------------------------------------------------------------------------------------------


async def a_life(api: Api) -> None:
    """A VM is made, changed, left as it is, deleted while held, let go; another is deleted at once."""
    await api.vm(finalizers=["a.b/c", "d.e/f"])
    await api.merge({"metadata": {"labels": {"a": "b"}}})
    await api.apply({"state": "Up"})
    await api.apply({"state": "Up"})
    await api.do("DELETE", f"{api.vms}/web")
    await api.do("DELETE", f"{api.vms}/web")
    await api.apply({"state": "Down"})
    for finalizers in (["a.b/c"], []):
        await api.patch([{"op": "add", "path": "/metadata/finalizers", "value": finalizers}])
    await api.vm("other")
    await api.do("DELETE", f"{api.vms}/other")


def told_in_memory(script: Script) -> Told:
    """What a watch that began before the script is told in memory."""

    async def run() -> Told:
        async with World(hosts=1) as world:
            world.invariants.protocol = False
            world.api.create_namespace("probe")
            began = world.api.version
            await script(Api(SimulatedTransport(world.api, world.front, Life(1), world.effects), "probe"))
            world.effects.violations.clear()  # a probe says of VMs what it likes
            return [_told(each.type, each.object) for each in world.api.log if each.version > began]

    return run_virtual(run())


def told_by_server(script: Script, kubeconfig: Path, namespace: str) -> Told:
    """What a watch of a namespace that began before the script is told by a real server."""

    async def run() -> tuple[str, str]:
        transport = await HttpTransport.connect(str(kubeconfig))
        try:
            api = Api(transport, namespace)
            began = await api.do("GET", api.vms)
            await script(api)
            return api.vms, version(began)
        finally:
            await transport.close()

    path, began = asyncio.run(run())
    return [_told(each["type"], each["object"]) for each in _watched(kubeconfig, path, began)]


def _watched(kubeconfig: Path, path: str, began: str) -> list[dict[str, Any]]:
    configuration: Any = client.Configuration()
    load: Any = config.load_kube_config
    load(config_file=str(kubeconfig), client_configuration=configuration)
    login = {each["key"]: each["value"] for each in configuration.auth_settings().values()}
    query = urlencode({"watch": "true", "resourceVersion": began, "timeoutSeconds": WATCH_SECONDS})
    ask: Any = client.ApiClient(configuration).call_api
    answer = ask("GET", f"{configuration.host}{path}?{query}", {"Accept": "application/json", **login})
    return [json.loads(line) for line in answer.read().splitlines()]


def _told(type_: str, shown: dict[str, Any]) -> tuple[str, str, Any, Any]:
    metadata = shown["metadata"]
    return type_, metadata["name"], metadata.get("finalizers"), shown.get("status", {}).get("state")
