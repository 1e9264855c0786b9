"""The ``juggler`` command. Exit statuses: 0 fine, 1 problems found or a command that failed, 2 wrong use or file.

Modules are imported by the commands that need them, so that ``juggler ps`` does not pay for the whole program.
"""

import gc
import os
import sys
from pathlib import Path

import click

from juggler import __version__
from juggler.errors import ConfigError, JugglerError

DEFAULT_CONFIG = "config.json"
DEFAULT_CONTROL_URL = "http://127.0.0.1:8020"

_config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    envvar="JUGGLER_CONFIG",
    default=Path(DEFAULT_CONFIG),
    show_default=True,
    help="The configuration file (JSON or YAML).",
)
_log_options = [
    click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        envvar="JUGGLER_LOG",
        default="info",
        show_default=True,
    ),
    click.option("--log-json", is_flag=True, envvar="JUGGLER_LOG_JSON", help="Write the log as JSON lines."),
]
_url_option = click.option(
    "--url",
    envvar="JUGGLER_URL",
    default=DEFAULT_CONTROL_URL,
    show_default=True,
    help="Where the running juggler's status API listens.",
)


def main() -> None:
    """Entry point: no traceback ever reaches the terminal for a mistake that is not ours."""
    gc.disable()  # nothing dies while modules are imported; `serve` turns it on again before it listens
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except ConfigError as error:
        _print_error(error)
        sys.exit(2)
    except JugglerError as error:
        _print_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _print_error(error: JugglerError) -> None:
    click.echo(error.message, err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="juggler")
@click.pass_context
def cli(context: click.Context) -> None:
    """Runs more AI models on a machine than fit in its memory.

    Bare `juggler` shows what runs and what to do next.
    """
    if context.invoked_subcommand is None:
        from juggler.cli.remote import print_overview

        url = os.environ.get("JUGGLER_URL") or DEFAULT_CONTROL_URL
        print_overview(url, Path(os.environ.get("JUGGLER_CONFIG") or DEFAULT_CONFIG))


@cli.command()
@_config_option
@_log_options[0]
@_log_options[1]
def serve(config_path: Path, log_level: str, log_json: bool) -> None:
    """Serve the endpoints of a configuration until Ctrl-C or SIGTERM.

    Example: juggler serve --config config.json
    """
    from juggler.cli.serve import serve_file

    serve_file(config_path, log_level=log_level, log_json=log_json)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path(DEFAULT_CONFIG))
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def check(file: Path, as_json: bool) -> None:
    """Look for mistakes in a configuration and on this machine.

    Exit status: 0 fine, 1 problems, 2 file missing or unreadable. Example: juggler check config.json
    """
    from juggler.cli.check import check_file

    sys.exit(check_file(file, as_json=as_json))


@cli.command()
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path(DEFAULT_CONFIG),
    show_default=True,
    help="The file to write: JSON with comments, or YAML by its ending; `-` prints it.",
)
@click.option("--force", is_flag=True, help="Replace the file if it is there.")
@click.option(
    "--models",
    "model_folders",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A folder with GGUF files, besides the usual ones; may be repeated.",
)
@click.option(
    "--port",
    "ports",
    type=click.IntRange(1, 65535),
    multiple=True,
    help="A port on which to look for a running server, instead of the usual ones; may be repeated.",
)
def init(output: Path, force: bool, model_folders: tuple[Path, ...], ports: tuple[int, ...]) -> None:
    """Look for programs, servers, models and GPUs, and write a configuration for them.

    Every choice is explained by a comment. Nothing else is changed. Example: juggler init --models /data/gguf
    """
    from juggler.cli.init import write_config

    write_config(output, default=Path(DEFAULT_CONFIG), force=force, model_folders=model_folders, ports=ports)


@cli.command()
@_config_option
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def doctor(context: click.Context, config_path: Path, as_json: bool) -> None:
    """Say what is wrong on this machine and what to do: programs, options, files, ports, GPUs.

    Changes nothing and starts no server. Exit status: 0 no problem, 1 problems. Example: juggler doctor
    """
    from juggler.cli.doctor import print_report

    named = context.get_parameter_source("config_path") is not click.core.ParameterSource.DEFAULT
    sys.exit(print_report(config_path, named=named, as_json=as_json))


@cli.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors.

    Example: juggler schema > juggler.schema.json
    """
    import json

    from juggler.config.jsonschema import build_schema

    click.echo(json.dumps(build_schema(), indent=2, ensure_ascii=False))


@cli.command()
@click.option("--port", default=8021, show_default=True, help="Where the demo's endpoints listen.")
@click.option("--control-port", default=8020, show_default=True, help="Where its status API listens.")
@_log_options[0]
@_log_options[1]
def demo(port: int, control_port: int, log_level: str, log_json: bool) -> None:
    """Show it all without any configuration: two real llama.cpp servers and an image backend share a pretend GPU.

    The models hold random weights: what they write is gibberish by nature. Ctrl-C ends it and leaves nothing.
    """
    from juggler.cli.serve import serve_demo

    serve_demo(port, control_port, log_level=log_level, log_json=log_json)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything there is, as JSON.")
@_url_option
def ps(as_json: bool, url: str) -> None:
    """Show what is loaded, what runs and who waits.

    Example: juggler ps --json
    """
    from juggler.cli.remote import print_status

    print_status(url, as_json=as_json)


@cli.command()
@click.argument("endpoint", required=False)
@click.option("--count", default=10, show_default=True, type=click.IntRange(1, 1000), help="How many, the latest last.")
@click.option("--json", "as_json", is_flag=True, help="Print everything there is, as JSON.")
@_url_option
def why(endpoint: str | None, count: int, as_json: bool, url: str) -> None:
    """Say why models were loaded, unloaded and stopped: who asked, who was considered, what it cost.

    Example: juggler why 'Default LLM'
    """
    from juggler.cli.why import print_decisions

    print_decisions(url, endpoint, count=count, as_json=as_json)


def _order_command(name: str, text: str) -> None:
    @cli.command(name, help=f"{text}\n\nExample: juggler {name} 'Default LLM'")
    @click.argument("endpoint")
    @_url_option
    def command(endpoint: str, url: str) -> None:
        from juggler.cli.remote import give_order

        give_order(url, name, endpoint)


_order_command("load", "Load an endpoint as a request would, and wait until it is ready.")
_order_command("unload", "Free an endpoint's memory once its running requests have ended; the next request loads it.")
_order_command("stop", "End an endpoint's process once its running requests have ended; the next request starts it.")


if __name__ == "__main__":
    main()
