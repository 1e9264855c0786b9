"""Command lines of programs that read them with Python's ``argparse``: A1111, Forge, koboldcpp, ComfyUI, vLLM.

Such a parser takes ``--port N``, ``--port=N`` and any unambiguous beginning of a name (``--por N``), so an option
must be looked for in all these forms (backends.md section 1.2; Python documentation of ``argparse``, "Argument
abbreviations").
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a program."""

    name: str
    """In full: ``--port``; short forms are options of their own."""
    shortest: str | None = None
    """The shortest beginning that the program still understands; None: only the full name."""
    values: int | Literal["optional", "many"] = 1
    """How many words follow: a number, at most one, or all up to the next option."""

    def names(self, word: str) -> bool:
        """Whether ``word`` (without ``=value``) is this option, perhaps abbreviated."""
        if word == self.name:
            return True
        return self.shortest is not None and word.startswith(self.shortest) and self.name.startswith(word)


def without_options(arguments: Sequence[str], options: Iterable[Option]) -> list[str]:
    """The arguments without these options and their values; whatever follows ``--`` is left alone."""
    return [word for word, option in _marked(arguments, tuple(options)) if option is None]


def option_value(arguments: Sequence[str], option: Option) -> str | None:
    """The value of the last of these options, ``""`` if it stands there without one; None if absent."""
    value: str | None = None
    for word, found in _marked(arguments, (option,)):
        if found is None:
            continue
        name, equals, given = word.partition("=")
        if word.startswith("-") and option.names(name):
            value = given if equals else ""
        elif value == "":
            value = word
    return value


def has_option(arguments: Sequence[str], option: Option) -> bool:
    """Whether the option stands in the line."""
    return option_value(arguments, option) is not None


def _marked(arguments: Sequence[str], options: Sequence[Option]) -> list[tuple[str, Option | None]]:
    """Each word with the option it belongs to, as name or as value."""
    marked: list[tuple[str, Option | None]] = []
    current: Option | None = None
    left = 0
    for position, word in enumerate(arguments):
        if word == "--":
            marked += [(rest, None) for rest in arguments[position:]]
            break
        looks_like_option = word.startswith("-") and len(word) > 1 and not _is_number(word)
        if left and not (looks_like_option and current is not None and not isinstance(current.values, int)):
            marked.append((word, current))
            left -= 1
            continue
        left = 0
        name, equals, _ = word.partition("=")
        current = next((one for one in options if looks_like_option and one.names(name)), None)
        marked.append((word, current))
        if current is not None and not equals:
            values = current.values
            left = values if isinstance(values, int) else 1 if values == "optional" else len(arguments)
    return marked


def _is_number(word: str) -> bool:
    """Argparse takes negative numbers for values."""
    try:
        float(word)
    except ValueError:
        return False
    return True
