# SPDX-License-Identifier: Apache-2.0
"""Server-side apply: who owns which field, and what becomes of a field when its owner leaves it out.

A field is a path: a tuple of names, of ("k", key) for an item of a list map and ("v", value) for one of a list set.
Lists without a type, and scalars, are owned as a whole.
"""

from __future__ import annotations

from typing import Any

from tests.simulation.schema import Schema, clone, item_key

Path = tuple[Any, ...]
Owners = dict[str, set[Path]]


HOLDER = object()
"""Stands for a map, a list map or a list set: no value of its own, but fields in it."""


def fields(value: Any, schema: Schema) -> dict[Path, Any]:
    """The fields that a value names, with their values. An empty map or list map is a field, and so is each item."""
    found: dict[Path, Any] = {}
    _collect(value, schema, (), found)
    found.pop((), None)
    return found


def _collect(value: Any, schema: Schema, at: Path, found: dict[Path, Any]) -> None:
    kind = schema.get("x-kubernetes-list-type")
    found[at] = HOLDER
    if isinstance(value, dict) and schema.get("x-kubernetes-map-type") != "atomic":
        for name, each in value.items():
            _collect(each, _below(schema, name), (*at, name), found)
    elif isinstance(value, list) and kind == "map":
        for item in value:
            _collect(item, schema["items"], (*at, ("k", item_key(item, schema))), found)
    elif isinstance(value, list) and kind == "set":
        found.update({(*at, ("v", item)): item for item in value})
    else:
        found[at] = value


def _below(schema: Schema, name: str) -> Schema:
    below: Schema | None = schema.get("properties", {}).get(name)
    if below is not None:
        return below
    extra = schema.get("additionalProperties")
    return extra if isinstance(extra, dict) else {}


def conflicts(live: Any, applied: Any, schema: Schema, owners: Owners, manager: str) -> list[tuple[str, Path]]:
    """Fields of others that the applied value would change."""
    wanted = fields(applied, schema)
    return [
        (other, path)
        for other, owned in owners.items()
        if other != manager
        for path in owned & wanted.keys()
        if wanted[path] is not HOLDER and wanted[path] != get(live, path, schema)
    ]


def apply(
    live: dict[str, Any], applied: dict[str, Any], schema: Schema, owners: Owners, manager: str
) -> dict[str, Any]:
    """The object after an apply by `manager`, with force; `owners` is brought up to date."""
    result: dict[str, Any] = _merged(clone(live), applied, schema)
    named = set(fields(applied, schema))
    for path in sorted(owners.get(manager, set()) - named, key=len):
        kept = any(path in owned for other, owned in owners.items() if other != manager)
        if not kept and not _holds_fields_of_others(path, owners, manager):
            _remove(result, path, schema)
            _emptied(result, path, schema)
    for other, path in conflicts(live, applied, schema, owners, manager):
        owners[other].discard(path)
    owners[manager] = named
    return result


def _holds_fields_of_others(path: Path, owners: Owners, manager: str) -> bool:
    return any(each[: len(path)] == path for other, owned in owners.items() if other != manager for each in owned)


def changed_by_update(before: Any, after: Any, schema: Schema, owners: Owners, manager: str) -> None:
    """Ownership after a write that is no apply: whoever changes a field has it, removed fields belong to nobody."""
    was, there = fields(before, schema), fields(after, schema)
    written = {path for path, value in there.items() if value is not HOLDER and was.get(path, HOLDER) != value}
    for owned in owners.values():
        owned &= there.keys()
        owned -= written
    owners.setdefault(manager, set()).update(written)


def get(value: Any, path: Path, schema: Schema) -> Any:
    """The value at a path; None when there is none."""
    for step in path:
        value, schema = _step(value, step, schema)
        if value is None:
            break
    return value


def _step(value: Any, step: Any, schema: Schema) -> tuple[Any, Schema]:
    if isinstance(step, str):
        return (value.get(step) if isinstance(value, dict) else None), _below(schema, step)
    if not isinstance(value, list):
        return None, {}
    kind, key = step
    if kind == "v":
        return (key if key in value else None), {}
    found = next((item for item in value if item_key(item, schema) == key), None)
    return found, schema["items"]


def _remove(value: Any, path: Path, schema: Schema) -> None:
    *way, last = path
    for step in way:
        value, schema = _step(value, step, schema)
        if value is None:
            return
    if isinstance(last, str):
        if isinstance(value, dict):
            value.pop(last, None)
    elif isinstance(value, list):
        kind, key = last
        value[:] = [item for item in value if (item if kind == "v" else item_key(item, schema)) != key]


def _emptied(value: Any, path: Path, schema: Schema) -> None:
    """What a removal has left empty becomes null, and that is something in what holds it: so servers do it."""
    *above, name = path[:-1] or ("",)
    if path[1:] and get(value, path[:-1], schema) in ({}, []) and isinstance(name, str):
        holder = get(value, tuple(above), schema)
        holder[name] = None


def without_nulls(value: Any) -> Any:
    """The same without the names that hold nothing."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    return value


def _merged(live: Any, applied: Any, schema: Schema) -> Any:
    kind = schema.get("x-kubernetes-list-type")
    if isinstance(applied, dict) and isinstance(live, dict) and schema.get("x-kubernetes-map-type") != "atomic":
        for name, each in applied.items():
            live[name] = _merged(live.get(name), each, _below(schema, name)) if name in live else clone(each)
        return live
    if isinstance(applied, list) and isinstance(live, list) and kind == "map":
        for item in applied:
            place = next((n for n, old in enumerate(live) if item_key(old, schema) == item_key(item, schema)), None)
            if place is None:
                live.append(clone(item))
            else:
                live[place] = _merged(live[place], item, schema["items"])
        return live
    if isinstance(applied, list) and isinstance(live, list) and kind == "set":
        return live + [item for item in applied if item not in live]
    return clone(applied)
