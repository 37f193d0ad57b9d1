# SPDX-License-Identifier: Apache-2.0
"""The documentation says what the code says: generated parts are fresh, examples are valid, links and tests exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from homeostat.api import reasons
from homeostat.api.crd import structural
from homeostat.api.hypervisor import Hypervisor
from homeostat.api.meta import Condition, Resource
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.observed import HostAnswer
from homeostat.api.virtualmachine import VirtualMachine
from homeostat.decide import hypervisor as verdicts
from homeostat.decide import migration_report, report
from homeostat.decide.view import Decision, Say, VMView
from tests import generate_docs

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NOW = datetime(2026, 1, 1, tzinfo=UTC)
KINDS: dict[str, type[Resource]] = {
    "VirtualMachine": VirtualMachine,
    "Hypervisor": Hypervisor,
    "VirtualMachineMigration": VirtualMachineMigration,
}
SCHEMAS = {name: structural(kind) for name, kind in KINDS.items()}
SMALLEST: dict[str, dict[str, Any]] = {
    "VirtualMachine": {"memory": {"size": "1Gi"}},
    "Hypervisor": {"uri": "qemu+tls://host-1.example/system"},
    "VirtualMachineMigration": {"vmRef": {"name": "web"}},
}


def path_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# Generated parts


@pytest.mark.parametrize("page", generate_docs.pages(), ids=path_of)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    assert page.read_text() == generate_docs.rendered(page.read_text()), "stale: run `python -m tests.generate_docs`"


def test_every_generated_part_has_a_page() -> None:
    text = "".join(page.read_text() for page in generate_docs.pages())
    assert [name for name in generate_docs.BLOCKS if f"<!-- generated: {name} -->" not in text] == []


def test_every_condition_type_is_explained() -> None:
    vm = VirtualMachine.model_validate({"metadata": {"name": "a"}, "spec": SMALLEST["VirtualMachine"]})
    said = report.status(vm, VMView("cluster", {}), Decision(Say("Accepted")), NOW)
    assert {each.type for each in said.conditions} == generate_docs.VM_CONDITIONS.keys()
    hypervisor = Hypervisor.model_validate({"metadata": {"name": "a"}, "spec": SMALLEST["Hypervisor"]})
    claims = verdicts.Claims(0, 0, 0, (), frozenset())
    assert {each.type for each in migration_conditions()} == generate_docs.MIGRATION_CONDITIONS.keys()
    status = verdicts.status(hypervisor, HostAnswer(reachable=None), ("Connecting", ""), claims, "cluster", NOW)
    assert {each.type for each in status.conditions} == generate_docs.HYPERVISOR_CONDITIONS.keys()


def migration_conditions() -> tuple[Condition, ...]:
    meta, spec = {"name": "a"}, SMALLEST["VirtualMachineMigration"]
    migration = VirtualMachineMigration.model_validate({"metadata": meta, "spec": spec})
    return migration_report.conditions(migration, Say("Accepted"), NOW)


def test_every_reason_names_what_follows() -> None:
    text = (ROOT / "docs/conditions.md").read_text()
    for name in reasons.VM:
        assert f"\n### {name}\n" in text
    for name in reasons.HYPERVISOR:
        assert f"\n### Hypervisor {name}\n" in text
    for name in reasons.MIGRATION:
        assert f"\n### Migration {name}\n" in text


def test_a_reason_that_nothing_gives_is_said_to_be_given_by_nothing() -> None:
    tables = set((ROOT / "operator/homeostat/api").glob("reason*.py"))
    modules = [path for path in (ROOT / "operator").rglob("*.py") if path not in tables]
    code = "".join(module.read_text() for module in modules)
    given = [*reasons.VM, *reasons.HYPERVISOR, *reasons.MIGRATION, *reasons.MIGRATABLE, *reasons.OTHER]
    unused = [name for name in given if f'"{name}"' not in code]
    said = re.search(r"^Nothing gives these yet: (.+)\.$", (ROOT / "docs/conditions.md").read_text(), re.MULTILINE)
    assert unused == (re.findall(r"`(\w+)`", said[1]) if said else [])


@pytest.mark.parametrize(("heading", "rows"), [("A VM", reasons.VM), ("A host", reasons.HYPERVISOR)])
def test_troubleshooting_shows_the_state_that_belongs_to_a_reason(
    heading: str, rows: dict[str, reasons.Reason]
) -> None:
    section = (ROOT / "docs/guide/troubleshooting.md").read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = re.findall(r"^\| (\w+) \| (`.+?`) \| ", section, re.MULTILINE)
    assert len(lines) > 5
    for state, names in lines:
        assert {rows[name].state for name in re.findall(r"`(\w+)`", names)} == {state}


def test_the_rule_for_argo_cd_reads_what_there_is() -> None:
    """Its text; test_argocd.py runs it."""
    text = (ROOT / "docs/argocd/health.lua").read_text()
    shared = generate_docs.VM_CONDITIONS.keys() & generate_docs.HYPERVISOR_CONDITIONS.keys()
    assert set(re.findall(r"conditions\.(\w+)", text)) == shared
    for kind in ("VirtualMachine", "Hypervisor"):
        fields = SCHEMAS[kind]["properties"]["status"]["properties"]
        assert set(re.findall(r"(?<!obj\.)\bstatus\.(\w+)", text)) <= fields.keys()
        conditions = fields["conditions"]["items"]["properties"]
        assert set(re.findall(r"\b(?:ready|stalled)\.(\w+)", text)) <= conditions.keys()
    rows = reasons.VM | reasons.HYPERVISOR
    assert set(re.findall(r'status\.reason == "(\w+)"', text)) <= rows.keys()
    assert set(re.findall(r'status\.next == "(\w+)"', text)) <= {row.next for row in rows.values()}
    assert set(re.findall(r'status\.state == "(\w+)"', text)) <= {row.state for row in rows.values()}
    said = set(re.findall(r'return { status = "(\w+)"', text))
    assert said == set(re.findall(r"^\| (\w+) \| ", (ROOT / "docs/argocd.md").read_text(), re.MULTILINE)) - {"Health"}
    assert said <= {"Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown"}


# Examples


def examples() -> Iterator[Any]:
    """Every YAML document of the pages that is one of our kinds, or a part of one."""
    for page in PAGES:
        for number, block in enumerate(re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
            for document in yaml.safe_load_all(block):
                kind = document.get("kind") or ("Hypervisor" if page.stem == "hypervisors" else "VirtualMachine")
                if kind in KINDS:
                    yield pytest.param(kind, document, id=f"{path_of(page)}-{number}")


@pytest.mark.parametrize(("kind", "document"), list(examples()))
def test_an_example_is_what_the_schema_admits(kind: str, document: dict[str, Any]) -> None:
    assert unknown_fields(SCHEMAS[kind], {"spec": document.get("spec", {})}) == []
    whole = {"metadata": {"name": "a"}, **document, "spec": SMALLEST[kind] | document.get("spec", {})}
    KINDS[kind].model_validate(whole)


def test_an_unknown_field_in_an_example_is_found() -> None:
    assert unknown_fields(SCHEMAS["VirtualMachine"], {"spec": {"disks": [{"nome": "root"}]}}) == ["spec.disks[].nome"]


def unknown_fields(schema: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """Fields of `value` that the schema does not have."""
    if isinstance(value, list):
        return [line for each in value for line in unknown_fields(schema["items"], each, f"{path}[]")]
    if not isinstance(value, dict) or "additionalProperties" in schema:
        return []
    known, found = schema["properties"], []
    for name, each in value.items():
        where = f"{path}.{name}".lstrip(".")
        found += unknown_fields(known[name], each, where) if name in known else [where]
    return found


# References


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{target} is not there"
        assert not anchor or anchor in anchors(there), f"{target}#{anchor} is not there"


def functions(module: Path) -> set[str]:
    tree = ast.parse(module.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_tests_and_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for module, name in re.findall(r"`(?:tests/)?([\w/]+\.py)::(\w+)`", text):
        assert (ROOT / "tests" / module).exists(), module
        assert name in functions(ROOT / "tests" / module), f"{module}::{name}"
    for file in re.findall(r"`((?:operator|tests|docs|crds|manifests)/[\w/.\-]+)`", text):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("page", PAGES, ids=path_of)
def test_functions_that_are_named_exist(page: Path) -> None:
    for dotted in re.findall(r"`homeostat\.(?!dev\b)([\w.]+)`", page.read_text()):
        assert is_there(dotted.split(".")), f"homeostat.{dotted}"


def is_there(names: list[str]) -> bool:
    """Whether a dotted name below `homeostat` leads to a module, or to something that a module defines."""
    place = ROOT / "operator/homeostat"
    while names and (place / names[0]).is_dir():
        place, names = place / names[0], names[1:]
    if not names:
        return True
    module = place / f"{names[0]}.py"
    if not module.exists():
        return False
    node: ast.Module | ast.ClassDef = ast.parse(module.read_text())
    for name in names[1:]:
        found = [each for each in node.body if getattr(each, "name", None) == name]
        if not found:
            return False
        if isinstance(found[0], ast.ClassDef):
            node = found[0]
    return True
