"""The ``juggler`` command: every command with its options, and nothing else.

Modules are imported by the commands that need them, so that ``juggler ps`` does not pay for the whole program.
"""

import gc
import os
import sys
from pathlib import Path

import click

from juggler import __version__
from juggler.cli.ending import Group, run
from juggler.cli.options import (
    config_option,
    duration,
    endpoint_arguments,
    endpoint_names,
    json_option,
    log_names,
    log_options,
    remote_options,
    waiting_requests,
)
from juggler.cli.remote import DEFAULT_CONFIG, Remote


def main() -> None:
    """Entry point: no traceback ever reaches the terminal for a mistake that is not ours."""
    gc.disable()  # nothing dies while modules are imported; `serve` turns it on again before it listens
    run(cli)


@click.group(cls=Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="juggler")
@click.pass_context
def cli(context: click.Context) -> None:
    """Runs more AI models on a machine than fit in its memory.

    Bare `juggler` shows what runs and what to do next.
    """
    if context.invoked_subcommand is None:
        from juggler.cli.ps import print_overview

        config = Path(os.environ.get("JUGGLER_CONFIG") or DEFAULT_CONFIG)
        url, key = os.environ.get("JUGGLER_URL") or None, os.environ.get("JUGGLER_KEY") or None
        print_overview(Remote.find(url, key, config), config)


# ---------------------------------------------------------------- in this process


@cli.command()
@config_option()
@log_options
def serve(config_path: Path, log_level: str, log_json: bool) -> None:
    """Serve the endpoints of a configuration until Ctrl-C or SIGTERM.

    Example: juggler serve --config config.json
    """
    from juggler.cli.serve import serve_file

    serve_file(config_path, log_level=log_level, log_json=log_json)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path), default=Path(DEFAULT_CONFIG))
@json_option("Print the problems as JSON.")
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
@config_option()
@json_option("Print the report as JSON.")
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
@click.option("--control-port", default=8020, show_default=True, help="Where its dashboard and API listen.")
@log_options
def demo(port: int, control_port: int, log_level: str, log_json: bool) -> None:
    """Show it all without any configuration: two real llama.cpp servers and an image backend share a pretend GPU.

    The models hold random weights: what they write is gibberish by nature. Ctrl-C ends it and leaves nothing.
    Example: juggler demo
    """
    from juggler.cli.serve import serve_demo

    serve_demo(port, control_port, log_level=log_level, log_json=log_json)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete commands, options and the names of endpoints.

    Example: echo 'eval "$(juggler completion bash)"' >> ~/.bashrc
    """
    from juggler.cli.completion import script

    click.echo(script(shell, cli))


# ---------------------------------------------------------------- of the running juggler: looking


@cli.command()
@click.option("--watch", "-w", is_flag=True, help="Look again and again, until q or Ctrl-C.")
@click.option(
    "--every", callback=duration, default="1s", show_default=True, help="Pause between two looks, with --watch."
)
@json_option("Print everything there is, as JSON; with --watch one document a line.")
@remote_options
def ps(remote: Remote, watch: bool, every: float, as_json: bool) -> None:
    """Show what is loaded, what runs and who waits.

    Example: juggler ps --watch
    """
    from juggler.cli.ps import print_status, watch_status

    if watch:
        watch_status(remote, as_json=as_json, every_s=every)
    else:
        print_status(remote, as_json=as_json)


@cli.command()
@click.option("--every", callback=duration, default="1s", show_default=True, help="Pause between two looks.")
@remote_options
def top(remote: Remote, every: float) -> None:
    """Watch memory, models, the queue and running requests on one screen; q ends it.

    Where output is no terminal it is printed once. Example: juggler top
    """
    from juggler.cli.top import show_top

    show_top(remote, every_s=every)


@cli.command("ls")
@json_option()
@remote_options
def list_endpoints(remote: Remote, as_json: bool) -> None:
    """List the endpoints with their addresses and types.

    Example: juggler ls
    """
    from juggler.cli.endpoints import print_endpoints

    print_endpoints(remote, as_json=as_json)


@cli.command()
@click.argument("endpoint", required=False, shell_complete=endpoint_names)
@click.option("--count", default=10, show_default=True, type=click.IntRange(1, 1000), help="How many, the latest last.")
@json_option()
@remote_options
def why(remote: Remote, endpoint: str | None, count: int, as_json: bool) -> None:
    """Say why models were loaded, unloaded and stopped: who asked, who was considered, what it cost.

    Example: juggler why 'Default LLM'
    """
    from juggler.cli.why import print_decisions

    print_decisions(remote, endpoint, count=count, as_json=as_json)


@cli.command()
@click.argument("name", required=False, shell_complete=log_names)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is new, until Ctrl-C.")
@click.option("--since", callback=duration, help="Only lines younger than this: 90s, 10m, 2h.")
@click.option("-n", "--lines", default=200, show_default=True, type=click.IntRange(0, 5000), help="The last so many.")
@click.option("--times", "-t", is_flag=True, help="Show when each line came.")
@json_option("One JSON object per line.")
@remote_options
def logs(
    remote: Remote, name: str | None, follow: bool, since: float | None, lines: int, times: bool, as_json: bool
) -> None:
    """Show what an endpoint's backend printed, over its last starts; without a name, the juggler's own log.

    Colours are kept on a terminal only; keys and passwords are masked. Example: juggler logs -f 'Default LLM'
    """
    from juggler.cli.logs import print_logs

    print_logs(remote, name, follow=follow, since_s=since, lines=lines, times=times, as_json=as_json)


# ---------------------------------------------------------------- of the running juggler: changing


@cli.command("reload")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@json_option("Print everything there is about it, as JSON.")
@remote_options
def reload_command(remote: Remote, dry_run: bool, as_json: bool) -> None:
    """Have the juggler read its configuration again: exactly what changed is started, stopped or moved.

    Exit status: 0 done, 1 not possible, 2 the file has problems and nothing was changed. Example: juggler reload
    """
    from juggler.cli.reload import reload_config

    sys.exit(reload_config(remote, dry_run=dry_run, as_json=as_json))


def _order_command(name: str, text: str) -> None:
    @cli.command(name, help=f"{text}\n\nExample: juggler {name} 'Default LLM'")
    @endpoint_arguments
    @click.option(
        "--wait", callback=duration, default="1h", show_default=True, help="How long to wait until it is done; 0: not."
    )
    @remote_options
    def command(remote: Remote, endpoints: tuple[str, ...], wait: float) -> None:
        from juggler.cli.orders import give_orders

        give_orders(remote, name, endpoints, wait)


_order_command("load", "Load endpoints as a request would, and wait until they are ready.")
_order_command("unload", "Free an endpoint's memory once its running requests have ended; the next request loads it.")
_order_command("stop", "End an endpoint's process once its running requests have ended; the next request starts it.")
_order_command("restart", "End an endpoint's process once its running requests have ended, and load it again.")


@cli.command()
@endpoint_arguments
@click.option("--off", is_flag=True, help="Let it be unloaded again.")
@remote_options
def pin(remote: Remote, endpoints: tuple[str, ...], off: bool) -> None:
    """Keep an endpoint loaded, whatever others want, until `--off` or the end of the juggler.

    Example: juggler pin 'Default LLM'
    """
    from juggler.cli.orders import set_pin

    set_pin(remote, endpoints, on=not off)


@cli.command()
@click.option("--off", is_flag=True, help="Go on swapping.")
@remote_options
def lock(remote: Remote, off: bool) -> None:
    """Let no model give way to another until `--off`: what is loaded stays, and what needs its memory waits.

    What fits into free memory still loads, and orders are carried out.

    Example: juggler lock; juggler lock --off
    """
    from juggler.cli.orders import set_lock

    set_lock(remote, on=not off)


@cli.group(invoke_without_command=True)
@json_option()
@click.pass_context
@remote_options
def queue(remote: Remote, context: click.Context, as_json: bool) -> None:
    """Show who waits, and for what.

    Example: juggler queue
    """
    if context.invoked_subcommand is None:
        from juggler.cli.orders import print_queue

        print_queue(remote, as_json=as_json)


@queue.command("cancel")
@click.argument("requests", metavar="ID...", nargs=-1, required=True, type=int, shell_complete=waiting_requests)
@remote_options
def queue_cancel(remote: Remote, requests: tuple[int, ...]) -> None:
    """Answer waiting requests with an error.

    Example: juggler queue cancel 4711
    """
    from juggler.cli.orders import cancel

    cancel(remote, requests)


@queue.command("front")
@click.argument("requests", metavar="ID...", nargs=-1, required=True, type=int, shell_complete=waiting_requests)
@remote_options
def queue_front(remote: Remote, requests: tuple[int, ...]) -> None:
    """Serve waiting requests before all others of their endpoint.

    Example: juggler queue front 4711
    """
    from juggler.cli.orders import to_front

    to_front(remote, requests)


@cli.group()
def service() -> None:
    """Have the system start `juggler serve`, and keep it running.

    Example: juggler service install
    """


_system_option = click.option("--system", is_flag=True, help="For the whole system, as root (systemd only).")


@service.command("install")
@config_option("The configuration to serve.")
@_system_option
@click.option("--force", is_flag=True, help="Replace a file that juggler did not write.")
@click.option("--print", "print_only", is_flag=True, help="Only show what would be written.")
def service_install(config_path: Path, system: bool, force: bool, print_only: bool) -> None:
    """Start it now and at every login: by systemd, by launchd on macOS, by the task scheduler on Windows.

    Example: juggler service install --config ~/juggler/config.json
    """
    from juggler.cli.service import install_service

    install_service(config_path, system=system, force=force, print_only=print_only)


@service.command("uninstall")
@_system_option
def service_uninstall(system: bool) -> None:
    """Stop it, and remove what `install` wrote.

    Example: juggler service uninstall
    """
    from juggler.cli.service import uninstall_service

    uninstall_service(system=system)


if __name__ == "__main__":
    main()
