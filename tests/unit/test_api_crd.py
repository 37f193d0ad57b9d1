# SPDX-License-Identifier: Apache-2.0
"""The generator: crds/ is what it writes, and what Kubernetes cannot hold never gets there."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import Field

from homeostat.api.crd import KINDS, manifests, structural
from homeostat.api.markers import SET
from homeostat.api.meta import Integer, Model, Resource, Word

CRDS = Path(__file__).parents[2] / "crds"


def test_crds_are_up_to_date() -> None:
    there = {path.name: path.read_text() for path in CRDS.iterdir()}
    assert there == manifests(), "stale: run `python -m homeostat.api.crd`"


@pytest.mark.parametrize("seed", ["1", "2"])
def test_every_run_writes_the_same(tmp_path: Path, seed: str) -> None:
    command = [sys.executable, "-m", "homeostat.api.crd", str(tmp_path / "new")]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == manifests()


@pytest.mark.parametrize("text", manifests().values(), ids=manifests())
def test_a_file_says_that_it_is_generated(text: str) -> None:
    assert text.startswith("# Generated from operator/homeostat/api")
    assert yaml.safe_load(text)["kind"] == "CustomResourceDefinition"


def keys(node: Any) -> set[str]:
    """Return all keys of a tree of dicts and lists."""
    if isinstance(node, dict):
        return set(node).union(*(keys(each) for each in node.values()))
    return set().union(*(keys(each) for each in node)) if isinstance(node, list) else set()


@pytest.mark.parametrize("kind", KINDS)
def test_spec_is_required_and_never_defaulted_and_status_has_no_defaults(kind: type[Resource]) -> None:
    schema = structural(kind)
    assert schema["required"] == ["spec"]
    assert "default" not in schema["properties"]["spec"]
    assert "default" not in keys(schema["properties"]["status"])
    assert "default" in keys(schema["properties"]["spec"])


class Inner(Model):
    """Inside."""

    word: Word | None = None
    """A word."""
    one: Literal["one"] = "one"
    """One."""


class Node(Model):
    """A node."""

    next: "Node | None" = None
    """Another."""


class Spec(Model):
    """Subclasses add a field."""


def schema_of(annotation: Any, default: Any = ...) -> dict[str, Any]:
    """Return the schema of a field `x` in the spec of a kind."""
    body = {"__annotations__": {"x": annotation}, "x": Field(default, description="X."), "__module__": __name__}
    spec = type("XSpec", (Spec,), body)
    status = type("XStatus", (Spec,), {"__module__": __name__})
    body = {
        "__annotations__": {"spec": spec, "status": status},
        "spec": Field(description="S."),
        "status": Field(status(), description="T."),
        "__module__": __name__,
    }
    schema: dict[str, Any] = structural(type("X", (Resource,), body))["properties"]["spec"]["properties"]["x"]
    return schema


BAD = {
    "a string without bound": str,
    "a list without bound": Annotated[tuple[Word, ...], SET],
    "a list without type": Annotated[tuple[Word, ...], Field(max_length=1)],
    "an element without bound": Annotated[tuple[str, ...], Field(max_length=1), SET],
    "a map without bound": dict[str, Word],
    "a value without bound": Annotated[dict[str, str], Field(max_length=1)],
    "a union": Word | Integer,
    "anything": Any,
    "a float": float,
    "recursion": Node,
}


@pytest.mark.parametrize("annotation", BAD.values(), ids=BAD)
def test_what_kubernetes_cannot_hold_is_refused_by_name(annotation: Any) -> None:
    with pytest.raises(TypeError, match=r"X\.spec\.x"):
        schema_of(annotation)


def test_a_field_without_description_is_refused() -> None:
    class Mute(Model):
        """No field says what it is."""

        word: Word = ""

    with pytest.raises(TypeError, match=r"X\.spec\.x\.word: no description"):
        schema_of(Mute)


def test_a_model_is_written_out() -> None:
    assert schema_of(Inner, Inner()) == {
        "type": "object",
        "description": "X.",
        "default": {"one": "one"},
        "properties": {
            "word": {"type": "string", "maxLength": 63, "description": "A word."},
            "one": {"type": "string", "enum": ["one"], "default": "one", "description": "One."},
        },
    }


def test_unset_has_no_default() -> None:
    assert schema_of(Word | None, None) == {"type": "string", "maxLength": 63, "description": "X."}
    assert "default" not in schema_of(Annotated[tuple[Word, ...], Field(max_length=1), SET], ())
