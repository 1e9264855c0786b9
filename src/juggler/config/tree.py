"""A configuration file as plain values that know where they stand: what both readers produce."""

import dataclasses
from typing import NamedTuple

from juggler.config.problems import PathParts, Position, Problem

DEPTH_MAX = 64
"""Nesting of lists and objects. A configuration needs about eight; the bound keeps every walk off the stack limit."""

FILE_BYTES_MAX = 1024 * 1024
"""The seed file has 3 KB; a thousand endpoints fit in half of this."""

Scalar = str | int | float | bool | None


class Member(NamedTuple):
    """One entry of an object."""

    key_position: Position
    node: "Node"


@dataclasses.dataclass(slots=True)
class Node:
    """One value and the place where it begins."""

    position: Position
    value: "Scalar | list[Node] | dict[str, Member]"


class Read(NamedTuple):
    """What a reader found."""

    root: Node | None
    """None when the text could not be read to its end, or a value had to be left out."""
    problems: list[Problem]


def plain(node: Node) -> object:
    """The value without places: ``dict``, ``list`` and scalars."""
    if isinstance(node.value, dict):
        return {key: plain(member.node) for key, member in node.value.items()}
    if isinstance(node.value, list):
        return [plain(item) for item in node.value]
    return node.value


def follow(root: Node, path: PathParts) -> tuple[Node, PathParts]:
    """The node at ``path`` or its nearest ancestor in the file, and the part of the path that exists there.

    Parts that do not lead anywhere are skipped: pydantic puts names of union branches into its paths.
    """
    node, found = root, []
    for part in path:
        if isinstance(node.value, dict) and isinstance(part, str) and part in node.value:
            node = node.value[part].node
        elif isinstance(node.value, list) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
        else:
            continue
        found.append(part)
    return node, tuple(found)


def key_position(root: Node, path: PathParts) -> Position:
    """Where the key that ``path`` ends with is written; the value's place for list entries and the root."""
    if path:
        parent, found = follow(root, path[:-1])
        last = path[-1]
        if found == path[:-1] and isinstance(parent.value, dict) and isinstance(last, str) and last in parent.value:
            return parent.value[last].key_position
    return follow(root, path)[0].position


def is_ignored_key(key: str) -> bool:
    """Whether a key is the operator's own remark: ``$schema``, or beginning with ``_`` or ``x-``."""
    return key == "$schema" or key.startswith(("_", "x-"))


def describe(node: Node) -> str:
    """What was found, for messages: ``the text "abc"``, ``the number 5``, ``a list``."""
    value = node.value
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        return f"the text {quoted(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"the number {shortened(str(value))}"


def quoted(text: str) -> str:
    """Text in double quotes, shortened, control characters visible."""
    shown = shortened(text)
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in shown) + '"'


def shortened(text: str, characters_max: int = 60) -> str:
    """The beginning of a long text, marked by an ellipsis."""
    return text if len(text) <= characters_max else text[: characters_max - 1] + "\N{HORIZONTAL ELLIPSIS}"
