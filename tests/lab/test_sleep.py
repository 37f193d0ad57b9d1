# SPDX-License-Identifier: Apache-2.0
"""An operator that slept through what another one did, and wakes with plans that are old."""

from __future__ import annotations

import signal

from tests.lab.rig import SHORT_OPTIONS, Rig

MOVED, DELETED = ("moved-1", "moved-2", "moved-3", "moved-4"), ("gone-1", "gone-2", "gone-3", "gone-4")


def test_an_operator_that_wakes_with_old_plans_starts_no_second_copy_and_brings_nothing_back(rig: Rig) -> None:
    first, second = rig.lab.hosts[:2]
    asleep, awake = rig.operator, rig.another("awake", "--lease-seconds=0", *SHORT_OPTIONS)
    names = [name for pair in zip(MOVED, DELETED, strict=True) for name in pair]
    uuids = {name: rig.vm(name, placement={"host": "h1"}) for name in names[:4]}
    rig.until(lambda: rig.state("vm", names[0]) == "Running", "the first to run")
    uuids |= {name: rig.vm(name, placement={"host": "h1"}) for name in names[4:-1]}
    rig.declare(names[-1], placement={"host": "h1"})
    asleep.process.signal(signal.SIGSTOP)  # each VM is at another step of its start, the last one at none
    uuids[names[-1]] = rig.uuid(names[-1])
    try:
        stages = {rig.state("vm", name) for name in uuids}
        awake.start()
        for name in MOVED:
            rig.patch("vm", name, {"spec": {"placement": {"host": "h2"}, "power": {"request": "move"}}})
        for name in DELETED:
            rig.delete("vm", name)
        for name in DELETED:
            rig.gone("vm", name)
        pids = {}
        for name in MOVED:
            rig.until(lambda name=name: second.qemu_pid(uuids[name]), f"{name} to run on h2")  # type: ignore[misc]
            assert rig.running(name) == second
            pids[name] = second.qemu_pid(uuids[name])
        asleep.process.signal(signal.SIGCONT)
        rig.stays(
            lambda: (
                {name: second.qemu_pid(uuids[name]) for name in MOVED} == pids
                and not any(domain.pid for domain in first.domains())
            ),
            "nothing that was decided before the sleep to be done",
            8,
        )
    finally:
        asleep.process.signal(signal.SIGCONT)
        awake.kill()
    assert len(stages) > 1, "the sleep came in the middle of the starts"
    running = {domain.uuid for host in rig.lab.hosts for domain in host.domains() if domain.pid}
    assert running == {uuids[name] for name in MOVED}
    # What was on its way when the sleep began may have defined a VM that is gone: that is told, as it cannot be undone.
    rig.until(
        lambda: (
            {domain.uuid for domain in first.domains()}
            == {each["uuid"] for each in rig.status("hv", "h1").get("orphans", [])}
        ),
        "nothing to be left but what is told",
    )
    for name in MOVED:
        rig.lab.assert_never_two(uuids[name])
