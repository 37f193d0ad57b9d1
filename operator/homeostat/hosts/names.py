# SPDX-License-Identifier: Apache-2.0
"""Names that appear in domain XML."""

METADATA_NAMESPACE = "https://homeostat.dev/domain/1"
METADATA_KEY = "homeostat"
AGENT_CHANNEL = "org.qemu.guest_agent.0"
