# SPDX-License-Identifier: Apache-2.0
"""The part of libvirt's remote protocol that the fault proxy reads: frames, the calls that change a host, and on what.

A frame is its length, program, version, procedure, type, serial and status, each a big-endian 32-bit number, then XDR.
Procedure numbers never change between versions of libvirt: new ones are added at the end.
"""

from __future__ import annotations

import asyncio
import re
import struct
import uuid
from typing import NamedTuple

REMOTE_PROGRAM = 0x20008086
CALLS, REPLIES = (0, 4), (1, 5)  # the second of each carries file descriptors
HEADER = struct.Struct(">7I")

REFUSED = b"<none/>"
"""The definition in a migration that libvirt has to refuse: it is asked for to see whether a peer is reached."""
MUTATING = {
    8: "attachDevice", 9: "create", 10: "createXML", 11: "defineXML", 12: "destroy", 13: "detachDevice",
    26: "pinVcpu", 27: "reboot", 28: "resume", 29: "setAutostart", 30: "setMaxMemory", 31: "setMemory",
    32: "setVcpus", 33: "shutdown", 34: "suspend", 35: "undefine", 39: "networkCreate", 40: "networkCreateXML",
    41: "networkDefineXML", 42: "networkDestroy", 48: "networkSetAutostart", 49: "networkUndefine", 53: "coreDump",
    54: "restore", 55: "save", 58: "setSchedulerParameters", 61: "migratePrepare", 62: "migratePerform",
    63: "migrateFinish", 76: "poolCreateXML", 77: "poolDefineXML", 78: "poolCreate", 79: "poolBuild",
    80: "poolDestroy", 81: "poolDelete", 82: "poolUndefine", 83: "poolRefresh", 90: "poolSetAutostart",
    93: "volCreateXML", 94: "volDelete", 108: "migratePrepare2", 109: "migrateFinish2", 118: "nodeDeviceDettach",
    119: "nodeDeviceReAttach", 120: "nodeDeviceReset", 123: "nodeDeviceCreateXML", 124: "nodeDeviceDestroy",
    125: "volCreateXMLFrom", 131: "interfaceDefineXML", 132: "interfaceUndefine", 133: "interfaceCreate",
    134: "interfaceDestroy", 142: "secretDefineXML", 144: "secretSetValue", 146: "secretUndefine",
    148: "migratePrepareTunnel", 160: "attachDeviceFlags", 161: "detachDeviceFlags", 164: "abortJob", 165: "volWipe",
    166: "migrateSetMaxDowntime", 174: "updateDeviceFlags", 180: "nwfilterDefineXML", 181: "nwfilterUndefine",
    182: "managedSave", 184: "managedSaveRemove", 185: "snapshotCreateXML", 192: "revertToSnapshot",
    193: "snapshotDelete", 196: "createWithFlags", 197: "setMemoryParameters", 199: "setVcpusFlags",
    204: "setMemoryFlags", 205: "setBlkioParameters", 207: "migrateSetMaxSpeed", 208: "volUpload", 210: "injectNMI",
    214: "migratePrepare3", 215: "migratePrepareTunnel3", 216: "migratePerform3", 217: "migrateFinish3",
    218: "migrateConfirm3", 219: "setSchedulerParametersFlags", 220: "interfaceChangeBegin",
    221: "interfaceChangeCommit", 222: "interfaceChangeRollback", 225: "pinVcpuFlags", 226: "sendKey",
    231: "undefineFlags", 232: "saveFlags", 233: "restoreFlags", 234: "destroyFlags", 236: "saveImageDefineXML",
    237: "blockJobAbort", 239: "blockJobSetSpeed", 240: "blockPull", 245: "reset", 250: "nodeSuspendForDuration",
    251: "blockResize", 252: "setBlockIoTune", 254: "setNumaParameters", 256: "setInterfaceParameters",
    258: "shutdownFlags", 259: "volWipePattern", 260: "volResize", 261: "pmSuspendForDuration", 264: "setMetadata",
    266: "blockRebase", 267: "pmWakeup", 279: "pinEmulator", 288: "nodeSetMemoryParameters", 290: "blockCommit",
    291: "networkUpdate", 294: "fsTrim", 295: "sendProcessSignal", 300: "migrateSetCompressionCache",
    301: "nodeDeviceDetachFlags", 303: "migratePrepare3Params", 304: "migratePrepareTunnel3Params",
    305: "migratePerform3Params", 306: "migrateFinish3Params", 307: "migrateConfirm3Params",
    308: "setMemoryStatsPeriod", 309: "createXMLWithFiles", 310: "createWithFiles", 334: "coreDumpWithFormat",
    335: "fsFreeze", 336: "fsThaw", 338: "setTime", 345: "blockCopy", 347: "nodeAllocPages", 350: "defineXMLFlags",
    352: "pinIOThread", 355: "addIOThread", 356: "delIOThread", 357: "setUserPassword", 358: "rename",
    364: "migrateStartPostCopy", 366: "setPerfEvents", 372: "setGuestVcpus", 384: "setVcpu", 386: "setBlockThreshold",
    389: "managedSaveDefineXML", 390: "setLifecycleAction", 392: "detachDeviceAlias", 399: "nwfilterBindingCreateXML",
    400: "nwfilterBindingDelete", 402: "setIOThreadParams", 406: "networkPortCreateXML",
    408: "networkPortSetParameters", 410: "networkPortDelete", 411: "checkpointCreateXML", 417: "checkpointDelete",
    421: "backupBegin", 425: "authorizedSSHKeysSet", 427: "startDirtyRateCalc", 428: "nodeDeviceDefineXML",
    429: "nodeDeviceUndefine", 430: "nodeDeviceCreate", 431: "nwfilterDefineXMLFlags", 432: "networkDefineXMLFlags",
    434: "nodeDeviceSetAutostart", 437: "networkCreateXMLFlags", 439: "setLaunchSecurityState", 440: "saveParams",
    441: "restoreParams", 442: "abortJobFlags", 443: "fdAssociate",
}  # fmt: skip
NEWEST = 443  # of libvirt 9.0; what came later is counted as mutating, so that nothing passes uncounted
NOT_DOMAIN = ("network", "node", "interface", "secret", "nwfilter", "restore", "saveImage", "migratePrepare")


class Call(NamedTuple):
    """What a frame from a client asks for; `name` is None when it changes nothing."""

    serial: int
    name: str | None
    target: str


async def read_frame(reader: asyncio.StreamReader) -> bytes:
    """The next frame, its length included. asyncio.IncompleteReadError at the end of the stream."""
    length = await reader.readexactly(4)
    return length + await reader.readexactly(struct.unpack(">I", length)[0] - 4)


def call(frame: bytes) -> Call:
    """Read a frame that a client sent."""
    _, program, _, procedure, kind, serial, _ = HEADER.unpack_from(frame)
    if program != REMOTE_PROGRAM or kind not in CALLS:
        return Call(serial, None, "")
    name = MUTATING.get(procedure) or (f"procedure{procedure}" if procedure > NEWEST else None)
    if name == "migratePerform3Params" and REFUSED in frame:
        name = None
    return Call(serial, name, target(name, frame[HEADER.size :]) if name else "")


def reply_serial(frame: bytes) -> int | None:
    """The serial of the call that a frame from a server answers; None when it answers none."""
    _, program, _, _, kind, serial, _ = HEADER.unpack_from(frame)
    return serial if program == REMOTE_PROGRAM and kind in REPLIES else None


def target(name: str, payload: bytes) -> str:
    """What a call is for: a domain's UUID, POOL/VOLUME, or a name; empty when the payload does not tell simply."""
    try:
        return _target(name, Payload(payload))
    except (struct.error, UnicodeDecodeError, ValueError):
        return ""


def _target(name: str, payload: Payload) -> str:
    if name.startswith("volCreateXML"):
        pool = payload.pool()
        return f"{pool}/{_element(payload.string(), 'name')}"
    if name.startswith("vol"):
        return f"{payload.string()}/{payload.string()}"
    if name in ("poolDefineXML", "poolCreateXML") or name.startswith("nwfilterDefine"):
        return _element(payload.string(), "name")
    if name.startswith("pool"):
        return payload.pool()
    if name.startswith(("defineXML", "createXML")):
        xml = payload.string()
        return _element(xml, "uuid") or _element(xml, "name")
    if name in ("snapshotDelete", "checkpointDelete", "revertToSnapshot"):
        payload.string()
    return "" if name.startswith((*NOT_DOMAIN, "procedure")) else payload.domain()


def _element(xml: str, tag: str) -> str:
    found = re.search(rf"<{tag}>\s*([^<]*?)\s*</{tag}>", xml)
    return found[1] if found else ""


class Payload:
    """The arguments of a call, read in order."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def string(self) -> str:
        """The next argument, a string."""
        (length,) = struct.unpack_from(">I", self.data, self.at)
        start = self.at + 4
        if start + length > len(self.data):
            raise ValueError("string ends after the payload")
        self.at = start + length + -length % 4
        return self.data[start : start + length].decode()

    def _uuid(self) -> str:
        self.at += 16
        return str(uuid.UUID(bytes=self.data[self.at - 16 : self.at]))

    def domain(self) -> str:
        """UUID of the next argument, a domain."""
        self.string()
        found = self._uuid()
        self.at += 4
        return found

    def pool(self) -> str:
        """Name of the next argument, a storage pool."""
        name = self.string()
        self._uuid()
        return name
