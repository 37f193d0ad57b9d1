# SPDX-License-Identifier: Apache-2.0
"""What a domain's XML says that a live migration minds."""

import xml.etree.ElementTree as ET

from homeostat.api.observed import Traits
from homeostat.hosts.traits import traits

DOMAIN = """
<domain type='kvm'>
  <os><nvram>/var/lib/libvirt/qemu/nvram/web.fd</nvram></os>
  <devices>
    <disk type='file' device='disk'><driver name='qemu' cache='writeback'/><source file='/a'/><target dev='vda'/>
      <alias name='ua-disk-root'/><mirror type='file' job='copy'/></disk>
    <disk type='file' device='disk'><driver name='qemu' cache='default'/><source file='/b'/><target dev='vdb'/></disk>
    <disk type='file' device='cdrom'><source file='/seed.iso'/><target dev='sda'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sdb'/><readonly/></disk>
    <interface type='hostdev'><alias name='hostdev1'/></interface>
    <interface type='bridge'/>
    <hostdev mode='subsystem' type='pci'><alias name='hostdev0'/></hostdev>
    <tpm model='tpm-crb'/>
  </devices>
</domain>
"""


def test_what_is_in_the_way_is_read() -> None:
    assert traits(ET.fromstring(DOMAIN)) == Traits(
        caches=(("ua-disk-root", "writeback"),),
        host_devices=("hostdev0", "hostdev1"),
        tpm=True,
        nvram="/var/lib/libvirt/qemu/nvram/web.fd",
        cdroms=("/seed.iso",),
        block_jobs=("ua-disk-root",),
    )


def test_a_plain_domain_has_nothing_in_the_way() -> None:
    assert traits(ET.fromstring("<domain><devices><disk type='file'/></devices></domain>")) == Traits()
