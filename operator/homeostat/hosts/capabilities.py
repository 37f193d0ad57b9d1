# SPDX-License-Identifier: Apache-2.0
"""What libvirt's capabilities documents say of a host."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

from homeostat.api.observed import HostFacts

# Newest first. None is older than x86-64-v2: below it today's distributions do not start.
_SOUND = (
    "EPYC-Genoa", "EPYC-Milan", "EPYC-Rome", "EPYC", "SapphireRapids", "Icelake-Server", "Cascadelake-Server",
    "Skylake-Server", "Broadwell", "Haswell", "IvyBridge", "SandyBridge", "Opteron_G5", "Westmere", "Nehalem",
)  # fmt: skip
_SOUND_EMULATED = ("Westmere", "Nehalem", "qemu64")
"""QEMU's own emulation has no AVX-512 and little else that is new: these are complete in it."""


def host_facts(capabilities: str, domain: Mapping[str, str | None]) -> HostFacts:
    """Identity, acceleration, CPU models and the owner of disks; the rest is left at nothing.

    `domain` holds the domain capabilities for "kvm" and "qemu", None where the host has none.
    """
    root = ET.fromstring(capabilities)
    kvm, emulated = (ET.fromstring(text) if text else None for text in (domain.get("kvm"), domain.get("qemu")))
    emulated_models = usable_models(emulated)
    emulated_model = _first(_SOUND_EMULATED, emulated_models)
    return HostFacts(
        host_uuid=root.findtext("host/uuid") or "",
        hostname="",
        libvirt_version="",
        qemu_version="",
        cpus=0,
        memory_mib=0,
        kvm=kvm is not None,
        cpu_models=usable_models(kvm) if kvm is not None else emulated_models,
        default_cpu_model=_accelerated_model(kvm) or emulated_model,
        emulated_cpu_models=emulated_models,
        emulated_cpu_model=emulated_model,
        disk_owner=_disk_owner(root),
    )


def usable_models(domain: ET.Element | None) -> tuple[str, ...]:
    """Names of CPU models that guests can be started with, host-passthrough and host-model among them."""
    if domain is None:
        return ()
    named = domain.findall("cpu/mode[@name='custom']/model[@usable='yes']")
    whole = [m.get("name", "") for m in domain.findall("cpu/mode[@supported='yes']")]
    modes = [name for name in whole if name in ("host-passthrough", "host-model")]
    return tuple(sorted({model.text or "" for model in named} | set(modes)))


def _accelerated_model(domain: ET.Element | None) -> str:
    if domain is None:
        return ""
    usable = usable_models(domain)
    own = domain.findtext("cpu/mode[@name='host-model']/model") or ""
    return own if own in usable and own.startswith(_SOUND) else _first(_SOUND, usable)


def _first(wanted: tuple[str, ...], offered: tuple[str, ...]) -> str:
    return next((name for name in wanted if name in offered), "")


def _disk_owner(root: ET.Element) -> tuple[int, int]:
    for model in root.findall("host/secmodel"):
        label = re.match(r"\+(\d+):\+(\d+)$", model.findtext("baselabel") or "")
        if label and model.findtext("model") == "dac":
            return int(label[1]), int(label[2])
    return 0, 0
