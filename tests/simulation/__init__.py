# SPDX-License-Identifier: Apache-2.0
"""The simulation: an API server, hosts and operators in one process, on a virtual clock."""
