"""Field types of the configuration models: sizes, durations, texts, and values with two forms.

A value with two forms (a size or a size per pool) is a union told apart by looking at it, so that a mistake is
reported once, for the form that was meant.
"""

import math
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, GetJsonSchemaHandler, Tag, WithJsonSchema
from pydantic_core import core_schema

from juggler.backends.json_condition import parse_condition
from juggler.config.tree import is_ignored_key
from juggler.routing.traffic import parse_match
from juggler.units import DAYS, GIB, parse_duration, parse_size

BackendType = Literal["llamacpp", "sdwebui", "koboldcpp", "comfyui", "ollama", "vllm", "command", "demo"]
BACKEND_TYPES: tuple[str, ...] = get_args(BackendType)

SIZE_BYTES_MAX = 1024 * 1024 * GIB
"""1 PiB: beyond any machine, small enough that sums stay exact in every consumer (53 bits of JavaScript)."""

DURATION_S_MAX = 366 * DAYS
"""A wait is never infinite; whoever wants "for ever" gets a year."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TOKEN = re.compile(r"[A-Z]+(?:\|[A-Z]+)*\Z|\*\Z")
_HOST = re.compile(r"[A-Za-z0-9_.:%-]+\Z")
_TARGET = re.compile(r"/[\x21-\x7e]*\Z")


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError('expected a size: bytes, or text such as "18GiB"')
    try:
        size_bytes = parse_size(value)
    except OverflowError:
        size_bytes = SIZE_BYTES_MAX + 1
    if size_bytes > SIZE_BYTES_MAX:
        raise ValueError("the size is larger than 1024 TiB")
    return size_bytes


def _duration(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError('expected a duration: seconds, or text such as "90s" or "10m"')
    try:
        duration_s = parse_duration(value)
    except OverflowError:
        duration_s = math.inf
    if duration_s > DURATION_S_MAX:
        raise ValueError("the duration is longer than 366 days; nothing waits for ever here")
    return duration_s


def _positive_duration(value: float) -> float:
    if value <= 0:
        raise ValueError("the duration must be longer than zero")
    return value


def _positive_size(value: int) -> int:
    if value <= 0:
        raise ValueError("the size must be larger than zero")
    return value


def _no_nul(text: str) -> str:
    # A NUL cannot be passed in arguments, environment or paths: execve(2) takes NUL-terminated strings.
    if "\x00" in text:
        raise ValueError("the text holds a NUL character")
    return text


def _name(text: str) -> str:
    if not text.strip() or _CONTROL.search(text):
        raise ValueError("a name needs at least one visible character and no control characters")
    return text


def _path(text: str) -> str:
    if not text:
        raise ValueError("the path is empty")
    return _no_nul(text)


def _host(text: str) -> str:
    if text.startswith("["):
        raise ValueError('an IPv6 address is written without brackets here: "::1"')
    if "/" in text:
        raise ValueError('expected a host name or address alone, such as "127.0.0.1", not a URL')
    if not _HOST.match(text):
        raise ValueError('expected a host name or address, such as "127.0.0.1", "localhost" or "0.0.0.0"')
    return text


def _env_name(text: str) -> str:
    if not text or "=" in text or "\x00" in text:
        raise ValueError('the name of an environment variable must not be empty or hold "="')
    return text


def _match(text: str) -> str:
    methods, _ = parse_match(text)
    if not _TOKEN.match(methods):
        raise ValueError(f'{text!r}: methods are upper-case words joined by "|", or "*"')
    return text


def _condition(text: str) -> str:
    parse_condition(text)
    return text


def _target(text: str) -> str:
    if not _TARGET.match(text):
        raise ValueError('expected a path that begins with "/", without spaces: "/health"')
    return text


def _split_call(value: object) -> object:
    """``"POST /unload"`` as the object it stands for."""
    if not isinstance(value, str):
        return value
    method, _, path = value.strip().partition(" ")
    if not path.strip().startswith("/"):
        raise ValueError('expected an HTTP call: "POST /path", or an object with "method" and "path"')
    return {"method": method, "path": path.strip()}


def _body(value: object) -> object:
    if not isinstance(value, (str, dict, list)):
        raise ValueError("expected a text, or an object or list that is sent as JSON")
    return value


def _no_remarks(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {key: size for key, size in value.items() if not is_ignored_key(key)}


_SIZE_JSON = {
    "type": ["number", "string"],
    "minimum": 0,
    "pattern": r"^\s*[0-9]+(\.[0-9]+)?\s*([kKmMgGtT]?([iI]?[bB])?)\s*$",
}
_DURATION_JSON = {
    "type": ["number", "string"],
    "minimum": 0,
    # Each number but the last has its unit: nothing for a regular expression engine to try twice.
    "pattern": r"^(?=.*[0-9])\s*([0-9]+(\.[0-9]+)?\s*([mM][sS]|[sS]|[sS][eE][cC]|[mM]|[mM][iI][nN]|[hH]|[dD])\s*)*"
    r"([0-9]+(\.[0-9]+)?)?\s*$",
}

Size = Annotated[int, BeforeValidator(_size), WithJsonSchema(_SIZE_JSON)]
"""Bytes; written as a number of bytes or as text with a unit."""

PositiveSize = Annotated[int, AfterValidator(_positive_size), BeforeValidator(_size), WithJsonSchema(_SIZE_JSON)]
Duration = Annotated[float, BeforeValidator(_duration), WithJsonSchema(_DURATION_JSON)]
"""Seconds; written as a number of seconds or as text with a unit."""

PositiveDuration = Annotated[
    float, AfterValidator(_positive_duration), BeforeValidator(_duration), WithJsonSchema(_DURATION_JSON)
]
Name = Annotated[str, AfterValidator(_name), Field(max_length=200)]
Text = Annotated[str, AfterValidator(_no_nul)]
PathText = Annotated[str, AfterValidator(_path)]
Host = Annotated[str, AfterValidator(_host), Field(max_length=253)]
Port = Annotated[int, Field(ge=1, le=65535)]
EnvName = Annotated[str, AfterValidator(_env_name)]
TrafficMatch = Annotated[str, AfterValidator(_match)]
BusyCondition = Annotated[str, AfterValidator(_condition), Field(max_length=500)]
RequestTarget = Annotated[str, AfterValidator(_target)]
Body = Annotated[Any, AfterValidator(_body), WithJsonSchema({"type": ["string", "object", "array"]})]
SplitCall = BeforeValidator(_split_call)


class CallForms:
    """Tells editors about the short form of an HTTP call."""

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        short = {"type": "string", "pattern": r"^\s*(GET|HEAD|POST|PUT|PATCH|DELETE) +/\S*\s*$"}
        return {"oneOf": [handler.resolve_ref_schema(handler(schema)), short]}


# The tags are spelt so that no key of a configuration can be mistaken for one when a path is looked up.
_per_pool = Discriminator(lambda value: "<per pool>" if isinstance(value, dict) else "<size>")
Footprint = Annotated[
    Annotated[dict[Name, Size], BeforeValidator(_no_remarks), Tag("<per pool>")] | Annotated[Size, Tag("<size>")],
    _per_pool,
]
"""Bytes on the first GPU pool, or bytes per pool."""

_pools_form = Discriminator(lambda value: "<word>" if isinstance(value, str) else "<per pool>")
Pools = Annotated[
    Annotated[dict[Name, PositiveSize], Field(min_length=1), BeforeValidator(_no_remarks), Tag("<per pool>")]
    | Annotated[Literal["auto", "exclusive"], Tag("<word>")],
    _pools_form,
]

_priority_form = Discriminator(lambda value: "<word>" if isinstance(value, str) else "<number>")
Priority = Annotated[
    Annotated[Literal["interactive", "batch"], Tag("<word>")] | Annotated[int, Field(ge=-100, le=100), Tag("<number>")],
    _priority_form,
]
