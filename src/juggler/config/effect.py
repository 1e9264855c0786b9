"""What a configuration may already say although this version does not act on it yet: one table.

When a key comes into effect, its row goes.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from juggler.config.problems import PathParts, Problem
from juggler.config.tree import Member, Node, is_ignored_key

if TYPE_CHECKING:
    from juggler.config.load import LoadedConfig

_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


class _Row(NamedTuple):
    pattern: str
    """Path of a written key; ``*`` is any name or index."""
    message: str
    """With ``{value}`` for what is written."""
    applies: "Callable[[LoadedConfig, PathParts], bool]"


def _value(loaded: "LoadedConfig", path: PathParts) -> object:
    node = loaded.root
    for part in path:
        if isinstance(node.value, dict):
            node = node.value[str(part)].node
        elif isinstance(node.value, list) and isinstance(part, int):
            node = node.value[part]
    return node.value


def _elsewhere(loaded: "LoadedConfig", path: PathParts) -> bool:
    return str(_value(loaded, path)).lower() not in _LOOPBACK_HOSTS


_TABLE = (_Row("backends.*.host", '"host" {value} is not in effect yet: backends listen on 127.0.0.1', _elsewhere),)


def not_in_effect(loaded: "LoadedConfig") -> list[Problem]:
    """A note for everything written that this version does not act on, in the order of the file."""
    notes = []
    for path in _written_paths(loaded.root):
        for row in _TABLE:
            if not _matches(row.pattern, path) or not loaded.is_written(*path) or not row.applies(loaded, path):
                continue
            message = row.message.replace("{value}", str(_value(loaded, path)))
            notes.append(loaded.problem("note", path, message, code="not-in-effect", at_key=True))
    return notes


def _matches(pattern: str, path: PathParts) -> bool:
    parts = pattern.split(".")
    return len(parts) == len(path) and all(part in ("*", own) for part, own in zip(parts, path, strict=True))


def _written_paths(node: Node, path: PathParts = ()) -> Iterator[PathParts]:
    """Every path of the file down to the depth of the table's patterns; remarks are passed over."""
    children: list[tuple[str | int, Node]] = []
    if isinstance(node.value, dict):
        members: list[tuple[str, Member]] = list(node.value.items())
        children = [(key, member.node) for key, member in members if not is_ignored_key(key)]
    elif isinstance(node.value, list):
        children = list(enumerate(node.value))
    for part, child in children:
        yield (*path, part)
        if len(path) < 5:
            yield from _written_paths(child, (*path, part))
