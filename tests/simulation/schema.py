# SPDX-License-Identifier: Apache-2.0
"""What an API server does with the schema of a CRD: defaults, pruning, validation, and how lists are merged."""

from __future__ import annotations

import functools
import marshal
import re
from typing import Any

from homeostat.api import crd

Schema = dict[str, Any]

METADATA: Schema = {
    "type": "object",
    "properties": {
        "finalizers": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "ownerReferences": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["uid"],
            "items": {"type": "object", "additionalProperties": {}},
        },
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


@functools.cache
def definitions() -> dict[str, dict[str, Any]]:
    """The CRDs of the product, by plural. Not to be changed."""
    made = (crd.definition(kind) for kind in crd.KINDS)
    return {each["spec"]["names"]["plural"]: each for each in made}


def structural(definition: dict[str, Any]) -> Schema:
    """The schema of a CRD's only version."""
    schema: Schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def with_defaults(value: Any, schema: Schema) -> Any:
    """The value with defaults where a field is unset and its parent is there."""
    if isinstance(value, dict):
        for name, each in schema.get("properties", {}).items():
            if name not in value and "default" in each:
                value[name] = clone(each["default"])
            if name in value:
                value[name] = with_defaults(value[name], each)
        extra = schema.get("additionalProperties")
        if isinstance(extra, dict):
            for name in value:
                value[name] = with_defaults(value[name], extra)
    if isinstance(value, list):
        return [with_defaults(each, schema.get("items", {})) for each in value]
    return value


def pruned(value: Any, schema: Schema) -> Any:
    """The value without the fields that the schema does not know, and without nulls."""
    if isinstance(value, dict) and "properties" in schema:
        known = schema["properties"]
        return {name: pruned(each, known[name]) for name, each in value.items() if name in known and each is not None}
    if isinstance(value, list):
        return [pruned(each, schema.get("items", {})) for each in value]
    return value


def errors(value: Any, schema: Schema, path: str = "") -> list[str]:
    """What the API server would say against the value, one sentence for each field. CEL rules are not looked at."""
    found: list[str] = []
    types: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "boolean": bool,
        "number": (int, float),
    }
    kind = schema.get("type", "")
    if kind in types and (not isinstance(value, types[kind]) or (kind == "integer" and isinstance(value, bool))):
        return [f"{path}: Invalid value: must be of type {kind}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{path}: Unsupported value: {value!r}")
    if isinstance(value, str):
        found += _bounds(len(value), schema.get("minLength", 0), schema.get("maxLength"), path, "long")
        if "pattern" in schema and not re.search(schema["pattern"], value):
            found.append(f"{path}: Invalid value: {value!r} should match {schema['pattern']!r}")
    elif isinstance(value, int) and not isinstance(value, bool):
        found += _bounds(value, schema.get("minimum"), schema.get("maximum"), path, "large")
    elif isinstance(value, list):
        found += _bounds(len(value), schema.get("minItems", 0), schema.get("maxItems"), path, "many")
        found += _duplicates(value, schema, path)
        for index, each in enumerate(value):
            found += errors(each, schema.get("items", {}), f"{path}[{index}]")
    elif isinstance(value, dict):
        found += [f"{path}.{name}: Required value" for name in schema.get("required", []) if name not in value]
        for name, each in value.items():
            extra = schema.get("additionalProperties")
            below = schema.get("properties", {}).get(name, extra if isinstance(extra, dict) else {})
            found += errors(each, below, f"{path}.{name}")
    return found


def _bounds(size: int, low: int | None, high: int | None, path: str, word: str) -> list[str]:
    if low is not None and size < low:
        return [f"{path}: Invalid value: must be at least {low} ({word})"]
    return [f"{path}: Too {word}: must be at most {high}"] if high is not None and size > high else []


def _duplicates(value: list[Any], schema: Schema, path: str) -> list[str]:
    match schema.get("x-kubernetes-list-type"):
        case "map":
            keys = [item_key(each, schema) for each in value if isinstance(each, dict)]
        case "set":
            keys = list(value)
        case _:
            return []
    return [f"{path}: Duplicate value: {key!r}" for key in {str(k) for k in keys if keys.count(k) > 1}]


def item_key(item: dict[str, Any], schema: Schema) -> tuple[Any, ...]:
    """The key of an item of a list map."""
    return tuple(item.get(name) for name in schema["x-kubernetes-list-map-keys"])


def clone(value: Any) -> Any:
    """A deep copy of JSON."""
    return marshal.loads(marshal.dumps(value))
