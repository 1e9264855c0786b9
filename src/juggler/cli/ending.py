"""How every command ends: a sentence and an exit status, and no traceback for what is not our mistake.

0: done. 1: it could not be done, or there are problems. 2: wrong use, or a configuration that is wrong. 130: Ctrl-C.
141: whoever read our output has gone (as for other programs in a pipe).
"""

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import click

from juggler.errors import ConfigError, JugglerError

FAILED = 1
WRONG_USE = 2
INTERRUPTED = 130
READER_GONE = 141


class ReaderGone(Exception):
    """Whoever read our output has gone. No ``OSError``: click has its own way with those."""


class Group(click.Group):
    """Tells ``run`` when the reader of our output has gone."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*args, **extra)  # prints --help and --version
        except BrokenPipeError as error:
            raise ReaderGone from error
        except click.NoSuchOption as error:
            if any(error.option_name in one.opts for command in self.commands.values() for one in command.params):
                text = f"{error.option_name} belongs after the command: juggler COMMAND {error.option_name} ..."
                raise click.UsageError(text, error.ctx) from error
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error


def run(command: click.Command) -> None:
    """Run the command line and leave with its exit status."""
    # Without an open descriptor there is no stream: whoever closed it does not want to see anything.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  # until the end
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        _replace_what_it_lacks(stream)
    try:
        _run(command)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _give_up_if_gone(stream)


def _run(command: click.Command) -> None:
    try:
        status = command.main(prog_name="juggler", complete_var="_JUGGLER_COMPLETE", standalone_mode=False)
        sys.stdout.flush()
        if isinstance(status, int):  # click's own endings, such as that of --help
            sys.exit(status)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConfigError as error:
        _print_error(error)
        sys.exit(WRONG_USE)
    except JugglerError as error:
        _print_error(error)
        sys.exit(FAILED)
    except (ReaderGone, BrokenPipeError):
        sys.exit(READER_GONE)
    except OSError as error:
        with contextlib.suppress(OSError):  # the terminal may be gone as a whole
            click.echo(f"juggler: {error}", err=True)
        sys.exit(FAILED)


def _print_error(error: JugglerError) -> None:
    click.echo(error.message, err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def _replace_what_it_lacks(stream: TextIO) -> None:
    """Show ``?`` for what the terminal's encoding does not have, instead of ending in the middle of a line."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        with contextlib.suppress(OSError, ValueError):
            reconfigure(errors="replace")


def _give_up_if_gone(stream: TextIO) -> None:
    """The interpreter flushes once more at its end, and where that fails it complains and ends with 120."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
