"""``juggler why``: the decision log as paragraphs."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import click

from juggler.cli.remote import Remote, segment
from juggler.cli.table import printable
from juggler.scheduler.telling import CAUSES, OWN_ASKERS, amounts_text, ending, own_asker
from juggler.units import format_duration

_DONE = {"unload": "unloaded", "stop": "stopped"}


def print_decisions(remote: Remote, endpoint: str | None, *, count: int, as_json: bool) -> None:
    """Why models were loaded, unloaded and stopped, the latest last.

    Raises:
        JugglerError: Nobody answers, or there is no such endpoint.
    """
    query = f"&endpoint={segment(endpoint)}" if endpoint else ""
    document = remote.call("GET", f"/api/v1/decisions?limit={count}{query}", "decisions")
    latest = document["decisions"][-count:]
    if as_json:
        click.echo(json.dumps(latest, indent=2))
    elif not latest:
        click.echo("Nothing was loaded or unloaded yet" + (f" for {endpoint!r}." if endpoint else "."))
    else:
        for line in story(latest):
            click.echo(printable(line))


def story(document: Iterable[Mapping[str, Any]]) -> list[str]:
    """Lines for people, from what the API tells."""
    lines: list[str] = []
    for one in document:
        lines += _paragraph(one)
    return lines


def _paragraph(one: Mapping[str, Any]) -> list[str]:
    head = f"#{one['number']}  {format_duration(one['ago_s'])} ago: "
    let_go = one["cause"] == "let go"
    victims = [f"{'let go of' if let_go else _DONE[victim['mode']]} {victim['instance']}" for victim in one["victims"]]
    if one["target"] is None:
        return [head + f"{', '.join(victims)}: {CAUSES.get(one['cause'], one['cause'])}"]
    done = "loaded" if one["outcome"] == "ready" else "to load"
    lines = [head + ", ".join([*victims, f"{done} {one['target']}"])]
    missing = amounts_text(one["missing_bytes"])
    why_room = f"; {missing} was missing" if missing else "" if victims else "; it fitted into free memory"
    lines.append(f"    {_asked(one)}{why_room}")
    gone = {victim["instance"] for victim in one["victims"]}
    for other in one["considered"]:
        fate = "had to go" if other["instance"] in gone else "stayed"
        when = "never" if other["free_in_s"] is None else "now" if not other["free_in_s"] else ""
        when = when or f"in {format_duration(other['free_in_s'])}"
        cost = f", to bring it back would cost {format_duration(other['cost_s'])}" if other["cost_s"] else ""
        lines.append(f"    {other['instance']}: {other['why']}; to be had {when}{cost}; {fate}")
    if one["took_s"] is not None:
        lines.append(f"    {ending(one['outcome'], one['took_s'], one['expected_s'])}")
    else:
        lines.append(f"    {one['outcome'] or 'under way'}, expected {format_duration(one['expected_s'])}")
    return lines


def _asked(one: Mapping[str, Any]) -> str:
    waited = format_duration(one["waited_s"])
    if one["client"] in OWN_ASKERS:
        return own_asker(one["client"], waited, one["waiting"])
    client = f" (client {one['client']})" if one["client"] else ""
    return f"asked by: {one['waiting']} waited, the first{client} for {waited}"
