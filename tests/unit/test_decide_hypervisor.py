# SPDX-License-Identifier: Apache-2.0
"""What is said of a Hypervisor, and what that means for VMs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from homeostat.api import reasons
from homeostat.api.hypervisor import Hypervisor
from homeostat.api.observed import HostAnswer, HostFacts
from homeostat.decide.hypervisor import Claims, closed, silent_since, status, verdict

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
    seen = status(hypervisor(), silent, ("Unreachable", "no"), NOTHING, "cluster", NOW)
    assert silent_since(hypervisor().model_copy(update={"status": seen})) == NOW
    heard = status(hypervisor(), HostAnswer(reachable=True, facts=FACTS), ("Connected", ""), NOTHING, "cluster", NOW)
    assert silent_since(hypervisor().model_copy(update={"status": heard})) is None
    assert silent_since(hypervisor()) is None


def test_a_message_is_sentences_and_spells_a_field_as_it_is() -> None:
    row = reasons.Reason("S", "False", "-", "Next", "It is so.", "Then this.", "Do that.")
    assert row.sentence() == "It is so. Then this. Do that."
    assert row.sentence("libvirt's words.\n") == "It is so. Libvirt's words. Then this. Do that."
    assert row.sentence("spec.a is 'b'") == "It is so. spec.a is 'b'. Then this. Do that."
