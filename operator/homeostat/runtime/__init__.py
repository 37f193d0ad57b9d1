# SPDX-License-Identifier: Apache-2.0
"""The level-triggered core: a keyed work queue and the workers that drain it."""
