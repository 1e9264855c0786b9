"""Traffic classes: what a request may do to the memory of a machine. Pure.

The tables themselves belong to the backends (``juggler.backends``); the rules for unknown paths are here.
"""

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote_to_bytes


class TrafficClass(enum.Enum):
    """Decided from method and path after prefix stripping, before anything is started."""

    __hash__ = object.__hash__  # looked up for each request; the hash of Enum is written in Python

    WORK = "work"
    """Starts or wakes the backend, evicts others, counts as in use until the exchange ends."""

    START = "start"
    """Has the backend loaded first, as work does, and is light from then on: the root document of a web UI."""

    LIGHT = "light"
    """Forwarded while the backend is up; never starts, wakes or evicts."""

    HELD_OPEN = "held-open"
    """As light, and never counts as in use however long it lives (idle sockets, event streams of pages)."""

    BLOCKED = "blocked"
    """A control route that would change state behind the juggler's back; refused with 403."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """What a program answers to a request whatever it holds, for the time before it has been asked once."""

    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class TrafficRule:
    """One line of a class table.

    ``match`` is ``"METHOD PATH"``: METHOD one method, several joined with ``|``, or ``*``; PATH an exact path, or
    a pattern in which ``*`` stands for any characters, slashes included. The query never takes part.
    """

    match: str
    traffic: TrafficClass
    volatile: bool = False
    """Of light routes: the answer is about this very moment (progress, queues); an older one would be a lie."""
    question: bool = False
    """Of light routes: a POST that only asks, by its body; the same body gets the same answer, as a GET would."""
    changes: bool = False
    """Of light routes: what it does changes what questions are answered with (a model is replaced or removed)."""
    light_if: Callable[[bytes], bool] | None = None
    """Of work: whether this body makes the request light after all (an order to unload is no reason to load). Bodies
    of up to ``LOOK_BYTES_MAX`` are looked into."""


class Verdict(NamedTuple):
    """What a table says of one request."""

    traffic: TrafficClass
    volatile: bool = False
    """As in ``TrafficRule``; so are the others."""
    question: bool = False
    changes: bool = False
    light_if: Callable[[bytes], bool] | None = None


LOOK_BYTES_MAX = 4096
"""Bodies that ``light_if`` is asked about; the orders it looks for take a hundred bytes."""

_KNOWN_LIMIT = 1024
"""Paths per table whose verdict is remembered: clients use few, and whoever uses more only makes us look again."""

_KNOWN_PATH_BYTES = 200
_SLASHES = re.compile(rb"/{2,}")
_LIGHT = Verdict(TrafficClass.LIGHT)
_WORK = Verdict(TrafficClass.WORK)


class TrafficTable:
    """An ordered table; the first rule that matches decides, else the general rule does.

    The general rule (backends.md section 8, note 4): POST, PUT, PATCH, DELETE and unknown methods are work; GET,
    HEAD and OPTIONS are light.

    Args:
        rules: The first that matches decides.
        no_store_everywhere: The program sends ``Cache-Control: no-store`` with every answer, whatever it is: of its
            light routes that says nothing.
        placeholders: By path; for a GET or HEAD that is light and not volatile, while no earlier reply is known.
    """

    def __init__(
        self,
        rules: Sequence[TrafficRule] = (),
        *,
        no_store_everywhere: bool = False,
        placeholders: Mapping[bytes, Placeholder] | None = None,
    ) -> None:
        self.rules = tuple(rules)
        self.no_store_everywhere = no_store_everywhere
        self.placeholders = placeholders or {}
        self._compiled = [
            (
                _methods(rule.match),
                _pattern(rule.match),
                Verdict(rule.traffic, rule.volatile, rule.question, rule.changes, rule.light_if),
            )
            for rule in self.rules
        ]
        self._known: dict[tuple[bytes, bytes], Verdict] = {}

    def classify(self, method: bytes, path: bytes) -> TrafficClass:
        """``path`` is raw, begins with ``/`` (or is ``*``) and has no query."""
        return self.decide(method, path).traffic

    def decide(self, method: bytes, path: bytes) -> Verdict:
        """As ``classify``, with what the rule says besides.

        Whatever the rules say, OPTIONS is light: browsers send it unasked. HEAD is never the start of a page: monitors
        send it, and it shows nothing that a loaded model would change.
        """
        if method == b"OPTIONS":
            return _LIGHT
        key = (method, path)
        verdict = self._known.get(key)
        if verdict is None:
            verdict = self._look_up(method.decode("latin-1"), as_backends_read(path))
            if len(path) <= _KNOWN_PATH_BYTES:
                if len(self._known) >= _KNOWN_LIMIT:
                    self._known.clear()
                self._known[key] = verdict
        return verdict

    def _look_up(self, verb: str, path: bytes) -> Verdict:
        text = path.decode("latin-1")
        for methods, pattern, verdict in self._compiled:
            if (methods is None or verb in methods) and pattern.fullmatch(text):
                if verb == "HEAD" and verdict.traffic is TrafficClass.START:
                    return verdict._replace(traffic=TrafficClass.LIGHT)
                return verdict
        return _LIGHT if verb in ("GET", "HEAD") else _WORK

    def extended_by(self, overrides: Sequence[TrafficRule]) -> "TrafficTable":
        """A table in which the operator's rules come first."""
        if not overrides:
            return self
        rules = (*overrides, *self.rules)
        return TrafficTable(rules, no_store_everywhere=self.no_store_everywhere, placeholders=self.placeholders)


def as_backends_read(path: bytes) -> bytes:
    """A raw path with its escapes decoded, repeated slashes as one, and dot segments resolved.

    Servers differ in what of this they do; all do some. A route that is closed to clients must not be open under
    another spelling of its name.
    """
    if b"%" in path:
        path = unquote_to_bytes(path)
    if b"//" in path:
        path = _SLASHES.sub(b"/", path)
    if b"/." in path:
        segments: list[bytes] = []
        for segment in path.split(b"/")[1:]:
            if segment == b"..":
                del segments[-1:]
            elif segment != b".":
                segments.append(segment)
        path = b"/" + b"/".join(segments)
    return path


def parse_match(match: str) -> tuple[str, str]:
    """Split ``"GET|HEAD /foo/*"`` into methods and path pattern.

    Raises:
        ValueError: With a sentence that says what is accepted.
    """
    methods, separator, path = match.strip().partition(" ")
    path = path.strip()
    if not separator or not methods or not path.startswith(("/", "*")):
        raise ValueError(f'{match!r} is not a traffic pattern: write "GET /path", "POST|PUT /api/*" or "* /ws"')
    return methods, path


def _methods(match: str) -> frozenset[str] | None:
    methods, _ = parse_match(match)
    return None if methods == "*" else frozenset(methods.split("|"))


def _pattern(match: str) -> re.Pattern[str]:
    _, path = parse_match(match)
    return re.compile("".join(".*" if part == "*" else re.escape(part) for part in re.split(r"(\*)", path)), re.DOTALL)
