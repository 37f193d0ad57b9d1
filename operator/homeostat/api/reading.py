# SPDX-License-Identifier: Apache-2.0
"""Objects as the API server has them, which an operator of another version may have written last."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from homeostat.api.meta import Resource

R = TypeVar("R", bound=Resource)

KEPT = frozenset(
    {
        "candidates",
        "conditions",
        "cpuModel",
        "domain",
        "hostUUID",
        "intent",
        "lastHeard",
        "machineType",
        "marks",
        "migration",
    }
)
"""Fields of a status that say where a VM may be, what was done to it, or what machine its guest has always had.

Without them nothing is done.
"""


def read(kind: type[R], seen: dict[str, Any]) -> R:
    """The object, without the fields of its status that cannot be read: they are had anew.

    ValidationError when it cannot be read even so.
    """
    while True:
        try:
            return kind.model_validate(seen)
        except ValidationError as error:
            where = error.errors()[0]["loc"]
            if len(where) < 2 or where[0] != "status" or where[1] in KEPT:
                raise
            seen = seen | {"status": {name: each for name, each in seen["status"].items() if name != where[1]}}
