# SPDX-License-Identifier: Apache-2.0
"""The informer of one host, on a host of a few lines and a virtual clock."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from homeostat.api.observed import (
    Absent,
    Checkpoint,
    Credentials,
    DomainConfig,
    HostFacts,
    Owner,
    Pool,
    Present,
    Unknown,
    Volume,
)
from homeostat.hosts.domain_xml import render
from homeostat.hosts.driver import AUTH_FAILED, SYSTEM_ERROR, DomainRow, Event, HostError, HostUnreachable
from homeostat.hosts.informer import HostInformer, LookAnswer
from homeostat.hosts.migration import Cost, In, Job, MigrationRequest, Out
from homeostat.reconcile.settings import Settings
from tests.simulation.clock import now, run_virtual

pytestmark = pytest.mark.unit

A, B, C = (f"00000000-0000-4000-8000-00000000000{n}" for n in "abc")
URI = "qemu+tcp://198.51.100.2/system"
CONFIG = DomainConfig(64, 1, 1, 1, "Westmere", "pc-q35-7.2", "Emulation")


def owner(uid: str, request: str = "") -> Owner:
    return Owner("cluster", "ns", "vm", uid, request=request)


def row(uuid: str, state: str = "Running", reason: str = "Booted", **more: Any) -> DomainRow:
    return DomainRow(uuid, f"ns_{uuid[-1]}", state, reason, persistent=True, **more)


@dataclass
class Host:
    """A host: what it would answer, and what it was asked."""

    uuid: str = "host-1"
    rows: dict[str, DomainRow] = field(default_factory=dict)
    xml: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    attempts: list[float] = field(default_factory=list)
    credentials: list[Credentials | None] = field(default_factory=list)
    opening: HostError | None = None
    answering: dict[str, HostError] = field(default_factory=dict)
    silent: asyncio.Event | None = None
    silent_opens: bool = False
    pending: int = 0  # attempts under way
    connections: list[Link] = field(default_factory=list)
    held: dict[str, asyncio.Event] = field(default_factory=dict)  # replies that are on their way for as long
    stuck: dict[str, asyncio.Event] = field(default_factory=dict)  # domains that nothing is said of for as long
    checkpoints: dict[str, list[str]] = field(default_factory=dict)

    def put(self, one: DomainRow, request: str = "", tell: bool = True) -> None:
        self.rows[one.uuid] = one
        self.xml[one.uuid] = render(one.uuid, one.name, CONFIG, owner(one.uuid, request), None)
        if tell:
            self.tell(one.uuid)

    def drop(self, uuid: str, tell: bool = True) -> None:
        del self.rows[uuid]
        if tell:
            self.tell(uuid)

    def tell(self, uuid: str | None) -> None:
        for link in self.connections:
            link.on_event(Event(uuid))

    def hang_up(self, why: str = "the connection was lost (end of file)") -> None:
        for link in list(self.connections):
            link.closed = why
            self.connections.remove(link)
            link.on_close(why)

    async def open(self, uri: str, credentials: Credentials | None) -> Link:
        self.attempts.append(asyncio.get_running_loop().time())
        self.credentials.append(credentials)
        self.pending += 1
        try:
            if self.silent_opens:
                await asyncio.Event().wait()
        finally:
            self.pending -= 1
        if self.opening is not None:
            raise self.opening
        self.connections.append(Link(self))
        return self.connections[-1]


class Link:
    """A connection to it. Effects are not asked for here."""

    def __init__(self, host: Host) -> None:
        self.host, self.closed = host, ""
        self.on_event: Callable[[Event], None] = lambda event: None
        self.on_close: Callable[[str], None] = lambda why: None

    async def _ask(self, call: str) -> None:
        self.host.asked[call] += 1
        await asyncio.sleep(0.001)
        if self.host.silent is not None:
            await self.host.silent.wait()
        if call in self.host.held:
            await self.host.held[call].wait()
        if self.closed:
            raise HostUnreachable(SYSTEM_ERROR, self.closed, 7)
        if call in self.host.answering:
            raise self.host.answering[call]

    def subscribe(self, on_event: Callable[[Event], None], on_close: Callable[[str], None]) -> None:
        self.on_event, self.on_close = on_event, on_close

    async def facts(self) -> HostFacts:
        await self._ask("facts")
        return HostFacts(self.host.uuid, "host", "9.0.0", "7.2.22", 4, 4096)

    async def domains(self) -> list[DomainRow]:
        rows = list(self.host.rows.values())
        await self._ask("domains")
        return rows

    async def domain(self, uuid: str) -> DomainRow | None:
        await self._ask("domain")
        if uuid in self.host.stuck:
            await self.host.stuck[uuid].wait()
        return self.host.rows.get(uuid)

    async def domain_named(self, name: str) -> str | None:
        await self._ask("domain_named")
        return next((one.uuid for one in self.host.rows.values() if one.name == name), None)

    async def xml(self, uuid: str, *, inactive: bool) -> str | None:
        text = self.host.xml[uuid] if uuid in self.host.rows else None
        await self._ask("xml")
        return text

    async def checkpoints(self, uuid: str) -> tuple[Checkpoint, ...] | None:
        await self._ask("checkpoints")
        return tuple(Checkpoint(name, f"<{name}/>") for name in self.host.checkpoints.get(uuid, ()))

    async def redefine_checkpoint(self, uuid: str, xml: str) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed = self.closed or "closed"
        if self in self.host.connections:
            self.host.connections.remove(self)

    async def addresses(self, uuid: str) -> list[tuple[str, str, str]]:
        raise NotImplementedError

    async def pool(self, name: str) -> Pool:
        raise NotImplementedError

    async def volumes(self, pool: str, examined: frozenset[str] = frozenset()) -> list[Volume]:
        raise NotImplementedError

    async def volume_size(self, pool: str, name: str) -> int:
        raise NotImplementedError

    async def refresh_pool(self, pool: str) -> None:
        raise NotImplementedError

    async def create_volume(self, pool: str, xml: str) -> None:
        raise NotImplementedError

    async def delete_volume(self, pool: str, name: str) -> None:
        raise NotImplementedError

    async def define(self, xml: str) -> None:
        raise NotImplementedError

    async def create(self, uuid: str, *, paused: bool) -> None:
        raise NotImplementedError

    async def shutdown(self, uuid: str, *, agent: bool) -> None:
        raise NotImplementedError

    async def destroy(self, uuid: str) -> None:
        raise NotImplementedError

    async def suspend(self, uuid: str) -> None:
        raise NotImplementedError

    async def resume(self, uuid: str) -> None:
        raise NotImplementedError

    async def undefine(self, uuid: str) -> None:
        raise NotImplementedError

    async def set_metadata(self, uuid: str, element: str, *, live: bool) -> None:
        raise NotImplementedError

    async def remove_managed_save(self, uuid: str) -> None:
        raise NotImplementedError

    async def job(self, uuid: str) -> Job | None:
        await self._ask("job")
        return self.host.jobs.get(uuid)

    async def reach(self, uuid: str, peer: str) -> None:
        raise NotImplementedError

    async def migrate(self, uuid: str, request: MigrationRequest) -> None:
        raise NotImplementedError

    async def cost(self, uuid: str) -> Cost | None:
        raise NotImplementedError

    async def resume_post_copy(self, uuid: str, request: MigrationRequest) -> None:
        raise NotImplementedError

    async def abort_job(self, uuid: str) -> None:
        raise NotImplementedError

    async def set_max_downtime(self, uuid: str, milliseconds: int) -> None:
        raise NotImplementedError

    async def set_migration_speed(self, uuid: str, mib_s: int) -> None:
        raise NotImplementedError

    async def start_post_copy(self, uuid: str) -> None:
        raise NotImplementedError


class Watched(HostInformer):
    """An informer whose news are kept."""

    def __init__(self, host: Host, settings: Settings | None = None) -> None:
        self.news: list[set[str] | None] = []
        super().__init__("hv", host, now, settings or Settings(), lambda name, uuids: self.news.append(uuids))


def drill(test: Callable[[Host, Watched], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run a test in virtual time on a host with one running domain, its informer connected."""

    async def run() -> None:
        host = Host()
        host.put(row(A))
        informer = Watched(host)
        informer.configure(URI, None)
        await asyncio.sleep(0.5)
        try:
            await test(host, informer)
        finally:
            await informer.close()
        assert host.connections == [], "a connection was left open"

    def inner() -> None:
        run_virtual(run())

    inner.__name__ = test.__name__
    return inner


@drill
async def test_a_host_that_answers_is_listed_in_full(host: Host, informer: Watched) -> None:
    answer = informer.answer
    assert answer.reachable
    assert answer.facts is not None
    assert answer.facts.host_uuid == "host-1"
    assert answer.domains[A].owner == owner(A)
    assert answer.domains[A].live == answer.domains[A].inactive == CONFIG
    assert (answer.heard, answer.since) != (None, None)
    assert informer.connection is host.connections[0]
    assert informer.news == [None]


@drill
async def test_an_event_has_only_its_own_domain_read(host: Host, informer: Watched) -> None:
    for uuid in (B, C):
        host.put(row(uuid))
    await asyncio.sleep(0.1)
    host.asked.clear()
    host.put(row(B, "Shutoff", "Crashed"))
    host.tell(B)
    await asyncio.sleep(0.1)
    assert informer.answer.domains[B].reason == "Crashed"
    assert informer.news[-1] == {B}
    assert host.asked == {"domain": 1, "xml": 1}, "two events, one read: of the one definition a domain that is off has"


@drill
async def test_a_domain_that_goes_is_absent_and_one_without_change_is_no_news(host: Host, informer: Watched) -> None:
    host.tell(A)
    await asyncio.sleep(0.1)
    assert informer.news == [None]
    host.drop(A)
    await asyncio.sleep(0.1)
    assert (informer.news[-1], dict(informer.answer.domains)) == ({A}, {})


@drill
async def test_a_domain_that_libvirt_says_nothing_of_delays_no_other(host: Host, informer: Watched) -> None:
    host.put(row(B), tell=False)
    host.stuck[A] = asyncio.Event()
    host.put(row(A, "Shutoff", "Destroyed"))
    host.tell(B)
    await asyncio.sleep(0.1)
    assert informer.answer.domains[B].state == "Running"
    host.put(row(B, "Shutoff", "Crashed"))
    host.put(row(A, "Running", "Booted"))  # told while it is being read: read once more
    await asyncio.sleep(0.1)
    assert informer.answer.domains[B].reason == "Crashed"
    host.stuck.pop(A).set()
    await asyncio.sleep(0.1)
    assert informer.answer.domains[A].state == "Running"
    assert host.asked["domain"] == 4


@drill
async def test_lost_events_cost_one_resync(host: Host, informer: Watched) -> None:
    host.put(row(A, "Paused", "IOError"), tell=False)
    host.put(row(B), tell=False)
    await asyncio.sleep(31)
    assert informer.answer.domains[A].reason == "IOError"
    assert informer.answer.domains[B].owner == owner(B)
    assert informer.news[-1] == {A, B}
    host.drop(B, tell=False)
    await asyncio.sleep(31)
    assert (informer.news[-1], set(informer.answer.domains)) == ({B}, {A})


@drill
async def test_a_snapshot_that_has_no_event_is_seen_by_the_resync(host: Host, informer: Watched) -> None:
    host.put(row(A, snapshots=True), tell=False)
    await asyncio.sleep(31)
    assert informer.answer.domains[A].snapshots
    host.put(row(A), tell=False)
    await asyncio.sleep(31)
    assert not informer.answer.domains[A].snapshots


@drill
async def test_checkpoints_are_read_where_there_are_any(host: Host, informer: Watched) -> None:
    host.checkpoints[A] = ["first", "second"]
    host.put(row(A, checkpoints=True), tell=False)
    await asyncio.sleep(31)
    both = (Checkpoint("first", "<first/>"), Checkpoint("second", "<second/>"))
    assert informer.answer.domains[A].checkpoints == both
    host.asked.clear()
    await asyncio.sleep(31)
    assert host.asked["checkpoints"] == 0
    host.put(row(A), tell=False)
    await asyncio.sleep(31)
    assert informer.answer.domains[A].checkpoints == ()


@drill
async def test_at_rest_the_cost_does_not_depend_on_the_number_of_domains(host: Host, informer: Watched) -> None:
    for number in range(200):
        host.put(row(f"{number:08}-0000-4000-8000-000000000000"), tell=False)
    await asyncio.sleep(31)
    host.asked.clear()
    informer.news.clear()
    await asyncio.sleep(300)
    assert host.asked == {"domains": 10}
    assert informer.news == []


@drill
async def test_a_definition_changed_without_event_or_state_is_seen_by_the_sweep(host: Host, informer: Watched) -> None:
    host.put(row(A), request="new", tell=False)
    await asyncio.sleep(540)
    assert informer.answer.domains[A].owner == owner(A)
    await asyncio.sleep(65)
    assert informer.answer.domains[A].owner == owner(A, "new")
    assert informer.news[-1] == {A}


@drill
async def test_a_lost_connection_is_known_at_once_and_made_again(host: Host, informer: Watched) -> None:
    since = informer.answer.since
    host.hang_up()
    assert (informer.answer.reachable, informer.answer.reason) == (False, "ConnectionLost")
    assert informer.connection is None
    assert informer.answer.facts is not None, "what was known stays known, it only proves nothing"
    assert isinstance((await informer.look(A, "ns_a")).answer, Unknown)
    host.drop(A, tell=False)
    await asyncio.sleep(1.5)
    assert informer.answer.reachable
    assert informer.answer.since is not None
    assert since is not None
    assert informer.answer.since > since
    assert dict(informer.answer.domains) == {}
    assert informer.news == [None, None, None]


@drill
async def test_attempts_come_ever_more_slowly_and_one_failure_is_told_once(host: Host, informer: Watched) -> None:
    host.opening = HostUnreachable(
        SYSTEM_ERROR, "unable to connect to server at '198.51.100.2:16509': Connection refused"
    )
    host.hang_up()
    await asyncio.sleep(300)
    gaps = [later - earlier for earlier, later in zip(host.attempts[1:], host.attempts[2:], strict=False)]
    assert all(0.5 <= gap <= 30.1 for gap in gaps)
    assert gaps[-1] >= 15
    assert 10 <= len(host.attempts) <= 25
    assert informer.answer.reason == "ConnectionRefused"
    assert "Connection refused" in informer.answer.message
    assert informer.news == [None, None, None], "connected, lost, refused"
    lost = informer.answer.since
    await asyncio.sleep(60)
    assert informer.answer.since == lost
    host.opening = None
    await asyncio.sleep(31)
    assert informer.answer.reachable


@drill
async def test_a_host_that_never_answers_an_attempt_is_unreachable_and_attempts_do_not_pile_up(
    host: Host, informer: Watched
) -> None:
    host.silent_opens = True
    host.hang_up()
    most = 0
    for _second in range(300):
        await asyncio.sleep(1)
        most = max(most, host.pending)
    assert most == 1
    assert (informer.answer.reachable, informer.answer.reason) == (False, "ConnectTimeout")
    assert len(host.attempts) < 20
    host.silent_opens = False
    await asyncio.sleep(31)
    assert informer.answer.reachable


@drill
async def test_a_connected_host_that_falls_silent_is_not_believed(host: Host, informer: Watched) -> None:
    host.silent = asyncio.Event()
    looked = await informer.look(A, "ns_a")
    assert isinstance(looked.answer, Unknown)
    assert looked.answer.reason == "NotResponding"
    await asyncio.sleep(100)
    assert (informer.answer.reachable, informer.answer.reason) == (False, "NotResponding")
    host.silent.set()
    host.silent = None
    await asyncio.sleep(31)
    assert informer.answer.reachable


@drill
async def test_another_host_at_the_address_proves_nothing(host: Host, informer: Watched) -> None:
    informer.configure(URI, None, "host-1")
    host.uuid = "host-2"
    host.rows.clear()
    host.hang_up()
    heard = informer.answer.heard
    await asyncio.sleep(60)
    answer = informer.answer
    assert (answer.reachable, answer.reason) == (False, "IdentityMismatch")
    assert "host-2" in answer.message
    assert "host-1" in answer.message
    assert answer.heard == heard, "it was another host that was heard"
    assert A in answer.domains
    assert informer.connection is None
    assert isinstance((await informer.look(A, "ns_a")).answer, Unknown)


@drill
async def test_a_host_replaced_on_purpose_is_taken_at_once(host: Host, informer: Watched) -> None:
    informer.configure(URI, None, "host-2")
    assert informer.answer.reason == "IdentityMismatch", "even before anything is asked"
    assert informer.connection is None
    await asyncio.sleep(120)
    host.uuid = "host-2"
    informer.configure(URI, None, "host-1")
    informer.configure(URI, None, "HOST-2")
    await asyncio.sleep(1)
    assert informer.answer.reachable


@drill
async def test_rotated_credentials_are_used_without_a_restart(host: Host, informer: Watched) -> None:
    fresh = Credentials("2", {"tls.key": b"secret"})
    informer.configure(URI, fresh)
    assert (informer.answer.reachable, informer.connection) == (None, None)
    await asyncio.sleep(0.5)
    assert informer.answer.reachable
    assert host.credentials == [None, fresh]
    informer.configure(URI, replace(fresh))
    await asyncio.sleep(0.5)
    assert len(host.attempts) == 2
    assert "secret" not in repr(fresh)


@drill
async def test_a_changed_address_answers_for_nothing_until_it_was_asked(host: Host, informer: Watched) -> None:
    host.silent_opens = True
    informer.configure("qemu+tcp://198.51.100.3/system", None)
    assert (informer.answer.reachable, informer.connection) == (None, None)
    looked = await informer.look(A, "ns_a")
    assert isinstance(looked.answer, Unknown)
    assert looked.answer.reason == "HostNotAsked"


@drill
async def test_a_look_is_an_answer_of_now_and_tells_the_cache(host: Host, informer: Watched) -> None:
    host.put(row(A, "Shutoff", "Destroyed"), tell=False)
    looked = await informer.look(A, "ns_a")
    assert isinstance(looked.answer, Present)
    assert looked.answer.domain.reason == "Destroyed"
    assert looked.name_holder == A
    assert informer.answer.domains[A] == looked.answer.domain
    assert await informer.look(B, "ns_a") == LookAnswer(Absent(), A)
    assert informer.news == [None, {A}]


@drill
async def test_a_look_that_the_host_refuses_is_unknown(host: Host, informer: Watched) -> None:
    host.answering["domain"] = HostError(SYSTEM_ERROR, "cannot read the status file: Input/output error")
    looked = await informer.look(A, "ns_a")
    assert isinstance(looked.answer, Unknown)
    assert "Input/output error" in looked.answer.message
    assert informer.answer.reachable, "one domain that cannot be read is not a host that cannot be reached"


@drill
async def test_a_list_begun_before_a_look_does_not_undo_it(host: Host, informer: Watched) -> None:
    host.held["domains"] = asyncio.Event()
    await asyncio.sleep(31)  # a list was made, its reply is on the way
    assert host.asked["domains"] == 2
    host.put(row(A, "Shutoff", "Crashed"), tell=False)
    host.put(row(B), tell=False)
    for uuid in (A, B):
        assert isinstance((await informer.look(uuid, "")).answer, Present)
    host.held.pop("domains").set()
    await asyncio.sleep(0.1)
    assert informer.answer.domains[A].reason == "Crashed"
    assert B in informer.answer.domains


@drill
async def test_a_list_that_hangs_on_one_domain_delays_no_event(host: Host, informer: Watched) -> None:
    held = host.held["domains"] = asyncio.Event()
    await asyncio.sleep(40)  # the list has begun
    host.put(row(B))
    await asyncio.sleep(0.1)
    assert B in informer.answer.domains
    held.set()
    await asyncio.sleep(0.1)
    assert B in informer.answer.domains, "a list begun before an event undid it"
    assert host.asked["domains"] == 2


@drill
async def test_since_when_a_host_is_silent_outlives_the_process_that_saw_it(host: Host, before: Watched) -> None:
    host.opening, earlier = HostUnreachable(SYSTEM_ERROR, "Connection refused"), now()
    await before.close()
    await asyncio.sleep(100)
    informer = HostInformer("hv", host, now, Settings(), lambda name, uuids: None, earlier)
    informer.configure(URI, None)
    await asyncio.sleep(1)
    assert (informer.answer.reachable, informer.answer.since) == (False, earlier)
    host.opening = None
    await asyncio.sleep(60)
    assert informer.answer.reachable
    await informer.close()


@drill
async def test_a_look_at_a_host_that_is_no_longer_the_expected_one_is_unknown(host: Host, informer: Watched) -> None:
    host.held["domain_named"] = asyncio.Event()
    look = asyncio.create_task(informer.look(A, "ns_a"))
    await asyncio.sleep(0.1)
    host.held["domain_named"].set()
    informer.configure(URI, None, "host-2")
    answer = (await look).answer
    assert isinstance(answer, Unknown)
    assert answer.reason == "IdentityMismatch"


@drill
async def test_a_list_that_fails_does_not_leave_the_old_one_believed(host: Host, informer: Watched) -> None:
    host.answering["domains"] = HostError(SYSTEM_ERROR, "out of memory")
    await asyncio.sleep(31)
    assert (informer.answer.reachable, informer.answer.reason) == (False, "CallFailed")
    del host.answering["domains"]
    await asyncio.sleep(31)
    assert informer.answer.reachable


@drill
async def test_a_domain_whose_definition_cannot_be_had_is_still_there(host: Host, informer: Watched) -> None:
    host.put(row(B), tell=False)
    host.answering["xml"] = HostError(SYSTEM_ERROR, "unsupported element")
    await asyncio.sleep(31)
    assert informer.answer.reachable
    assert (informer.answer.domains[B].state, informer.answer.domains[B].owner) == ("Running", None)


@drill
async def test_garbage_as_definition_is_nobodys_domain(host: Host, informer: Watched) -> None:
    host.put(row(B), tell=False)
    host.xml[B] = "<domain><vcpu>many</vcpu></domain>"
    await asyncio.sleep(31)
    assert (informer.answer.domains[B].name, informer.answer.domains[B].owner) == ("ns_b", None)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ((AUTH_FAILED, "authentication failed: authentication failed"), "AuthFailed"),
        (
            (AUTH_FAILED, "authentication failed: Failed to verify peer's certificate: certificate has expired"),
            "TLSFailed",
        ),
        ((SYSTEM_ERROR, "The client certificate tls.crt has expired"), "TLSFailed"),
        ((SYSTEM_ERROR, "unable to connect to server at 'h:16509': No route to host"), "NoRoute"),
        ((SYSTEM_ERROR, "Unable to resolve address 'h' service '16509': Name or service not known"), "NameNotFound"),
        ((SYSTEM_ERROR, "something nobody has seen yet"), "ConnectFailed"),
    ],
)
def test_each_way_to_fail_has_a_word_and_keeps_the_words_of_libvirt(error: tuple[int, str], reason: str) -> None:
    async def run() -> None:
        informer = Watched(Host(opening=HostUnreachable(*error)))
        informer.configure(URI, None)
        await asyncio.sleep(1)
        assert (informer.answer.reachable, informer.answer.reason) == (False, reason)
        assert error[1] in informer.answer.message
        assert informer.answer.since is not None
        await informer.close()

    run_virtual(run())


def test_a_fault_in_reading_does_not_leave_a_host_that_looks_well() -> None:
    async def run() -> None:
        host = Host()
        informer = Watched(host)
        informer.configure(URI, None)
        await asyncio.sleep(1)
        assert informer.answer.reachable
        host.rows = None  # type: ignore[assignment]
        await asyncio.sleep(31)
        assert (informer.answer.reachable, informer.answer.reason) == (False, "InternalError")
        await informer.close()

    run_virtual(run())


@drill
async def test_a_look_asks_for_the_job_before_the_state_and_only_when_told(host: Host, informer: Watched) -> None:
    host.jobs[A] = Out(remaining=1)
    assert isinstance((await informer.look(A, "ns_a")).job, Unknown)
    assert host.asked["job"] == 0
    host.held["domain"] = asyncio.Event()
    look = asyncio.create_task(informer.look(A, "ns_a", job=True))
    await asyncio.sleep(0.1)
    host.jobs[A] = In()
    host.held.pop("domain").set()
    assert (await look).job == Out(remaining=1)
    del host.jobs[A]
    assert (await informer.look(A, "ns_a", job=True)).job is None


@drill
async def test_a_job_that_is_not_told_leaves_the_state_known(host: Host, informer: Watched) -> None:
    host.held["job"] = asyncio.Event()
    looked = await informer.look(A, "ns_a", job=True)
    assert isinstance(looked.job, Unknown)
    assert isinstance(looked.answer, Present)
    assert informer.answer.reachable
