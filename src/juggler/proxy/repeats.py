"""Heads that a connection sends again: clients repeat theirs byte for byte, but for the length of the body. Pure.

To read a head, to tell by it who asks, and to write it anew for the backend take most of what a request costs here.
All of it depends on the bytes of the head alone, on the connection, and for the backend's head on route and pool. So a
connection keeps its last head (``RequestHead`` with what was made of it), and takes it again where the same bytes
come. Nothing is kept beyond the connection: a head may hold a credential.
"""

import re

from juggler.proxy.head import Field, RequestHead
from juggler.units import KIB

KEPT_BYTES_MAX = 4 * KIB
"""Longer heads are read each time: thousands of connections may idle, and cookies grow long."""

_LENGTH = b"content-length"
_DIGITS = re.compile(rb"[0-9]{1,18}")
_MORE_DIGITS = 18
"""By so much a head may grow over the one before."""


def worth_keeping(head: RequestHead, head_limit: int) -> bool:
    """Whether the next head of a connection may be compared with this one.

    Args:
        head: As it was read.
        head_limit: Bytes; what is taken again keeps to it.
    """
    ordinary = not head.wishes and not head.expects_continue and head.upgrade is None
    return ordinary and len(head.raw) <= min(KEPT_BYTES_MAX, head_limit - _MORE_DIGITS)


def repeated(last: RequestHead, buffer: bytes) -> RequestHead | None:
    """The head at the start of ``buffer``, if it is ``last`` again; else None, and it has to be read.

    It is ``last`` itself, or one that differs from it in the number in Content-Length.
    """
    if not last.raw:
        return None  # it was forgotten
    if buffer.startswith(last.raw):
        return last
    return _of_other_length(last, buffer) if last.content_length is not None else None


def _of_other_length(last: RequestHead, buffer: bytes) -> RequestHead | None:
    raw = last.raw
    number = next(number for number, (_, name, _) in enumerate(last.notable) if name == _LENGTH)
    line, _, value = last.notable[number]
    name_end = line.index(value)  # there are no digits in the name
    start = raw.index(b"\n" + line) + 1 + name_end
    digits = _DIGITS.match(buffer, start)
    if (
        digits is None
        or not buffer.startswith(raw[:start])
        or not buffer.startswith(raw[start + len(value) :], digits.end())
    ):
        return None
    value_end = name_end + len(value)
    other_line = line[:name_end] + digits[0] + line[value_end:]
    notable: list[Field] = [*last.notable]
    notable[number] = (other_line, _LENGTH, digits[0])
    head = RequestHead(
        last.method,
        last.target,
        last.minor,
        buffer[: digits.end() + len(raw) - start - len(value)],
        None,
        notable,
        last.places,
        last.host,
        last.connection,
        int(digits[0]),
        last.chunked,
        last.keep_alive,
        last.upgrade,
        last.expects_continue,
        last.wishes,
    )
    if last.sent is not None:
        route, pool, sent = last.sent
        # Connection cannot take the length away (``headers``), and no other line of a head begins like it.
        head.sent = (route, pool, sent.replace(b"\n" + line, b"\n" + other_line, 1))
    return head
