# SPDX-License-Identifier: Apache-2.0
"""The CRDs, made from the models. `python -m homeostat.api.crd [DIR]` writes them.

What Kubernetes refuses, drops silently or cannot bound ends in TypeError here, with the path of the field.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from homeostat.api.hypervisor import Hypervisor
from homeostat.api.meta import GROUP, VERSION, Resource
from homeostat.api.migration import VirtualMachineMigration
from homeostat.api.virtualmachine import VirtualMachine

KINDS: tuple[type[Resource], ...] = (Hypervisor, VirtualMachine, VirtualMachineMigration)
HEADER = "# Generated from operator/homeostat/api by `python -m homeostat.api.crd`. Do not edit.\n"

Schema = dict[str, Any]
_KEPT = {
    *("type", "format", "description", "default", "enum", "required", "properties", "additionalProperties", "items"),
    *("pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "maxProperties"),
}


def structural(kind: type[Resource]) -> Schema:
    """Return the OpenAPI schema of a kind; TypeError names a field that is not structural, bounded and described."""
    root = kind.model_json_schema(by_alias=True)
    schema = _converted(root, root.get("$defs", {}), kind.__name__, ())
    head = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    status = _without_defaults(schema["properties"]["status"])
    schema["properties"] = head | {"spec": schema["properties"]["spec"], "status": status}
    schema["required"] = ["spec"]
    return schema


def _converted(node: Schema, definitions: Schema, path: str, parents: tuple[str, ...]) -> Schema:
    while "$ref" in node or "anyOf" in node:
        node, parents = _resolved(node, definitions, path, parents)
    if "const" in node:  # would be dropped silently
        node = node | {"enum": [node["const"]]}
    if "default" in node:
        node = _with_plain_default(node)
    node = {key: value for key, value in node.items() if key in _KEPT or key.startswith("x-kubernetes-")}
    if "properties" in node:
        node["properties"] = {
            name: _described(_converted(each, definitions, f"{path}.{name}", parents), f"{path}.{name}")
            for name, each in node["properties"].items()
            if name != "metadata"
        }
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            node[key] = _converted(node[key], definitions, f"{path}[]", parents)
    return _bounded(node, path)


def _resolved(node: Schema, definitions: Schema, path: str, parents: tuple[str, ...]) -> tuple[Schema, tuple[str, ...]]:
    siblings = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
    if "$ref" in node:
        name = node["$ref"].removeprefix("#/$defs/")
        if name in parents:
            raise TypeError(f"{path}: {name} contains itself")
        return definitions[name] | siblings, (*parents, name)
    options = [option for option in node["anyOf"] if option.get("type") != "null"]
    if len(options) != 1:
        raise TypeError(f"{path}: a union of types")
    return options[0] | siblings, parents


def _with_plain_default(node: Schema) -> Schema:
    """Return the schema without nulls and empty lists in its default: they mean that the field is unset."""
    default = _without_nulls(node["default"])
    rest = {key: value for key, value in node.items() if key != "default"}
    return rest if default is None or default == [] else rest | {"default": default}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return value


def _without_defaults(node: Schema) -> Schema:
    """Return the schema less all defaults: a status holds what was seen and nothing else."""
    node = {key: value for key, value in node.items() if key != "default"}
    if "properties" in node:
        node["properties"] = {name: _without_defaults(each) for name, each in node["properties"].items()}
    if "items" in node:
        node["items"] = _without_defaults(node["items"])
    return node


def _described(node: Schema, path: str) -> Schema:
    if "description" not in node:
        raise TypeError(f"{path}: no description")
    return node | {"description": " ".join(node["description"].split())}


def _bounded(node: Schema, path: str) -> Schema:
    match node.get("type"):
        case "string":
            known = "maxLength" in node or "enum" in node or node.get("format") == "date-time"
        case "array":
            known = "maxItems" in node and "x-kubernetes-list-type" in node
        case "object":
            known = "properties" in node or "maxProperties" in node
        case "integer" | "boolean":
            known = True
        case _:
            raise TypeError(f"{path}: {node.get('type')} is no type that a structural schema has")
    if not known:
        raise TypeError(f"{path}: not bounded")
    return node


def definition(kind: type[Resource]) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind."""
    singular = kind.__name__.lower()
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [column.schema() for column in kind.columns],
        **({"selectableFields": [{"jsonPath": path} for path in kind.selectable]} if kind.selectable else {}),
        "schema": {"openAPIV3Schema": structural(kind)},
    }
    names = {
        "kind": kind.__name__,
        "listKind": f"{kind.__name__}List",
        "plural": kind.plural,
        "singular": singular,
        "shortNames": [kind.short_name],
        "categories": ["homeostat"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": kind.scope, "versions": [version]},
    }


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write what occurs twice twice: anchors are hard to read."""
        return True


def manifests() -> dict[str, str]:
    """Return the YAML text of each file in crds/, by file name."""
    return {
        f"{kind.plural}.yaml": HEADER + yaml.dump(definition(kind), Dumper=_Dumper, sort_keys=False, width=120)
        for kind in KINDS
    }


def main(directory: str = "crds") -> None:
    """Write the CRDs into a directory, made if missing."""
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    for name, text in manifests().items():
        (target / name).write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
