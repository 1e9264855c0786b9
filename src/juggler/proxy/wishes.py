"""What a client says about its own waiting, in three request fields. Pure.

- ``X-Juggler-Priority: interactive | batch | <-100 to 100>``: in place of the endpoint's priority.
- ``X-Juggler-Max-Wait: <30 | 30s | 2m>``: how long it is willing to wait; 0 means now or not at all.
- ``X-Juggler-Timing: 1``: the answer's head shall say how long it was waited, and for what.

They are for us and are not passed on. A field that cannot be understood is refused rather than ignored: whoever asks
for "now or not at all" must not find out by waiting.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from juggler.errors import BadRequest
from juggler.units import DAYS, parse_duration

_PRIORITY = b"x-juggler-priority"
_MAX_WAIT = b"x-juggler-max-wait"
_TIMING = b"x-juggler-timing"

WISH_FIELDS = frozenset((_PRIORITY, _MAX_WAIT, _TIMING))
"""Names of the fields, in lower case."""

MAX_WAIT_S_MAX = 7 * DAYS
"""More than any queue's bound: a larger number is a mistake in the unit."""

PRIORITY_WORDS = {b"interactive": 0, b"batch": -10}
"""The same words mean the same numbers in the operator's file (``config.resolve.PRIORITIES``)."""

_PRIORITY_MAX = 100
_INTEGER = re.compile(rb"[+-]?[0-9]{1,3}")
_LONGEST_VALUE = 32


@dataclass(frozen=True, slots=True)
class Wishes:
    """What one request asks for besides its answer."""

    priority: int | None = None
    """-100 to 100, larger goes first; None: the endpoint's."""
    max_wait_s: float | None = None
    """Seconds in the queue after which an answer is no use any more; 0: only if ready now. None: the endpoint's."""
    timing: bool = False
    """The answer's head is to say how long the request waited."""


NO_WISHES = Wishes()
"""Of nearly every request."""


def parse_wishes(headers: Iterable[tuple[bytes, bytes]]) -> Wishes:
    """Read the wishes out of a request's fields.

    Args:
        headers: Name as sent and value, as in ``RequestInfo.headers``.

    Raises:
        BadRequest: 400; the text names the field and what it accepts.
    """
    said: dict[bytes, bytes] = {}
    for name, value in headers:
        lowered = name.lower()
        if lowered in WISH_FIELDS:
            # Repeated ones are joined (RFC 9110 5.2); no value that is understood has a comma in it.
            said[lowered] = said[lowered] + b"," + value if lowered in said else value
    if not said:
        return NO_WISHES
    return Wishes(
        priority=_priority(said[_PRIORITY]) if _PRIORITY in said else None,
        max_wait_s=_max_wait_s(said[_MAX_WAIT]) if _MAX_WAIT in said else None,
        timing=_TIMING in said and _timing(said[_TIMING]),
    )


def _priority(value: bytes) -> int:
    word = PRIORITY_WORDS.get(value.lower())
    if word is not None:
        return word
    number = int(value) if _INTEGER.fullmatch(value) else None
    if number is None or abs(number) > _PRIORITY_MAX:
        raise _refusal("X-Juggler-Priority", value, "interactive, batch or a whole number from -100 to 100")
    return number


def _max_wait_s(value: bytes) -> float:
    accepted = "seconds (30), or a duration such as 30s, 2m or 1h30m, up to 7 days; 0 means only if ready now"
    try:
        if len(value) > _LONGEST_VALUE:
            raise ValueError("too long")
        seconds = parse_duration(value.decode("ascii"))
    except ValueError:
        raise _refusal("X-Juggler-Max-Wait", value, accepted) from None
    if seconds > MAX_WAIT_S_MAX:
        raise _refusal("X-Juggler-Max-Wait", value, accepted)
    return seconds


def _timing(value: bytes) -> bool:
    if value not in (b"0", b"1"):
        raise _refusal("X-Juggler-Timing", value, "1, or 0 for none")
    return value == b"1"


def _refusal(name: str, value: bytes, accepted: str) -> BadRequest:
    shown = value[:_LONGEST_VALUE].decode("latin-1")
    return BadRequest(f"The request field {name} says {shown!r}; it accepts {accepted}.", code="bad_wish")
