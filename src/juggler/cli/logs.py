"""``juggler logs``: what a backend printed, or what the juggler logged itself."""

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from juggler.cli.remote import STATUS_TIMEOUT_S, Remote, segment
from juggler.cli.table import cut, printable, terminal_size
from juggler.errors import JugglerError

OWN_LOG = "juggler"
POLL_S = 20
BEGUN_POLL_S = 1
"""While a line has only begun (a progress bar), to show how it goes on."""

BATCH_LINES = 1000
KEPT_LINES = 5000
"""All that a log may hold."""

_PLAIN = "\x1b[0m"
_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")
_UNTOLD = re.compile(r"\x1b(?!\[[0-9;:]*m)|[\x00-\x08\x0a-\x1a\x1c-\x1f\x7f-\x9f]")
"""What a terminal must not be told, besides tabs and colours; the juggler keeps none of it."""

_COLOURS_OF_LEVELS = {"debug": "2", "warning": "33", "error": "31", "critical": "31"}


def print_logs(
    remote: Remote, name: str | None, *, follow: bool, since_s: float | None, lines: int, times: bool, as_json: bool
) -> None:
    """Print the end of a log, and go on printing if asked to.

    Args:
        name: An endpoint, an instance, or ``juggler``, which is the default.
        since_s: Only lines that are younger.
        lines: At most so many, the last ones.
        times: Show when each line came.

    Raises:
        JugglerError: There is no such log, or the juggler has gone.
    """
    log = _log_of(remote, name) if name is not None else OWN_LOG
    printer = _Printer(own=log == OWN_LOG, times=times, as_json=as_json, follow=follow)
    query = f"limit={lines}" + (f"&since_s={since_s:g}" if since_s is not None else "")
    answer = _ask(remote, log, query, printer)
    printer.show(answer, last=not follow)
    if follow:
        try:
            _follow(remote, log, printer, answer)
        finally:
            printer.end()


def _follow(remote: Remote, log: str, printer: "_Printer", answer: Mapping[str, Any]) -> None:
    after = answer["lines"][-1]["seq"] if answer["lines"] else answer["last"]
    while True:
        wait_s = BEGUN_POLL_S if printer.repaints and answer["begun"] else POLL_S
        boot = answer.get("boot")
        answer = _ask(remote, log, f"after={after}&limit={BATCH_LINES}&wait_s={wait_s}", printer, wait_s)
        if answer.get("boot") != boot:  # another run, whose lines are counted anew
            answer = _ask(remote, log, f"limit={KEPT_LINES}", printer)
        printer.show(answer)
        after = answer["lines"][-1]["seq"] if answer["lines"] else min(after, answer["last"])


def _ask(remote: Remote, log: str, query: str, printer: "_Printer", wait_s: float = 0.0) -> dict[str, Any]:
    ansi = "true" if printer.colours else "false"
    path = f"/api/v1/logs/{segment(log)}?{query}&ansi={ansi}"
    answer = remote.call("GET", path, "lines", wait_s + STATUS_TIMEOUT_S)
    answer.setdefault("begun", [])
    return answer


def _log_of(remote: Remote, name: str) -> str:
    """The log that is meant: that of the instance behind an endpoint, or one named itself."""
    endpoints = remote.call("GET", "/api/v1/endpoints", "endpoints")["endpoints"]
    matches = [one for one in endpoints if one["endpoint"] == name]
    matches = matches or [one for one in endpoints if one["name"] == name]
    if len({one["instance"] for one in matches}) == 1:
        return str(matches[0]["instance"])
    logs = [str(one["log"]) for one in remote.call("GET", "/api/v1/logs", "logs")["logs"]]
    if name in logs:
        return name
    known = [one["endpoint"] for one in matches] or [OWN_LOG, *(one["endpoint"] for one in endpoints)]
    problem = "is ambiguous" if matches else "is no endpoint"
    raise JugglerError(f"{name!r} {problem}; there are: {', '.join(map(str, known))}")


class _Printer:
    """Writes lines as the reader can take them."""

    def __init__(self, *, own: bool, times: bool, as_json: bool, follow: bool) -> None:
        self._own = own
        self._times = times
        self._as_json = as_json
        terminal = sys.stdout.isatty() and not as_json and os.environ.get("TERM", "dumb") != "dumb"
        self.colours = terminal and not os.environ.get("NO_COLOR")
        self.repaints = terminal and follow
        """Begun lines are shown, to be written over."""
        self._standing = False
        """One stands on the terminal."""

    def show(self, answer: Mapping[str, Any], *, last: bool = False) -> None:
        """Write what came; ``last``: nothing follows, and begun lines are shown as they are."""
        self._wipe()
        if answer["lost"]:
            self._write(self._painted(f"[{answer['lost']} lines are no longer kept]", "2"))
        for line in (*answer["lines"], *(answer["begun"] if last else ())):
            self._write(json.dumps(line) if self._as_json else self._text(line))
        if answer["begun"] and self.repaints:
            text = printable(_COLOUR.sub("", str(answer["begun"][-1]["text"])))
            sys.stdout.write(cut(text, terminal_size().columns - 1))
            self._standing = True
        sys.stdout.flush()

    def end(self) -> None:
        """Leave the terminal at the beginning of a line."""
        if self._standing:
            sys.stdout.write("\n")
            sys.stdout.flush()

    def _wipe(self) -> None:
        if self._standing:
            sys.stdout.write("\r\x1b[K")
            self._standing = False

    def _text(self, line: Mapping[str, Any]) -> str:
        text, clock = _UNTOLD.sub("?", str(line["text"])), time.strftime("%H:%M:%S", time.localtime(line["at"]))
        if "\x1b" in text:
            text = text + _PLAIN if self.colours else _COLOUR.sub("", text)
        if self._own:
            level = str(line["level"])
            return self._painted(f"{clock} {level.upper():<7} {text}", _COLOURS_OF_LEVELS.get(level, ""))
        if line["stream"] == "juggler":
            return self._painted(f"--- {clock} {text}", "1")
        return f"{clock} {text}" if self._times else text

    def _painted(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}{_PLAIN}" if self.colours and colour else text

    def _write(self, text: str) -> None:
        click.echo(text, color=True)
