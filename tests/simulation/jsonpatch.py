# SPDX-License-Identifier: Apache-2.0
"""JSON patch (RFC 6902) and JSON merge patch (RFC 7386)."""

from __future__ import annotations

from typing import Any

from tests.simulation.schema import clone


def patched(document: Any, operations: list[dict[str, Any]]) -> Any:
    """The document after the operations. LookupError or ValueError when one of them cannot be done."""
    result = clone(document)
    for operation in operations:
        _do(result, operation)
    return result


def _do(document: Any, operation: dict[str, Any]) -> None:
    parent, last = _find(document, operation["path"])
    match operation["op"]:
        case "test":
            if _value(parent, last) != operation["value"]:
                raise ValueError(f"testing value {operation['path']} failed")
        case "add" if isinstance(parent, list):
            parent.insert(len(parent) if last == "-" else int(last), clone(operation["value"]))
        case "add":
            parent[last] = clone(operation["value"])
        case "replace":  # of what is not there, too: the server's library does not look
            parent[int(last) if isinstance(parent, list) else last] = clone(operation["value"])
        case "remove":
            _value(parent, last)
            del parent[int(last) if isinstance(parent, list) else last]
        case other:
            raise ValueError(f"unexpected operation {other}")


def _find(document: Any, pointer: str) -> tuple[Any, str]:
    *way, last = [step.replace("~1", "/").replace("~0", "~") for step in pointer.split("/")[1:]]
    for step in way:
        document = _value(document, step)
    return document, last


def _value(parent: Any, step: str) -> Any:
    if isinstance(parent, list):
        return parent[int(step)]
    if not isinstance(parent, dict) or step not in parent:
        raise LookupError(f"no such path: {step}")
    return parent[step]


def merge_patched(document: Any, patch: Any) -> Any:
    """The document after a merge patch: null removes, maps are merged, all else is replaced."""
    if not isinstance(patch, dict):
        return clone(patch)
    result = clone(document) if isinstance(document, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_patched(result.get(name), value)
    return result
