"""Ended requests as plain data. Pure.

Nothing of a request's or an answer's body is kept, nor a header. Of the target the path and query are, cut short, and
with the values of parameters masked whose names say that they are secret.
"""

import re
from dataclasses import dataclass, fields
from typing import NamedTuple

from juggler.ended import EndedRequest
from juggler.errors import Cancelled
from juggler.proxy.contract import ExchangeResult
from juggler.routing.traffic import TrafficClass

TARGET_CHARS_MAX = 200
METHOD_CHARS_MAX = 20
CLIENT_CHARS_MAX = 80
_TARGET_CHARS_READ = 2 * TARGET_CHARS_MAX
"""The search for secrets takes the square of this."""

OUTCOMES = ("ok", "client_left", "error", "refused", "cancelled")
"""See ``outcome_of``."""

WORKS = frozenset({TrafficClass.WORK, TrafficClass.START})
"""Classes whose requests wait for memory and hold it."""

_NOTHING = ExchangeResult()

_SECRET = re.compile(
    r"(?i)([?&;][^=&;]*(?:key|token|secret|passw|auth|sign?ature|credential|sig|pwd?(?==))[^=&;]*=)[^&;]*"
)


@dataclass(slots=True)
class RequestRecord:
    """One request that is over. Seconds; instants since 1970."""

    record: int
    """Counts up over all runs: microseconds since 1970 at which it ended, moved on where that is taken."""
    request: int | None
    """Its number in the run that served it; None: it was never let in."""
    endpoint: str
    instance: str
    method: str
    target: str
    client: str
    traffic: str
    arrived_at: float
    granted_at: float | None
    """None: it was never let in."""
    queue_s: float
    load_s: float
    evicted_s: float | None
    """Part of ``queue_s`` in which memory was being freed; None: not known."""
    first_byte_s: float | None
    """From ``granted_at`` on."""
    ended_at: float
    status: int | None
    outcome: str
    error: str | None
    bytes_up: int
    bytes_down: int

    def plain(self) -> dict[str, object]:
        """As JSON data."""
        data: dict[str, object] = {name: getattr(self, name) for name in COLUMNS}
        data["class"] = data.pop("traffic")
        granted, first = self.granted_at, self.first_byte_s
        data["first_byte_at"] = None if granted is None or first is None else granted + first
        for name, value in data.items():
            if isinstance(value, float):
                data[name] = round(value, 4 if name.endswith("_s") else 3)
        return data


class Facts(NamedTuple):
    """What is counted of an ended request."""

    endpoint: str
    outcome: str
    works: bool
    """It is one of those that wait for memory and hold it."""
    total_s: float
    queue_s: float
    load_s: float
    first_byte_s: float | None
    bytes_up: int
    bytes_down: int


def facts_of(ended: EndedRequest) -> Facts:
    """What is counted of an ended request."""
    result = ended.result or _NOTHING
    return Facts(
        ended.route.endpoint,
        outcome_of(ended),
        ended.route.traffic in WORKS,
        ended.ended_at - ended.arrived_at,
        ended.timing.queue_s,
        ended.timing.load_s,
        result.first_byte_s,
        result.bytes_up,
        result.bytes_down,
    )


COLUMNS = tuple(one.name for one in fields(RequestRecord))
"""In the order of the class."""


def record_of(
    ended: EndedRequest, facts: Facts, record: int, wall_offset_s: float, evicted_s: float | None
) -> RequestRecord:
    """The record of an ended request.

    Args:
        wall_offset_s: What makes an instant since 1970 of a monotonic one.
    """
    granted_at, result = ended.granted_at, ended.result or _NOTHING
    return RequestRecord(
        record,
        ended.request,
        facts.endpoint,
        ended.instance,
        text_of(ended.info.method)[:METHOD_CHARS_MAX],
        shown_target(text_of(ended.info.target)),
        ended.info.client[:CLIENT_CHARS_MAX],
        ended.route.traffic.value,
        ended.arrived_at + wall_offset_s,
        None if granted_at is None else granted_at + wall_offset_s,
        facts.queue_s,
        facts.load_s,
        evicted_s,
        facts.first_byte_s,
        ended.ended_at + wall_offset_s,
        result.status,
        facts.outcome,
        _error_of(ended),
        facts.bytes_up,
        facts.bytes_down,
    )


def outcome_of(ended: EndedRequest) -> str:
    """What became of a request, in one word.

    ``ok``: the backend answered, if only that the request was wrong. ``client_left``: nobody was there any more.
    ``error``: it was let in, and there was no answer, a broken one, or one that blames the server (500 and above).
    ``refused``: it was never let in. ``cancelled``: the operator took it out of its queue.
    """
    if ended.client_left:
        return "client_left"
    result = ended.result
    if result is None:
        return "cancelled" if ended.error == Cancelled.code else "refused"
    if result.error is not None or (result.status is not None and result.status >= 500):
        return "error"
    return "ok"


def _error_of(ended: EndedRequest) -> str | None:
    return ended.error if ended.result is None else ended.result.error


def shown_target(target: str) -> str:
    """Path and query as they may be shown and kept."""
    shown = target[:_TARGET_CHARS_READ]
    if "?" in shown:
        shown = _SECRET.sub(r"\1***", shown)
    whole = len(target) <= _TARGET_CHARS_READ and len(shown) <= TARGET_CHARS_MAX
    return shown if whole else shown[: TARGET_CHARS_MAX - 1] + "…"


def text_of(value: bytes) -> str:
    """What a client sent as text."""
    return value.decode("utf-8", "backslashreplace")
