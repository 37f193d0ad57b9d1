# SPDX-License-Identifier: Apache-2.0
"""Homeostat keeps virtual machines on plain libvirt/KVM hosts in the state their owners declared."""

__version__ = "0.1.0"
