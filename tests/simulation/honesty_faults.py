# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D103 - the name of a probe is its sentence
"""Probes of what is left when something fails: the daemon, a QEMU, storage; and of events."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from homeostat.hosts.driver import Event
from tests.simulation.honesty_rig import Rig, Seen, code, domain_xml, probe, volume_xml

# The daemon -----------------------------------------------------------------------------------------------------------


@probe
async def reasons_after_a_restart_of_the_daemon(rig: Rig) -> Seen:
    destroyed, running, paused = await rig.started(), await rig.started(), await rig.started()
    await rig.host.destroy(destroyed)
    await rig.host.suspend(paused)
    await rig.one.restart_daemon()
    await rig.again()
    return [await rig.row(number) for number in (destroyed, running, paused)]


@probe
async def a_connection_after_a_restart_of_the_daemon(rig: Rig) -> Seen:
    closed: list[str] = []
    rig.host.subscribe(lambda event: None, closed.append)
    await rig.one.restart_daemon()
    await asyncio.sleep(1)
    seen = [await code(rig.host.domains()) != 0, len(closed)]
    await rig.again()
    return seen


@probe
async def a_transient_domain_and_a_restart_of_the_daemon(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.host.undefine(number)
    await rig.one.restart_daemon()
    await rig.again()
    return [await rig.row(number)]


@probe
async def killed_while_the_daemon_is_down(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.stop_daemon()
    await rig.one.kill_qemu(number)
    await rig.one.start_daemon()
    await rig.again()
    return [await rig.until_off(number)]


@probe
async def a_lost_record(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.lose_record(number)
    await rig.again()
    seen = [await rig.row(number), await rig.one.qemus(number), await code(rig.host.destroy(number))]
    return [*seen, await code(rig.host.undefine(number)), await rig.row(number), await rig.one.qemus(number)]


@probe
async def a_lost_record_of_a_transient_domain(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.host.undefine(number)
    await rig.one.lose_record(number)
    await rig.again()
    return [await rig.row(number), await rig.one.qemus(number)]


@probe
async def starting_after_a_lost_record(rig: Rig) -> Seen:
    number = await rig.started(await rig.path(await rig.volume()))
    await rig.one.lose_record(number)
    await rig.again()
    # Refused for the image lock, or before that because virtlogd still has the survivor's log open.
    return [await code(rig.host.create(number, paused=False)) != 0, await rig.row(number), await rig.one.qemus(number)]


@probe
async def a_call_that_is_carried_out_late(rig: Rig) -> Seen:
    await rig.defined()  # a connection for changes is open from here on
    number, name = rig.fresh()
    await rig.one.freeze_daemon()
    call = asyncio.ensure_future(rig.host.define(domain_xml(number, name)))
    await asyncio.sleep(2)
    pending = not call.done()
    closing = rig.host
    await closing.close()
    refused = await code(call) != 0
    await rig.one.thaw_daemon()
    await rig.again()
    await rig.until(lambda: rig.row(number))
    return [pending, refused, await rig.row(number)]


# A QEMU that does not answer ------------------------------------------------------------------------------------------


@probe
async def a_call_that_outlives_its_connection(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.freeze_qemu(number)
    calls = [asyncio.ensure_future(code(rig.host.suspend(number)))]
    await asyncio.sleep(1)
    calls += [asyncio.ensure_future(code(rig.host.set_metadata(number, "<vm note='late'/>", live=True)))]
    await asyncio.sleep(1)
    await rig.host.close()
    seen = [await call != 0 for call in calls]
    await rig.again()

    async def noted() -> bool:
        return "late" in (await rig.host.xml(number, inactive=False) or "")

    seen += [await noted()]
    await rig.one.thaw_qemu(number)
    await rig.until(noted)
    await asyncio.sleep(1)
    return [*seen, await rig.row(number), await noted()]


@probe
async def destroying_a_stopped_qemu(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.freeze_qemu(number)
    began = asyncio.get_running_loop().time()
    seen = [await code(rig.host.destroy(number)), asyncio.get_running_loop().time() - began > 8]
    return [*seen, await rig.until_off(number), await rig.one.qemus(number)]


@probe
async def asking_a_stopped_qemu(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.freeze_qemu(number)
    call = asyncio.ensure_future(code(rig.host.shutdown(number, agent=False)))
    await asyncio.sleep(3)
    seen = [call.done(), await rig.row(number), (await rig.host.xml(number, inactive=False)) is not None]
    await rig.one.thaw_qemu(number)
    return [*seen, await call]


@probe
async def changing_a_domain_whose_qemu_hangs(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.freeze_qemu(number)
    before = await code(rig.host.set_metadata(number, "<vm note='a'/>", live=True))
    call = asyncio.ensure_future(code(rig.host.suspend(number)))
    await asyncio.sleep(1)
    began = asyncio.get_running_loop().time()
    after = await code(rig.host.set_metadata(number, "<vm note='b'/>", live=True))
    waited = asyncio.get_running_loop().time() - began > 25
    await rig.one.thaw_qemu(number)
    return [before, after, waited, await call]


@probe
async def killing_a_qemu_that_hangs_a_call(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.freeze_qemu(number)
    call = asyncio.ensure_future(code(rig.host.suspend(number)))
    await asyncio.sleep(1)
    await rig.one.kill_qemu(number)
    return [await call != 0, await rig.until_off(number)]


# Storage --------------------------------------------------------------------------------------------------------------


@probe
async def a_pool_is_a_cached_view(rig: Rig) -> Seen:
    two = await rig.connect(rig.two)
    name = await rig.volume()

    async def shown() -> bool:
        return name in [volume.name for volume in await two.volumes(rig.two.pool)]

    seen = [await shown(), await code(two.delete_volume(rig.two.pool, name))]
    await two.refresh_pool(rig.two.pool)
    seen += [await shown()]
    await rig.host.delete_volume(rig.one.pool, name)
    seen += [await shown(), await code(two.delete_volume(rig.two.pool, name)), await shown()]
    return seen


@probe
async def creating_a_volume_that_exists(rig: Rig) -> Seen:
    two = await rig.connect(rig.two)
    name = await rig.volume()
    again = await code(rig.host.create_volume(rig.one.pool, volume_xml(name)))
    elsewhere = await code(two.create_volume(rig.two.pool, volume_xml(name)))
    await two.refresh_pool(rig.two.pool)
    seen = [again, elsewhere, await code(two.create_volume(rig.two.pool, volume_xml(name)))]
    return seen


@probe
async def a_created_volume(rig: Rig) -> Seen:
    name = await rig.volume()
    (volume,) = [each for each in await rig.host.volumes(rig.one.pool) if each.name == name]
    return [volume.path == await rig.path(name), await rig.host.volume_size(rig.one.pool, name)]


@probe
async def deleting_a_volume_in_use(rig: Rig) -> Seen:
    name = await rig.volume()
    number = await rig.started(await rig.path(name))
    seen = [await code(rig.host.delete_volume(rig.one.pool, name)), await rig.row(number)]
    await rig.host.destroy(number)
    return [*seen, await code(rig.host.create(number, paused=False)), await rig.row(number)]


@probe
async def volumes_and_pools_that_are_not_there(rig: Rig) -> Seen:
    state = (await rig.host.pool("not-there")).state
    seen = [state, await code(rig.host.volumes("not-there")), await code(rig.host.refresh_pool("not-there"))]
    seen += [await code(rig.host.create_volume("not-there", volume_xml("x")))]
    seen += [await code(rig.host.volume_size("not-there", "x")), await code(rig.host.volume_size(rig.one.pool, "x"))]
    return [*seen, await code(rig.host.delete_volume(rig.one.pool, "not-there"))]


@probe
async def volumes_that_are_refused(rig: Rig) -> Seen:
    return [await code(rig.host.create_volume(rig.one.pool, volume_xml(name))) for name in ("a/b", "")]


# Events ---------------------------------------------------------------------------------------------------------------


async def _told(seen: list[Event], number: str) -> bool:
    return any(event.uuid == number for event in seen)


@probe
async def kinds_of_events(rig: Rig) -> Seen:
    seen: list[Event] = []
    rig.host.subscribe(seen.append, lambda why: None)
    number, name = rig.fresh()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: rig.host.define(domain_xml(number, name)),
        lambda: rig.host.create(number, paused=False),
        lambda: rig.host.set_metadata(number, "<vm/>", live=True),
        lambda: rig.host.suspend(number),
        lambda: rig.host.resume(number),
        lambda: rig.host.destroy(number),
        lambda: rig.host.set_metadata(number, "<vm/>", live=False),
        lambda: rig.host.undefine(number),
    ]
    kinds: Seen = []
    for call in calls:
        seen.clear()
        await call()
        await rig.until(lambda: _told(seen, number))
        await asyncio.sleep(0.5)
        kinds.append(sorted({event.kind for event in seen if event.uuid == number}))
    return kinds
