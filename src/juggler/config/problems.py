"""What can be wrong with a configuration, and how it is told.

A problem knows its place in the file and prints as ``path:line:column: message`` first, so that terminals and
editors link it, then the line with a caret under the place, then a hint.
"""

import bisect
import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from juggler.errors import ConfigError

Severity = Literal["error", "warning", "note"]
PathParts = tuple[str | int, ...]
"""Where in the configuration: ``("servers", 0, "port")``."""

EXCERPT_CHARACTERS_MAX = 120
"""Longer lines are cut around the caret: a terminal line or two, whatever the file holds."""

_LINE_END = re.compile(r"\r\n|\n|\r")


class Position(NamedTuple):
    """A place in a text, both counted from 1; columns count characters (a tab is one)."""

    line: int
    column: int


class ConfigFileError(ConfigError):
    """The configuration file is missing or cannot be read. The operator named a wrong file, or its rights are wrong."""

    code = "config_file_error"


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing the operator should know about the configuration."""

    severity: Severity
    """``error`` stops the program, ``warning`` does not, ``note`` says what this version does not do yet."""
    path: str
    """The file, as the operator named it."""
    line: int
    column: int
    message: str
    """One sentence without a full stop."""
    hint: str | None = None
    """What to do about it."""
    code: str = "invalid"
    """Machine-readable kind, in kebab case: ``unknown-key``, ``duplicate-name`` ..."""
    key: str = ""
    """Where in the configuration, as text: ``servers[0].port``; empty for problems of the file's form."""
    excerpt: str = ""
    """The line with a caret below it, two lines without a final line end; empty where there is no text."""

    def as_dict(self) -> dict[str, str | int | None]:
        """Plain JSON data."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        word = "" if self.severity == "error" else f"{self.severity}: "
        lines = [f"{self.path}:{self.line}:{self.column}: {word}{self.message}"]
        if self.excerpt:
            lines.append(self.excerpt)
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class Source:
    """The text of one configuration file, able to say where an offset lies.

    Args:
        path: As the operator named it; only ever printed.
        text: Decoded, without byte order mark.
    """

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.text = text
        self._line_starts = [0, *(match.end() for match in _LINE_END.finditer(text))]

    def position(self, offset: int) -> Position:
        """Line and column of a character; ``len(text)`` is the place after the last one."""
        index = bisect.bisect_right(self._line_starts, offset) - 1
        return Position(index + 1, offset - self._line_starts[index] + 1)

    def line(self, number: int) -> str:
        """One line without its end; empty if there is no such line."""
        if not 1 <= number <= len(self._line_starts):
            return ""
        start = self._line_starts[number - 1]
        match = _LINE_END.search(self.text, start)
        return self.text[start : match.start() if match else len(self.text)]

    def problem(
        self,
        severity: Severity,
        position: Position,
        message: str,
        *,
        hint: str | None = None,
        code: str = "invalid",
        key: PathParts = (),
    ) -> Problem:
        """A problem at a place in this text, with its excerpt."""
        return Problem(
            severity,
            self.path,
            position.line,
            position.column,
            message,
            hint,
            code,
            path_text(key),
            excerpt(self.line(position.line), position.column),
        )


def excerpt(line: str, column: int) -> str:
    """The line and a caret under ``column`` (from 1), in two lines indented by four.

    Control characters are replaced: an excerpt must not be able to send commands to the terminal.
    """
    caret = min(column - 1, len(line))
    start = 0
    if len(line) > EXCERPT_CHARACTERS_MAX:
        start = max(0, min(caret - EXCERPT_CHARACTERS_MAX // 2, len(line) - EXCERPT_CHARACTERS_MAX))
    shown = line[start : start + EXCERPT_CHARACTERS_MAX]
    clean = "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in shown)
    # The caret line repeats tabs and counts wide characters twice, so that the caret stands right in a terminal.
    padding = "".join(
        "\t" if c == "\t" else "  " if unicodedata.east_asian_width(c) in "WF" else " " for c in clean[: caret - start]
    )
    return f"    {clean}\n    {padding}^"


def path_text(parts: PathParts) -> str:
    """``("servers", 0, "port")`` as ``servers[0].port``."""
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def in_file_order(problems: Iterable[Problem]) -> list[Problem]:
    """Sorted by place; equal places keep their order."""
    return sorted(problems, key=lambda problem: (problem.path, problem.line, problem.column))


def config_error(problems: Sequence[Problem]) -> ConfigError:
    """The exception that tells every problem at once; ``details["problems"]`` holds them as plain data."""
    ordered = in_file_order(problems)
    return ConfigError(
        "\n".join(str(problem) for problem in ordered),
        details={"problems": [problem.as_dict() for problem in ordered]},
    )
