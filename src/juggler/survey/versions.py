"""The version in what a program prints when it is asked for it. Pure.

Programs surround it with other things: llama.cpp lists its devices first and its compiler after it, ollama warns that
no server runs, vLLM logs what it could not import.
"""

import re
from collections.abc import Sequence

CHARACTERS_MAX = 100

_ALONE = re.compile(r"v?[0-9]+(\.[0-9]+)+[\w.+-]*\Z")
_NAMED = re.compile(r"\bversion\b\W*(is\W*)?v?[0-9]", re.IGNORECASE)
_AFTER_NAME = re.compile(r"[\w.+-]+ v?[0-9]+(\.[0-9]+)+\b")


def find_version(lines: Sequence[str], *, strict: bool = False) -> str | None:
    """The line that tells the version, shortened; None if nothing looks like one.

    Args:
        strict: Take nothing for a version that may be part of an error message: ``libcudart.so.12 ...``.
    """
    looks = [_ALONE.match, _NAMED.search] + ([] if strict else [_AFTER_NAME.match])
    for look in looks:
        for line in lines:
            if look(line.strip()):
                return shortened(line.strip())
    return None


def shortened(line: str) -> str:
    """At most ``CHARACTERS_MAX`` characters, printable ones only."""
    clean = "".join(character if character.isprintable() else " " for character in line).strip()
    return clean if len(clean) <= CHARACTERS_MAX else clean[: CHARACTERS_MAX - 4] + " ..."
