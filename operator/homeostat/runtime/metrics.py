# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the loop, named as controller-runtime names them."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_total = Counter("controller_runtime_reconcile_total", "Reconciles by controller and result.", ["controller", "result"])
_seconds = Histogram("controller_runtime_reconcile_time_seconds", "Length of a reconcile in seconds.", ["controller"])
_depth = Gauge("workqueue_depth", "Keys that wait for a worker.", ["name"])
effects = Counter("homeostat_effects_total", "Mutating requests to hosts and to the API server.", ["what", "result"])
hosts = Gauge("homeostat_hypervisor_reachable", "1 when the host answers, 0 when it does not.", ["hypervisor"])


def reconciled(controller: str, result: str, seconds: float, depth: int) -> None:
    """Count one reconcile that took `seconds`."""
    _total.labels(controller, result).inc()
    _seconds.labels(controller).observe(seconds)
    _depth.labels(controller).set(depth)
