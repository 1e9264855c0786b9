"""How llama-server reads the value of an option. Leaf module: imports nothing of ours, and little else.

The texts of the errors are those of llama.cpp's ``common/arg.cpp`` as found in build 11549, because operators search
for them and ``juggler.backends.llamacpp_hints`` looks for them.
"""

import os
import re
from collections.abc import Callable

_INT = re.compile(r"\s*[+-]?\d+")
_FLOAT = re.compile(r"\s*[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|inf|nan)", re.IGNORECASE)

TRUE_WORDS = ("on", "enabled", "true", "1")
FALSE_WORDS = ("off", "disabled", "false", "0")


def integer(text: str) -> int:
    """As ``std::stoi``: leading digits count, what follows is ignored.

    Raises:
        ValueError: ``stoi`` where there is no digit, as the C++ library words it.
    """
    match = _INT.match(text)
    if match is None:
        raise ValueError("stoi")
    number = int(match.group())
    if not -(2**31) <= number < 2**31:
        raise ValueError("stoi: out of range")
    return number


def unsigned(text: str) -> int:
    """A seed: 32 bits, where -1 stands for a random one."""
    match = _INT.match(text)
    if match is None:
        raise ValueError("stoul")
    return int(match.group()) % 2**32


def number(text: str) -> float:
    """As ``std::stof``.

    Raises:
        ValueError: ``stof`` where there is no number.
    """
    match = _FLOAT.match(text)
    if match is None:
        raise ValueError("stof")
    return float(match.group())


def parallel(text: str) -> int:
    """Number of slots; -1 is automatic, 0 is refused."""
    value = integer(text)
    if value == 0:
        raise ValueError("error: invalid value for n_parallel\n")
    return value


def sleep_seconds(text: str) -> int:
    """Idle seconds before the model is given up; -1 is never."""
    value = integer(text)
    if value == 0 or value < -1:
        raise ValueError("invalid value: cannot be 0 or less than -1")
    return value


def gpu_layers(text: str) -> int:
    """A number, ``auto`` (-1) or ``all`` (-2)."""
    return {"auto": -1, "all": -2}.get(text) or integer(text)


def switch(option: str) -> Callable[[str], bool]:
    """``on`` or ``off`` as a value."""

    def parse(text: str) -> bool:
        if text in TRUE_WORDS:
            return True
        if text in FALSE_WORDS:
            return False
        raise ValueError(f"error: unknown value for {option}: '{text}'\n")

    return parse


def choice(words: dict[str, str], refusal: str = "invalid value") -> Callable[[str], str]:
    """One of some words, each standing for the name of a constant of the wheel."""

    def parse(text: str) -> str:
        try:
            return words[text]
        except KeyError:
            raise ValueError(refusal.format(text)) from None

    return parse


def directory(text: str) -> str:
    """An existing directory, with the separator at its end that the server's string concatenation relies on."""
    if not os.path.isdir(text):  # noqa: PTH112  # pathlib would cost a tenth of the start-up
        raise ValueError(f"not a directory: {text}")
    return text if text.endswith(os.sep) else text + os.sep


def comma_list(text: str) -> list[str]:
    """``a,b`` without empty parts."""
    return [part for part in text.split(",") if part]


def key_file(text: str) -> list[str]:
    """The non-empty lines of a file of API keys."""
    return [line.strip() for line in text_file(text).splitlines() if line.strip()]


def text_file(text: str) -> str:
    """The whole of a text file."""
    try:
        with open(text, encoding="utf-8") as file:  # noqa: PTH123  # as above
            return file.read()
    except OSError:
        raise ValueError(f"error: failed to open file '{text}'\n") from None


def scaled(text: str) -> list[tuple[str, float]]:
    """``FILE:SCALE,FILE:SCALE`` of ``--lora-scaled``."""
    pairs = []
    for part in comma_list(text):
        name, separator, scale = part.rpartition(":")
        if not separator:
            raise ValueError("lora-scaled format: FNAME:SCALE")
        pairs.append((name, number(scale)))
    return pairs


def proportions(text: str) -> list[float]:
    """``3,1`` or ``3/1`` of ``--tensor-split``."""
    return [number(part) for part in re.split(r"[,/]+", text)]
