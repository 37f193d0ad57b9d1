# SPDX-License-Identifier: Apache-2.0
"""What must hold in every world: after every effect, and at rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from homeostat.api.meta import FINALIZER
from homeostat.decide.migratable import marker
from homeostat.decide.migration_copy import mark_on
from tests.simulation import libvirt_xml

if TYPE_CHECKING:
    from tests.simulation.effects import Effect
    from tests.simulation.world import World

Object = dict[str, Any]
SLACK_SECONDS = 60.0
"""How old may be what a status says: an event can be lost, and then it takes a look at the whole host to notice."""


MARKERS = {marker(f"00000000-0000-4000-9000-{number:012d}") for number in range(1, 10)}


class Invariants:
    """Watches a world. `foreign`: UUIDs that people defined by hand. `kept`: files nobody may touch or miss.

    `protocol`: that candidates and finalizer come first; not so where a person broke it before.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.foreign: set[str] = set()
        self.protocol = True
        self.kept: dict[tuple[str, str], str] = {}
        self.retained: set[tuple[str, str]] = set()
        self._contents: dict[tuple[str, str], str] = {}
        world.effects.on_executed.append(self.after)
        world.api.changed.append(self._object_changed)

    def keep(self) -> None:
        """From now on the files that are there now have to stay as they are."""
        self.kept = {place: file.content for place, file in self._files()}

    # After every effect -----------------------------------------------------------------------------------------------

    def after(self, effect: Effect) -> None:
        """Nobody's disk changed, and files that are to stay are there; never two is checked at every start."""
        there = dict(self._files())
        for place, content in self.kept.items():
            if place not in there:
                self._violated(f"{place[1]} on {place[0]} was deleted", effect)
            elif there[place].content != content:
                self._violated(f"{place[1]} on {place[0]} has other contents", effect)
        self._written_ahead(effect)
        for place, file in there.items():
            if self._contents.setdefault(place, file.content) != file.content and not self._came_late(place[1]):
                self._violated(f"{place[1]} on {place[0]} was made anew", effect)

    def _came_late(self, name: str) -> bool:
        """Whether a volume of this name was asked for by an operator that died, and its VM is gone."""
        return name in self.world.effects.late and not any(_uuid(vm) in name for vm in self._vms())

    def _written_ahead(self, effect: Effect) -> None:
        """Wherever a VM has a domain, the API server said before that it may be there, and holds its object."""
        given_up = self._out_of_service()
        for vm in self._vms() if self.protocol else []:
            listed = {each["hypervisor"] for each in vm.get("status", {}).get("candidates", [])}
            for host in self.world.hosts.values():
                record = host.records.get(_uuid(vm))
                if record is None or record.uuid in self.foreign or host.name in given_up:
                    continue
                if record.name in self.world.effects.late and not record.active:
                    continue  # a definition that a dead operator's call left: it is found and removed
                if host.name not in listed:
                    self._violated(f"{vm['metadata']['name']} is on {host.name}, the candidates are {listed}", effect)
                if not _held(vm):
                    self._violated(f"{vm['metadata']['name']} is on {host.name} and has no finalizer", effect)

    def _violated(self, sentence: str, effect: Effect) -> None:
        self.world.effects.violated(f"{sentence}, seen after {effect}")

    def _files(self) -> list[tuple[tuple[str, str], Any]]:
        return [
            ((storage.name, name), file)
            for storage in self.world.storages.values()
            for name, file in storage.files.items()
        ]

    def _object_changed(self, kind: str, before: Object | None, after: Object | None) -> None:
        shown = after or before
        if shown is None or shown["kind"] != "VirtualMachine":
            return
        if before is not None and _held(before) and not (after and _held(after)):
            self._released(before)
        if after is not None and after.get("status") != (before or {}).get("status"):
            self._truthful(after)

    def _released(self, vm: Object) -> None:
        """The finalizer goes when nothing is left, or only what the spec lets go of."""
        uuid, name = _uuid(vm), vm["metadata"]["name"]
        self._retain(vm)
        if vm["spec"].get("deletionPolicy") == "Release":
            self.foreign.add(uuid)
            return
        abandoned = {*vm["spec"].get("abandonHosts", []), *self._out_of_service()}
        for host in self.world.hosts.values():
            if host.name in abandoned:
                self.foreign.add(uuid)
            elif uuid in host.records:
                self.world.effects.violated(f"the finalizer of {name} was removed while {host.name} has its domain")
            elif [process for process in host.processes() if process.uuid == uuid]:
                self.world.effects.violated(f"the finalizer of {name} was removed while {host.name} runs it")

    def _retain(self, vm: Object) -> None:
        """Volumes of disks that are to be retained stay; those that are to be deleted are gone, or the host is."""
        for disk in vm["spec"].get("disks", []):
            prefix = f"{vm['metadata']['namespace']}_{vm['metadata']['name']}_{disk['name']}_"
            places = {place for place, _ in self._files() if place[1].startswith(prefix) and _uuid(vm) in place[1]}
            if disk.get("deletionPolicy") != "Delete":
                self.retained |= places
                self.kept |= {place: self._contents[place] for place in places if place in self._contents}
            elif places and not vm["spec"].get("abandonHosts") and not self._out_of_service():
                self.world.effects.violated(f"the finalizer was removed while {places} is there")

    def _out_of_service(self) -> set[str]:
        hypervisors = [each for key, each in self.world.api.objects.items() if key[0] == "hypervisors"]
        return {each["metadata"]["name"] for each in hypervisors if each["spec"].get("outOfService")}

    def _truthful(self, vm: Object) -> None:
        """A VM that is said to be running has run not long ago."""
        says = {each["type"]: each["status"] for each in vm.get("status", {}).get("conditions", [])}
        always = vm["spec"].get("runStrategy", "Always") == "Always" and not vm["metadata"].get("deletionTimestamp")
        if says.get("Running") != "True" and not (says.get("Ready") == "True" and always):
            return
        since = self.world.time - SLACK_SECONDS
        ran = any(each.uuid == _uuid(vm) and (each.end or 1e18) >= since for each in self.world.ledger.processes)
        if not ran:
            self.world.effects.violated(f"{vm['metadata']['name']} is said to run, and did not for a minute")

    # At rest ----------------------------------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """The world is exactly what the specs name."""
        found = [*self._domains(), *self._volumes(), *self._states()]
        assert not found, "\n".join([*found, self.world.tell()])

    def _vms(self) -> list[Object]:
        return [each for key, each in self.world.api.objects.items() if key[0] == "virtualmachines"]

    def _domains(self) -> list[str]:
        """No domain without its VM, and none on two hosts."""
        found, known = [], {_uuid(vm) for vm in self._vms()} | self.foreign | self._reported()
        for host in self.world.hosts.values():
            found += [
                f"{host.name} has a domain of no VM: {r.row()}" for r in host.records.values() if r.uuid not in known
            ]
            found += [f"{host.name} runs a process of no VM: {p}" for p in host.processes() if p.uuid not in known]
        for uuid in known - self.foreign:
            there = [host.name for host in self.world.hosts.values() if uuid in host.records]
            if len(there) > 1:
                found.append(f"{uuid} is defined on {' and '.join(there)}")
        return found

    def _reported(self) -> set[str]:
        """Domains that a call left which was carried out after all was over: they are reported, and off."""
        hosts = [self.world.status(name, "hv") for name in self.world.hosts]
        uuids = {
            each["uuid"]
            for status in hosts
            for each in status.get("orphans", [])
            if each["name"] in self.world.effects.late
        }
        return {uuid for uuid in uuids if not self.world.ledger.running(uuid)}

    def _volumes(self) -> list[str]:
        """Every file is referenced by a definition, or belongs to a VM that is there, or was there, or is retained."""
        found = []
        used = self._referenced()
        for place, _ in self._files():
            owned = any(_uuid(vm) in place[1] and place in used | self._of(vm) for vm in self._vms())
            owned = owned or place[1] in MARKERS  # by which storage is known again on another host
            owned = owned or self._is_stale(place)
            if place in used and mark_on(place[1], self.world.storages[place[0]].files):
                found.append(f"{place[1]} on {place[0]} is in use, and marked as not being the VM's disk")
            if not (owned or place in used | self.kept.keys() | self.retained or place[1] in self.world.effects.late):
                found.append(f"{place[1]} on {place[0]} is nobody's")
        return found

    def _is_stale(self, place: tuple[str, str]) -> bool:
        """A disk's old copy, which stays when its VM has gone elsewhere with its disks, or the mark on it."""
        names = self.world.storages[place[0]].files
        marks = {name: mark for name in names if (mark := mark_on(name, names)) is not None}
        return ".stale-" in marks.get(place[1], "") or (".stale-" in place[1] and place[1] in marks.values())

    def _of(self, vm: Object) -> set[tuple[str, str]]:
        """Volumes by the name a VM's disks have, when there is no definition that says so."""
        if any(_uuid(vm) in host.records for host in self.world.hosts.values()):
            return set()
        return {place for place, _ in self._files() if _uuid(vm) in place[1]}

    def _referenced(self) -> set[tuple[str, str]]:
        used = set()
        for host in self.world.hosts.values():
            for record in host.records.values():
                for root in (record.persistent, record.live):
                    paths = [path for _, path in libvirt_xml.disks(root)] if root is not None else []
                    used |= {place for path in paths if (place := self._place(host.name, path))}
        return used

    def _place(self, host: str, path: str) -> tuple[str, str] | None:
        folder, _, name = path.rpartition("/")
        pools = [pool for pool in self.world.hosts[host].pools.values() if pool.path == folder]
        return (pools[0].storage.name, name) if pools else None

    def _states(self) -> list[str]:
        """Every VM is as its status says."""
        found: list[str] = []
        for vm in self._vms():
            found += [f"{vm['metadata']['name']}: {each}" for each in self._state(vm)]
        return found

    def _state(self, vm: Object) -> list[str]:
        status = vm.get("status", {})
        says = {each["type"]: each for each in status.get("conditions", [])}
        there = self.world.ledger.running(_uuid(vm))
        ready = says.get("Ready", {})
        running = says.get("Running", {}).get("status")
        found = []
        if running in ("True", "False") and (running == "True") != any(process.cpus_since for process in there):
            found.append(f"Running is {says['Running']}, its processes are {[str(p) for p in there]}")
        if there and running == "True" and status.get("host") != there[0].host:
            found.append(f"status.host is {status.get('host')}, and it runs on {there[0].host}")
        if ready.get("status") == "True":
            found += self._as_specified(vm, bool(there), bool(there and there[0].cpus_since))
        if (
            ready.get("observedGeneration") != vm["metadata"]["generation"]
            and vm["metadata"].get("deletionTimestamp") is None
        ):
            found.append(
                f"Ready is of generation {ready.get('observedGeneration')}, not {vm['metadata']['generation']}"
            )
        return found

    @staticmethod
    def _as_specified(vm: Object, runs: bool, cpus: bool) -> list[str]:
        strategy, paused = vm["spec"].get("runStrategy", "Always"), vm["spec"].get("execution") == "Paused"
        if strategy == "Always" and not runs:
            return ["Ready, but it does not run"]
        if strategy == "Halted" and runs:
            return ["Ready, but it runs"]
        if runs and cpus == paused:
            return [f"Ready, but its CPUs {'run' if cpus else 'do not run'}"]
        return []

    async def quiet(self, seconds: float) -> None:
        """For so long nothing is written (the Lease aside), nothing is done to hosts, and no key spins."""
        before, requests = len(self.world.effects.log), self.world.requests()
        await self.world.settle(seconds)
        done = [e for e in self.world.effects.log[before:] if e.name.split()[1] != "leases"]
        assert not done, "not quiet at rest: " + ", ".join(map(str, done)) + "\n" + self.world.tell()
        asked = self.world.requests() - requests
        most = (len(self.world.api.objects) + 5) * (2 + seconds / 60) * len(self.world.lives)
        assert asked <= most, f"{asked} requests in {seconds} s at rest"


def _held(vm: Object) -> bool:
    return FINALIZER in vm["metadata"].get("finalizers", [])


def _uuid(vm: Object) -> str:
    return str(vm["spec"].get("domainUUID") or vm["metadata"]["uid"])
