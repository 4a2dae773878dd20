"""The OpenAPI document: a stored copy, so that a change of the interface is seen, and its manners.

`UPDATE_OPENAPI=1 pytest tests/test_openapi.py` stores it anew. The copy leaves out what is on offer
(tasks, architectures, optimizers, ...), since adding one of those is adding one file.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.app import create_app
from api.settings import ApiSettings

PREFIX = "#/components/schemas/"
STORED = Path(__file__).with_name("openapi.json")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(create_app(ApiSettings()).openapi()))
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_the_document_is_the_stored_one(document: dict[str, Any]) -> None:
    lasting = without_options(document)
    if os.environ.get("UPDATE_OPENAPI"):
        STORED.write_text(json.dumps(lasting, indent=1, ensure_ascii=False) + "\n")
    assert lasting == json.loads(STORED.read_text()), "run UPDATE_OPENAPI=1 pytest " + __file__


def without_options(document: dict[str, Any]) -> dict[str, Any]:
    """The document with every union of options cut to its discriminator, and only schemas still in use."""
    cut = _cut(document)
    schemas, wanted = cut["components"]["schemas"], set(references(cut["paths"]))
    while new := {ref for name in wanted for ref in references(_schema(schemas, name))} - wanted:
        wanted |= new
    kept = {name: schema for name, schema in schemas.items() if f"{PREFIX}{name}" in wanted}
    return {**cut, "components": {**cut["components"], "schemas": kept}}


def _schema(schemas: dict[str, Any], reference: str) -> Any:
    return schemas[reference.removeprefix(PREFIX)]


def _cut(node: Any) -> Any:
    if isinstance(node, dict) and "discriminator" in node:
        return {"discriminator": node["discriminator"]["propertyName"]}
    if isinstance(node, dict):
        return {name: _cut(inner) for name, inner in node.items()}
    return [_cut(inner) for inner in node] if isinstance(node, list) else node


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(names) == len(set(names))
    tags = [tag["name"] for tag in document["tags"]]
    for where, operation in operations(document):
        assert operation["summary"], where
        assert operation["description"], where
        assert operation["tags"][0] in tags, where
        for status, answer in operation["responses"].items():
            if int(status) >= 400:
                assert list(answer["content"]) == ["application/problem+json"], (where, status)


def test_every_field_is_described(document: dict[str, Any]) -> None:
    used = set(references(document))
    undescribed = [
        f"{name}.{field}"
        for name, schema in document["components"]["schemas"].items()
        if f"{PREFIX}{name}" in used
        for field, what in schema.get("properties", {}).items()
        if not {"description", "const", "$ref"} & what.keys()
    ]
    assert undescribed == []


def test_every_body_can_be_sent_as_it_is_shown(document: dict[str, Any]) -> None:
    for where, operation in operations(document):
        for kind, media in operation.get("requestBody", {}).get("content", {}).items():
            if kind == "application/json":
                schema = media["schema"]
                name = schema.get("$ref", "").rpartition("/")[2]
                shown = document["components"]["schemas"].get(name, schema)
                assert {"example", "examples"} & {*media, *shown, *schema}, where


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    known = {f"{PREFIX}{name}" for name in document["components"]["schemas"]}
    assert set(references(document)) <= known


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for inner in node.values():
            yield from references(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from references(inner)


def test_files_can_be_chosen_in_the_browser(document: dict[str, Any]) -> None:
    fields = document["components"]["schemas"]["Body_create_dataset"]["properties"]
    for name in ("file", "train", "validation", "test"):
        assert (fields[name]["type"], fields[name]["format"]) == ("string", "binary")
