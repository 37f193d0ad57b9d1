# SPDX-License-Identifier: Apache-2.0
"""Pure decisions: what to do next and what to say, from what is wanted, what was seen and what time it is."""
