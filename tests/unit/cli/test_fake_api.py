"""The stand-in tells what the API tells: no field is missing that is promised, none is made up."""

from typing import Any

import jsonschema_rs

from juggler.control.schemas import SCHEMAS
from tests.unit.cli.fake_api import instance, pool, running, status, waiting


def closed(schema: Any) -> Any:
    """The schema with the fields that it names, and no others."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {name: closed(one) for name, one in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        inner["additionalProperties"] = False
    return inner


def test_the_fields_are_those_of_the_api() -> None:
    error = {"message": "x", "hint": None, "exit_status": 1, "log_tail": ["x"], "retry_in_s": 1.0}
    told = status(instance(), instance("b", error=error), pools=[pool()], waiting=[waiting()], running=[running()])
    schema = {"$ref": "#/components/schemas/Status", "components": {"schemas": closed(SCHEMAS)}}
    mistakes = jsonschema_rs.validator_for(schema).iter_errors(told)
    assert [f"{'/'.join(map(str, one.instance_path))}: {one.message}" for one in mistakes] == []
