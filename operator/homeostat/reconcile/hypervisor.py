# SPDX-License-Identifier: Apache-2.0
"""One pass over one Hypervisor: keep its informer as the spec says, and say what the host says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

from homeostat.api import reasons
from homeostat.api.hypervisor import Hypervisor, HypervisorSpec, HypervisorStatus
from homeostat.api.meta import FINALIZER, condition
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.observed import Credentials
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import evacuation
from homeostat.decide import hypervisor as verdicts
from homeostat.decide.view import Say
from homeostat.hosts.driver import Driver
from homeostat.hosts.informer import HostInformer
from homeostat.kube.client import Client
from homeostat.kube.events import Recorder
from homeostat.kube.transport import ApiError, ApiUnreachable
from homeostat.reconcile.fleet import Fleet, outdated
from homeostat.reconcile.retried import parsed, retried
from homeostat.reconcile.settings import Settings
from homeostat.runtime import metrics
from homeostat.runtime.controller import Key, Result, Retry

log = logging.getLogger(__name__)
STATUS_MANAGER = "homeostat-hypervisor"
REFUSALS = (400, 401, 403, 405, 422)
"""HTTP status of refusals that do not pass by themselves."""
CREDENTIAL_KEYS = ("ca.crt", "tls.crt", "tls.key")
Object = dict[str, Any]


class HypervisorReconciler:
    """Reconciles Hypervisors and owns their informers."""

    def __init__(
        self,
        client: Client,
        fleet: Fleet,
        recorder: Recorder,
        settings: Settings,
        now: Callable[[], datetime],
        driver: Driver,
        on_change: Callable[[str, set[str] | None], None],
    ) -> None:
        self._client, self._fleet, self._recorder, self._settings = client, fleet, recorder, settings
        self._now, self._driver, self._on_change = now, driver, on_change
        self._written: dict[str, float] = {}  # when a status was last written

    async def reconcile(self, key: Key) -> Result:
        """Read, observe, decide, perform one action, report."""
        seen = await self._read(key)
        if seen is None:
            return Result()
        hypervisor, known = parsed(Hypervisor, seen), self._fleet.hypervisors.get(key[1])
        self._fleet.note_hypervisor(key[1], hypervisor)
        if known is not None and known.metadata.labels != hypervisor.metadata.labels:
            self._on_change(key[1], None)  # labels are no part of the spec: no transition tells of them
        await self._configure(hypervisor)
        if not self._fleet.listed:
            return Result()  # once the VMs are listed every Hypervisor is looked at
        answer = self._fleet.answer(key[1])
        claims = self._fleet.claims(hypervisor)
        twins, now = self._fleet.twins(hypervisor), self._now()
        said = verdicts.verdict(hypervisor, answer, twins, holds=len(claims.holds), now=now)
        if said[0] == "Released":
            return await self._release(key, seen)
        if FINALIZER not in hypervisor.metadata.finalizers and not hypervisor.metadata.deleting:
            seen = await self._hold(seen)
        together = self._fleet.together(hypervisor)
        status = verdicts.status(hypervisor, answer, said, claims, self._fleet.cluster, now, together)
        todo = self._evacuation(hypervisor)
        after = await self._report(hypervisor, seen, status.model_copy(update={"evacuation": todo.status}))
        await self._evacuate(todo)
        lists = self._settings.host_resync_seconds
        return Result(_sooner(after, verdicts.judged_in(hypervisor, together, status.last_heard, now, lists)))

    async def _read(self, key: Key) -> Object | None:
        with retried("the Hypervisor could not be read"):
            seen = await self._client.get(Hypervisor, "", key[1])
        if seen is None and (known := self._fleet.hypervisors.get(key[1])) is not None:
            await self._forget(known)
        return seen

    async def _forget(self, hypervisor: Hypervisor) -> None:
        """Leave the host of a Hypervisor that is gone; its VMs, and another Hypervisor of its host, are looked at."""
        name, twins = hypervisor.metadata.name, self._fleet.twins(hypervisor)
        self._fleet.note_hypervisor(name, None)
        self._written.pop(name, None)
        self._fleet.missing.pop(name, None)
        metrics.hosts.remove(name)
        self._fleet.left.pop(name, None)
        informer = self._fleet.informers.pop(name, None)
        if informer is not None:
            await informer.close()
        for each in (name, *twins):
            self._on_change(each, None)

    async def _configure(self, hypervisor: Hypervisor) -> None:
        """Bring the informer to the spec's URI, credentials and identity; note what is missing of the credentials."""
        name, spec = hypervisor.metadata.name, hypervisor.spec
        credentials, fault = await self._credentials(spec)
        if fault:
            self._fleet.missing[name] = fault
            await self._leave(name, spec.uri)
            return
        self._fleet.missing.pop(name, None)
        informer = self._fleet.informers.get(name)
        if informer is None:
            silent = verdicts.silent_since(hypervisor)
            informer = HostInformer(name, self._driver, self._now, self._settings, self._on_change, silent)
            self._fleet.informers[name] = informer
        informer.configure(spec.uri, credentials, spec.host_uuid or hypervisor.status.host_uuid)

    async def _credentials(self, spec: HypervisorSpec) -> tuple[Credentials | None, str]:
        """What the Secret holds that the spec names, and why that cannot be used; "" when it can.

        Retry while the API server has trouble; where it refuses, a person has to hear of it.
        """
        if spec.credentials is None:
            return None, ""
        secret = spec.credentials.secret_ref.name
        try:
            credentials = await self._client.credentials(secret)
        except (ApiError, ApiUnreachable) as error:
            if isinstance(error, ApiError) and error.status in REFUSALS:
                return None, f"Secret {self._client.namespace}/{secret} could not be read: {error}"
            raise Retry(f"Secret {secret} could not be read: {error}") from error
        return credentials, self._fault(spec, credentials)

    def _fault(self, spec: HypervisorSpec, credentials: Credentials | None) -> str:
        """What is wrong with the Secret that the spec names; "" when nothing is."""
        absent = [each for each in CREDENTIAL_KEYS if not credentials or not credentials.files.get(each)]
        if spec.credentials is None or not absent:
            return ""
        fault = f"lacks {', '.join(absent)}" if credentials else "does not exist"
        return f"Secret {self._client.namespace}/{spec.credentials.secret_ref.name} {fault}"

    async def _leave(self, name: str, uri: str) -> None:
        """Give up a connection that leads anywhere but to `uri`: it is not where the host is said to be any more."""
        informer = self._fleet.informers.get(name)
        if informer is not None and informer.uri != uri:
            del self._fleet.informers[name]
            self._fleet.left[name] = informer.answer.heard
            await informer.close()

    async def _hold(self, seen: Object) -> Object:
        with retried("the finalizer could not be added"):
            return await self._client.add_finalizer(Hypervisor, seen, FINALIZER)

    async def _release(self, key: Key, seen: Object) -> Result:
        """Let the object go when no VM, listed live, may be on its host."""
        with retried("the finalizer could not be removed"):
            for item in await self._client.list_all(VirtualMachine):
                vm = parsed(VirtualMachine, item)
                where = vm.metadata.namespace, vm.metadata.name
                if outdated(self._fleet.vms.get(where), item["metadata"]):  # the list, or the store was rolled back
                    raise Retry(f"VM {'/'.join(where)} is listed as it was before")
                self._fleet.note_vm(where, vm)
            if self._fleet.holds(parsed(Hypervisor, seen)):
                return Result(0.0)
            if FINALIZER in seen["metadata"].get("finalizers", []):
                await self._client.remove_finalizer(Hypervisor, seen, FINALIZER)
        return Result()

    def _evacuation(self, hypervisor: Hypervisor) -> evacuation.Evacuation:
        """The migrations that spec.maintenance asks for, those it does not any more, and how far that is."""
        name, wanted = hypervisor.metadata.name, hypervisor.spec.maintenance == "Evacuate"
        here = [vm for vm in self._fleet.vms.values() if vm.status.host == name] if wanted else []
        able = {vm.metadata.uid: _migratable(vm) for vm in here}
        return evacuation.evacuate(hypervisor, here, able, self._fleet.migrations.values(), self._now())

    async def _evacuate(self, todo: evacuation.Evacuation) -> None:
        """Make and cancel migrations; one that is refused, as in a namespace that is ending, keeps no other from it."""
        refused: list[str] = []
        for each in todo.make:
            meta = {"namespace": each.namespace, "name": each.name, "labels": dict(each.labels)}
            body = {"metadata": meta, "spec": {"vmRef": {"name": each.vm}}}
            try:
                await self._client.create(VirtualMachineMigration, body)
            except (ApiError, ApiUnreachable) as error:
                refused.append(f"migration of {each.namespace}/{each.vm}: {error}")
        for namespace, name in todo.cancel:
            try:
                if (seen := await self._client.get(VirtualMachineMigration, namespace, name)) is not None:
                    await self._client.delete(VirtualMachineMigration, seen)
            except (ApiError, ApiUnreachable) as error:
                refused.append(f"migration {namespace}/{name}: {error}")
        if refused:
            raise Retry("not made or not cancelled: " + "; ".join(refused[:3]))

    async def _report(self, hypervisor: Hypervisor, seen: Object, status: HypervisorStatus) -> float | None:
        """Write the status if it changed: a transition at once, figures at most every ten seconds."""
        name, old = hypervisor.metadata.name, hypervisor.status
        metrics.hosts.labels(name).set(1 if self._fleet.answer(name).reachable else 0)
        resync = self._settings.secret_resync_seconds if hypervisor.spec.credentials is not None else None
        if status.wire() == old.wire():
            return resync
        if status.reason == "Connecting" and old.reason and old.observed_generation == status.observed_generation:
            return resync  # this process only began: what the last one saw stands until the host was asked
        now = asyncio.get_running_loop().time()
        left = self._written.get(name, -1e9) + self._settings.hypervisor_write_seconds - now
        transition = _facts(status) != _facts(old)
        if left > 0 and not transition:
            return left
        with retried("the status could not be written"):
            written = await self._client.apply_status(Hypervisor, seen, status.wire(), STATUS_MANAGER)
        self._written[name] = now
        self._fleet.note_hypervisor(name, parsed(Hypervisor, written))
        if transition:
            self._tell(hypervisor, seen, status)
        return resync

    def _tell(self, hypervisor: Hypervisor, seen: Object, status: HypervisorStatus) -> None:
        """An Event for each transition, and a look at the VMs, and the other Hypervisors of the host, it matters to."""
        for name in (hypervisor.metadata.name, *self._fleet.twins(hypervisor)):
            self._on_change(name, None)
        if status.reason == hypervisor.status.reason:
            return
        row = reasons.HYPERVISOR[status.reason or "Connecting"]
        text = next((c.message for c in status.conditions if c.type == "Ready"), "")
        log.info("is %s: %s", row.state, text)
        self._recorder.record("Hypervisor", seen, status.reason or "", text, warning=row.ready == "False")


def _facts(status: HypervisorStatus) -> tuple[object, ...]:
    """What is written at once when it changes."""
    left = status.evacuation
    empty = left.moved if left is not None and left.remaining == 0 else None  # somebody waits for that
    return status.reason, status.host_uuid, status.observed_generation, status.last_heard, empty


def _sooner(*seconds: float | None) -> float | None:
    return min((each for each in seconds if each is not None), default=None)


def _migratable(vm: VirtualMachine) -> tuple[str, Say]:
    """(True, False or Unknown, why) of the VM's condition Migratable."""
    found = condition(vm.status.conditions, "Migratable")
    return (found.status, Say(found.reason)) if found else ("Unknown", Say("HostsUnknown"))
