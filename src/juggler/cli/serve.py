"""``juggler serve`` and ``juggler demo``: run the app in this process."""

import asyncio
import gc
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import click

from juggler import log
from juggler.app import App
from juggler.config.load import load_config
from juggler.config.resolve import ResolvedConfig, resolve
from juggler.errors import JugglerError
from juggler.service.notify import Notifier


def serve_file(path: Path, *, log_level: str, log_json: bool) -> None:
    """Serve a configuration file.

    Raises:
        ConfigError: The file is missing or wrong, or an address cannot be listened on.
    """
    log.configure(log_level, as_json=log_json)
    loaded = load_config(path)
    for problem in loaded.warnings:
        click.echo(str(problem), err=True)
    notifier = Notifier(os.environ)
    try:
        run_app(App(resolve(loaded), loaded=loaded, notifier=notifier))
    finally:
        notifier.close()


def run_app(app: App) -> None:
    """Run until a signal ends it, on uvloop where that is installed."""

    gc.freeze()  # what was imported stays: no collection need look at it again
    gc.enable()

    async def body() -> None:
        app.install_signal_handlers()
        await app.run()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(body())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def serve_demo(port: int, control_port: int, *, log_level: str, log_json: bool) -> None:
    """The main job on embedded parts; everything it writes lies in one temporary directory, removed at the end."""
    from juggler.demo.run import DemoFiles, explain

    log.configure(log_level, as_json=log_json)
    if importlib.util.find_spec("xllamacpp") is None:
        raise JugglerError(
            "the demo runs real llama.cpp servers, and their wheel is not installed",
            hint="pip install 'model-juggler[engine]'",
        )
    with DemoFiles() as files:
        config: ResolvedConfig = files.configuration(port, control_port)
        run_app(App(config, on_listening=lambda app: click.echo(explain(app))))
