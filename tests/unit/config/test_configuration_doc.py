"""The user's documentation says what the models say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from juggler.config.jsonschema import build_schema
from juggler.config.load import load_text
from juggler.config.schema import MODELS, Model

DOC = Path(__file__).parents[3] / "docs" / "configuration.md"

_KINDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true, false", "object": "object"}


def object_schema(place: tuple[str, ...]) -> dict[str, Any]:
    """The part of the JSON Schema that describes the object at a place such as ``("servers", "*")``."""
    node: dict[str, Any] = build_schema()
    for part in place:
        if part == "*":
            node = node["items"] if node["type"] == "array" else node["additionalProperties"]
        else:
            node = node["properties"][part]
            node = next((form for form in node.get("oneOf", ()) if form.get("type") == "object"), node)
    return node


def value_kind(schema: dict[str, Any]) -> str:
    """What the value column says."""
    if "oneOf" in schema:
        return " or ".join(dict.fromkeys(value_kind(form) for form in schema["oneOf"]))
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`" if schema["const"] is False else f"`{schema['const']}`"
    if schema["type"] == "array":
        return f"list of {value_kind(schema['items']).removesuffix('s')}s"
    if isinstance(schema["type"], list):
        return {"number": "duration" if "[hH]" in schema.get("pattern", "") else "size"}.get(
            schema["type"][0], "text, object or list"
        )
    extra = schema.get("additionalProperties")
    if schema["type"] == "object" and isinstance(extra, dict) and "properties" not in extra:
        return f"object of {value_kind(extra)}s"
    return _KINDS[schema["type"]]


def expected_table(place: tuple[str, ...]) -> str:
    """The table that the documentation must hold for the object at ``place``."""
    schema = object_schema(place)
    rows = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        if key == "$schema":
            continue
        if key in schema.get("required", ()):
            default = "required"
        elif "default" in field:
            value = field["default"]
            default = f"`{value if isinstance(value, str) else json.dumps(value)}`"
        else:
            default = ""
        meaning = field["markdownDescription"].replace("|", "\\|")
        rows.append(f"| `{key}` | {value_kind(field)} | {default} | {meaning} |")
    return "\n".join(rows)


def marker(place: tuple[str, ...]) -> str:
    return f"<!-- keys: {'.'.join(place) or 'top'} -->"


@pytest.mark.parametrize(("place", "model"), MODELS.items(), ids=lambda value: str(value))
def test_every_key_is_documented(place: tuple[str, ...], model: type[Model]) -> None:
    """Each object has a table with all its keys, values, defaults and meanings, as the models have them."""
    assert set(object_schema(place)["properties"]) - {"$schema"} == {
        field.alias or name for name, field in model.model_fields.items()
    }
    text = DOC.read_text(encoding="utf-8")
    documented = text.partition(marker(place) + "\n")[2].partition("\n\n")[0].rstrip("\n")
    assert documented == expected_table(place), f"put this behind {marker(place)}:\n{expected_table(place)}"


def test_examples_load() -> None:
    """Every example in the documentation is a configuration without errors or warnings."""
    blocks = re.findall(r"^```(json|yaml)\n(.*?)^```", DOC.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert {form for form, _ in blocks} == {"json", "yaml"}
    for form, text in blocks:
        loaded = load_text(text, f"example.{form}", "json" if form == "json" else "yaml")
        assert loaded.warnings == ()


def test_both_examples_say_the_same() -> None:
    """The YAML example is the JSON example in the other form."""
    text = DOC.read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```(json|yaml)\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    assert load_text(blocks["json"]).config == load_text(blocks["yaml"], "x.yaml", "yaml").config
