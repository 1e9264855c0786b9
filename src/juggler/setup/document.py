"""A configuration with comments, as JSON or as YAML. Pure.

Comments are wrapped and cleaned of everything that could end them: they quote names of files, which may hold
anything. Values are written as JSON, which is YAML too as long as all characters are printable.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Format = Literal["json", "yaml"]
Scalar = str | int | bool

_COLUMNS = 110
_INDENT = 4


@dataclass(frozen=True)
class Entry:
    """A key with its value, and why it is there."""

    key: str
    value: "Value"
    comments: tuple[str, ...] = ()
    """Paragraphs that stand above it."""


@dataclass(frozen=True)
class Block:
    """An object."""

    entries: tuple[Entry, ...]
    examples: tuple[Entry, ...] = ()
    """Further entries, commented out; only where there is an entry."""
    comments: tuple[str, ...] = ()
    """Paragraphs above it, where it is an item of a list."""
    examples_title: str = ""


@dataclass(frozen=True)
class Listing:
    """A list of objects."""

    items: tuple[Block, ...]
    examples: tuple[Block, ...] = ()
    """Further items, commented out; they stand first."""


Value = Scalar | tuple[Scalar, ...] | Block | Listing


def render(document: Block, form: Format) -> str:
    """The whole file, with a line end at its end."""
    renderer = _Json() if form == "json" else _Yaml()
    lines = [*renderer.comments(document.comments, 0), *renderer.document(document)]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def printable(text: str) -> str:
    """The text without anything that ends a line or steers a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


class _Renderer:
    """What both forms share."""

    mark = "#"
    step = _INDENT

    def document(self, block: Block) -> list[str]:
        raise NotImplementedError

    def entry(self, entry: Entry, depth: int, *, last: bool) -> list[str]:
        raise NotImplementedError

    def comments(self, paragraphs: Sequence[str], depth: int) -> list[str]:
        """Wrapped comment lines."""
        prefix = " " * depth + self.mark + " "
        lines: list[str] = []
        for paragraph in paragraphs:
            wrapped = textwrap.wrap(
                printable(paragraph),
                max(_COLUMNS - len(prefix), 40),
                break_long_words=False,
                break_on_hyphens=False,
            )
            lines += [prefix + line for line in wrapped or [""]]
        return lines

    def examples(self, block: Block, depth: int) -> list[str]:
        """Entries as comments, indented as they will stand once the marks are taken off."""
        lines: list[str] = []
        if block.examples and block.examples_title:
            lines += self.comments([block.examples_title], depth)
        for entry in block.examples:
            lines += self.comments(entry.comments, depth)
            lines += self.marked(self.entry(Entry(entry.key, entry.value), 0, last=False), depth)
        return lines

    def marked(self, lines: Sequence[str], depth: int) -> list[str]:
        """Lines of the configuration as comments."""
        return [" " * depth + self.mark + " " + printable(line) for line in lines]

    @staticmethod
    def scalar(value: Scalar) -> str:
        return json.dumps(value, ensure_ascii=False)

    def flat(self, values: Sequence[Scalar], depth: int, key: str) -> list[str]:
        """``key [a, b]`` on one line, or one word per line where that would be too long."""
        items = [self.scalar(value) for value in values]
        line = " " * depth + key + "[" + ", ".join(items) + "]"
        if len(line) <= _COLUMNS or not items:
            return [line]
        inner = " " * (depth + self.step)
        pairs = self._paired(items)
        return [
            " " * depth + key + "[",
            *(f"{inner}{pair}," for pair in pairs[:-1]),
            inner + pairs[-1],
            " " * depth + "]",
        ]

    @staticmethod
    def _paired(items: Sequence[str]) -> list[str]:
        """Options beside their values: easier to read and to edit."""
        pairs: list[str] = []
        for item in items:
            if pairs and pairs[-1].startswith('"-') and ", " not in pairs[-1] and not item.startswith('"-'):
                pairs[-1] += f", {item}"
            else:
                pairs.append(item)
        return pairs


class _Json(_Renderer):
    mark = "//"

    def document(self, block: Block) -> list[str]:
        return ["{", *self._inside(block, _INDENT), "}"]

    def _inside(self, block: Block, depth: int) -> list[str]:
        lines: list[str] = []
        for position, entry in enumerate(block.entries):
            # A comma before examples: then taking off their marks is all it takes to use them.
            last = position == len(block.entries) - 1 and not block.examples
            lines += [*self.comments(entry.comments, depth), *self.entry(entry, depth, last=last)]
        return [*lines, *self.examples(block, depth)]

    def entry(self, entry: Entry, depth: int, *, last: bool) -> list[str]:
        key, comma = self.scalar(entry.key) + ": ", "" if last else ","
        value, pad = entry.value, " " * depth
        if isinstance(value, Block):
            if not value.entries:
                return [f"{pad}{key}{{}}{comma}"]
            if (short := self._short(value)) and len(pad) + len(key) + len(short) < _COLUMNS:
                return [f"{pad}{key}{short}{comma}"]
            return [f"{pad}{key}{{", *self._inside(value, depth + _INDENT), f"{pad}}}{comma}"]
        if isinstance(value, Listing):
            return [f"{pad}{key}[", *self._items(value, depth + _INDENT), f"{pad}]{comma}"]
        if isinstance(value, tuple):
            lines = self.flat(value, depth, key)
            return [*lines[:-1], lines[-1] + comma]
        return [f"{pad}{key}{self.scalar(value)}{comma}"]

    def _short(self, block: Block) -> str | None:
        """A small object without remarks, on one line."""
        if block.examples or any(one.comments or isinstance(one.value, (Block, Listing)) for one in block.entries):
            return None
        parts = []
        for one in block.entries:
            lines = self.entry(one, 0, last=True)
            parts.append(lines[0])
            if len(lines) > 1:
                return None
        return "{" + ", ".join(parts) + "}"

    def _items(self, listing: Listing, depth: int) -> list[str]:
        pad = " " * depth
        lines: list[str] = []
        for block in listing.examples:
            example = ["{", *self._inside(Block(block.entries), _INDENT), "},"]
            lines += [*self.comments(block.comments, depth), *self.marked(example, depth)]
        for position, block in enumerate(listing.items):
            comma = "" if position == len(listing.items) - 1 else ","
            lines += [*self.comments(block.comments, depth), f"{pad}{{"]
            lines += [*self._inside(block, depth + _INDENT), f"{pad}}}{comma}"]
        return lines


class _Yaml(_Renderer):
    step = 2

    def document(self, block: Block) -> list[str]:
        return self._inside(block, 0)

    def _inside(self, block: Block, depth: int) -> list[str]:
        lines: list[str] = []
        for entry in block.entries:
            lines += [*self.comments(entry.comments, depth), *self.entry(entry, depth, last=False)]
        return [*lines, *self.examples(block, depth)]

    def entry(self, entry: Entry, depth: int, *, last: bool) -> list[str]:
        value, pad = entry.value, " " * depth
        key = (entry.key if entry.key.isidentifier() else self.scalar(entry.key)) + ":"
        if isinstance(value, Block):
            if not value.entries:
                return [f"{pad}{key} {{}}"]
            return [f"{pad}{key}", *self._inside(value, depth + self.step)]
        if isinstance(value, Listing):
            lines = [f"{pad}{key}"]
            for block in value.examples:
                inside = self._dashed(self._inside(Block(block.entries), self.step), 0)
                lines += [*self.comments(block.comments, depth + self.step), *self.marked(inside, depth + self.step)]
            for block in value.items:
                inside = self._inside(block, depth + 2 * self.step)
                lines += self.comments(block.comments, depth + self.step)
                lines += self._dashed(inside, depth + self.step)
            return lines
        if isinstance(value, tuple):
            return self.flat(value, depth, f"{key} ")
        return [f"{pad}{key} {self.scalar(value)}"]

    @staticmethod
    def _dashed(lines: Sequence[str], depth: int) -> list[str]:
        """The item's lines with a dash before its first key; comments above that key go before the dash."""
        first = next(number for number, line in enumerate(lines) if not line.lstrip().startswith("#"))
        dashed = " " * depth + "- " + lines[first].lstrip()
        return [*(line[2:] for line in lines[:first]), dashed, *lines[first + 1 :]]
