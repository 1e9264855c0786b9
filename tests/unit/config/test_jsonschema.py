"""The schema for editors, and the committed copy of it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from juggler.config.jsonschema import SCHEMA_FILE, build_schema, schema_text
from juggler.config.schema import MODELS, keys_of


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from nodes(inner)


def test_the_committed_file_is_fresh() -> None:
    """Whoever changes a model runs ``python -m juggler.config.jsonschema``."""
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()


def test_it_allows_what_the_reader_allows() -> None:
    """No red marks on trailing commas, comments, ``$schema`` and remarks."""
    schema = build_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["allowTrailingCommas"] is True
    assert schema["allowComments"] is True
    assert schema["properties"]["$schema"]["type"] == "string"
    objects = [
        node for node in nodes(schema) if isinstance(node.get("properties"), dict) and node.get("type") == "object"
    ]
    assert len(objects) == len(MODELS)
    for node in objects:
        assert node["additionalProperties"] is False
        assert list(node["patternProperties"]) == ["^(_|x-)"]


def test_every_key_is_described() -> None:
    """A key without help text or with a raw ``$ref`` would be no help."""
    schema = build_schema()
    assert not [node for node in nodes(schema) if "$ref" in node or "$defs" in node]
    described = 0
    for node in nodes(schema):
        if isinstance(node.get("properties"), dict) and node.get("type") == "object":
            for key, field in node["properties"].items():
                if key != "$schema":
                    described += 1
                    assert field["markdownDescription"].endswith((".", "form.")), key
                    assert "`" not in field["description"]
    assert described == sum(len(keys_of(model)) for model in MODELS.values())


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("90s", True),
        ("1h30m", True),
        (" 1.5 h ", True),
        ("250MS", True),
        ("5", True),
        ("", False),
        ("soon", False),
        ("5x", False),
    ],
)
def test_durations_as_editors_see_them(text: str, fits: bool) -> None:
    """The pattern agrees with the parser."""
    pattern = build_schema()["properties"]["scheduler"]["properties"]["max_wait"]["pattern"]
    assert bool(re.search(pattern, text)) is fits


@pytest.mark.parametrize(
    ("text", "fits"), [("24GiB", True), ("64k", True), ("1.5 TB", True), ("5", True), ("GB", False), ("5X", False)]
)
def test_sizes_as_editors_see_them(text: str, fits: bool) -> None:
    """The pattern agrees with the parser."""
    pattern = build_schema()["properties"]["kv_cache"]["properties"]["quota"]["pattern"]
    assert bool(re.search(pattern, text)) is fits


def test_each_call_gives_its_own() -> None:
    """A caller that adds to the schema harms nobody."""
    build_schema()["properties"].clear()
    assert build_schema()["properties"]
    json.dumps(build_schema())
