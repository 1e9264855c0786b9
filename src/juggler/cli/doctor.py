"""``juggler doctor``: print the report."""

import json
import os
import sys
from pathlib import Path

import click

from juggler.cli.interruptible import run_interruptibly
from juggler.doctor.examine import examine
from juggler.doctor.findings import Grade, Section, healthy
from juggler.doctor.report import document, plain, section_text, summary

_COLOURS = {Grade.OK: "green", Grade.NOTE: "cyan", Grade.WARNING: "yellow", Grade.PROBLEM: "red"}


def print_report(path: Path, *, named: bool, as_json: bool) -> int:
    """Examine configuration and machine; returns the exit status: 0 without problems, else 1.

    Args:
        named: The operator named the file, so it must exist; else it is looked at if it is there.
    """
    config = path if named or path.exists() else None
    sections = run_interruptibly(_collect(config, as_json=as_json))
    if as_json:
        click.echo(json.dumps(document(sections), indent=2))
    else:
        click.echo(summary(sections))
    return 0 if healthy(sections) else 1


async def _collect(config: Path | None, *, as_json: bool) -> list[Section]:
    paint = _paint if sys.stdout.isatty() and "NO_COLOR" not in os.environ else plain
    sections = []
    async for section in examine(config):
        sections.append(section)
        if not as_json:
            click.echo(section_text(section, paint) + "\n")
    return sections


def _paint(word: str, grade: Grade) -> str:
    return click.style(word, fg=_COLOURS[grade], bold=grade is Grade.PROBLEM)
