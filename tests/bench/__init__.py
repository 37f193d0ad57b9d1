# SPDX-License-Identifier: Apache-2.0
"""Measures the operator on a control plane and hosts of its own. Nothing here passes or fails on seconds."""
