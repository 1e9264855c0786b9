"""What a shell offers to complete: endpoints and requests of the running juggler, within a moment."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from click.shell_completion import BashComplete, CompletionItem, FishComplete, ShellComplete, ZshComplete

from juggler.cli.glance import glance
from juggler.cli.remote import DEFAULT_CONFIG, Remote
from juggler.errors import JugglerError

LIMIT_S = 0.3
"""For the answer of the juggler: a person has pressed a key and waits."""

_PLAIN = "COMPREPLY+=($value)"
_WITH_SPACES = """COMPREPLY+=("$value")
            [[ $value == *" "* ]] && compopt -o filenames"""
"""Bash quotes completions with blanks only where it takes them for names of files."""


class _Bash(BashComplete):
    @property
    def source_template(self) -> str:  # type: ignore[override]  # a constant there
        before, found, after = BashComplete.source_template.partition(_PLAIN)
        return before + _WITH_SPACES + after if found else before  # another version of click has it otherwise

    @staticmethod
    def _check_version() -> None:
        """Not here: the script may be made on another machine than it is used on."""


_SHELLS: Mapping[str, type[ShellComplete]] = {"bash": _Bash, "zsh": ZshComplete, "fish": FishComplete}
SHELLS = tuple(_SHELLS)


def script(shell: str, command: click.Command) -> str:
    """What to source in the shell, or to put where it looks for completions."""
    return _SHELLS[shell](command, {}, "juggler", "_JUGGLER_COMPLETE").source()


def endpoints(given: Mapping[str, Any], begun: str) -> list[CompletionItem]:
    """Endpoints of the running juggler, else of the configuration file; their own names where these are unique."""
    listed = _ask(given, "/api/v1/endpoints", "endpoints")
    if listed is not None:
        names = {str(one["endpoint"]): str(one.get("type", "")) for one in listed if "endpoint" in one}
    else:
        names = dict.fromkeys(glance(_config(given)).endpoints, "")
    own = Counter(name.partition("/")[2] for name in names)
    items = []
    for name, kind in names.items():
        short = name.partition("/")[2]
        shown = name if "/" in begun or own[short] > 1 else short
        items.append(CompletionItem(shown, help=kind or None))
    return _beginning(items, begun)


def requests(given: Mapping[str, Any], begun: str) -> list[CompletionItem]:
    """Requests that wait."""
    listed = _ask(given, "/api/v1/waiting", "waiting") or []
    return _beginning(
        (CompletionItem(str(one["request"]), help=str(one.get("endpoint", ""))) for one in listed if "request" in one),
        begun,
    )


def _ask(given: Mapping[str, Any], path: str, key: str) -> list[dict[str, Any]] | None:
    """What the juggler lists; None if none answers at once."""
    try:
        remote = Remote.find(given.get("url"), given.get("key"), _config(given))
        listed = remote.call("GET", path, key, LIMIT_S)[key]
    except (JugglerError, click.ClickException):
        return None
    return [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else None


def _config(given: Mapping[str, Any]) -> Path:
    return Path(given.get("config_path") or DEFAULT_CONFIG)


def _beginning(items: Iterable[CompletionItem], begun: str) -> list[CompletionItem]:
    folded = begun.casefold()
    return [item for item in items if str(item.value).casefold().startswith(folded)]
