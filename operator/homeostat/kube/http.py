# SPDX-License-Identifier: Apache-2.0
"""The transport on the official client: its kubeconfig, its in-cluster login, its connection pool. Never retries."""

from __future__ import annotations

import asyncio
import json
import os
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client, config

from homeostat.kube.transport import JSON, ApiError, ApiUnreachable

NO_ANSWER = (TimeoutError, aiohttp.ClientError, OSError, ValueError, TypeError, config.ConfigException)
"""No token can be had, nothing came, or what came is no JSON object, as from a proxy in between."""


class HttpTransport:
    """Sends requests to the API server of a kubeconfig, or of the cluster this process runs in."""

    def __init__(self, api: client.ApiClient, timeout_seconds: float = 30.0) -> None:
        self._api, self._timeout = api, timeout_seconds
        self.server = str(api.configuration.host)

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, timeout_seconds: float = 30.0) -> HttpTransport:
        """A transport for a kubeconfig file, or the service account of the pod, or ~/.kube/config.

        No answer within `timeout_seconds` is no answer. Raises ApiUnreachable when no kubeconfig can be used.
        """
        settings = client.Configuration()
        settings.retries = None  # False counts as a number of retries, and then there is no end of them (measured)
        settings.connection_pool_maxsize = 64
        try:
            if kubeconfig is not None:
                await config.load_kube_config(config_file=kubeconfig, client_configuration=settings)
            else:
                await _default_config(settings)
        except (config.ConfigException, OSError, ValueError) as error:
            raise ApiUnreachable(f"no usable kubeconfig: {error}") from error
        return cls(client.ApiClient(configuration=settings), timeout_seconds)

    async def request(
        self, method: str, path: str, *, query: dict[str, str] | None = None, body: Any = None, content_type: str = JSON
    ) -> dict[str, Any]:
        """See Transport."""
        url = f"{self.server}{path}" + (f"?{urlencode(query)}" if query else "")
        try:
            async with asyncio.timeout(self._timeout):
                return await self._answer(method, url, content_type, body)
        except NO_ANSWER as error:
            raise ApiUnreachable(f"{method} {path}: {_why(error)}") from error
        except client.ApiException as error:
            raise _refusal(int(error.status or 0), error.body or b"") from error

    async def _answer(self, method: str, url: str, content_type: str, body: Any) -> dict[str, Any]:
        headers = {"Accept": JSON, "Content-Type": content_type, **await self._login()}
        answer = await self._api.rest_client.request(
            method, url, headers=headers, body=body, _request_timeout=self._timeout
        )
        data = await answer.read()
        if not 200 <= answer.status < 300:
            raise _refusal(answer.status, data)
        return dict(json.loads(data)) if data else {}

    async def _login(self) -> dict[str, str]:
        """The header that says who asks, from a file or a program where the kubeconfig says so."""
        settings = await self._api.configuration.auth_settings()
        return {setting["key"]: setting["value"] for setting in settings.values()}

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()


async def _default_config(settings: client.Configuration) -> None:
    try:
        config.load_incluster_config(client_configuration=settings)
    except config.ConfigException:
        await config.load_kube_config(client_configuration=settings)


def _why(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        return f"cannot connect to {error.host}:{error.port}: {os.strerror(error.errno or 0)}"
    return str(error) or type(error).__name__


def _refusal(status: int, data: bytes | str) -> ApiError:
    try:
        answer = json.loads(data)
        return ApiError(status, answer.get("reason", ""), answer.get("message", ""))
    except (ValueError, AttributeError):
        return ApiError(status, "", f"HTTP status {status}")
