# SPDX-License-Identifier: Apache-2.0
"""Everything about libvirt hosts: connections, what was seen on them, domain XML, and performing one action."""

import os

# libvirt prints warnings to stderr by itself, from the moment it is imported. What matters reaches us as exceptions.
os.environ.setdefault("LIBVIRT_DEBUG", "4")
