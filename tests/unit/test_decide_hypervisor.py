# SPDX-License-Identifier: Apache-2.0
"""What is said of a Hypervisor, and what that means for VMs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from homeostat.api import reasons
from homeostat.api.hypervisor import Hypervisor
from homeostat.api.meta import rfc3339
from homeostat.api.observed import HostAnswer, HostFacts
from homeostat.decide.hypervisor import Claims, closed, judged_in, released, silent_since, status, together, verdict
from homeostat.reconcile.fleet import Fleet

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FACTS = HostFacts("00000000-0000-4000-8000-00000000000a", "host", "9.0.0", "7.2.0", 4, 8192, kvm=True)
NOTHING = Claims(0, 0, 0, (), frozenset())


def hypervisor(spec: dict[str, Any] | None = None, **meta: Any) -> Hypervisor:
    metadata = {"name": "h1", "uid": "uid-h1", "generation": 1, "resourceVersion": "7"} | meta
    return Hypervisor.model_validate(
        {"metadata": metadata, "spec": {"uri": "qemu+tcp://198.51.100.1/system"} | (spec or {})}
    )


def says(facts: HostFacts, spec: dict[str, Any] | None = None) -> tuple[str, str]:
    return verdict(hypervisor(spec), HostAnswer(reachable=True, facts=facts), ())


@pytest.mark.parametrize(
    ("facts", "reason", "words"),
    [
        (replace(FACTS, libvirt_version="8.10.0"), "LibvirtTooOld", "8.10.0"),
        (replace(FACTS, qemu_version="7.1.9"), "QEMUTooOld", "7.1.9"),
        (replace(FACTS, qemu_version=""), "NoQEMU", "x86_64"),
        (replace(FACTS, kvm=False), "NoKVM", ""),
        (FACTS, "Connected", ""),
        (replace(FACTS, libvirt_version="10.0.0", qemu_version="10.0.2"), "Connected", ""),
    ],
)
def test_a_host_that_answers_but_will_not_do_says_what_it_has_and_takes_no_vm(
    facts: HostFacts, reason: str, words: str
) -> None:
    said = says(facts)
    assert said[0] == reason
    assert words in said[1]
    assert (closed(*said) is None) == (reason == "Connected")


def test_emulation_needs_no_kvm() -> None:
    assert says(replace(FACTS, kvm=False), {"acceleration": "Emulation"})[0] == "Connected"


def test_every_reason_that_closes_a_host_is_a_part_of_a_sentence() -> None:
    for reason in reasons.HYPERVISOR:
        said = closed(reason, "")
        assert said is None or not said[1].endswith("."), "the full stop is put where the sentence ends"


def test_silence_is_as_old_as_the_condition_that_says_so() -> None:
    silent = HostAnswer(reachable=False, reason="Unreachable", message="no", since=NOW)
    seen = status(hypervisor(), silent, ("Unreachable", "no"), NOTHING, "cluster", NOW + timedelta(seconds=1))
    assert silent_since(hypervisor().model_copy(update={"status": seen})) == NOW
    heard = status(hypervisor(), HostAnswer(reachable=True, facts=FACTS), ("Connected", ""), NOTHING, "cluster", NOW)
    assert silent_since(hypervisor().model_copy(update={"status": heard})) is None
    assert silent_since(hypervisor()) is None


def test_a_message_is_sentences_and_spells_a_field_as_it_is() -> None:
    row = reasons.Reason("S", "False", "-", "Next", "It is so.", "Then this.", "Do that.")
    assert row.sentence() == "It is so. Then this. Do that."
    assert row.sentence("libvirt's words.\n") == "It is so. Libvirt's words. Then this. Do that."
    assert row.sentence("spec.a is 'b'") == "It is so. spec.a is 'b'. Then this. Do that."


# A declaration that a host is out of service

LATER = NOW + timedelta(hours=1)
UP = HostAnswer(reachable=True, heard=LATER, facts=FACTS)
SILENT = HostAnswer(reachable=False, reason="Unreachable", message="no route to host")


def declared(since: datetime = NOW, **status: Any) -> Hypervisor:
    spec = {"outOfService": {"since": rfc3339(since), "evidence": "PoweredOff"}}
    there = hypervisor(spec).model_dump(by_alias=True, mode="json", exclude_none=True)
    return Hypervisor.model_validate(there | {"status": status})


def written(there: Hypervisor, answer: HostAnswer, now: datetime) -> Hypervisor:
    """The Hypervisor with the status that is written of this answer."""
    said = status(there, answer, verdict(there, answer, (), now=now), NOTHING, "cluster", now)
    return there.model_copy(update={"status": said})


def test_a_host_that_was_not_asked_yet_is_not_silent() -> None:
    assert not released(declared(), HostAnswer(reachable=None), LATER)
    assert released(declared(), SILENT, LATER)


@pytest.mark.parametrize("before", [{}, {"lastHeard": "2025-12-31T23:00:00Z"}])
def test_that_a_host_answered_after_its_declaration_survives_a_restart_of_the_operator(before: dict[str, Any]) -> None:
    for heard in (LATER, NOW + timedelta(milliseconds=300)):
        answer = replace(UP, heard=heard)
        void = written(declared(**before), answer, LATER)
        assert void.status.reason == "OutOfServiceButAnswering"
        assert not released(void, SILENT, LATER)
        assert written(void, replace(answer, heard=LATER + timedelta(minutes=1)), LATER).status == void.status


def test_a_host_that_falls_silent_may_be_given_up_from_then_on() -> None:
    up = replace(UP, heard=NOW - timedelta(seconds=5))
    there = written(declared(), up, NOW)
    assert (there.status.reason, there.status.last_heard) == ("Connected", None)
    assert judged_in(there, up, None, NOW, 30.0) == 30.0, "it may be heard once more before any event tells of it"
    silent = replace(up, reachable=False)
    assert released(written(there, silent, NOW), silent, NOW)


def test_a_declaration_that_is_yet_to_begin_gives_up_no_host_and_is_void_when_the_host_answers() -> None:
    silent = written(declared(LATER), SILENT, NOW)
    assert (silent.status.reason, released(silent, SILENT, NOW)) == ("OutOfServiceLater", False)
    assert judged_in(silent, SILENT, silent.status.last_heard, NOW, 30.0) == 3600.0
    assert released(silent, SILENT, LATER)
    answers = replace(UP, heard=NOW)
    void = written(declared(LATER), answers, NOW)
    assert void.status.reason == "OutOfServiceButAnswering"
    assert "yet to come" in next(each.message for each in void.status.conditions if each.type == "Ready")
    assert not released(void, SILENT, LATER + timedelta(days=1))


def test_a_declaration_far_in_the_future_is_taken_back_without_a_trace() -> None:
    answers, year = replace(UP, heard=NOW), datetime(2099, 1, 1, tzinfo=UTC)
    void = written(declared(year), answers, NOW)
    withdrawn = written(hypervisor().model_copy(update={"status": void.status}), SILENT, NOW)
    assert withdrawn.status.last_heard == NOW
    anew = declared(NOW + timedelta(minutes=1)).model_copy(update={"status": withdrawn.status})
    assert released(anew, SILENT, LATER)


def test_a_host_is_silent_only_when_no_hypervisor_of_it_has_an_answer() -> None:
    unasked = HostAnswer(reachable=None)
    assert released(declared(), together([SILENT, SILENT]), LATER)
    assert not released(declared(), together([SILENT, unasked]), LATER)
    assert not released(declared(), together([SILENT, UP]), LATER)
    assert not released(declared(), together([SILENT, replace(SILENT, heard=LATER)]), LATER)


def test_what_a_host_said_outlives_the_connection_that_was_given_up() -> None:
    """Its URI was changed while the Secret is missing: nothing is connected to, and nothing heard is forgotten."""
    fleet = Fleet(lambda: LATER, lambda _: None)
    fleet.note_hypervisor("h1", declared())
    fleet.missing["h1"] = "Secret homeostat-system/h1 does not exist"
    assert fleet.released(declared())
    fleet.left["h1"] = LATER
    assert not fleet.released(declared())
