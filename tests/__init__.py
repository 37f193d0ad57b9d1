# SPDX-License-Identifier: Apache-2.0
"""The project's tests in rings, and the real parts they run on: a control plane and a lab of libvirt hosts."""
