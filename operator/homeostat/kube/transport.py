# SPDX-License-Identifier: Apache-2.0
"""The port to the API server: one request at a time. The one place where the operator's effects on Kubernetes pass."""

from __future__ import annotations

from typing import Any, Protocol

JSON = "application/json"
APPLY = "application/apply-patch+yaml"
JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"


class ApiError(Exception):
    """An answer of the API server other than success.

    `status` is the HTTP status, `reason` the Status object's reason.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status, self.reason, self.message = status, reason, message


class ApiUnreachable(Exception):
    """No answer came. Whether the request was carried out is not known."""


class Transport(Protocol):
    """Sends one request and returns the decoded JSON of a 2xx answer."""

    async def request(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None, content_type: str = JSON
    ) -> dict[str, Any]:
        """`path` starts with /api or /apis. Raises ApiError or ApiUnreachable. Never retries."""
