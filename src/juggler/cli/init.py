"""``juggler init``: look around, write a configuration, say what to do with it."""

import os
from collections.abc import Sequence
from pathlib import Path

import click

from juggler.cli.interruptible import run_interruptibly
from juggler.config.load import load_text
from juggler.errors import ConfigError, JugglerError
from juggler.setup.document import Format, render
from juggler.setup.draft import make_document
from juggler.setup.gather import gather_facts
from juggler.setup.places import USUAL_PORTS, Surroundings
from juggler.setup.plan import make_plan
from juggler.setup.summary import found_text, plan_text
from juggler.setup.write import refuse_existing, write_file

STANDARD_OUTPUT = Path("-")
_NO_HOME = Path("/nonexistent")


def write_config(
    output: Path, *, default: Path, force: bool, model_folders: Sequence[Path], ports: Sequence[int]
) -> None:
    """Write a configuration for this machine.

    Args:
        output: Where to; ``-`` prints it instead.
        default: What ``serve`` takes when nothing is named.
        ports: Where to look for running servers; empty: the usual places.

    Raises:
        Refused: The file is there already, or cannot be written.
    """
    printing = output == STANDARD_OUTPUT
    if not force and not printing:
        refuse_existing(output)
    around = Surroundings(
        environ=dict(os.environ),
        home=_home(),
        model_folders=tuple(folder.absolute() for folder in model_folders),
        ports=tuple(ports) or tuple(USUAL_PORTS),
    )
    facts = run_interruptibly(gather_facts(around))
    plan = make_plan(facts)
    form: Format = "yaml" if output.suffix.lower() in (".yaml", ".yml") else "json"
    text = render(make_document(plan, facts), form)
    try:
        load_text(text, str(output), form)
    except ConfigError as error:
        raise JugglerError(f"a mistake of ours: the configuration would be wrong\n{error.message}") from error
    click.echo(found_text(facts) + "\n", err=printing)
    if printing:
        click.echo(text, nl=False)
        return
    write_file(output, text, replace=force)
    click.echo(plan_text(plan, output, default=default))


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # neither HOME nor an entry for this user
        return _NO_HOME
