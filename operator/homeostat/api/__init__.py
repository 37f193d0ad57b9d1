# SPDX-License-Identifier: Apache-2.0
"""The resource types: the single source of the CRDs."""
