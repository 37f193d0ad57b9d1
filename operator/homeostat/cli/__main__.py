# SPDX-License-Identifier: Apache-2.0
"""`python -m homeostat.cli`."""

from homeostat.cli import main

main()
