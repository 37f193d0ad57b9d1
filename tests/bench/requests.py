# SPDX-License-Identifier: Apache-2.0
"""How many requests the API server was sent, from its own metrics."""

from __future__ import annotations

import re
from collections import Counter

from tests.controlplane import ControlPlane

READS = frozenset({"GET", "LIST", "WATCH"})
_LINE = re.compile(r"^apiserver_request_total\{(?P<labels>.*)\} (?P<value>\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def counted(plane: ControlPlane) -> Counter[str]:
    """Requests so far of this project's kinds and Events, by "VERB resource/subresource"; refused ones count too."""
    found: Counter[str] = Counter()
    for line in _LINE.finditer(plane.kubectl("get", "--raw", "/metrics")):
        labels = dict(_LABEL.findall(line["labels"]))
        if labels["group"] != "homeostat.dev" and labels["resource"] != "events":
            continue
        what = "/".join(filter(None, (labels["resource"], labels["subresource"])))
        found[f"{labels['verb']} {what}"] += int(float(line["value"]))
    return found
