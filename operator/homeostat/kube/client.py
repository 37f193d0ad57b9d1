# SPDX-License-Identifier: Apache-2.0
"""The few verbs the operator needs, on any transport. Every write carries the resourceVersion it was decided at."""

from __future__ import annotations

import base64
from typing import Any

from homeostat.api.meta import API_VERSION, GROUP, VERSION, Resource
from homeostat.api.observed import Credentials
from homeostat.kube.transport import APPLY, JSON_PATCH, ApiError, Transport

Object = dict[str, Any]


def path(kind: type[Resource], namespace: str = "", name: str = "", subresource: str = "") -> str:
    """The URL path of a list, an object or a subresource."""
    parts = [f"/apis/{GROUP}/{VERSION}"]
    if namespace:
        parts.append(f"namespaces/{namespace}")
    parts += [part for part in (kind.plural, name, subresource) if part]
    return "/".join(parts)


class Client:
    """Reads and writes on the API server."""

    def __init__(self, transport: Transport, namespace: str) -> None:
        self.transport, self.namespace = transport, namespace

    async def get(self, kind: type[Resource], namespace: str, name: str) -> Object | None:
        """The object as it is now, None when there is none. Raises ApiError, ApiUnreachable."""
        try:
            return await self.transport.request("GET", path(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list_all(self, kind: type[Resource]) -> list[Object]:
        """All objects of a kind in all namespaces, from the store and not from a watch cache."""
        items: list[Object] = []
        query = {"limit": "500"}
        while True:
            page = await self.transport.request("GET", path(kind), query=query)
            items += page.get("items", [])
            more = page.get("metadata", {}).get("continue")
            if not more:
                return items
            query = {"limit": "500", "continue": more}

    async def apply_status(self, kind: type[Resource], seen: Object, status: Object, manager: str) -> Object:
        """Server-side apply of a status by one field manager, onto the object as it was read.

        The resourceVersion in the body makes the server refuse (409) when the object has changed since, or is another
        object: a wrong uid alone is accepted on /status (measured).
        """
        meta = seen["metadata"]
        body = {
            "apiVersion": API_VERSION,
            "kind": kind.__name__,
            "metadata": {k: meta[k] for k in ("name", "namespace", "uid", "resourceVersion") if k in meta},
            "status": status,
        }
        where = path(kind, meta.get("namespace", ""), meta["name"], "status")
        return await self.transport.request(
            "PATCH", where, query={"fieldManager": manager, "force": "true"}, body=body, content_type=APPLY
        )

    async def add_finalizer(self, kind: type[Resource], seen: Object, finalizer: str) -> Object:
        """Add a finalizer to the object as it was read.

        By JSON patch: server-side apply onto an object that had been deleted made a ghost of it (measured).
        """
        finalizers = [*seen["metadata"].get("finalizers", []), finalizer]
        return await self._patch_finalizers(kind, seen, finalizers)

    async def remove_finalizer(self, kind: type[Resource], seen: Object, finalizer: str) -> Object:
        """Remove a finalizer from the object as it was read."""
        finalizers = [each for each in seen["metadata"].get("finalizers", []) if each != finalizer]
        return await self._patch_finalizers(kind, seen, finalizers)

    async def _patch_finalizers(self, kind: type[Resource], seen: Object, finalizers: list[str]) -> Object:
        meta = seen["metadata"]
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": meta["uid"]},
            {"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
            {"op": "add", "path": "/metadata/finalizers", "value": finalizers},
        ]
        where = path(kind, meta.get("namespace", ""), meta["name"])
        return await self.transport.request("PATCH", where, body=patch, content_type=JSON_PATCH)

    async def create(self, kind: type[Resource], item: Object) -> None:
        """Create an object; one of that name that is there already is left as it is."""
        meta = item["metadata"]
        body = {"apiVersion": API_VERSION, "kind": kind.__name__} | item
        try:
            await self.transport.request("POST", path(kind, meta.get("namespace", "")), body=body)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise

    async def delete(self, kind: type[Resource], seen: Object) -> None:
        """Delete the object as it was read; one that has changed since, or is another one, is left (409)."""
        meta = seen["metadata"]
        body = {"preconditions": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}}
        await self.transport.request("DELETE", path(kind, meta.get("namespace", ""), meta["name"]), body=body)

    async def cluster_id(self) -> str:
        """What tells this cluster from others: the UID of the namespace kube-system."""
        namespace = await self.transport.request("GET", "/api/v1/namespaces/kube-system")
        return str(namespace["metadata"]["uid"])

    async def credentials(self, name: str) -> Credentials | None:
        """The files of a credentials Secret in the operator's namespace, None when there is none."""
        try:
            secret = await self.transport.request("GET", f"/api/v1/namespaces/{self.namespace}/secrets/{name}")
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        files = {key: base64.b64decode(value) for key, value in (secret.get("data") or {}).items()}
        return Credentials(files)
