"""Which options of a command line a program does not know, judged by its own help text. Pure.

Two families of parsers (backends.md section 1.2): llama.cpp, where a name is exact and a value is always the next
word; and Python's argparse, where names may be abbreviated and values attached (``--port=1``, ``-c4096``).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Family = Literal["exact", "argparse"]

DEFINITIONS_MIN = 4
"""A text with fewer is no list of options: an error message, or the help of a wrapper."""

_INDENT_MAX = 8
"""Definitions begin further left than descriptions: at 0 (llama.cpp), 2 (argparse, click), 6 (Go's flags)."""

_OPTION = r"--?[A-Za-z0-9][\w.-]*"
_VALUE = r"(?!-)[^\s,]+"
_DEFINITION = re.compile(rf"\s{{0,{_INDENT_MAX}}}({_OPTION})")
_NEXT_NAME = re.compile(rf"\s*[,|/]\s*({_OPTION})")
_HINT = re.compile(rf"[ =]({_VALUE})")
_FIRST_NAME = re.compile(_OPTION)
_NUMBER = re.compile(r"-[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?\Z")
_GROUP = re.compile(r"<[^<>]*>")
_NEGATED = re.compile(r"--\[no-\]([\w.-]+)")


@dataclass(frozen=True, slots=True)
class KnownOptions:
    """What a help text lists."""

    names: frozenset[str]
    """As written, long ones with dashes for underscores."""
    values: dict[str, int]
    """How many words follow a name, as far as the text shows."""


def read_help(text: str) -> KnownOptions | None:
    """The options a help text defines; None if it does not look like a list of options."""
    values: dict[str, int] = {}
    definitions = 0
    for line in text.splitlines():
        # A hint in angle brackets is one value, whatever stands in it; ``--[no-]mmap`` is two names.
        names, words = _definition(_GROUP.sub("<>", _NEGATED.sub(r"--\1, --no-\1", line)))
        definitions += bool(names)
        for name in names:
            values[name] = max(words, values.get(name, 0))
    if definitions < DEFINITIONS_MIN:
        return None
    return KnownOptions(frozenset(values), values)


def _definition(line: str) -> tuple[list[str], int]:
    """Names at the beginning of a line, and how many words of value the last of them shows.

    ``-m,    --model FNAME      the model`` and ``--lora FILE [SCALE], -l FILE``: a description is two spaces away.
    """
    match = _DEFINITION.match(line)
    if match is None:
        return [], 0
    names, words = [canonical(match.group(1))], 0
    position = match.end()
    while True:
        shown = 0
        while value := _HINT.match(line, position):
            shown += 1
            position = value.end()
        words = max(words, shown)
        following = _NEXT_NAME.match(line, position)
        if following is None:
            return names, words
        names.append(canonical(following.group(1)))
        position = following.end()


def unknown_options(arguments: Sequence[str], known: KnownOptions, family: Family) -> list[str]:
    """The options in a command line that the program does not list, in order, each once."""
    unknown: dict[str, None] = {}
    skip = 0
    for word in arguments:
        if skip:
            skip -= 1
            continue
        if word == "--" and family == "argparse":
            break
        if not _is_option(word, family):
            continue
        name = word if family == "exact" else word.partition("=")[0]
        if not _is_known(name, known, family):
            unknown[name] = None
        elif family == "exact":
            skip = known.values.get(canonical(name), 0)
    return list(unknown)


def _is_option(word: str, family: Family) -> bool:
    if not _FIRST_NAME.match(word) or _NUMBER.match(word):
        return False
    return family == "exact" or " " not in word.partition("=")[0]


def _is_known(name: str, known: KnownOptions, family: Family) -> bool:
    wanted = canonical(name)
    if wanted in known.names:
        return True
    if family == "exact":
        return False
    if wanted.startswith("--"):
        # vLLM takes ``--option.key value`` for options that hold a JSON object.
        plain = wanted.partition(".")[0]
        return plain in known.names or any(one.startswith(wanted) for one in known.names)
    return wanted[:2] in known.names  # ``-c4096``


def canonical(name: str) -> str:
    """A long option with dashes for underscores, without a dot or dash at its end; a short one unchanged."""
    return name.replace("_", "-").rstrip(".-") if name.startswith("--") else name
