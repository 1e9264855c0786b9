"""The JSON Schema of the configuration, for editors.

Draft 2020-12 by name, but kept to what editors that know draft 7 understand: no references (everything stands
inline), ``oneOf``, ``patternProperties``. ``markdownDescription``, ``allowTrailingCommas`` and ``allowComments``
are keywords of VS Code's JSON service; others pass over them.

The committed ``schema.json`` is written by ``python -m juggler.config.jsonschema``.
"""

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from juggler.config.schema import Config

SCHEMA_FILE = Path(__file__).with_name("schema.json")

_REMARKS = {"^(_|x-)": {"description": "Ignored: a remark of the operator's."}}


def build_schema() -> dict[str, Any]:
    """The schema as plain data; a new one for each call."""
    raw = Config.model_json_schema(by_alias=True, schema_generator=_Generator)
    definitions = raw.pop("$defs", {})
    body: dict[str, Any] = _clean(_inline(raw, definitions))
    body["properties"] = {
        "$schema": {"type": "string", "description": "For editors: where this schema is."},
        **body["properties"],
    }
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Model Juggler configuration",
        "allowTrailingCommas": True,
        "allowComments": True,
    }
    body.pop("title", None)
    return head | body


def schema_text() -> str:
    """The content of ``schema.json``."""
    return json.dumps(build_schema(), indent=2, ensure_ascii=False) + "\n"


class _Generator(GenerateJsonSchema):
    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        """``null`` counts as left out; editors need not offer it."""
        return self.generate_inner(schema["schema"])


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    """The node with every reference replaced by what it names; the models are not recursive."""
    if isinstance(node, list):
        return [_inline(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    node = dict(node)
    reference = node.pop("$ref", None)
    if reference is not None:
        node = {**definitions[reference.rpartition("/")[2]], **node}
    return {key: _inline(value, definitions) for key, value in node.items()}


def _clean(node: Any) -> Any:
    """Without generated titles and empty defaults, with Markdown descriptions and room for remarks."""
    if isinstance(node, list):
        return [_clean(item) for item in node]
    if not isinstance(node, dict):
        return node
    if node.get("type") == "object" and "properties" in node:
        properties = {key: _clean(value) for key, value in node["properties"].items()}
        rest = {key: value for key, value in node.items() if key != "properties"}
        return {**_clean(rest), "properties": properties, "patternProperties": _REMARKS}
    cleaned = {key: _clean(value) for key, value in node.items() if key != "title"}
    if cleaned.get("default", 0) is None:
        del cleaned["default"]
    if isinstance(cleaned.get("description"), str):
        cleaned["markdownDescription"] = cleaned["description"]
        cleaned["description"] = cleaned["description"].replace("`", "")
    return cleaned


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
