"""Who reads an answer of our own: a person in a browser's window, a person or a script that reads text, or a program.

Whether a browser navigates it says itself (``Sec-Fetch-Mode``, Fetch Metadata), but only where the address is https
or the machine's own; elsewhere in the network its ``Accept`` has to tell. Scripts of a page (fetch, XHR) send
``*/*`` or JSON unless they say otherwise, and libraries that load pieces of HTML name themselves.
"""

import enum
from collections.abc import Iterable


class Reader(enum.Enum):
    """What form of answer suits."""

    PAGE = "page"
    """A browser shows it in its window or in a frame."""
    TEXT = "text"
    """Text is preferred to JSON."""
    PROGRAM = "program"
    """JSON: also whoever takes anything, says nothing, or takes neither."""


_FRAMES = (b"document", b"iframe", b"frame")
_HTML = (b"text/html", b"application/xhtml+xml")
_TEXT = (b"text/plain", b"text/html", b"text/*")
_JSON = (b"application/json", b"application/*", b"*/*")
_SCRIPTS = frozenset((b"x-requested-with", b"hx-request", b"turbo-frame", b"upgrade", b"range"))
"""Fields of jQuery and others, htmx, Turbo; of requests for a WebSocket, and for a part of something."""


def reader_of(method: bytes, fields: Iterable[tuple[bytes, bytes]]) -> Reader:
    """Who reads the answer to a request.

    Args:
        method: Only a GET can be asked again by a page.
        fields: Names as sent, and values.
    """
    accepted: list[bytes] = []
    said: dict[bytes, bytes] = {}
    from_script = False
    for name, value in fields:
        lowered = name.lower()
        if lowered == b"accept":
            accepted.append(value)
        elif lowered in _SCRIPTS:
            from_script = True
        elif lowered.startswith(b"sec-fetch-"):
            said[lowered] = value.lower()
    weights = _weights(b",".join(accepted))
    best = max(weights, key=lambda kind: weights[kind], default=b"")  # the first of the best
    if method == b"GET" and best in _HTML and not from_script and _may_navigate(said):
        return Reader.PAGE
    text = max(weights.get(kind, 0.0) for kind in _TEXT)
    json = next((weights[kind] for kind in _JSON if kind in weights), 0.0)
    return Reader.TEXT if text > json else Reader.PROGRAM


def is_prefetch(fields: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser asks only in case its user goes there: while an address is being typed, say.

    ``Sec-Purpose: prefetch``, also with ``;prerender`` behind it (Fetch 2.2.7); it has the fields of a navigation.
    """
    return any(name.lower() == b"sec-purpose" and value.lower().startswith(b"prefetch") for name, value in fields)


def _may_navigate(said: dict[bytes, bytes]) -> bool:
    """By the browser's own word, where there is one."""
    mode, kind = said.get(b"sec-fetch-mode"), said.get(b"sec-fetch-dest")
    return mode in (None, b"navigate") and (kind is None or kind in _FRAMES)


def _weights(value: bytes) -> dict[bytes, float]:
    """Media types of an Accept value with their weights, without those of weight 0 (RFC 9110 12.5.1)."""
    weights: dict[bytes, float] = {}
    for one in value.split(b","):
        kind, *parameters = (part.strip(b" \t").lower() for part in one.split(b";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith(b"q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 1.0
        if kind and 0.0 < weight <= 1.0:
            weights[kind] = max(weight, weights.get(kind, 0.0))
    return weights
