# SPDX-License-Identifier: Apache-2.0
"""Everything Kubernetes: one request at a time, watching, the lease, events."""
