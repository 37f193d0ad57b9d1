# SPDX-License-Identifier: Apache-2.0
"""What a URL path of the API server names."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from homeostat.kube.transport import ApiError

KINDS = {
    "virtualmachines": "VirtualMachine",
    "hypervisors": "Hypervisor",
    "virtualmachinemigrations": "VirtualMachineMigration",
    "namespaces": "Namespace",
    "secrets": "Secret",
    "configmaps": "ConfigMap",
    "events": "Event",
    "leases": "Lease",
}
SHORT = {"virtualmachines": "vm", "hypervisors": "hv", "virtualmachinemigrations": "vmmig"}
_PATH = re.compile(
    r"(?P<prefix>/api/v1|/apis/homeostat\.dev/v1alpha1|/apis/coordination\.k8s\.io/v1)(/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[a-z]+)(/(?P<name>[^/]+)(/(?P<subresource>[a-z]+))?)?"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A collection, an object, or a subresource of one."""

    prefix: str
    resource: str
    namespace: str = ""
    name: str = ""
    subresource: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """Where the object is in the store."""
        return self.resource, self.namespace, self.name

    @property
    def kind(self) -> str:
        """The kind of the object."""
        return KINDS.get(self.resource, self.resource)

    @property
    def api_version(self) -> str:
        """The apiVersion of the object."""
        return self.prefix.removeprefix("/apis/").removeprefix("/api/")

    @property
    def short(self) -> str:
        """The kind in few letters."""
        return SHORT.get(self.resource, self.resource)

    def named(self, name: str) -> Target:
        """The object of this name in the collection."""
        return replace(self, name=name)


def parse(path: str) -> Target:
    """The target of a path; 404 for one that the server does not serve."""
    space = re.fullmatch(r"/api/v1/namespaces(/([^/]+))?", path)
    if space:
        return Target("/api/v1", "namespaces", "", space[2] or "")
    match = _PATH.fullmatch(path)
    if match is None or match["resource"] not in KINDS:
        raise ApiError(404, "", f"the server could not find the requested resource: {path}")
    parts = {name: value or "" for name, value in match.groupdict().items()}
    return Target(**parts)


def target(resource: str, name: str = "", namespace: str = "") -> Target:
    """The target of one of our kinds, or of a Secret or Namespace."""
    core = resource in ("secrets", "namespaces", "events", "configmaps")
    return Target("/api/v1" if core else "/apis/homeostat.dev/v1alpha1", resource, namespace, name)
