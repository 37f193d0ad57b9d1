# SPDX-License-Identifier: Apache-2.0
"""Every reason a person can meet in a status: what it means, what happens next, what to do.

One row gives the printable state, the conditions' values and the words; decisions name a reason and add the details.
The page docs/conditions.md is made from these tables.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """One row. `ready` and `running` are True, False or Unknown; `next` is the word printed by kubectl get.

    `stalled`: only the owner can mend it. `passing`: a step that is normally over in seconds, reported only when it is
    not.
    """

    state: str
    ready: str
    running: str
    next: str
    meaning: str
    then: str
    todo: str = ""
    stalled: bool = False
    passing: bool = False

    def sentence(self, detail: str = "", since: str = "") -> str:
        """The message of this case: what is, `detail` as a sentence, since when, what happens next, what to do."""
        said = " ".join(detail.split()).rstrip(".")
        if not said.startswith("spec."):  # the path of a field is spelled as it is
            said = said[:1].upper() + said[1:]
        when = f"It has been so since {since}." if since else ""
        return " ".join(part for part in (self.meaning, f"{said}." if said else "", when, self.then, self.todo) if part)
