# SPDX-License-Identifier: Apache-2.0
"""One reconcile a kind: read, observe, decide, perform one action, report."""
