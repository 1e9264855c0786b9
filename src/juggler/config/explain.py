"""What pydantic found, in our words and at its place in the file."""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from juggler.config.problems import PathParts, Problem, Source, path_text
from juggler.config.schema import MODELS, Model, keys_of
from juggler.config.tree import Node, describe, follow, key_position, quoted

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_TYPE_NAMES = {
    "string_type": "a text in double quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list: [ ]",
    "dict_type": "an object: { }",
    "model_type": "an object: { }",
    "model_attributes_type": "an object: { }",
    "finite_number": "a number",
}
_PLACE_NAMES = {
    (): "the top of the file",
    ("backends", "*"): "a backend",
    ("servers", "*"): "a server",
    ("servers", "*", "endpoints", "*"): "an endpoint",
    ("servers", "*", "endpoints", "*", "traffic", "*"): "a traffic rule",
    ("warmup", "*"): "a warm-up entry",
}
_PRIORITIES = (("priority",), ("max_priority",))
"""Keys whose value is a word or a number."""
_SWITCH_TEXTS = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}


def explain(source: Source, root: Node, errors: "Iterable[ErrorDetails]") -> list[Problem]:
    """One problem per validation error."""
    return [_explain_one(source, root, error) for error in errors]


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that was probably meant; spelling with hyphens or capitals counts as near."""
    choices = {_normal(choice): choice for choice in known}
    match = difflib.get_close_matches(_normal(name), choices, n=1, cutoff=0.6)
    return choices[match[0]] if match else None


def listing(names: Iterable[str]) -> str:
    """``"a", "b" or "c"``; at most twelve names."""
    shown = [quoted(name) for name in names]
    if len(shown) > 12:
        return ", ".join(shown[:12]) + f" and {len(shown) - 12} more"
    return " or ".join(filter(None, [", ".join(shown[:-1]), *shown[-1:]]))


def _normal(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace("-", "_").lower()


def _explain_one(source: Source, root: Node, error: "ErrorDetails") -> Problem:
    kind, loc = error["type"], error["loc"]
    if loc and loc[-1] == "[key]":
        loc = loc[:-1]
        if kind == "value_error":
            position = key_position(root, loc)
            return source.problem("error", position, _reason(error), code="bad-value", key=follow(root, loc)[1])
    if kind == "extra_forbidden":
        return _unknown_key(source, root, loc)
    node, found = follow(root, loc)
    if kind == "missing":
        message = f"the key {quoted(str(loc[-1]))} is missing"
        what = _PLACE_NAMES.get(_pattern(found))
        if what and found:
            message += f" in this {what.partition(' ')[2]}"
        position = node.position
        return source.problem("error", position, message, code="missing-key", key=(*found, loc[-1]))
    message, hint = _wrong_value(kind, error.get("ctx") or {}, _reason(error), node, found)
    code = "wrong-type" if kind in _TYPE_NAMES else "bad-value"
    return source.problem("error", node.position, message, hint=hint, code=code, key=found)


def _unknown_key(source: Source, root: Node, loc: tuple[int | str, ...]) -> Problem:
    key = str(loc[-1])
    _, parent = follow(root, loc[:-1])
    pattern = _pattern(parent)
    known = keys_of(MODELS[pattern]) if pattern in MODELS else []
    hint = None
    near = closest(key, known)
    elsewhere = [_place_name(place, model) for place, model in MODELS.items() if key in keys_of(model)]
    if elsewhere:
        hint = f"{quoted(key)} is a key of {' and of '.join(dict.fromkeys(elsewhere))}"
    elif near:
        hint = f"did you mean {quoted(near)}?"
    elif known:
        hint = f"known keys here: {', '.join(known)}"
    where = (*parent, key)
    return source.problem(
        "error", key_position(root, where), f"unknown key {quoted(key)}", hint=hint, code="unknown-key", key=where
    )


def _place_name(place: tuple[str, ...], model: type[Model]) -> str:
    return _PLACE_NAMES.get(place, quoted(path_text(place).replace(".*", "")) if place else model.__name__)


def _pattern(path: PathParts) -> tuple[str, ...]:
    """The path with names and indices of entries as ``*``, as in ``MODELS``."""
    return tuple("*" if isinstance(p, int) or (i == 1 and path[0] == "backends") else p for i, p in enumerate(path))


def _subject(path: PathParts) -> str:
    if not path:
        return "the configuration"
    last = path[-1]
    if isinstance(last, int):
        owner = next((part for part in reversed(path) if isinstance(part, str)), "")
        return f"entry {last + 1} of {quoted(owner)}"
    return quoted(last)


def _wrong_value(
    kind: str, context: Mapping[str, Any], reason: str, node: Node, path: PathParts
) -> tuple[str, str | None]:
    """Message and hint for a value that is not accepted."""
    subject, found = _subject(path), describe(node)
    if kind in _TYPE_NAMES:
        return f"{subject} must be {_TYPE_NAMES[kind]}, not {found}", _type_hint(kind, node)
    if kind == "literal_error":
        expected = str(context.get("expected", "")).replace("'", '"').replace("False", "false or an object")
        near = closest(node.value, re.findall(r'"([^"]+)"', expected)) if isinstance(node.value, str) else None
        hint = f"did you mean {quoted(near)}?" if near else None
        if path[-1:] in _PRIORITIES:
            expected = expected.replace(" or ", ", ") + " or a whole number"
            hint = hint or _type_hint("int_type", node)
        return f"{subject} must be {expected}, not {found}", hint
    limits = {
        "greater_than_equal": ("ge", "at least"),
        "less_than_equal": ("le", "at most"),
    }
    if kind in limits:
        name, words = limits[kind]
        return f"{subject} must be {words} {context.get(name):g}, not {found}", None
    if kind == "too_short":
        return f"{subject} must not be empty", None
    if kind == "string_too_short":
        least = context.get("min_length", 1)
        return f"{subject} must {f'have at least {least} characters' if least > 1 else 'not be empty'}", None
    if kind == "string_too_long":
        return f"{subject} must not be longer than {context.get('max_length')} characters", None
    if path[:2] == ("memory", "pools") and node.value in ("auto", "exclusive"):
        return f"{subject}: {reason}", f'for all memory together write "pools": {quoted(str(node.value))}'
    return f"{subject}: {reason}", None


def _type_hint(kind: str, node: Node) -> str | None:
    value = node.value
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        return f"write {quoted(shown)}, in double quotes"
    if isinstance(value, str):
        if kind == "bool_type" and value.lower() in _SWITCH_TEXTS:
            return f"write {_SWITCH_TEXTS[value.lower()]}, without quotes"
        if kind in ("int_type", "float_type") and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value):
            return f"write {value}, without quotes"
        if kind == "list_type":
            return f"write [{quoted(value)}]"
    if kind == "list_type" and isinstance(value, dict):
        return "put it into a list: [ { ... } ]"
    return None


def _reason(error: "ErrorDetails") -> str:
    """The sentence of one of our own validators, else pydantic's."""
    cause = (error.get("ctx") or {}).get("error")
    return str(cause) if cause is not None else error["msg"]
