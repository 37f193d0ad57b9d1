# SPDX-License-Identifier: Apache-2.0
"""The informer of one host, on a host of a few lines and a virtual clock."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from homeostat.api.observed import Absent, Checkpoint, Credentials, Present, Unknown
from homeostat.hosts.driver import AUTH_FAILED, SYSTEM_ERROR, HostError, HostUnreachable
from homeostat.hosts.informer import HostInformer, LookAnswer
from homeostat.hosts.migration import In, Out
from homeostat.reconcile.settings import Settings
from tests.simulation.clock import now, run_virtual
from tests.unit.informed import CONFIG, POOL, URI, A, B, C, Host, Watched, drill, owner, row

pytestmark = pytest.mark.unit


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
async def test_storage_that_hangs_leaves_its_pools_where_they_were(host: Host, informer: Watched) -> None:
    host.storage_hangs = True
    await asyncio.sleep(601)
    facts = informer.answer.facts
    assert facts is not None
    assert (facts.pools_known, facts.pools) == (False, (POOL,))
    host.hang_up()
    await asyncio.sleep(60)
    assert informer.answer.facts == facts
    host.storage_hangs = False
    await asyncio.sleep(601)
    assert informer.answer.facts == replace(facts, pools_known=True)


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
    fresh = Credentials({"tls.key": b"secret"})
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
async def test_a_domain_that_goes_while_a_list_is_made_is_no_strangers(host: Host, informer: Watched) -> None:
    """A list is several calls: it is off in the first, and among those that have a definition no more in the second."""
    host.put(replace(row(B, "Shutoff", "Destroyed"), persistent=False), tell=False)
    host.held["domains"] = asyncio.Event()
    await asyncio.sleep(31)
    host.drop(B, tell=False)
    host.held.pop("domains").set()
    await asyncio.sleep(0.1)
    assert B not in informer.answer.domains


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
