"""Options that several commands share, and what completes their values in a shell."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem

from juggler.cli.remote import DEFAULT_CONFIG, DEFAULT_CONTROL_URL, Remote
from juggler.units import parse_duration

_F = TypeVar("_F", bound=Callable[..., Any])


def config_option(text: str = "The configuration file (JSON or YAML).") -> Callable[[_F], _F]:
    """``--config``: the parameter ``config_path``."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        envvar="JUGGLER_CONFIG",
        show_envvar=True,
        default=Path(DEFAULT_CONFIG),
        show_default=True,
        help=text,
    )


def log_options(function: _F) -> _F:
    """``--log-level`` and ``--log-json``."""
    as_json = click.option("--log-json", is_flag=True, envvar="JUGGLER_LOG_JSON", help="Write the log as JSON lines.")
    level = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        envvar="JUGGLER_LOG",
        default="info",
        show_default=True,
    )
    return level(as_json(function))


def duration(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    """Reads ``90``, ``90s``, ``10m`` as seconds; for ``callback``.

    Raises:
        click.BadParameter: It is none.
    """
    if text is None:
        return None
    try:
        return parse_duration(float(text) if text.replace(".", "", 1).isdecimal() else text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def json_option(text: str = "Print everything there is, as JSON.") -> Callable[[_F], _F]:
    """``--json``: the parameter ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def remote_options(function: Callable[..., None]) -> Callable[..., None]:
    """``--url``, ``--key`` and ``--config``; the command gets a ``Remote`` as its first argument.

    A subcommand takes what it is not given from the command above it.
    """

    @functools.wraps(function)
    def command(*args: Any, url: str | None, key: str | None, config_path: Path, **options: Any) -> None:
        context = click.get_current_context()
        above = context.parent.params if context.parent is not None else {}
        if context.get_parameter_source("config_path") is ParameterSource.DEFAULT:
            config_path = above.get("config_path", config_path)
        remote = Remote.find(url or above.get("url"), key or above.get("key"), config_path)
        function(remote, *args, **options)

    where = click.option(
        "--url",
        envvar="JUGGLER_URL",
        show_envvar=True,
        help=f"Where the running juggler's API listens; else the configuration says it, else {DEFAULT_CONTROL_URL}.",
    )
    key_option = click.option(
        "--key",
        envvar="JUGGLER_KEY",
        show_envvar=True,
        help="The admin key, if one is needed; else `control.key` of the configuration.",
    )
    config = config_option("The configuration that says where the juggler listens, if --url does not.")
    return where(key_option(config(command)))


def endpoint_arguments(function: _F) -> _F:
    """One endpoint or more: the parameter ``endpoints``."""
    return click.argument("endpoints", metavar="ENDPOINT...", nargs=-1, required=True, shell_complete=endpoint_names)(
        function
    )


def endpoint_names(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """What completes an endpoint's name."""
    from juggler.cli.completion import endpoints

    return endpoints(context.params, begun)


def log_names(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """What completes a log's name: an endpoint's, or ``juggler``."""
    from juggler.cli.completion import endpoints

    own = [CompletionItem("juggler", help="its own log")] if "juggler".startswith(begun) else []
    return own + endpoints(context.params, begun)


def waiting_requests(context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """What completes the number of a waiting request."""
    from juggler.cli.completion import requests

    return requests(context.params, begun)
