# SPDX-License-Identifier: Apache-2.0
"""An API server in memory: objects, versions, server-side apply, finalizers, namespaces, and the log that watches read.

The methods here are what the server does, at once; `transport` and `watch` are how operators reach it, in phases.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from homeostat.kube.transport import APPLY, JSON_PATCH, MERGE_PATCH, ApiError
from tests.simulation import ownership, schema
from tests.simulation.jsonpatch import merge_patched, patched
from tests.simulation.paths import Target
from tests.simulation.schema import clone

Object = dict[str, Any]
Key = tuple[str, str, str]

KEPT_BY_SERVER = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "selfLink", "managedFields")


def not_found(target: Target) -> ApiError:
    """404."""
    return ApiError(404, "NotFound", f'{target.resource} "{target.name}" not found')


def conflict(target: Target, why: str) -> ApiError:
    """409."""
    return ApiError(409, "Conflict", f'Operation cannot be fulfilled on {target.resource} "{target.name}": {why}')


def invalid(target: Target, why: str) -> ApiError:
    """422."""
    return ApiError(422, "Invalid", f'{target.kind} "{target.name}" is invalid: {why}')


@dataclass(slots=True)
class Entry:
    """One line of the log that watches read."""

    version: int
    type: str
    resource: str
    object: Object


@dataclass(slots=True)
class Snapshot:
    """What a backup of etcd holds."""

    version: int
    objects: dict[Key, Object]
    owners: dict[Key, ownership.Owners]


@dataclass(slots=True)
class ApiServer:
    """The store and the verbs. `now` stamps objects; `changed` is called after each change: (type, before, after)."""

    now: Callable[[], datetime]
    objects: dict[Key, Object] = field(default_factory=dict)
    owners: dict[Key, ownership.Owners] = field(default_factory=dict)
    log: list[Entry] = field(default_factory=list)
    version: int = 100
    compacted: int = 0
    restored: int = 0
    changed: list[Callable[[str, Object | None, Object | None], None]] = field(default_factory=list)
    definitions: dict[str, dict[str, Any]] = field(default_factory=schema.definitions)
    _uids: int = 0

    def __post_init__(self) -> None:
        for name in ("kube-system", "default", "homeostat-system"):
            self.create_namespace(name)

    def create_namespace(self, name: str) -> Object:
        """Makes a namespace."""
        target = Target("/api/v1", "namespaces", "", name)
        status = {"phase": "Active"}
        return self._insert(target, {"metadata": {"name": name, "finalizers": []}, "status": status})

    # Reads ------------------------------------------------------------------------------------------------------------

    def get(self, target: Target) -> Object:
        """A copy of the object; 404 when there is none."""
        return clone(self._live(target))  # type: ignore[no-any-return]

    def _live(self, target: Target) -> Object:
        found = self.objects.get(target.key)
        if found is None:
            raise not_found(target)
        return found

    def list(self, target: Target, limit: int = 0, start: int = 0) -> Object:
        """A page of a list, with the version it was read at."""
        found = [
            clone(each)
            for (resource, namespace, _), each in sorted(self.objects.items())
            if resource == target.resource and target.namespace in ("", namespace)
        ]
        page = found[start : start + limit] if limit else found
        meta: Object = {"resourceVersion": str(self.version)}
        if limit and start + limit < len(found):
            meta |= {"continue": str(start + limit), "remainingItemCount": len(found) - start - limit}
        return {"kind": f"{target.kind}List", "apiVersion": target.api_version, "metadata": meta, "items": page}

    # Writes -----------------------------------------------------------------------------------------------------------

    def create(self, target: Target, body: Object, manager: str = "kubectl") -> Object:
        """POST."""
        body = self._known_shape(target, body)
        meta = body["metadata"]
        if "name" not in meta and "generateName" in meta:
            meta["name"] = f"{meta['generateName']}{self.version:05d}"
        if "name" not in meta:
            raise invalid(target, "metadata.name: Required value: name or generateName is required")
        target = target.named(meta["name"])
        self._check_namespace(target)
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?", target.name):
            raise invalid(target, f"metadata.name: Invalid value: {target.name!r}: a lowercase RFC 1123 subdomain")
        if meta.get("resourceVersion"):
            raise ApiError(500, "", "resourceVersion should not be set on objects to be created")
        if target.key in self.objects:
            raise ApiError(409, "AlreadyExists", f'{target.resource} "{target.name}" already exists')
        if self._has_status(target):
            body.pop("status", None)
        self._check(target, body)
        made = self._insert(target, body)
        ownership.changed_by_update({}, made, self._schema(target), self.owners.setdefault(target.key, {}), manager)
        return made

    def _check_namespace(self, target: Target) -> None:
        if not target.namespace:
            return
        space = self.objects.get(("namespaces", "", target.namespace))
        if space is None:
            raise ApiError(404, "NotFound", f'namespaces "{target.namespace}" not found')
        if space["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {target.namespace} because it is being terminated"
            raise ApiError(403, "Forbidden", f'{target.resource} "{target.name}" is forbidden: {why}')

    def _insert(self, target: Target, body: Object) -> Object:
        meta = {name: each for name, each in body["metadata"].items() if name not in KEPT_BY_SERVER}
        self._uids += 1
        meta |= {"uid": f"00000000-0000-4000-8000-{self._uids:012d}", "creationTimestamp": self._time()}
        meta |= {"generation": 1}
        if target.namespace:
            meta["namespace"] = target.namespace
        made = {**body, "apiVersion": target.api_version, "kind": target.kind, "metadata": meta}
        self._store(target, None, made)
        return clone(made)  # type: ignore[no-any-return]

    def update(self, target: Target, body: Object, manager: str = "kubectl") -> Object:
        """PUT. A uid in the body is a precondition: on /status too, and where there is nothing."""
        meta, there = body.get("metadata", {}), self.objects.get(target.key)
        if meta.get("name", target.name) != target.name:
            raise ApiError(400, "BadRequest", "the name of the object does not match the name on the URL")
        if "uid" in meta and meta["uid"] != (there["metadata"]["uid"] if there else ""):
            raise conflict(target, f"Precondition failed: UID in precondition: {meta['uid']}")
        live = self._live(target)
        if self._has_status(target) and not body.get("metadata", {}).get("resourceVersion"):
            raise invalid(target, "metadata.resourceVersion: Invalid value: must be specified for an update")
        return self._replace(target, live, clone(body), manager)

    def patch(
        self, target: Target, body: Any, content_type: str, manager: str = "kubectl", *, force: bool = False
    ) -> Object:
        """PATCH: JSON patch, merge patch or apply."""
        if content_type == APPLY:
            return self._apply(target, body, manager, force=force)
        live = self._live(target)
        if content_type == JSON_PATCH:
            try:
                after = patched(live, body)
            except (LookupError, ValueError) as error:
                raise ApiError(422, "Invalid", f"the server rejected our request: {error}") from None
        elif content_type == MERGE_PATCH:
            after = merge_patched(live, body)
        else:
            raise ApiError(
                415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {content_type}"
            )
        return self._replace(target, live, after, manager)

    def _apply(self, target: Target, body: Object, manager: str, *, force: bool) -> Object:
        body = clone(body)
        meta = body.get("metadata", {})
        if meta.get("name", target.name) != target.name or "managedFields" in meta:
            raise ApiError(400, "BadRequest", "the name of the object does not match the name on the URL")
        live = self.objects.get(target.key)
        if live is None and target.subresource:
            raise not_found(target)
        if live is None and "uid" in meta:
            raise conflict(target, "StorageError: invalid object, Precondition failed: UID in precondition")
        if live is None:
            return self._upsert(target, body, manager)
        self._check_version(target, live, meta)
        self._check_uid(target, live, meta)
        part = self._applied_part(target, body)
        self._check_types(target, part)
        shape, owners = self._schema(target), self.owners.setdefault(target.key, {})
        owner = f"{manager}/{target.subresource}"
        clashes = ownership.conflicts(live, part, shape, owners, owner)
        if clashes and not force:
            others = ", ".join(sorted({f"{other} has {path[-1]}" for other, path in clashes}))
            raise ApiError(409, "Conflict", f"Apply failed with conflicts: {others}")
        after = ownership.apply(live, part, shape, owners, owner)
        if target.subresource and after.get("status", ()) is None:
            raise invalid(target, 'status: Invalid value: "null": status in body must be of type object')
        after = ownership.without_nulls(after)
        if live.get("status") and not after["status"]:
            del after["status"]
        return self._replace(target, live, after, "")

    def _check_types(self, target: Target, part: Object) -> None:
        """What cannot even be read as a value of the schema is no invalid value to an apply, but an error."""
        wrong = [each for each in schema.errors(part, self._schema(target)) if "of type" in each or "Duplicate" in each]
        if wrong:
            raise ApiError(500, "", f"failed to create typed patch object: {wrong[0]}")

    def _upsert(self, target: Target, body: Object, manager: str) -> Object:
        meta = {name: each for name, each in body.get("metadata", {}).items() if name != "resourceVersion"}
        made = self.create(target, {**body, "metadata": {**meta, "name": target.name}}, "")
        shape = self._schema(target)
        part = self._applied_part(target, body)
        self.owners[target.key] = {f"{manager}/": set(ownership.fields(part, shape))}
        return made

    @staticmethod
    def _applied_part(target: Target, body: Object) -> Object:
        """What an apply through this endpoint can own: status on /status; else labels, finalizers and the rest."""
        if target.subresource:
            return {"status": body["status"]} if "status" in body else {}
        owned = ("labels", "annotations", "finalizers", "ownerReferences")
        meta = {name: each for name, each in body.get("metadata", {}).items() if name in owned}
        rest = {name: each for name, each in body.items() if name not in ("apiVersion", "kind", "metadata", "status")}
        return {**rest, **({"metadata": meta} if meta else {})}

    def delete(self, target: Target, body: Object | None = None) -> Object:
        """DELETE, with the preconditions in its body."""
        live = self._live(target)
        for name, wanted in ((body or {}).get("preconditions") or {}).items():
            if live["metadata"].get(name) != wanted:
                raise conflict(target, f"the {name} in the precondition ({wanted}) does not match")
        if target.resource == "namespaces":
            return self._terminate(target, live)
        if not live["metadata"].get("finalizers"):
            self._remove(target, live)
            return {"kind": "Status", "status": "Success"}
        if not live["metadata"].get("deletionTimestamp"):
            after = clone(live)
            after["metadata"] |= {"deletionTimestamp": self._time(), "deletionGracePeriodSeconds": 0}
            after["metadata"]["generation"] += 1
            self._store(target, live, after)
        return self.get(target)

    def _terminate(self, target: Target, live: Object) -> Object:
        after = clone(live)
        after["metadata"]["deletionTimestamp"] = self._time()
        after["status"] = {"phase": "Terminating"}
        self._store(target, live, after)
        for resource, namespace, name in [key for key in self.objects if key[1] == target.name]:
            prefix = self.objects[resource, namespace, name]["apiVersion"]
            self.delete(Target(f"/apis/{prefix}" if "/" in prefix else f"/api/{prefix}", resource, namespace, name))
        self._sweep(target.name)
        return after  # type: ignore[no-any-return]

    def _sweep(self, namespace: str) -> None:
        """A namespace that is being deleted goes when nothing is left in it."""
        live = self.objects.get(("namespaces", "", namespace))
        empty = not any(key[1] == namespace for key in self.objects)
        if live is not None and live["metadata"].get("deletionTimestamp") and empty:
            self._remove(Target("/api/v1", "namespaces", "", namespace), live)

    # What every write passes ------------------------------------------------------------------------------------------

    def _replace(self, target: Target, live: Object, body: Object, manager: str) -> Object:
        meta = body.get("metadata", {})
        self._check_version(target, live, meta)
        self._check_uid(target, live, meta)
        if meta.get("deletionTimestamp") not in (None, live["metadata"].get("deletionTimestamp")):
            raise invalid(target, "metadata.deletionTimestamp: field is immutable")
        after = self._writable(target, live, body)
        changed = {name: each for name, each in after.items() if name == "metadata" or each != live.get(name)}
        after |= self._known_shape(target, changed, whole=False)
        self._check(target, after, live)
        self._check_finalizers(target, live, after)
        if {**after, "metadata": {**after["metadata"], "generation": 0}} == {
            **live,
            "metadata": {**live["metadata"], "generation": 0},
        }:
            return clone(live)  # type: ignore[no-any-return]
        if manager:
            owner = f"{manager}/{target.subresource}"
            owners = self.owners.setdefault(target.key, {})
            ownership.changed_by_update(live, after, self._schema(target), owners, owner)
        if after["metadata"].get("deletionTimestamp") and not after["metadata"].get("finalizers"):
            self._remove(target, live)  # watches are told what was stored last: with its last finalizer
        else:
            self._store(target, live, after)
        return clone(after)  # type: ignore[no-any-return]

    def _writable(self, target: Target, live: Object, body: Object) -> Object:
        """The object with what this endpoint may change taken from the body, and the rest as it was."""
        if target.subresource:
            status = {"status": body["status"]} if "status" in body else {}
            return {name: each for name, each in live.items() if name != "status"} | status
        meta = {name: each for name, each in body.get("metadata", {}).items() if name not in KEPT_BY_SERVER}
        meta |= {name: live["metadata"][name] for name in KEPT_BY_SERVER if name in live["metadata"]}
        meta["resourceVersion"] = live["metadata"]["resourceVersion"]
        meta = {
            name: each for name, each in meta.items() if each or name not in ("finalizers", "labels", "annotations")
        }
        after = {**body, "apiVersion": target.api_version, "kind": target.kind, "metadata": meta}
        if self._has_status(target):
            after.pop("status", None)
            after |= {"status": live["status"]} if "status" in live else {}
        if any(after.get(name) != live.get(name) for name in {*after, *live} - {"metadata", "status"}):
            meta["generation"] = live["metadata"]["generation"] + 1
        return after

    @staticmethod
    def _check_version(target: Target, live: Object, meta: Object) -> None:
        if meta.get("resourceVersion", live["metadata"]["resourceVersion"]) != live["metadata"]["resourceVersion"]:
            raise conflict(target, "the object has been modified; please apply your changes to the latest version")

    @staticmethod
    def _check_uid(target: Target, live: Object, meta: Object) -> None:
        # Nothing looks at it on /status (measured).
        if not target.subresource and meta.get("uid", live["metadata"]["uid"]) != live["metadata"]["uid"]:
            raise invalid(target, f"metadata.uid: Invalid value: {meta['uid']}: field is immutable")

    @staticmethod
    def _check_finalizers(target: Target, live: Object, after: Object) -> None:
        added = set(after["metadata"].get("finalizers") or []) - set(live["metadata"].get("finalizers") or [])
        if added and live["metadata"].get("deletionTimestamp"):
            why = "no new finalizers can be added if the object is being deleted, found new finalizers"
            raise invalid(target, f"metadata.finalizers: Forbidden: {why} {sorted(added)}")

    def _known_shape(self, target: Target, body: Object, *, whole: bool = True) -> Object:
        """The body pruned and with defaults; not `whole`: these parts of it alone."""
        if target.resource not in self.definitions:
            return clone(body)  # type: ignore[no-any-return]
        parts = self._schema(target)["properties"]
        known = {name: parts[name] for name in parts if whole or name in body}
        shown = {"type": "object", "properties": {**known, "metadata": {}}}
        return schema.with_defaults(schema.pruned(clone(body), shown), shown)  # type: ignore[no-any-return]

    def _check(self, target: Target, body: Object, live: Object | None = None) -> None:
        """Refuses what the schema does not allow, of what differs from the live object."""
        shape = self._schema(target)
        new = {name: each for name, each in body.items() if name != "metadata" and (live or {}).get(name) != each}
        needed = [name for name in shape.get("required", []) if name in new or name not in body]
        if found := schema.errors(new, {**shape, "required": needed}):
            raise invalid(target, "; ".join(found))

    def _schema(self, target: Target) -> schema.Schema:
        if target.resource not in self.definitions:
            return {"type": "object", "properties": {"metadata": schema.METADATA}}
        shape = schema.structural(self.definitions[target.resource])
        return {**shape, "properties": {**shape["properties"], "metadata": schema.METADATA}}

    def _has_status(self, target: Target) -> bool:
        return target.resource in self.definitions

    def _store(self, target: Target, before: Object | None, after: Object) -> None:
        self.version += 1
        after["metadata"]["resourceVersion"] = str(self.version)
        self.objects[target.key] = after
        self._tell("MODIFIED" if before else "ADDED", target, before, after)

    def _remove(self, target: Target, live: Object) -> None:
        self.version += 1
        del self.objects[target.key]
        self.owners.pop(target.key, None)
        last = clone(live)
        last["metadata"]["resourceVersion"] = str(self.version)
        self._tell("DELETED", target, live, last)
        self._sweep(target.namespace)

    def _tell(self, kind: str, target: Target, before: Object | None, shown: Object) -> None:
        self.log.append(Entry(self.version, kind, target.resource, clone(shown)))
        for call in self.changed:
            call(kind, before, None if kind == "DELETED" else shown)

    def _time(self) -> str:
        return self.now().strftime("%Y-%m-%dT%H:%M:%SZ")

    # Backups ----------------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """A backup of everything."""
        return Snapshot(
            self.version,
            clone_keys(self.objects),
            {k: {m: set(p) for m, p in o.items()} for k, o in self.owners.items()},
        )

    def restore(self, backup: Snapshot) -> None:
        """Goes back to a backup, versions included: numbers that were given out already are given out again."""
        self.objects = clone_keys(backup.objects)
        self.owners = {k: {m: set(p) for m, p in o.items()} for k, o in backup.owners.items()}
        self.version, self.log, self.compacted = backup.version, [], backup.version
        self.restored += 1

    def compact(self) -> None:
        """Forgets the past: a watch that is behind has to list again."""
        self.log, self.compacted = [], self.version


def clone_keys(objects: dict[Key, Object]) -> dict[Key, Object]:
    """A deep copy of the store."""
    return {key: clone(each) for key, each in objects.items()}
