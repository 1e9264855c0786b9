"""What ``juggler init`` tells on the terminal: what it found, what it decided, what to do next. Pure."""

import shlex
import textwrap
from collections.abc import Iterable
from pathlib import Path

from juggler.doctor.machine import describe_gpu
from juggler.setup.document import printable
from juggler.setup.facts import CONTROL_PORT, Facts
from juggler.setup.planned import Plan
from juggler.setup.servers import Seen
from juggler.units import format_size

LISTED_MAX = 8
"""Of one kind; more is summed up."""

_COLUMNS = 110
_LABEL_WIDTH = 11


def found_text(facts: Facts) -> str:
    """What there is."""
    rows: list[str] = []
    rows += _rows("programs", (f"{one.path}{f' ({one.version})' if one.version else ''}" for one in facts.programs))
    rows += _rows("servers", (_server(seen) for seen in facts.servers if seen.identity is not None))
    search = facts.search
    folders = len(search.folders)
    where = f" in {folders} folder{'s' if folders != 1 else ''}"
    if search.models:
        rows += _rows("models", [f"{len(search.models)} GGUF{where}"])
    rows += _rows("saved", (str(path) for path in search.kcpps))
    rows += _rows("left out", search.left_out)
    rows += _rows("unreadable", (str(path) for path in search.unreadable))
    if search.cut_short is not None:
        rows += _rows("cut short", [f"the search for models: {search.cut_short}; name a folder with --models"])
    rows += _rows("GPUs", (describe_gpu(gpu) for gpu in facts.gpus.found))
    if facts.memory is not None:
        rows += _rows("memory", [format_size(facts.memory.total_bytes)])
    return "\n".join(["Found:", *rows])


def _server(seen: Seen) -> str:
    return f"{seen.identity.text if seen.identity else ''} at {seen.url}"


def _rows(label: str, values: Iterable[str]) -> list[str]:
    listed = [printable(value) for value in values]
    more = len(listed) - LISTED_MAX
    shown = listed[:LISTED_MAX] + ([f"and {more} more"] if more > 0 else [])
    return [f"  {(label if number == 0 else ''):{_LABEL_WIDTH}}{value}" for number, value in enumerate(shown)]


def plan_text(plan: Plan, path: Path, *, default: Path) -> str:
    """What was written, and what to do with it."""
    endpoints = sum(len(server.endpoints) for server in plan.servers)
    lines = [f"Wrote {path}: {_counted(endpoints, 'endpoint')} on {_counted(len(plan.servers), 'port')}."]
    for server in plan.servers:
        names = [one.name for one in server.endpoints]
        shown = ", ".join(names[:LISTED_MAX]) + (" ..." if len(names) > LISTED_MAX else "")
        lines.append(f"  http://localhost:{server.port}  {printable(server.name)}: {printable(shown)}")
    if plan.remarks:
        lines += ["", "Mind:"]
        for remark in plan.remarks:
            lines += textwrap.wrap(
                printable(remark), _COLUMNS, initial_indent="  - ", subsequent_indent="    ", break_long_words=False
            )
    return "\n".join([*lines, "", "Next:", *_next(plan, path, default)])


def _next(plan: Plan, path: Path, default: Path) -> list[str]:
    named = "" if path == default else f" --config {shlex.quote(str(path))}"
    url = "" if plan.control_port == CONTROL_PORT else f" --url http://127.0.0.1:{plan.control_port}"
    commands = [
        (f"juggler doctor{named}", "does everything named in it work here?"),
        (f"juggler serve{named}", "serve it; Ctrl-C ends it"),
        (f"juggler ps{url}", "in another terminal: what is loaded, who waits"),
    ]
    width = max(len(command) for command, _ in commands) + 2
    return [f"  {command:{width}}{what}" for command, what in commands]


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"
