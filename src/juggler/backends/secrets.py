"""Passwords and keys: finding them in what the operator wrote, and keeping them out of what others read.

Programs print their own command line (koboldcpp prints its passwords, backends.md 4.1), and their last lines reach
clients in error bodies.
"""

import re
import shlex
from collections.abc import Mapping, Sequence

SECRET_NAME = re.compile(
    r"(^|[-_])(key|apikey|token|hft|secret|password|passwd|pass|adminpassword|auth|credentials?)([-_]|$)", re.IGNORECASE
)
"""Names of options and variables whose value nobody should see."""

SHORTEST = 4
"""Shorter values are left alone: they would also stand in places where they are no secret."""

MASK = "***"
_NO_SECRETS = frozenset(("true", "false", "null", "none", "yes", "no", "on", "off", "auto", "enabled", "disabled"))
"""``WEBUI_AUTH=true`` says whether there is a secret; masked, every ``true`` would be."""
_FILE_NAME = re.compile(r"(file|path|dir|folder)s?$", re.IGNORECASE)


def secrets_of(parameters: Sequence[str], env: Mapping[str, str]) -> tuple[str, ...]:
    """The values of all options and variables with a telling name, longest first."""
    found = [value for name, value in env.items() if _is_secret(name)]
    words = [*parameters, *_words(env.get("COMMANDLINE_ARGS", ""))]  # more options of A1111 and Forge
    for position, word in enumerate(words):
        value = value_behind_secret_name(word)
        if value is not None:
            found.append(value)
        elif word.startswith("-") and _is_secret(word) and position + 1 < len(words):
            found.append(words[position + 1])
    parts = {part for value in found for part in (value, *value.split(","))}
    secrets = (part for part in parts if len(part) >= SHORTEST and part.lower() not in _NO_SECRETS)
    return tuple(sorted(secrets, key=len, reverse=True))


def value_behind_secret_name(word: str) -> str | None:
    """What stands behind a telling name and ``=``: in ``--api-key=x``, ``HF_TOKEN=x``, ``--env=HF_TOKEN=x``."""
    name, equals, rest = word.partition("=")
    while equals:
        if _is_secret(name):
            return rest
        name, equals, rest = rest.partition("=")
    return None


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # an open quote
        return line.split()


def redacted(lines: Sequence[str], secrets: Sequence[str]) -> list[str]:
    """The lines with every secret replaced by ``***``."""
    result = list(lines)
    for secret in secrets:
        result = [line.replace(secret, MASK) for line in result]
    return result


def _is_secret(name: str) -> bool:
    return SECRET_NAME.search(name.lstrip("-")) is not None and not _FILE_NAME.search(name)
