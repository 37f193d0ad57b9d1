# SPDX-License-Identifier: Apache-2.0
"""The parts of docs/ that the code already says: `python -m tests.generate_docs` writes them into their pages.

A page marks where a part goes by `<!-- generated: NAME -->` and `<!-- end -->`; what stands between is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from homeostat.api import reasons
from homeostat.api.reason import Reason
from homeostat.decide import migration_table, runstrategy
from homeostat.hosts.reasons import SENTENCES
from homeostat.reconcile.settings import Settings, numbers

DOCS = Path(__file__).parent.parent / "docs"
_BLOCK = re.compile(r"<!-- generated: (?P<name>[a-z-]+) -->\n.*?<!-- end -->", re.DOTALL)

# Condition type -> what it means when it is True, False and Unknown.
VM_CONDITIONS = {
    "Ready": (
        "The VM is as its spec says: also when it is off, finished or paused because the spec says so, and when a "
        "changed spec waits for the next start.",
        "It is not, yet or any more; the reason says why.",
        "Whether it is cannot be seen.",
    ),
    "Running": (
        "The guest's CPUs run.",
        "They do not: the VM is off or paused.",
        "Whether they do cannot be seen; they may.",
    ),
    "Synchronized": (
        "What was seen is what the spec says, to the last field.",
        "Something differs: it is being brought about, or it waits for the next start.",
        "What there is cannot be seen.",
    ),
    "Stalled": (
        "Only a change of the spec, or of what it names, helps; waiting does not.",
        "Nothing waits for a change of the spec.",
        "Never.",
    ),
    "RestartRequired": (
        "The running process differs from the spec; the message lists every difference, status.pendingChanges too.",
        "It does not differ, or there is no process.",
        "Never.",
    ),
    "AgentConnected": (
        "The guest agent answers on its channel.",
        "It does not, or there is no running guest, or spec.guestAgent is Disabled.",
        "The channel was not looked at yet.",
    ),
    "Conflict": (
        "A domain that is not this VM's has its UUID or name, or two hosts run the VM at once.",
        "No such domain was seen.",
        "Never.",
    ),
    "Migratable": (
        "The VM could be moved live now, without copying disks, to a host that answers.",
        "It could not; the reason says why.",
        "No other host was asked yet.",
    ),
}
HYPERVISOR_CONDITIONS = {
    "Ready": (
        "The host answers, is the expected one and can be used.",
        "It cannot be used; the reason says why.",
        "It was not asked yet.",
    ),
    "Reachable": (
        "libvirt on the host answers.",
        "It does not; the reason and libvirt's own words say how that shows.",
        "It was not asked yet.",
    ),
    "Schedulable": ("New VMs may be placed on it.", "None are; the reason says why.", "Never."),
    "Stalled": (
        "Only a person's change of the Hypervisor, or of what it names, helps.",
        "Nothing waits for one.",
        "Never.",
    ),
}

MIGRATION_CONDITIONS = {
    "Finished": ("The attempt has ended; this object goes when its ttl has passed.", "It has not.", "Never."),
    "Succeeded": ("The VM was moved.", "It was not; the reason says why.", "The attempt has not ended."),
    "Ambiguous": (
        "Only a person can tell which copy of the VM counts; the message has both observations.",
        "What was seen names an owner, or may still do so by itself.",
        "Never.",
    ),
    "Queued": (
        "Other migrations have to end first; the message says which limit it waits for, and behind what.",
        "It waits for no other migration.",
        "Never.",
    ),
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def conditions(types: dict[str, tuple[str, str, str]]) -> str:
    """Return the table of condition types."""
    return table(("Type", "True", "False", "Unknown"), ((f"`{name}`", *texts) for name, texts in types.items()))


def overview(rows: dict[str, Reason], *, running: bool) -> str:
    """Return the table of all reasons with what `kubectl get` and the conditions show for them."""
    head = ["Reason", "State", "Next", "Ready", *["Running"] * running, "Stalled"]
    return table(
        head,
        (
            [f"[{name}](#{_anchor(name, running=running)})", row.state, row.next, row.ready]
            + [row.running] * running
            + ["True" if row.stalled else "False"]
            for name, row in rows.items()
        ),
    )


def sections(rows: dict[str, Reason], *, running: bool) -> str:
    """Return a section for each reason: what it means, what happens next, what to do."""
    return "\n\n".join(_section(name, row, running=running) for name, row in rows.items())


def _heading(name: str, *, running: bool) -> str:
    return name if running else f"Hypervisor {name}"


def _anchor(name: str, *, running: bool) -> str:
    return _heading(name, running=running).lower().replace(" ", "-")


def _section(name: str, row: Reason, *, running: bool) -> str:
    values = f"State `{row.state}`, Ready {row.ready}" + (f", Running {row.running}" if running else "")
    values += ", Stalled True" * row.stalled + f", next `{row.next}`."
    if row.passing and running:
        values += f" A step: written only when it lasts longer than {Settings().settle_seconds:g} s."
    lines = [
        f"### {_heading(name, running=running)}",
        f"{row.meaning}\n\n{values}",
        f"- **What happens next:** {row.then}",
    ]
    return "\n\n".join(lines) + (f"\n- **What to do:** {row.todo}" if row.todo else "\n- **What to do:** Nothing.")


def migration_overview() -> str:
    """Return the table of a migration's reasons with what `kubectl get` and Succeeded show for them."""
    return table(
        ("Reason", "Phase", "Next", "Succeeded"),
        (
            (f"[{name}](#migration-{name.lower()})", row.state, row.next, row.ready)
            for name, row in reasons.MIGRATION.items()
        ),
    )


def migration_sections() -> str:
    """Return a section for each reason of a migration."""
    return "\n\n".join(
        f"### Migration {name}\n\n{row.meaning}\n\nPhase `{row.state}`, Succeeded {row.ready}, next `{row.next}`.\n\n"
        f"- **What happens next:** {row.then}\n- **What to do:** {row.todo or 'Nothing.'}"
        for name, row in reasons.MIGRATION.items()
    )


def migration_rows() -> str:
    """Return the decision table of live migration."""
    return table(
        ("Row", "Source", "Target", "Only", "Owner", "What is done", "Basis"),
        (
            (
                row.number,
                row.source.text(),
                row.target.text(),
                row.restriction(),
                row.owner,
                migration_table.EFFECTS[row.effect],
                row.basis,
            )
            for row in migration_table.ROWS
        ),
    )


def other_reasons() -> str:
    """Return the table of the reasons of a VM's secondary conditions."""
    return table(("Reason", "Meaning"), ((f"`{name}`", text) for name, text in reasons.OTHER.items()))


def reachable_reasons() -> str:
    """Return the table of the reasons of a Hypervisor's condition Reachable."""
    rows = {"Answers": "the host answers", "NotAsked": "the host was not asked yet", **SENTENCES}
    return table(
        ("Reason", "Meaning"), ((f"`{name}`", f"{text[:1].upper()}{text[1:]}.") for name, text in rows.items())
    )


def run_strategies(*, served: bool, power_state: str = "Running") -> str:
    """Return the decision table: strategy x how the domain went off -> start or not."""

    def cell(strategy: str, way: str) -> str:
        return "start" if runstrategy.starts(strategy, way, served=served, power_state=power_state) else "stay off"

    return table(
        ("runStrategy", *runstrategy.WAYS_OFF),
        (
            [f"`{strategy}`", *(cell(strategy, way) for way in runstrategy.WAYS_OFF)]
            for strategy in runstrategy.RESTARTS
        ),
    )


def settings() -> str:
    """Return the table of settings with their shipped defaults."""
    return table(("Setting", "Default"), ((f"`{name}`", f"{value:g}") for name, value in numbers().items()))


def coverage_count() -> str:
    """Return how many sentences of docs/design/coverage.md are shown, in part or in whole, and how many are not."""
    text = (DOCS / "design" / "coverage.md").read_text()
    cells = [
        row for row in re.findall(r"^\| .+(?<!\\) \| (.+) \|$", text, re.MULTILINE) if row not in ("Shown by", "---")
    ]
    unshown = [cell for cell in cells if cell.startswith("open")]
    partly = [cell for cell in cells if re.search(r"\bopen\b", cell) and not cell.startswith("open")]
    whole = len(cells) - len(unshown) - len(partly)
    return f"Of {len(cells)} sentences, {whole} are shown, {len(partly)} in part, and {len(unshown)} are open."


BLOCKS: dict[str, Callable[[], str]] = {
    "vm-conditions": lambda: conditions(VM_CONDITIONS),
    "hypervisor-conditions": lambda: conditions(HYPERVISOR_CONDITIONS),
    "vm-overview": lambda: overview(reasons.VM, running=True),
    "hypervisor-overview": lambda: overview(reasons.HYPERVISOR, running=False),
    "vm-reasons": lambda: sections(reasons.VM, running=True),
    "hypervisor-reasons": lambda: sections(reasons.HYPERVISOR, running=False),
    "migration-conditions": lambda: conditions(MIGRATION_CONDITIONS),
    "migration-overview": migration_overview,
    "migration-reasons": migration_sections,
    "migration-rows": migration_rows,
    "migratable-reasons": lambda: table(
        ("Reason", "Meaning"), ((f"`{name}`", text) for name, text in reasons.MIGRATABLE.items())
    ),
    "other-reasons": other_reasons,
    "reachable-reasons": reachable_reasons,
    "run-strategy-served": lambda: run_strategies(served=True),
    "run-strategy-new": lambda: run_strategies(served=False),
    "run-strategy-stopped": lambda: run_strategies(served=False, power_state="Stopped"),
    "settings": settings,
    "coverage-count": coverage_count,
}


def rendered(page: str) -> str:
    """Return the text of a page with every generated part as the code says it now; KeyError for an unknown part."""
    return _BLOCK.sub(
        lambda match: f"<!-- generated: {match['name']} -->\n{BLOCKS[match['name']]()}\n<!-- end -->", page
    )


def pages() -> list[Path]:
    """Return the pages that have generated parts."""
    return sorted(page for page in DOCS.rglob("*.md") if _BLOCK.search(page.read_text()))


def main() -> None:
    """Write the generated parts into their pages."""
    for page in pages():
        page.write_text(rendered(page.read_text()))


if __name__ == "__main__":
    main()
