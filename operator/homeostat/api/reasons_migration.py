# SPDX-License-Identifier: Apache-2.0
"""The reasons of VirtualMachineMigrations: `state` is status.phase, `ready` the value of Succeeded."""

from __future__ import annotations

from homeostat.api.reason import Reason

_LOOK = "Both hosts are looked at every few seconds."
_ANOTHER = "Make another VirtualMachineMigration when that is mended."
_ANSWER = (
    "Set spec.resolve with the evidence in status.decision.evidence: keep KeepSource or KeepTarget; the other copy's"
    " process is then ended and its definition removed."
)


def _going(phase: str, next_: str, meaning: str, then: str, todo: str = "", *, passing: bool = False) -> Reason:
    return Reason(phase, "Unknown", "-", next_, meaning, then, todo, passing=passing)


def _ambiguous(meaning: str, todo: str = _ANSWER) -> Reason:
    return Reason("Ambiguous", "Unknown", "-", "Person", meaning, "Nothing is ended or started meanwhile.", todo)


def _failed(meaning: str, todo: str = _ANOTHER, then: str = "The VM stays where it was.") -> Reason:
    return Reason("Failed", "False", "-", "-", meaning, then, todo)


MIGRATION: dict[str, Reason] = {
    # Before libvirt is asked
    "Accepted": _going(
        "Pending", "Plan", "The migration was read and is being planned.", "A target is chosen.", passing=True
    ),
    "Queued": _going(
        "Queued",
        "Turn",
        "Another migration has to end first.",
        "It goes on by itself when the limit allows it; the oldest goes first.",
        "Raise spec.migration.maxInbound or maxOutbound of the Hypervisors if they can do more.",
    ),
    "HostsConnecting": _going(
        "Pending",
        "Connect",
        "A host that this needs was not asked yet since the operator started.",
        "It is being connected to.",
    ),
    "VMStarting": _going(
        "Pending",
        "Start",
        "The VM is being started.",
        "It is planned when the VM runs.",
    ),
    "Preparing": _going(
        "Preparing",
        "Copy",
        "Source and target are on record, and libvirt is being asked to migrate.",
        "The copy is reported when libvirt shows a job.",
        passing=True,
    ),
    # Under way
    "Copying": _going(
        "Copying",
        "Switch",
        "The guest runs on the source while its memory is copied.",
        _LOOK,
        "Set spec.abort to Requested to stop it.",
    ),
    "Aborting": _going(
        "Aborting", "Stop", "libvirt was asked to stop the copy.", "It is asked again every 10 s; " + _LOOK.lower()
    ),
    "SwitchingOver": _going(
        "Switching",
        "Target",
        "The guest stands still while libvirt hands it over; nothing can be stopped now.",
        "libvirt decides by itself which host goes on.",
    ),
    "Confirming": _going(
        "Switching",
        "Confirm",
        "The target has the VM, and libvirt is ending the source's copy.",
        "If the reply was lost, the source's copy is ended when libvirt has given up.",
    ),
    "PostCopying": _going(
        "PostCopy",
        "Rest",
        "The guest runs on the target and fetches the rest of its memory from the source; neither can do without the"
        " other, and nothing can be stopped now.",
        _LOOK,
    ),
    "PostCopyInterrupted": _going(
        "PostCopy",
        "Network",
        "The connection between the hosts broke in post-copy: each has a part of the VM's memory. Both are kept.",
        "libvirt is asked every 30 s to go on, which takes it up to two minutes where the network swallows packets;"
        " QEMU may go on although libvirt says that this failed.",
        "Repair the network between the hosts, for the ports of migrations too.",
    ),
    "RollingBack": _going(
        "Stopping",
        "Target",
        "The source has no job any more, and the target still waits for memory.",
        "The target ends by itself when its connection does, after about 30 s.",
    ),
    "NotMoved": _going(
        "Stopping",
        "Clean",
        "The source has the VM and nothing is under way.",
        "What the attempt left on the target is removed; it ends when it is known that nothing begins it any more.",
    ),
    "CleaningUp": _going(
        "Stopping",
        "Clean",
        "The attempt has ended, and the volumes that were made for its storage copy are being removed.",
        "It is tried until they are seen to be gone.",
        "Make the pools that hold them available; or declare a host that is certainly off with spec.outOfService.",
    ),
    "Resuming": _going(
        "Switching",
        "Run",
        "The guest stands still on the one host that has it.",
        "Its CPUs are let run once the same was seen twice.",
    ),
    "Arrived": _going(
        "Switching",
        "Clean",
        "The VM is on the target.",
        "It is made persistent there, and its definition on the source is removed after the grace period.",
    ),
    "ArrivedThenOff": _going(
        "Switching",
        "Clean",
        "The VM was moved to the target and went off there.",
        "Its definition on the source is removed after the grace period.",
    ),
    "EndingSource": _going(
        "Switching",
        "Clean",
        "The copy on the source does not count any more: the VM went on on the target, or can go on nowhere.",
        "The source's process is ended when the same has been seen for the grace period, then its definition is"
        " removed.",
    ),
    "EndingTarget": _going(
        "Stopping",
        "Clean",
        "The VM runs on the source; the target's copy never ran.",
        "The target's process is ended when the same has been seen for the grace period, then its definition is"
        " removed.",
    ),
    "SourceUnknown": _going(
        "Unknown",
        "Host",
        "The source cannot be asked.",
        "It is decided when it answers.",
        "Repair the host; or, when it is certainly off, declare it with spec.outOfService.",
    ),
    "TargetUnknown": _going(
        "Unknown",
        "Host",
        "The target cannot be asked; the VM is not running there as far as can be known.",
        "It is decided when it answers.",
        "Repair the host; or, when it is certainly off, declare it with spec.outOfService.",
    ),
    "BothUnknown": _going(
        "Unknown", "Host", "Neither host can be asked.", "It is decided when one answers.", "Repair the hosts."
    ),
    "OtherJob": _going(
        "Unknown",
        "Job",
        "libvirt has another job with the domain, or did not say which one.",
        "It is decided when that is over.",
        "virsh domjobinfo on the host shows the job, virsh domjobabort ends it. A libvirt that does not tell waits for"
        " the VM's QEMU, or for another host; one that has lost the end of a job keeps it until its libvirtd is"
        " restarted, which ends no VM.",
    ),
    "Undecided": _going(
        "Unknown",
        "Look",
        "What is seen names no owner.",
        "It is looked at again; if it lasts for the grace period, it is Ambiguous.",
    ),
    # For a person
    "SplitBrain": _ambiguous(
        "Both hosts have run the VM since the switchover. The source's CPUs are stopped; no process was ended.",
        "Look at the guest on both hosts. " + _ANSWER,
    ),
    "NoOwner": _ambiguous("Both copies stand still, and nothing tells which of them counts."),
    "LeftoverProcess": _ambiguous("The VM runs on the source, and the target keeps a process that stands still."),
    "TargetMayRun": _ambiguous(
        "The target cannot be asked, and the VM may run there.",
        "Repair the host; or power it off and declare that with its spec.outOfService. " + _ANSWER,
    ),
    "MemoryLost": _ambiguous(
        "One of the two hosts that each had a part of the VM's memory has lost it: the VM can only be started anew."
    ),
    "ProcessMayBeLeft": _ambiguous(
        "libvirt calls the VM off on one host without saying how it went off: a process may be left there.",
        "Look for a QEMU process of the VM on that host, and end it if it is not the one to keep: libvirt has lost it,"
        " so the operator cannot. Then set spec.resolve with the evidence in status.decision.evidence: keep"
        " KeepSource or KeepTarget; the other copy's definition is then removed.",
    ),
    "MovedElsewhere": _ambiguous(
        "The VM has left the source, and the target never had it: it may run on another host, when the target's"
        " spec.migration.peerURI leads there, or somebody has removed it.",
        "Look for the VM on the host that the target's peer URI leads to. Once nothing of it runs where this cluster"
        " has no Hypervisor, set spec.resolve, with the evidence in status.decision.evidence and either of its two"
        " answers, to end the migration.",
    ),
    "NoRow": _ambiguous("What is seen on the two hosts is in no row of the decision table."),
    "Resolving": Reason(
        "Ambiguous",
        "Unknown",
        "-",
        "Clean",
        "spec.resolve is being carried out.",
        "The copy that is not kept is ended when the same has been seen for the grace period.",
    ),
    # Ended
    "Migrated": Reason("Succeeded", "True", "-", "-", "The VM is on the target.", "Nothing is left to do."),
    "MigratedThenOff": Reason(
        "Succeeded",
        "True",
        "-",
        "-",
        "The VM was moved to the target and went off there.",
        "Whether it is started again is its run strategy's matter.",
    ),
    "Aborted": _failed("The migration was stopped before the VM was moved.", ""),
    "TimedOut": _failed("The copy did not converge in time and was stopped.", "Give another one more time or means."),
    "Refused": _failed("libvirt did not begin the migration."),
    "NoPostCopy": _failed(
        "The target's QEMU cannot do post-copy: its kernel does not let it have a userfaultfd.",
        "Set vm.unprivileged_userfaultfd to 1 on the target with sysctl, or make another VirtualMachineMigration with"
        " mode PreCopy or Auto: Auto does without post-copy to this target for as long as this object is there.",
    ),
    "RolledBack": _failed("The migration broke off and the source has kept the VM."),
    "VMDown": _failed(
        "The VM went off on the source before it was moved.",
        "",
        "Whether it is started again is its run strategy's matter.",
    ),
    # Bad input
    "UnknownVM": _failed("There is no VirtualMachine of that name in this namespace."),
    "VMNotRunning": _failed("The VM does not run: only a running VM can be moved live."),
    "UnknownTarget": _failed("There is no Hypervisor of that name."),
    "TargetIsSource": _failed("The VM is on that host already."),
    "TargetUnreachable": _failed("The target cannot be asked."),
    "TargetClosed": _failed("The target takes no VMs now."),
    "NoHostMatches": _failed("No Hypervisor has the labels in spec.target.hostSelector."),
    "NoTarget": _failed("No other host can take the VM."),
    "NotMigratable": _failed("The VM cannot be moved live."),
    "PolicyConflict": _failed("The policy cannot be carried out."),
    "SharedDiskCopy": _failed("A disk that both hosts share would be copied onto itself."),
    "UnknownDisk": _failed("spec.storageCopy names a disk that the VM does not have."),
    "VolumeInTheWay": _failed(
        "The target has a volume of the name that a disk's copy is to have; it may be somebody's data.",
        "Rename or remove it on the target if nobody needs it. " + _ANOTHER,
    ),
    "StorageNotReady": _failed("The target's volumes could not be made ready for the storage copy."),
    "PeerUnreachable": _failed(
        "The source's libvirt daemon cannot connect to the target's, and nothing was begun.",
        "Mend spec.migration.peerURI of the target's Hypervisor, the network, or the certificates of the two daemons. "
        + _ANOTHER,
    ),
    "NoPeerURI": _failed("The source has no address of the target's libvirt."),
}

MIGRATABLE: dict[str, str] = {
    "Migratable": "The VM can be moved live to at least one other host.",
    "NotRunning": "Only a running VM can be moved live.",
    "HostsUnknown": "A host was not asked yet, or does not answer: whether it can be moved cannot be said.",
    "ReconcileDisabled": "The annotation homeostat.dev/reconcile is disabled: the operator keeps its hands off the VM.",
    "NoOtherHost": "There is no other Hypervisor.",
    "PlacementForbids": "spec.placement admits no other host.",
    "LocalDisk": "A disk is on storage that the other host does not share: a migration has to copy it.",
    "StorageNotProved": "Both hosts declare the same storage, and the other one does not see the source's mark on it.",
    "ImageNotShared": "The image under a disk is on storage that the other host does not share.",
    "KernelNotShared": "Kernel or initrd are on storage that the other host does not share: another one there would not"
    " be noticed.",
    "DiskCache": "A disk's cache mode keeps data in the source's memory; libvirt moves only none and directsync.",
    "HostDevice": "A device of the host is passed to the guest.",
    "TPM": "The guest has a TPM, whose state stays on the source.",
    "NVRAM": "The guest's firmware variables stay on the source, and a start elsewhere would make blank ones.",
    "SeedISO": "A CD-ROM is on storage that the other host does not share.",
    "Acceleration": "The other host runs guests in another way: KVM, or Emulation.",
    "CPUModel": "The other host cannot run the guest's CPU model.",
    "MachineType": "The other host's QEMU does not have the guest's machine type.",
    "DiskOwner": "The other host's QEMU runs as another user than this one's, and may not open the VM's disks.",
    "OlderQEMU": "The other host's QEMU is older than the one the guest runs in.",
    "NoPool": "The other host does not offer a pool of the VM, or not to this namespace.",
    "NoNetwork": "The other host does not offer a network of the VM, or not to this namespace.",
    "DifferentMTU": "A network's MTU is another one on the other host: large packets of the guest would vanish.",
    "Transient": "The domain has no persistent definition yet.",
    "PendingDetach": "A device was asked to be removed and the guest has not let go of it.",
    "ManagedSave": "A memory image that somebody saved is in the way.",
    "Snapshots": "libvirt has metadata of snapshots, and moves no domain that has any.",
    "Checkpoints": "libvirt forgets checkpoints when a domain moves, and these are more than can be carried over.",
    "BlockJob": "A disk is being copied or merged.",
}
"""Reasons of a VM's condition Migratable."""
