# SPDX-License-Identifier: Apache-2.0
"""Quantities, times and conditions, and how models are read and written."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from homeostat.api.hypervisor import Hypervisor, OutOfService
from homeostat.api.meta import MAX_MESSAGE, Condition, camel, condition, parse_quantity, rfc3339, set_condition
from homeostat.api.virtualmachine import DomainStatus, VirtualMachine
from homeostat.api.virtualmachine_spec import Boot, Cpu, Disk

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("1k", 1000),
        ("1Ki", 1024),
        ("3M", 3 * 1000**2),
        ("3Mi", 3 * 1024**2),
        ("2G", 2 * 1000**3),
        ("2Gi", 2 * 1024**3),
        ("7T", 7 * 1000**4),
        ("7Ti", 7 * 1024**4),
        ("1Ei", 1024**6),
    ],
)
def test_a_quantity_in_bytes(text: str, size: int) -> None:
    assert parse_quantity(text) == size


@pytest.mark.parametrize("text", ["", "Gi", "1.5Gi", "-1Gi", "1 Gi", "1K", "1ki", "1e3", "100m", "1Gi\n", "\u0661Gi"])
def test_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


ZONES = st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))])


@given(st.datetimes(min_value=datetime(1001, 1, 1), max_value=datetime(2999, 1, 1), timezones=ZONES))
def test_a_time_reads_as_it_was_written(time: datetime) -> None:
    since = DomainStatus(since=time).since
    assert since is not None
    assert timedelta(0) <= time - since < timedelta(seconds=1)
    assert DomainStatus.model_validate({"since": rfc3339(time)}).since == since


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ("2026-01-31T13:00:00+01:00", "2026-01-31T12:00:00Z"),
        ("2026-01-31T12:00:00.999999999Z", "2026-01-31T12:00:00Z"),
    ],
)
def test_a_time_is_written_in_whole_seconds_of_utc(text: str, wire: str) -> None:
    assert OutOfService.model_validate({"since": text, "evidence": "Destroyed"}).wire()["since"] == wire


@pytest.mark.parametrize(
    "value", ["yesterday", "2026-01-31", "2026-02-31T12:00:00Z", 0, "2026-01-31T12:00:00", "0001-01-01T00:00:00+01:00"]
)
def test_no_time(value: object) -> None:
    with pytest.raises(ValidationError):
        OutOfService.model_validate({"since": value, "evidence": "Destroyed"})


def test_a_condition_keeps_its_time_unless_its_status_flips() -> None:
    first = set_condition((), "Ready", "False", "Starting", "It starts.", 1, NOON)
    same = set_condition(first, "Ready", "False", "StartFailed", "No room.", 2, LATER)
    assert same == (
        Condition(
            type="Ready",
            status="False",
            observed_generation=2,
            last_transition_time=NOON,
            reason="StartFailed",
            message="No room.",
        ),
    )
    flipped = set_condition(same, "Ready", "True", "Running", "", 2, LATER)
    assert flipped[0].last_transition_time == LATER


def test_other_conditions_stay_and_keep_their_place() -> None:
    both = set_condition((), "Ready", "False", "Starting", "", 1, NOON)
    both = set_condition(both, "Running", "False", "Starting", "", 1, NOON)
    after = set_condition(both, "Ready", "True", "Running", "", 1, LATER)
    assert [each.type for each in after] == ["Ready", "Running"]
    assert after[1] is both[1]
    assert condition(after, "Running") is both[1]
    assert condition(after, "Stalled") is None


def test_a_message_that_is_too_long_is_cut_and_says_so() -> None:
    (made,) = set_condition((), "Ready", "False", "StartFailed", "x" * 5000, 1, NOON)
    assert len(made.message) == MAX_MESSAGE
    assert made.message.endswith("x…")


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("host_uuid", "hostUUID"),
        ("uuid", "uuid"),
        ("storage_id", "storageID"),
        ("memory_mib", "memoryMiB"),
        ("open_v_switch", "openVSwitch"),
    ],
)
def test_names_in_yaml(name: str, wire: str) -> None:
    assert camel(name) == wire


def test_newer_fields_are_ignored_and_objects_cannot_be_changed() -> None:
    made = Boot.model_validate({"type": "Disk", "order": ["a"]})
    assert made == Boot()
    with pytest.raises(ValidationError, match="frozen"):
        made.type = "Kernel"


def test_what_is_unset_is_not_written() -> None:
    made = VirtualMachine.model_validate({"metadata": {"name": "web"}, "spec": {"memory": {"size": "1Gi"}}})
    assert made.status.wire() == {}
    wire = made.spec.wire(exclude={"run_strategy"})
    assert not {"disks", "placement", "domainUUID", "runStrategy"} & set(wire)
    assert wire["memory"] == {"size": "1Gi"}


@pytest.mark.parametrize(
    ("model", "value", "sentence"),
    [
        (Cpu, {"sockets": 64, "cores": 64}, "sockets . cores . threads must be at most 512"),
        (Boot, {"type": "Kernel"}, "kernel belongs to type Kernel"),
        (Disk, {"name": "root", "pool": "local"}, "a disk with source Blank needs a size"),
        (Cpu, {"sockets": "2"}, "valid integer"),
    ],
)
def test_a_model_refuses_what_the_schema_refuses(model: type[Cpu | Boot | Disk], value: object, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        model.model_validate(value)


def test_elements_of_a_map_are_unique() -> None:
    pool = {"name": "a", "pool": "b"}
    spec = {"uri": "qemu:///system", "pools": [pool, pool]}
    with pytest.raises(ValidationError, match="duplicate: a"):
        Hypervisor.model_validate({"metadata": {"name": "host-1"}, "spec": spec})
