"""``juggler service``: what it says while it installs and removes."""

from pathlib import Path

import click

from juggler.config.load import load_config
from juggler.service.install import install, uninstall, wanted


def install_service(config: Path, *, system: bool, force: bool, print_only: bool) -> None:
    """Have the system start ``juggler serve``.

    Raises:
        ConfigError: The configuration would not be served.
        ServiceError: It cannot be installed.
    """
    load_config(config)
    service = wanted(config, system=system)
    if print_only:
        encoding = "utf-16" if service.data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
        click.echo(f"# {service.path}", err=True)
        click.echo(service.data.decode(encoding), nl=False)
        return
    install(service, force=force)
    click.echo(f"installed and started: {service.path}")
    for hint in service.hints:
        click.echo(f"  {hint}")


def uninstall_service(*, system: bool) -> None:
    """Stop it, and remove what ``install_service`` wrote.

    Raises:
        ServiceError: It cannot be removed.
    """
    service = wanted(Path("config.json"), system=system)
    click.echo(f"stopped and removed: {service.path}" if uninstall(service) else f"not installed: {service.path}")
