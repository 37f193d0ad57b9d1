# SPDX-License-Identifier: Apache-2.0
"""What all kinds share: the base of their models, conditions, quantities and times."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    WithJsonSchema,
    model_validator,
)

from homeostat.api.markers import Column, Rule

GROUP = "homeostat.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
FINALIZER = f"{GROUP}/domain"
RECONCILE_ANNOTATION = f"{GROUP}/reconcile"

MAX_MESSAGE = 2048
TIME_PATTERN = r"^[12][0-9]{3}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
QUANTITY_PATTERN = r"^(0|[1-9][0-9]{0,9})(Ki|Mi|Gi|Ti|k|M|G|T)$"
LABEL_PATTERN = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
SUBDOMAIN_PATTERN = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
UUID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
MAC_PATTERN = r"^([0-9a-e][02468ace]|f[02468ac])(:[0-9a-f]{2}){5}$"  # unicast; libvirt keeps fe: for its taps

_UNITS: dict[str, int] = {"": 1, **{unit: 1000**n for n, unit in enumerate("kMGTPE", 1)}}
_UNITS |= {f"{unit}i": 1024**n for n, unit in enumerate("KMGTPE", 1)}
_ACRONYMS = {"uuid": "UUID", "id": "ID", "mib": "MiB", "gib": "GiB", "uri": "URI"}


def camel(name: str) -> str:
    """Return a field's name as it is spelled in YAML: host_uuid is hostUUID, memory_mib is memoryMiB."""
    first, *rest = name.split("_")
    return first + "".join(_ACRONYMS.get(word, word.capitalize()) for word in rest)


def _add_rules(schema: dict[str, Any], model: type[Model]) -> None:
    if model.rules:
        schema["x-kubernetes-validations"] = [rule.schema() for rule in model.rules]


class Model(BaseModel):
    """An object of the API: immutable, unknown fields ignored, since an older operator must read newer objects."""

    model_config = ConfigDict(
        alias_generator=camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        json_schema_extra=_add_rules,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey(self) -> Self:
        for rule in self.rules:
            if rule.check and not rule.check(self):
                raise ValueError(rule.message)
        return self

    def wire(self, exclude: set[str] | None = None) -> dict[str, Any]:
        """Return the JSON object for the API server, less unset fields and empty lists; `exclude` has Python names."""
        return {
            key: value
            for key, value in self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude=exclude).items()
            if value != []
        }


def rfc3339(time: datetime) -> str:
    """Return a time as the API spells it: UTC, whole seconds, Z."""
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"


def _whole_second(value: object) -> datetime:
    if isinstance(value, str) and re.fullmatch(TIME_PATTERN, value):
        value = datetime.fromisoformat(value)
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise ValueError(f"{value!r} is not a time like 2026-01-31T12:00:00Z")
    return value.astimezone(UTC).replace(microsecond=0)


def clipped(text: str, most: int) -> str:
    """The text, with an ellipsis for what is too much of it: at most so many characters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _clip(value: object) -> object:
    return clipped(value, MAX_MESSAGE) if isinstance(value, str) else value


# Whole seconds, so that what is compared is what is written: a time that differs by less causes no write.
Time = Annotated[
    datetime,
    BeforeValidator(_whole_second),
    PlainSerializer(rfc3339, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": TIME_PATTERN}),
]
Integer = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(ge=0)]
Quantity = Annotated[str, Field(max_length=12, pattern=QUANTITY_PATTERN)]
Label = Annotated[str, Field(min_length=1, max_length=63, pattern=LABEL_PATTERN)]
HostName = Annotated[str, Field(min_length=1, max_length=63, pattern=SUBDOMAIN_PATTERN)]
UUID = Annotated[str, Field(min_length=36, max_length=36, pattern=UUID_PATTERN)]
Word = Annotated[str, Field(max_length=63)]
Line = Annotated[str, Field(max_length=1024)]
Message = Annotated[str, BeforeValidator(_clip), Field(max_length=MAX_MESSAGE)]
LibvirtName = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.:+~@ -]*$")]
Enabled = Literal["Enabled", "Disabled"]


def parse_quantity(text: str) -> int:
    """Return the bytes of a quantity such as 512Mi or 2G; ValueError for anything but a whole number and a unit."""
    match = re.fullmatch(r"([0-9]+)([kMGTPE]|[KMGTPE]i)?", text)
    if not match:
        raise ValueError(f"{text!r} is not a quantity: a whole number and a unit are wanted, such as 512Mi or 2G")
    return int(match[1]) * _UNITS[match[2] or ""]


def between(low: str, high: str, name: str, alias: str) -> Rule:
    """Return the rule that a quantity, where it is set, lies between two others."""
    return Rule(
        f"!has(self.{alias}) || (quantity(self.{alias}).compareTo(quantity('{low}')) >= 0"
        f" && quantity(self.{alias}).compareTo(quantity('{high}')) <= 0)",
        f"{alias} must be at least {low} and at most {high}",
        lambda self: (
            getattr(self, name) is None
            or parse_quantity(low) <= parse_quantity(getattr(self, name)) <= parse_quantity(high)
        ),
        path=alias,
        value=f"self.{alias}",
    )


class ObjectMeta(Model):
    """The part of an object's metadata that is read."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    finalizers: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    @property
    def deleting(self) -> bool:
        """Whether the object is being deleted."""
        return self.deletion_timestamp is not None


class Condition(Model):
    """One aspect of the object's state, as of the generation that was decided on."""

    type: Annotated[str, Field(min_length=1, max_length=63)]
    """Which aspect this is about, such as Ready."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds; Unknown when that could not be seen."""
    observed_generation: Count | None = None
    """The metadata.generation of the spec that this was decided on."""
    last_transition_time: Time
    """When status last changed."""
    reason: Annotated[str, Field(min_length=1, max_length=63)]
    """One word for why, from the documented list of reasons."""
    message: Message = ""
    """What is waited for, since when, what happens next and what a person can do."""


def condition(conditions: Iterable[Condition], type: str) -> Condition | None:  # noqa: A002 - the API's own word
    """Return the condition of this type, or None."""
    return next((each for each in conditions if each.type == type), None)


def set_condition(
    conditions: tuple[Condition, ...],
    type: str,  # noqa: A002 - the API's own word
    status: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
    generation: int,
    now: datetime,
) -> tuple[Condition, ...]:
    """Return the conditions with this one set in its place, its lastTransitionTime kept unless status flips."""
    old = condition(conditions, type)
    since = old.last_transition_time if old and old.status == status else now
    new = Condition(
        type=type,
        status=status,
        observed_generation=generation,
        last_transition_time=since,
        reason=reason,
        message=message,
    )
    if old is None:
        return (*conditions, new)
    return tuple(new if each.type == type else each for each in conditions)


def name_fits(what: str) -> Rule:
    """Return the rule that bounds the name of an object."""
    return Rule(
        "size(self.metadata.name) <= 63",
        f"metadata.name of a {what} must have at most 63 characters",
        lambda self: len(self.metadata.name) <= 63,
    )


class Resource(Model):
    """A kind of the API. Subclasses add `spec` and `status`."""

    plural: ClassVar[str]
    short_name: ClassVar[str]
    scope: ClassVar[Literal["Cluster", "Namespaced"]]
    columns: ClassVar[tuple[Column, ...]]
    selectable: ClassVar[tuple[str, ...]] = ()

    metadata: ObjectMeta
