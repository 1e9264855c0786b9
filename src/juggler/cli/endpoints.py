"""``juggler ls``: what can be called, and where."""

import json

import click

from juggler.cli.remote import Remote
from juggler.cli.table import in_columns, terminal_width


def print_endpoints(remote: Remote, *, as_json: bool) -> None:
    """All endpoints in the order in which they match."""
    answer = remote.call("GET", "/api/v1/endpoints", "endpoints")
    if as_json:
        click.echo(json.dumps(answer["endpoints"], indent=2))
        return
    rows = [("ENDPOINT", "TYPE", "URL", "PREFIX")]
    for one in answer["endpoints"]:
        prefix = one["prefix"] or "/"
        told = f"{prefix} (stripped)" if one["strip_prefix"] else prefix
        rows += [
            (one["endpoint"] if first else "", one["type"] if first else "", url, told if first else "")
            for first, url in ((number == 0, url) for number, url in enumerate(one["urls"] or ["-"]))
        ]
    for line in in_columns(rows, terminal_width()):
        click.echo(line)
