# SPDX-License-Identifier: Apache-2.0
"""What libvirt's documents say of a host's bridges and networks."""

import xml.etree.ElementTree as ET
from types import SimpleNamespace
from unittest.mock import Mock

import libvirt
import pytest

from homeostat.hosts import networks, reads

INTERFACES = [
    "<interface type='bridge' name='br0'><mtu size='9000'/><bridge><interface name='eth0'/></bridge></interface>",
    "<interface type='bridge' name='virbr0'><mtu size='1500'/><bridge/></interface>",
    "<interface type='bridge' name='silent'><bridge/></interface>",
    "<interface type='ethernet' name='eth0'><mtu size='9000'/></interface>",
]
NETWORKS = [
    "<network><name>default</name><bridge name='virbr0'/></network>",
    "<network><name>jumbo</name><mtu size='8000'/><bridge name='virbr0'/></network>",
    "<network><name>br0</name><forward mode='bridge'/><bridge name='silent'/></network>",
    "<network><name>direct</name><forward mode='private'/></network>",
]


def test_bridges_have_their_mtu_and_networks_their_own_or_that_of_their_bridge() -> None:
    found = networks.bridges(map(ET.fromstring, INTERFACES))
    assert found == {"br0": 9000, "virbr0": 1500, "silent": None}
    assert networks.mtus(found, map(ET.fromstring, NETWORKS)) == (
        ("Bridge", "br0", 9000),
        ("Bridge", "virbr0", 1500),
        ("Network", "default", 1500),
        ("Network", "jumbo", 8000),
    )


@pytest.mark.parametrize(("failures", "known"), [(0, True), (1, True), (2, False)])
def test_a_port_that_goes_while_its_bridge_is_described_does_not_make_the_bridges_unknown(
    failures: int, known: bool
) -> None:
    """Libvirt then says of the whole bridge that it cannot find an interface, the port."""
    gone = libvirt.libvirtError("interface could not be found: couldn't find interface named 'vnet0'")
    bridge = SimpleNamespace(XMLDesc=Mock(side_effect=[gone] * failures + ["<interface type='bridge' name='br0'/>"]))
    virt = SimpleNamespace(listAllInterfaces=lambda flags: [bridge], isAlive=lambda: True)
    found = reads.interfaces(virt)
    assert (found is not None) == known
    assert not found or found[0].get("name") == "br0"
