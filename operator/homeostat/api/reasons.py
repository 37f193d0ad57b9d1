# SPDX-License-Identifier: Apache-2.0
"""Every reason a person can meet in a status: what it means, what happens next, what to do.

One row gives the printable state, the conditions' values and the words; decisions name a reason and add the details. The page
docs/conditions.md is made from these tables.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """One row. `ready` and `running` are True, False or Unknown; `next` is the word printed by kubectl get.

    `stalled`: only the owner can mend it. `passing`: a step that is normally over in seconds, reported only when it is not.
    """

    state: str
    ready: str
    running: str
    next: str
    meaning: str
    then: str
    todo: str = ""
    stalled: bool = False
    passing: bool = False


_OWNER = "Nothing happens until the spec is changed."
_WAIT = "It is looked at again when something changes there, and at every resync."

VM: dict[str, Reason] = {
    # As the spec says
    "Running": Reason("Running", "True", "True", "-", "The guest's CPUs run on the host named in status.host.", "Nothing is left to do."),
    "Paused": Reason(
        "Paused", "True", "False", "-", "The guest's CPUs are stopped because spec.execution is Paused.", "Nothing is left to do.",
        "Set spec.execution to Running to let it run.",
    ),
    "Halted": Reason(
        "Stopped", "True", "False", "-", "The VM is off and spec.runStrategy is Halted.", "Nothing is left to do.",
        "Set spec.runStrategy to Always to start it.",
    ),
    "StoppedAsAsked": Reason(
        "Stopped", "True", "False", "-", "The VM is off because spec.power.state is Stopped.", "Nothing is left to do.",
        "Set spec.power.state to Running and spec.power.request to a new value to start it.",
    ),
    "NotRequested": Reason(
        "Stopped", "True", "False", "Request", "The VM went off and under runStrategy Manual it starts only when asked.",
        "It stays off until spec.power.request has a new value.", "Set spec.power.request to a new value to start it.",
    ),
    "Finished": Reason(
        "Finished", "True", "False", "-", "The guest powered itself off; under runStrategy RerunOnFailure it is done.",
        "It stays off.", "Set spec.power.request to a new value to run it again.",
    ),
    # Steps
    "Accepted": Reason(
        "Pending", "False", "False", "Place", "The VM was read and a host is being chosen or prepared.",
        "The host is recorded in status.candidates, then the finalizer is added.", passing=True,
    ),
    "Creating": Reason(
        "Starting", "False", "False", "Start", "Volumes and the domain's definition are being made on the host.",
        "The domain is started once its definition has been seen.", passing=True,
    ),
    "Starting": Reason(
        "Starting", "False", "False", "Run", "The domain is defined and is being started.",
        "It is reported Running when its process has been seen.", passing=True,
    ),
    "Stopping": Reason(
        "Stopping", "False", "True", "Off", "The guest was asked to power off because the spec wants the VM off.",
        "It is asked again every 10 s, and its process is ended when spec.terminationGracePeriodSeconds have passed.",
    ),
    "Restarting": Reason(
        "Stopping", "False", "True", "Restart", "spec.power.request has a new value: the guest was asked to power off, to be started again.",
        "It is asked again every 10 s, its process is ended when spec.terminationGracePeriodSeconds have passed, then it is started.",
    ),
    "Moving": Reason(
        "Pending", "False", "False", "Place", "The VM is off and spec.placement wants another host.",
        "Its definition is removed from the old host and, once seen gone, made on the new one.", passing=True,
    ),
    "Resuming": Reason(
        "Paused", "False", "False", "Run", "The guest's CPUs are stopped by us and the spec wants them to run.", "They are resumed.",
        passing=True,
    ),
    "Pausing": Reason("Running", "False", "True", "Pause", "The spec wants the guest's CPUs stopped.", "They are stopped.", passing=True),
    "Deleting": Reason(
        "Deleting", "False", "False", "Remove", "The VM is being deleted.",
        "Its domain is stopped and undefined, volumes with deletionPolicy Delete are removed, then the object goes.", passing=True,
    ),
    "DeletingStops": Reason(
        "Deleting", "False", "True", "Off", "The VM is being deleted and its guest was asked to power off.",
        "It is asked again every 10 s, and its process is ended when spec.terminationGracePeriodSeconds have passed.",
    ),
    # Waiting for hosts
    "HostNotAsked": Reason(
        "Unknown", "Unknown", "Unknown", "Connect", "A host where the VM may be was not reached yet since the operator started.",
        "It is being connected to.", passing=True,
    ),
    "HostUnreachable": Reason(
        "Unknown", "Unknown", "Unknown", "WaitHost", "A host where the VM may be does not answer, so whether the VM runs is not known.",
        "Nothing is started elsewhere. When the host answers, the VM is looked at at once.",
        "Repair the host or its network; or, when it is certainly powered off, declare it with spec.outOfService of the Hypervisor.",
    ),
    "DeletingWaitsForHost": Reason(
        "Deleting", "Unknown", "Unknown", "WaitHost", "The VM is being deleted but a host where it may be does not answer.",
        "When the host answers, the VM is removed from it and the object goes.",
        "Repair the host; or declare it with spec.outOfService of the Hypervisor; or name it in spec.abandonHosts of the VM "
        "(what is there is then left behind, disks are retained).",
    ),
    "HypervisorMissing": Reason(
        "Unknown", "Unknown", "Unknown", "WaitHost", "A host where the VM may be has no Hypervisor object any more.",
        "Nothing is started elsewhere.", "Create the Hypervisor again, or delete the VM with the host named in spec.abandonHosts.",
    ),
    "OutOfServiceButAnswering": Reason(
        "Unknown", "Unknown", "Unknown", "WaitPerson", "A host where the VM may be was declared out of service but was heard from after that.",
        "The declaration is void and nothing is started.", "Remove spec.outOfService of the Hypervisor, or power the host off and declare it anew.",
    ),
    "DuplicateHost": Reason(
        "Pending", "False", "False", "WaitPerson", "Two Hypervisor objects name the same host.", "Nothing new is started there.",
        "Delete one of the two Hypervisors.",
    ),
    "StoreBehind": Reason(
        "Unknown", "Unknown", "Unknown", "WaitHosts", "A host knows a newer generation of this VM than the API server: its store was rolled back.",
        "Nothing is started until every Hypervisor has answered.", "Look at the spec: edits made after the backup are lost.",
    ),
    "RecordLost": Reason(
        "Unknown", "Unknown", "Unknown", "Probe", "The host says the VM is off and not why, and it was last seen running: its process may still be there.",
        "It is started on this host only, where a surviving process is refused by its locks.",
        "If starts are refused with a lock error, end the old process on the host, or reboot the host.",
    ),
    # Placement
    "UnknownHost": Reason("Pending", "False", "False", "Edit", "spec.placement.host names no Hypervisor.", _OWNER,
                          "Name an existing Hypervisor.", stalled=True),
    "NoHostMatches": Reason("Pending", "False", "False", "Edit", "No Hypervisor has the labels of spec.placement.hostSelector.",
                            "It is placed when a Hypervisor has these labels.", "Change the selector or label a Hypervisor.", stalled=True),
    "UnknownPool": Reason("Pending", "False", "False", "Edit", "No host that may be used offers a pool that the spec names.",
                          "It is placed when a Hypervisor offers the pool.", "Change the disk's pool or add the pool to a Hypervisor.", stalled=True),
    "UnknownNetwork": Reason("Pending", "False", "False", "Edit", "No host that may be used offers a network that the spec names.",
                             "It is placed when a Hypervisor offers the network.", "Change the interface's network or add it to a Hypervisor.", stalled=True),
    "NotAllowed": Reason("Pending", "False", "False", "Edit", "A pool or network is not open to this namespace.",
                         "It is placed when allowedNamespaces has this namespace.", "Ask for the namespace to be added to allowedNamespaces.", stalled=True),
    "TooBig": Reason("Pending", "False", "False", "Edit", "No host is large enough, even when empty.",
                     "It is placed when a host is large enough.", "Ask for less CPU or memory, or add a larger host.", stalled=True),
    "UnknownCPUModel": Reason("Pending", "False", "False", "Edit", "No host that may be used can run the CPU model that the spec names.",
                              "It is placed when a host can.", "Leave spec.cpu.model out, or name a model of status.cpuModels of a Hypervisor.", stalled=True),
    "NoRoom": Reason("Pending", "False", "False", "WaitRoom", "Hosts that fit are full.", "It is placed when there is room.",
                     "Stop other VMs, raise spec.overcommit of a Hypervisor, or add a host."),
    "NoHost": Reason("Pending", "False", "False", "WaitHost", "No host takes new VMs now.", "It is placed when a host does.",
                     "See the Hypervisors' reasons with kubectl get hv."),
    "DiskElsewhere": Reason("Pending", "False", "False", "WaitHost", "The VM's disks are on a host, or a storage, that the spec or the host's state rules out.",
                            "It is placed when a host with that storage can be used.", "Change spec.placement, or bring the host back."),
    # Storage
    "PoolUnavailable": Reason("Pending", "False", "False", "WaitPool", "A pool on the host is missing or not active.", _WAIT,
                              "Define and start the pool on the host."),
    "ImageMissing": Reason("Pending", "False", "False", "WaitImage", "A volume that the spec names as image, kernel or initrd is not in its pool.", _WAIT,
                           "Put the volume into the pool, or change the spec.", stalled=True),
    "VolumeMissing": Reason("Pending", "False", "False", "WaitDisk", "A volume that the spec names as disk is not in its pool.", _WAIT,
                            "Put the volume into the pool, or change the spec.", stalled=True),
    "DiskMissing": Reason("Failed", "False", "False", "WaitDisk", "A disk that was there is not in its pool any more; it is never made anew.", _WAIT,
                          "Mount the storage or restore the volume."),
    "RetainedDisk": Reason("Pending", "False", "False", "Edit", "A volume of an earlier VM of this name is still there; a blank one is not put beside it unasked.",
                           _OWNER, "Name the volume as source, or set source.blank.retained to Ignore.", stalled=True),
    "DiskFailed": Reason("Pending", "False", "False", "Retry", "A volume could not be made.", "It is tried again, more and more rarely.",
                         "See the message for libvirt's own words."),
    # Starts
    "DefineFailed": Reason("Failed", "False", "False", "Retry", "libvirt refused the domain's definition.", "It is tried again, more and more rarely.",
                           "See the message for libvirt's own words."),
    "StartFailed": Reason("Failed", "False", "False", "Retry", "The last start failed.", "It is tried again, more and more rarely.",
                          "See the message for libvirt's own words."),
    "CrashLoop": Reason("Failed", "False", "False", "Retry", "The VM went off soon after its start, again and again.",
                        "It is started again, more and more rarely.", "Look at its console log on the host."),
    "ManagedSaveFound": Reason("Stopped", "False", "False", "WaitPerson", "A host has a managed-save image of this VM; starting would bring back its old memory.",
                               "Nothing is started.", "Set spec.managedSave {host, action: Restore | Discard}."),
    "PausedOnIOError": Reason("Paused", "False", "False", "WaitPerson", "QEMU paused the guest on a disk error, a full disk for example.",
                              "It stays paused: letting it run before the storage is mended could lose data.",
                              "Mend the storage, then `virsh resume` on the host or restart the VM."),
    "PausedByOthers": Reason("Paused", "False", "False", "WaitPerson", "The guest's CPUs are stopped, and not by us.",
                             "It stays paused: only what we paused is resumed by us.", "Resume it with virsh on the host, or restart the VM."),
    # Identity
    "ForeignDomain": Reason("Conflict", "False", "False", "WaitPerson", "A host has a domain with this VM's UUID that is not this VM's.",
                            "That domain is not touched and nothing is started.", "Remove that domain, or set spec.takeover.", stalled=True),
    "ForeignName": Reason("Conflict", "False", "False", "WaitPerson", "The host has another domain with this VM's domain name.",
                          "That domain is not touched and nothing is started there.", "Rename or remove that domain, or place the VM elsewhere.", stalled=True),
    "RunningTwice": Reason("Conflict", "False", "Unknown", "WaitPerson", "Two hosts run this VM at once.",
                           "Nothing is started, stopped or removed: which one holds the data only a person can say.",
                           "Stop the wrong one with virsh on its host."),
    "DefinedTwice": Reason("Unknown", "Unknown", "Unknown", "Remove", "More than one host has this VM's definition.",
                           "Definitions that are surely off are removed where the VM does not belong."),
    # Hands off
    "ReconcileDisabled": Reason("Unknown", "Unknown", "Unknown", "Annotation", "The annotation homeostat.dev/reconcile is disabled.",
                                "The VM is only watched.", "Remove the annotation."),
    "DeletingDisabled": Reason("Deleting", "Unknown", "Unknown", "Annotation",
                               "The VM is being deleted but its annotation homeostat.dev/reconcile is disabled.",
                               "Nothing is removed.", "Remove the annotation."),
    "Invalid": Reason("Failed", "False", "Unknown", "Edit", "The object cannot be read.", _OWNER, "See the message.", stalled=True),
}

HYPERVISOR: dict[str, Reason] = {
    "Connected": Reason("Ready", "True", "-", "-", "The host answers and takes new VMs.", "Nothing is left to do."),
    "Cordoned": Reason("Cordoned", "True", "-", "-", "The host answers; spec.maintenance is Cordon, so it takes no new VMs.",
                       "Its VMs are kept as they should be.", "Set spec.maintenance to Off to let it take new VMs."),
    "Connecting": Reason("Connecting", "Unknown", "-", "Connect", "The host was not reached yet since the operator started.",
                         "It is being connected to.", passing=True),
    "Unreachable": Reason("Unreachable", "False", "-", "Reconnect", "The host does not answer.",
                          "It is tried again every few seconds; nothing that it holds is started elsewhere.",
                          "Repair the host or its network; or, when it is certainly powered off, declare it with spec.outOfService."),
    "CredentialsMissing": Reason("Refused", "False", "-", "Edit", "The Secret with the credentials is not there or lacks a key.",
                                 "It is looked for again every minute.", "Create the Secret in the operator's namespace with tls.crt, tls.key and ca.crt.", stalled=True),
    "TLSFailed": Reason("Refused", "False", "-", "Reconnect", "The host's or our certificate was not accepted.",
                        "It is tried again every few seconds.", "Renew or correct the certificate that the message names."),
    "AuthFailed": Reason("Refused", "False", "-", "Reconnect", "libvirt refused the login.", "It is tried again every few seconds.",
                         "Check the credentials and libvirtd's auth settings."),
    "LibvirtTooOld": Reason("Refused", "False", "-", "Upgrade", "libvirt on the host is older than 9.0.", "No VM is placed on it.",
                            "Upgrade libvirt on the host."),
    "NoQEMU": Reason("Refused", "False", "-", "Install", "The host has no QEMU that libvirt can use.", "No VM is placed on it.",
                     "Install QEMU 7.2 or newer on the host."),
    "QEMUTooOld": Reason("Refused", "False", "-", "Upgrade", "QEMU on the host is older than 7.2.", "No VM is placed on it.",
                         "Upgrade QEMU on the host."),
    "NoKVM": Reason("Refused", "False", "-", "Edit", "spec.acceleration is KVM and the host offers none.", "No VM is placed on it.",
                    "Enable virtualization in the host's firmware and load the kvm module, or set spec.acceleration to Emulation (slow)."),
    "DuplicateHost": Reason("Duplicate", "False", "-", "WaitPerson", "Another Hypervisor object names the same host.", "Nothing new is started there.",
                            "Delete one of the two Hypervisors.", stalled=True),
    "IdentityMismatch": Reason("Mismatch", "False", "-", "WaitPerson", "Another machine answers at spec.uri than the one that was pinned.",
                               "Nothing it says is believed.", "Correct spec.uri; or, when the host was replaced on purpose, set spec.hostUUID to the new host's UUID.",
                               stalled=True),
    "OutOfService": Reason("OutOfService", "False", "-", "-", "The host was declared out of service and nothing was heard from it since.",
                           "Its VMs may be started on other hosts.", "Remove spec.outOfService when the host is back."),
    "OutOfServiceButAnswering": Reason("Refused", "False", "-", "WaitPerson", "The host was declared out of service but was heard from after that.",
                                       "The declaration is void; nothing is started on its account.",
                                       "Remove spec.outOfService, or power the host off and declare it anew.", stalled=True),
    "Deleting": Reason("Deleting", "False", "-", "WaitVMs", "The Hypervisor is being deleted and still holds VMs.",
                       "They are kept running, no new ones are taken; it goes when they are gone.",
                       "Delete the VMs in status.holds, or move them away."),
    "Released": Reason("Deleting", "False", "-", "Remove", "The Hypervisor is being deleted and holds no VMs.", "It goes now.", passing=True),
}

OTHER = {
    "NotStalled": "Nothing waits for a change of the spec.",
    "AsDeclared": "What was seen is what the spec says.",
    "RestartRequired": "The spec was changed and takes effect at the next start; set spec.power.request to a new value to restart.",
    "SpecChanged": "The running process differs from the spec; the message lists the differences.",
    "NoChange": "The running process has everything that the spec says.",
    "NoConflict": "No other domain has this VM's UUID or name.",
    "AgentDisabled": "spec.guestAgent is Disabled.",
    "NotRunning": "There is no running guest to have an agent.",
    "NotSeen": "The channel was not looked at yet.",
    "Connected": "The guest agent answers on its channel.",
    "NotConnected": "The guest runs no agent, or not yet: install qemu-guest-agent in the guest.",
}
