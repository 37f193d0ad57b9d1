# SPDX-License-Identifier: Apache-2.0
"""What a resource type says to Kubernetes beyond its fields: CEL rules, kinds of lists, printer columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

JsonSchema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL rule on an object and the sentence a person reads when it refuses.

    `check` says the same of the model, so that both verdicts can be compared; a transition rule (`oldSelf`) has none.
    `path` is the field that is at fault, seen from the object; `value` a CEL string that is shown before the message.
    """

    cel: str
    message: str
    check: Callable[[Any], bool] | None = field(default=None, compare=False)
    path: str = ""
    value: str = ""

    def schema(self) -> JsonSchema:
        """Return the entry of x-kubernetes-validations."""
        place = {"fieldPath": f".{self.path}"} if self.path else {}
        shown = {"messageExpression": f"{self.value} + ': {self.message}'"} if self.value else {}
        return {"rule": self.cel, **place, "message": self.message, **shown}


def member(kind: str, name: str, alias: str) -> Rule:
    """Return the rule of a union discriminated by `type`: this member is there with its type, and only then."""
    return Rule(
        f"has(self.{alias}) == (self.type == '{kind}')",
        f"{alias} belongs to type {kind}: set it with that type, and with no other",
        lambda self: (getattr(self, name) is not None) == (self.type == kind),
        path=alias,
    )


@dataclass(frozen=True, slots=True)
class _List:
    """How Kubernetes merges a list; the elements of a map or set are unique."""

    schema: tuple[tuple[str, Any], ...]
    key: Callable[[Any], Any] | None = None

    def __get_pydantic_json_schema__(self, source: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchema:
        return handler(source) | dict(self.schema)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._unique, handler(source))

    def _unique(self, items: Iterable[Any]) -> Iterable[Any]:
        keys = sorted(self.key(item) for item in items) if self.key else []
        for key, following in pairwise(keys):
            if key == following:
                raise ValueError(f"duplicate: {key}")
        return items


def map_by(key: str) -> _List:
    """Return the marker of a list whose elements are told apart by one field."""
    return _List(
        (("x-kubernetes-list-type", "map"), ("x-kubernetes-list-map-keys", [key])), lambda item: getattr(item, key)
    )


SET = _List((("x-kubernetes-list-type", "set"),), lambda item: item)
ATOMIC = _List((("x-kubernetes-list-type", "atomic"),))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of `kubectl get`; wide ones are shown with `-o wide` only."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False

    def schema(self) -> JsonSchema:
        """Return the entry of additionalPrinterColumns."""
        return {"name": self.name, "type": self.type, "jsonPath": self.path, "priority": int(self.wide)}
