# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes control plane without containers: etcd, kube-apiserver, kube-controller-manager."""

from tests.controlplane.instance import ControlPlane, ControlPlaneError, GivenControlPlane, control_plane

__all__ = ["ControlPlane", "ControlPlaneError", "GivenControlPlane", "control_plane"]
