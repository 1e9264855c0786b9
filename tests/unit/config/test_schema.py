"""The models: strictness, conversions, defaults."""

import typing
from typing import Any

import pytest
from pydantic import ValidationError

from juggler.backends.base import BackendSettings
from juggler.config.schema import (
    MODELS,
    BackendModel,
    BusyCallModel,
    Config,
    ControlModel,
    EndpointModel,
    HttpCallModel,
    SchedulerModel,
    backend_type,
)
from juggler.config.types import BACKEND_TYPES
from juggler.routing.traffic import TrafficClass
from juggler.units import GIB, parse_duration, parse_size


def test_sizes_and_durations_become_numbers() -> None:
    """Inside the program there are only bytes and seconds, whichever way they were written."""
    endpoint = EndpointModel.model_validate(
        {
            "name": "E",
            "backend": "b",
            "memory": "18GiB",
            "memory_unloaded": {"gpu0": 5.0, "ram": "1k"},
            "idle_unload": 90,
        }
    )
    assert endpoint.memory == 18 * GIB
    assert endpoint.memory_unloaded == {"gpu0": 5, "ram": 1024}
    assert (endpoint.idle_unload, type(endpoint.idle_unload)) == (90.0, float)


def test_shown_defaults_are_the_real_ones() -> None:
    """The ``"10m"`` that editors and the documentation show is the number that the program uses."""
    shown = 0
    for model in MODELS.values():
        for field in model.model_fields.values():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and isinstance(extra.get("default"), str):
                shown += 1
                text = str(extra["default"])
                assert field.default == (parse_size(text) if text.endswith("B") else parse_duration(text))
    assert shown == 19


def test_defaults_agree_with_the_backends_own() -> None:
    """``BackendSettings`` made by hand in tests behave as configured ones."""
    backend, settings = BackendModel(), BackendSettings.__dataclass_fields__
    assert backend.start_timeout == settings["start_timeout_s"].default
    assert backend.stop_timeout == settings["stop_timeout_s"].default
    assert backend.model_unloading is settings["model_unloading"].default
    assert Config.model_fields["kv_cache"].default_factory is not None


@pytest.mark.parametrize(
    "call", ["POST /u?x=1", " POST  /u?x=1 ", {"method": "POST", "path": "/u?x=1"}, {"path": "/u?x=1"}]
)
def test_http_calls_have_a_short_form(call: Any) -> None:
    """Text and object say the same."""
    assert BackendModel.model_validate({"unload": call}).unload == HttpCallModel(path="/u?x=1")


@pytest.mark.parametrize(
    "call",
    ["u", "POST", "/u", "post /u", "POST u", {"path": "/a b"}, {"path": "/ä"}, {"path": "/x", "expect": [99]}, 5, []],
)
def test_what_is_no_http_call(call: Any) -> None:
    """Anything else is refused."""
    with pytest.raises(ValidationError):
        BackendModel.model_validate({"unload": call})


def test_bodies() -> None:
    """Text goes as it is, objects and lists as JSON; asking for work is a GET."""
    assert HttpCallModel(path="/x").body_text is None
    assert HttpCallModel(path="/x", body="a=1").body_text == "a=1"
    assert HttpCallModel(path="/x", body={"ä": [1, None]}).body_text == '{"ä": [1, null]}'
    assert BusyCallModel(path="/x").method == "GET"
    with pytest.raises(ValidationError):
        HttpCallModel(path="/x", body=5)


def test_control_off() -> None:
    """``false`` and only ``false``."""
    base: dict[str, Any] = {"backends": {}, "servers": [{"name": "S", "port": 1, "endpoints": []}]}
    assert Config.model_validate({**base, "control": False}).control is False
    assert Config.model_validate(base).control == ControlModel()
    values: tuple[Any, ...] = (True, 0, "off", [])
    for value in values:
        with pytest.raises(ValidationError):
            Config.model_validate({**base, "control": value})


def test_traffic_classes_are_those_of_routing() -> None:
    """The words of the configuration are the values of the enumeration."""
    annotation = MODELS["servers", "*", "endpoints", "*", "traffic", "*"].model_fields["traffic_class"].annotation
    assert set(typing.get_args(annotation)) == {traffic.value for traffic in TrafficClass}


def test_backend_types() -> None:
    """The eight kinds; a backend's type is what it says, else its name."""
    assert set(BACKEND_TYPES) == {"llamacpp", "sdwebui", "koboldcpp", "comfyui", "ollama", "vllm", "command", "demo"}
    assert backend_type("llamacpp", BackendModel()) == "llamacpp"
    assert backend_type("mine", BackendModel(type="vllm")) == "vllm"


@pytest.mark.parametrize("number", [10**400, 1e308, "9" * 400, "9" * 400 + "TiB"])
def test_enormous_numbers_are_refused(number: Any) -> None:
    """Neither sizes nor durations overflow."""
    with pytest.raises(ValidationError):
        SchedulerModel.model_validate({"max_wait": number})
    with pytest.raises(ValidationError):
        EndpointModel.model_validate({"name": "E", "backend": "b", "memory": number})
