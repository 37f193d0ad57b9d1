# SPDX-License-Identifier: Apache-2.0
"""Requests to an API server with nothing between: what was sent is what a test says."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from kubernetes import client, config

from homeostat.api.crd import KINDS
from homeostat.api.meta import API_VERSION

Object = dict[str, Any]
PATHS = {"Namespace": "/api/v1/namespaces"} | {kind.__name__: f"/apis/{API_VERSION}/{kind.plural}" for kind in KINDS}
APPLY = "application/apply-patch+yaml"


class Refused(Exception):
    """The API server refused. `causes` are (field, message) of an invalid object."""

    def __init__(self, status: Object) -> None:
        super().__init__(f"{status.get('code')} {status.get('message')}")
        self.code = status.get("code")
        causes = status.get("details", {}).get("causes", [])
        self.causes = [(cause.get("field", ""), cause["message"]) for cause in causes]


class Server:
    """An API server, as the user of a kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        load: Any = config.load_kube_config
        configuration: Any = client.Configuration()
        load(config_file=str(kubeconfig), client_configuration=configuration)
        self._client: Any = client.ApiClient(configuration)
        self._login = {each["key"]: each["value"] for each in configuration.auth_settings().values()}

    def request(self, method: str, path: str, body: Object | None = None, content: str = "application/json") -> Object:
        """Return the answer; raises Refused."""
        headers = {"Accept": "application/json", "Content-Type": content, **self._login}
        url = self._client.configuration.host + path
        response = self._client.call_api(method, url, headers, body)
        answer: Object = json.loads(response.read())
        if response.status >= 400:
            raise Refused(answer)
        return answer

    def create(self, item: Object, *, dry_run: bool = False) -> Object:
        """Return the object as created."""
        query = {"dryRun": "All"} if dry_run else {}
        return self.request("POST", f"{_collection(item)}?{urlencode(query)}", item)

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """Return the object."""
        return self.request("GET", _path(kind, name, namespace))

    def replace(self, item: Object, *, subresource: str = "") -> Object:
        """Return the object as replaced."""
        return self.request("PUT", _path_of(item) + subresource, item)

    def apply(self, item: Object, manager: str, *, subresource: str = "") -> Object:
        """Return the object after a server-side apply."""
        query = urlencode({"fieldManager": manager, "force": "true"})
        return self.request("PATCH", f"{_path_of(item)}{subresource}?{query}", item, APPLY)

    def delete(self, kind: str, name: str, namespace: str = "") -> None:
        """Delete the object."""
        self.request("DELETE", _path(kind, name, namespace))


def _collection(item: Object) -> str:
    return _path(item["kind"], "", item["metadata"].get("namespace", ""))


def _path_of(item: Object) -> str:
    return _path(item["kind"], item["metadata"]["name"], item["metadata"].get("namespace", ""))


def _path(kind: str, name: str, namespace: str) -> str:
    head, _, plural = PATHS[kind].rpartition("/")
    middle = f"/namespaces/{namespace}" if namespace else ""
    return f"{head}{middle}/{plural}" + (f"/{name}" if name else "")
