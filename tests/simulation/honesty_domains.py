# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: D103 - the name of a probe is its sentence
"""Probes of definitions, of starting and stopping, and of managed save."""

from __future__ import annotations

import asyncio

from tests.simulation.honesty_rig import AGENT, Rig, Seen, code, domain_xml, probe

# Definitions ----------------------------------------------------------------------------------------------------------


@probe
async def a_new_definition(rig: Rig) -> Seen:
    number, name = rig.fresh()
    absent = [await rig.row(number), await rig.host.domain_named(name), await rig.host.xml(number, inactive=True)]
    await rig.host.define(domain_xml(number, name))
    return [*absent, await rig.row(number), await rig.host.domain_named(name) == number]


@probe
async def what_libvirt_makes_of_a_definition(rig: Rig) -> Seen:
    number = await rig.defined(await rig.path(await rig.volume()))
    xml = await rig.host.xml(number, inactive=True) or ""
    return [
        "machine='q35'" in xml,
        "pc-q35-" in xml,
        "KiB" in xml,
        "currentMemory" in xml,
        "<address" in xml,
        "65536" in xml,
    ]


@probe
async def same_name_other_uuid(rig: Rig) -> Seen:
    (first, name), (second, _) = rig.fresh(), rig.fresh()
    await rig.host.define(domain_xml(first, name))
    return [await code(rig.host.define(domain_xml(second, name))), await rig.row(first), await rig.row(second)]


@probe
async def same_uuid_other_name(rig: Rig) -> Seen:
    (number, name), (_, other) = rig.fresh(), rig.fresh()
    await rig.host.define(domain_xml(number, name))
    return [await code(rig.host.define(domain_xml(number, other))), await rig.host.domain_named(other)]


@probe
async def same_domain_on_two_hosts(rig: Rig) -> Seen:
    number, name = rig.fresh()
    two = await rig.connect(rig.two)
    await rig.host.define(domain_xml(number, name))
    seen = [await rig.row(number, two), await code(two.define(domain_xml(number, name))), await rig.row(number, two)]
    return seen


@probe
async def definitions_that_are_refused(rig: Rig) -> Seen:
    number, name = rig.fresh()
    wrong = [
        domain_xml(number, name).replace("<memory", "<remembrance").replace("</memory", "</remembrance"),
        domain_xml(number, "a/b"),
        "<domain",
        "<network><name>x</name></network>",
    ]
    return [await code(rig.host.define(xml)) for xml in wrong] + [await rig.row(number)]


@probe
async def a_shared_alias_is_refused(rig: Rig) -> Seen:
    number, name = rig.fresh()
    alias = "<alias name='ua-same'/>"
    xml = domain_xml(number, name, "/a", "/b").replace("</disk>", f"{alias}</disk>")
    return [await code(rig.host.define(xml)), await rig.row(number)]


@probe
async def an_alias_with_a_dot_is_dropped(rig: Rig) -> Seen:
    number, name = rig.fresh()
    seen: Seen = []
    for alias in ("ua-a.b", "ua-a-b", "other"):
        xml = domain_xml(number, name, "/a").replace("</disk>", f"<alias name='{alias}'/></disk>")
        seen += [await code(rig.host.define(xml)), alias in (await rig.host.xml(number, inactive=True) or "")]
    return seen


@probe
async def undefining(rig: Rig) -> Seen:
    number = await rig.defined()
    return [await code(rig.host.undefine(number)), await rig.row(number), await code(rig.host.undefine(number))]


@probe
async def undefining_a_running_domain(rig: Rig) -> Seen:
    number = await rig.started()
    seen = [await code(rig.host.undefine(number)), await rig.row(number), await code(rig.host.undefine(number))]
    inactive = await rig.host.xml(number, inactive=True)
    return [*seen, inactive is not None, await code(rig.host.destroy(number)), await rig.row(number)]


@probe
async def redefining_a_transient_domain(rig: Rig) -> Seen:
    number, name = rig.fresh()
    await rig.host.define(domain_xml(number, name))
    await rig.host.create(number, paused=False)
    await rig.host.undefine(number)
    return [await code(rig.host.define(domain_xml(number, name))), await rig.row(number)]


@probe
async def redefining_a_running_domain(rig: Rig) -> Seen:
    number, name = rig.fresh()
    await rig.host.define(domain_xml(number, name))
    await rig.host.create(number, paused=False)
    await rig.host.define(domain_xml(number, name, memory=96))
    live, kept = await rig.host.xml(number, inactive=False) or "", await rig.host.xml(number, inactive=True) or ""
    seen = [await rig.row(number), "65536" in live, "98304" in kept]
    await rig.host.destroy(number)
    return [*seen, "98304" in (await rig.host.xml(number, inactive=False) or "")]


@probe
async def redefining_keeps_state_and_reason(rig: Rig) -> Seen:
    number, name = rig.fresh()
    await rig.host.define(domain_xml(number, name))
    await rig.host.create(number, paused=False)
    await rig.host.destroy(number)
    before = await rig.row(number)
    await rig.host.define(domain_xml(number, name, memory=96))
    return [before, await rig.row(number)]


@probe
async def metadata_of_a_domain_that_is_off(rig: Rig) -> Seen:
    number = await rig.defined()
    seen = [await code(rig.host.set_metadata(number, "<vm note='first'/>", live=True))]
    seen += [
        await code(rig.host.set_metadata(number, f"<vm note='{note}'/>", live=False)) for note in ("first", "again")
    ]
    xml = await rig.host.xml(number, inactive=True) or ""
    return [*seen, "first" in xml, xml.count("again"), await rig.row(number)]


@probe
async def metadata_of_a_running_domain(rig: Rig) -> Seen:
    number = await rig.started()
    seen = [await code(rig.host.set_metadata(number, "<vm note='live'/>", live=True))]
    seen += [await code(rig.host.set_metadata(number, "<vm note='kept'/>", live=False))]
    live, kept = await rig.host.xml(number, inactive=False) or "", await rig.host.xml(number, inactive=True) or ""
    seen += ["note" in live and "live" in live, "kept" in live, "kept" in kept]
    await rig.host.destroy(number)
    return [*seen, "kept" in (await rig.host.xml(number, inactive=False) or "")]


@probe
async def metadata_of_a_transient_domain_and_of_none(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.host.undefine(number)
    seen = [await code(rig.host.set_metadata(number, "<vm/>", live=False))]
    seen += [await code(rig.host.set_metadata(number, "<vm/>", live=True))]
    await rig.host.destroy(number)
    return [*seen, await code(rig.host.set_metadata(number, "<vm/>", live=False))]


# Running --------------------------------------------------------------------------------------------------------------


@probe
async def starting(rig: Rig) -> Seen:
    number = await rig.defined()
    seen = [await code(rig.host.create(number, paused=False)), await rig.row(number)]
    live, kept = await rig.host.xml(number, inactive=False) or "", await rig.host.xml(number, inactive=True) or ""
    return [*seen, " id=" in live.split(">")[0], " id=" in kept.split(">")[0], await rig.one.qemus(number)]


@probe
async def starting_twice(rig: Rig) -> Seen:
    number = await rig.started()
    return [await code(rig.host.create(number, paused=False)), await rig.row(number)]


@probe
async def two_starts_at_once(rig: Rig) -> Seen:
    number = await rig.defined()
    codes = await asyncio.gather(*(code(rig.host.create(number, paused=False)) for _ in range(2)))
    return [sorted(codes), await rig.row(number), await rig.one.qemus(number)]


@probe
async def starting_what_is_not_there(rig: Rig) -> Seen:
    number, _ = rig.fresh()
    return [await code(rig.host.create(number, paused=False)), await code(rig.host.destroy(number))]


@probe
async def starting_paused(rig: Rig) -> Seen:
    number = await rig.defined()
    await rig.host.create(number, paused=True)
    seen = [await rig.row(number), await code(rig.host.shutdown(number, agent=False))]
    return [*seen, await code(rig.host.resume(number)), await rig.row(number)]


@probe
async def pausing_and_resuming_twice(rig: Rig) -> Seen:
    number = await rig.started()
    seen: Seen = []
    for call in (rig.host.suspend, rig.host.suspend, rig.host.resume, rig.host.resume):
        seen += [await code(call(number)), await rig.row(number)]
    return seen


@probe
async def calls_on_a_domain_that_is_off(rig: Rig) -> Seen:
    number = await rig.defined()
    calls = (rig.host.destroy, rig.host.suspend, rig.host.resume)
    return [await code(call(number)) for call in calls] + [await code(rig.host.shutdown(number, agent=False))]


@probe
async def calls_on_a_domain_that_is_not_there(rig: Rig) -> Seen:
    number, _ = rig.fresh()
    calls = (rig.host.suspend, rig.host.resume, rig.host.undefine, rig.host.remove_managed_save, rig.host.addresses)
    return [await code(call(number)) for call in calls] + [await code(rig.host.shutdown(number, agent=False))]


@probe
async def destroying(rig: Rig) -> Seen:
    number = await rig.started()
    return [await code(rig.host.destroy(number)), await rig.row(number), await rig.one.qemus(number)]


@probe
async def destroying_a_paused_domain(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.host.suspend(number)
    return [await code(rig.host.destroy(number)), await rig.row(number)]


@probe
async def asking_an_agent_that_is_not_there(rig: Rig) -> Seen:
    without, with_channel = await rig.started(), await rig.started(extra=AGENT)
    seen = [await code(rig.host.shutdown(number, agent=True)) for number in (without, with_channel)]
    return [*seen, *[await code(rig.host.addresses(number)) for number in (without, with_channel)]]


@probe
async def an_agent_that_is_not_connected(rig: Rig) -> Seen:
    number = await rig.started(extra=AGENT)
    live, kept = await rig.host.xml(number, inactive=False) or "", await rig.host.xml(number, inactive=True) or ""
    return ["disconnected" in live, "connected" in kept]


@probe
async def killed(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.kill_qemu(number)
    return [await rig.until_off(number)]


@probe
async def terminated(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.terminate_qemu(number)
    return [await rig.until_off(number)]


@probe
async def starting_without_the_disk(rig: Rig) -> Seen:
    number = await rig.defined(await rig.path("not-there"))
    return [await code(rig.host.create(number, paused=False)), await rig.row(number)]


@probe
async def starting_without_the_kernel(rig: Rig) -> Seen:
    number, name = rig.fresh()
    await rig.host.define(domain_xml(number, name, kernel=await rig.path("not-there")))
    return [await code(rig.host.create(number, paused=False)), await rig.row(number)]


@probe
async def a_failed_start_forgets_how_it_went_off(rig: Rig) -> Seen:
    name = await rig.volume()
    number = await rig.started(await rig.path(name))
    await rig.host.destroy(number)
    await rig.host.delete_volume(rig.one.pool, name)
    return [await rig.row(number), await code(rig.host.create(number, paused=False)), await rig.row(number)]


@probe
async def one_disk_of_two_domains(rig: Rig) -> Seen:
    path = await rig.path(await rig.volume())
    await rig.started(path)
    second = await rig.defined(path)
    two = await rig.connect(rig.two)
    number, name = rig.fresh()
    await two.define(domain_xml(number, name, path))
    seen = [await code(rig.host.create(second, paused=False)), await rig.row(second)]
    seen += [await code(two.create(number, paused=False)), await rig.row(number, two)]
    return seen


# Managed save ---------------------------------------------------------------------------------------------------------


@probe
async def a_managed_save(rig: Rig) -> Seen:
    number, name = rig.fresh()
    await rig.host.define(domain_xml(number, name))
    await rig.host.create(number, paused=False)
    await rig.one.managed_save(number)
    seen = [await rig.row(number), await code(rig.host.undefine(number)), await rig.row(number)]
    seen += [await code(rig.host.define(domain_xml(number, name, memory=96))), await rig.row(number)]
    seen += [await code(rig.host.create(number, paused=False)), await rig.row(number)]
    live = await rig.host.xml(number, inactive=False) or ""
    return [*seen, "65536" in live, "98304" in live]


@probe
async def a_managed_save_after_a_restart_of_the_daemon(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.managed_save(number)
    await rig.one.restart_daemon()
    await rig.again()
    return [await rig.row(number)]


@probe
async def removing_a_managed_save(rig: Rig) -> Seen:
    number = await rig.started()
    await rig.one.managed_save(number)
    seen = [await code(rig.host.remove_managed_save(number)), await rig.row(number)]
    return [*seen, await code(rig.host.remove_managed_save(number)), await code(rig.host.undefine(number))]
