"""``juggler reload``: have the running juggler read its configuration again."""

import json
from typing import Any

import click

from juggler.cli.remote import Remote
from juggler.config.problems import Problem
from juggler.errors import JugglerError

TIMEOUT_S = 120.0
"""The juggler's own bounds, for reading and for making ready, are 70 s together; another reload may come first."""


def reload_config(remote: Remote, *, dry_run: bool, as_json: bool) -> int:
    """Ask for it and print what came of it; returns the exit status.

    0: done, or nothing to do. 1: not possible now. 2: the file has problems, and nothing was changed.

    Raises:
        JugglerError: Nobody can be asked.
    """
    path = f"/api/v1/reload?dry_run={'true' if dry_run else 'false'}"
    outcome = remote.call("POST", path, "result", TIMEOUT_S)
    if as_json:
        click.echo(json.dumps(outcome, indent=2))
    elif outcome["result"] == "refused":
        raise JugglerError(f"nothing was changed: {outcome['message']}", hint=outcome["hint"])
    else:
        _print(outcome)
    if outcome["ok"]:
        return 0
    return 1 if outcome["result"] == "refused" else 2


def _print(outcome: dict[str, Any]) -> None:
    for problem in outcome["problems"]:
        click.echo(_text(problem), err=True)
    if not outcome["ok"]:
        click.echo(outcome["summary"], err=True)
        return
    click.echo(f"{'dry run: ' if outcome['dry_run'] else ''}{outcome['summary']}")
    for line in outcome["plan"]["lines"]:
        click.echo(f"  {line}")


def _text(problem: dict[str, Any]) -> str:
    """As ``juggler check`` tells it; what is not of the file's text has no place in it."""
    if problem["line"] is not None:
        return str(Problem(**problem))
    hint = f"\n  hint: {problem['hint']}" if problem["hint"] else ""
    return f"{problem['message']}{hint}"
