# SPDX-License-Identifier: Apache-2.0
"""What `kubectl get` prints says what, where and why, on a terminal of 120 columns."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from homeostat.api import reasons
from homeostat.api.meta import rfc3339
from tests.api.objects import hypervisor, migration, vm
from tests.api.server import Object, Server
from tests.controlplane import ControlPlane, GivenControlPlane

COLUMNS = 120
HOST = "a-host-of-20-letters"


def show(server: Server, item: Object, status: Object) -> None:
    """Make the object with this status."""
    there = server.create(item)
    server.replace(there | {"status": status}, subresource="/status")


@pytest.fixture
def shown(server: Server, namespace: str) -> Iterator[str]:
    """Return a namespace with a VM for each reason there is, beside Hypervisors likewise; all names have 20 letters."""
    since = rfc3339(datetime.now(UTC) - timedelta(days=7, hours=23, minutes=30))  # 7d23h: none is written longer
    for number, (reason, row) in enumerate(reasons.VM.items()):
        status = {"state": row.state, "host": HOST, "since": since, "reason": reason, "next": row.next}
        show(server, vm(f"vm-of-20-letters-{number:03}", namespace), status)
    hosts = {f"hv-of-20-letters-{number:03}": reason for number, reason in enumerate(reasons.HYPERVISOR)}
    for name, reason in hosts.items():
        row = reasons.HYPERVISOR[reason]
        words = {"state": row.state, "reason": reason, "since": since, "next": row.next}
        show(server, hypervisor(name), {**words, "allocated": {"domains": 1000}})
    yield namespace
    for name in hosts:
        server.delete("Hypervisor", name)


@pytest.mark.parametrize("kinds", ["vm", "hv", "vm,hv", "homeostat"])
def test_all_there_is_to_say_fits(cluster: ControlPlane | GivenControlPlane, shown: str, kinds: str) -> None:
    printed = cluster.kubectl("get", kinds, "--namespace", shown)
    widest = max((line.rstrip() for line in printed.splitlines()), key=len)
    assert len(widest) <= COLUMNS, f"{len(widest)} columns:\n{printed}"


def test_the_columns_of_a_vm(cluster: ControlPlane | GivenControlPlane, shown: str) -> None:
    head, *lines = [line.split() for line in cluster.kubectl("get", "vm", "--namespace", shown).splitlines()]
    assert head == ["NAME", "STATE", "HOST", "SINCE", "REASON", "NEXT"]
    rows = [[row.state, HOST, "7d23h", reason, row.next] for reason, row in reasons.VM.items()]
    assert [line[1:] for line in lines] == rows


def test_the_columns_of_a_hypervisor(cluster: ControlPlane | GivenControlPlane, shown: str) -> None:
    head, *lines = [line.split() for line in cluster.kubectl("get", "hv", "--output=wide").splitlines()]
    assert head == ["NAME", "STATE", "REASON", "SINCE", "NEXT", "VMS", "URI", "AGE"]
    uri = "qemu+tcp://198.51.100.11/system"
    rows = [[row.state, reason, "7d23h", row.next, "1000", uri] for reason, row in reasons.HYPERVISOR.items()]
    assert [line[1:-1] for line in lines] == rows


def test_a_vm_is_found_by_its_host_and_state(cluster: ControlPlane | GivenControlPlane, shown: str) -> None:
    where = ("get", "vm", "--output=name", "--namespace", shown)
    wanted = [row for row in reasons.VM.values() if row.state == "Running"]
    selector = f"--field-selector=status.host={HOST},status.state=Running"
    assert len(cluster.kubectl(*where, selector).split()) == len(wanted) > 0
    assert cluster.kubectl(*where, "--field-selector=status.host=other") == ""


def test_the_columns_of_a_migration(cluster: ControlPlane | GivenControlPlane, server: Server, namespace: str) -> None:
    copied = {"percent": 100, "remainingMiB": 524288, "dirtyMiBPerSecond": 10000, "elapsedSeconds": 86400}
    status = {
        "phase": "Ambiguous",
        "source": HOST,
        "target": HOST,
        "progress": {**copied, "downtimeLimitMilliseconds": 10000},
    }
    show(server, migration("a-move-of-20-letters", namespace), status)
    head, line = cluster.kubectl("get", "vmmig", "--namespace", namespace).splitlines()
    assert max(len(head.rstrip()), len(line.rstrip())) <= COLUMNS
    assert head.split() == ["NAME", "PHASE", "SOURCE", "TARGET", "%", "MIB", "DIRTY", "LIMIT", "SECS"]
    assert line.split()[1:] == ["Ambiguous", HOST, HOST, "100", "524288", "10000", "10000", "86400"]
