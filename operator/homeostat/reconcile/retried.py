# SPDX-License-Identifier: Apache-2.0
"""What ends a pass to be tried again: an API server that refuses or is not there, an object that cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from pydantic import ValidationError

from homeostat.api.meta import Resource
from homeostat.api.reading import read
from homeostat.kube.transport import ApiError, ApiUnreachable
from homeostat.runtime.controller import Retry

R = TypeVar("R", bound=Resource)


@contextmanager
def retried(what: str) -> Iterator[None]:
    """Requests to the API server are made inside of this. Retry, with `what` said of it, when one fails."""
    try:
        yield
    except (ApiError, ApiUnreachable) as error:
        raise Retry(f"{what}: {error}") from error


def parsed(kind: type[R], seen: dict[str, Any]) -> R:
    """The object as read. Retry when it was stored under another schema, and what matters cannot be read."""
    try:
        return read(kind, seen)
    except ValidationError as error:
        why = "; ".join(each["msg"] for each in error.errors())
        raise Retry(f"the {kind.__name__} cannot be read: {why}") from error
