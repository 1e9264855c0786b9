"""What the pretended juggler says has the shapes of the real one: else the dashboard is tested against nothing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest

from juggler.control.schemas import SCHEMAS, Schema, array, listed, obj, ref
from tests.dashboard import past, scenes

Json = dict[str, Any]


def closed(schema: Any) -> Any:
    """The same, in which no object has a field that is not described."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    within = {name: closed(one) for name, one in schema.items()}
    return {**within, "additionalProperties": False} if "properties" in schema else within


def complaints(data: Json, schema: Schema, schemas: dict[str, Schema]) -> list[str]:
    validator = jsonschema_rs.validator_for({**schema, "components": {"schemas": schemas}})
    plain = json.loads(json.dumps(data))
    return [f"{'/'.join(map(str, one.instance_path))}: {one.message}" for one in validator.iter_errors(plain)]


DESCRIBED: list[tuple[Callable[[], Json], Schema]] = [
    (scenes.busy_house, ref("Status")),
    (lambda: scenes.timeline(time.time()), ref("Timeline")),
    (past.requests, obj({"requests": array("Request"), "more": {"type": "boolean"}})),
    (past.config, ref("Config")),
]


LINES = {"log": "x", "begun": [], "last": 4, "lost": 0, "boot": scenes.BOOT}


@pytest.mark.parametrize(("scene", "schema"), DESCRIBED, ids=["status", "timeline", "requests", "config"])
def test_scenes_have_the_described_fields_and_no_others(scene: Callable[[], Json], schema: Schema) -> None:
    """The API may say more than is described, but the dashboard must not come to need that."""
    assert complaints(scene(), schema, closed(SCHEMAS)) == []


@pytest.mark.parametrize(
    ("scene", "schema"),
    [
        (past.days, listed("days", "Day")),
        (past.series, ref("Series")),
        (past.connect, ref("Connect")),
        (lambda: {**LINES, "lines": past.logs()["juggler"]}, ref("LogLines")),
    ],
    ids=["days", "series", "connect", "log"],
)
def test_scenes_of_the_past_have_the_described_fields(scene: Callable[[], Json], schema: Schema) -> None:
    assert complaints(scene(), schema, SCHEMAS) == []


def test_the_sums_of_the_scenes_add_up() -> None:
    for sums in (scenes.busy_house()["today"], *past.days()["days"]):
        assert sums["share_waiting"] == pytest.approx(sums["loading_s"] / sums["total_s"], abs=0.005)
        assert sums["loading_s"] <= sums["waited_s"] <= sums["total_s"]
