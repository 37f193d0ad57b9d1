# SPDX-License-Identifier: Apache-2.0
"""Everything about libvirt hosts: connections, what was seen on them, domain XML, and performing one action."""
