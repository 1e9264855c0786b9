"""``juggler check``: everything that is wrong, in one go."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from juggler.config.effect import not_in_effect
from juggler.config.load import ConfigFileError, load_config
from juggler.config.machine import machine_problems
from juggler.config.problems import Problem
from juggler.errors import ConfigError


def check_file(path: Path, *, as_json: bool) -> int:
    """Print what is wrong with the file and with this machine for it; returns the exit status."""
    try:
        loaded = load_config(path)
    except ConfigFileError as error:
        return _report([], as_json=as_json, status=2, text=error.message)
    except ConfigError as error:
        problems = error.details.get("problems", [])
        return _report(problems if isinstance(problems, list) else [], as_json=as_json, status=1, text=error.message)
    problems = [*loaded.warnings, *machine_problems(loaded), *not_in_effect(loaded)]
    status = 1 if any(problem.severity == "error" for problem in problems) else 0
    text = "\n".join(str(problem) for problem in problems)
    fine = f"{path}: fine" if status == 0 else ""
    return _report(problems, as_json=as_json, status=status, text="\n".join(part for part in (text, fine) if part))


def _report(problems: Sequence[Problem | dict[str, Any]], *, as_json: bool, status: int, text: str) -> int:
    if as_json:
        rows = [problem if isinstance(problem, dict) else dataclasses.asdict(problem) for problem in problems]
        document: dict[str, Any] = {"ok": status == 0, "problems": rows}
        if status == 2:
            document["error"] = text
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(text, err=status != 0)
    return status
