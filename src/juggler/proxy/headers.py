"""Heads as they are sent on: hop-by-hop fields out, forwarding fields in, addresses mapped. Pure.

Fields we do not touch are copied as received lines, so case, order, repetition and 8-bit bytes stay what they were.

What proxies in front of us say is kept, because they know better which address the user sees: X-Forwarded-Host and
-Proto as they are, X-Forwarded-For with our client appended, X-Forwarded-Prefix with ours appended. Anybody can write
these fields; they are hints for addresses (gradio builds its page from them), never a proof of who asks. ``Forwarded``
(RFC 7239) passes unread.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from juggler.proxy.head import Field, RequestHead, ResponseHead
from juggler.proxy.origin import SITE_FIELDS, settle_site_fields
from juggler.proxy.prefix import Mount, forwarded_prefix, map_cookie, map_location, outer_prefix
from juggler.proxy.wishes import WISH_FIELDS

_HOP_BY_HOP_REQUEST = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"upgrade", b"te")
)
_REQUEST_REWRITTEN = frozenset(
    (
        b"host",
        b"expect",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-prefix",
    )
)
# All of them are in head.NOTABLE.
_REQUEST_HANDLED = _HOP_BY_HOP_REQUEST | _REQUEST_REWRITTEN | SITE_FIELDS | WISH_FIELDS
_RESPONSE_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"upgrade"))
REWRITTEN = frozenset((b"location", b"content-location", b"set-cookie"))
"""Fields of an answer that are mapped back to the client's address: they depend on its request."""
_RESPONSE_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"trailer"))
_RESPONSE_HANDLED = _RESPONSE_HOP_BY_HOP | REWRITTEN | _RESPONSE_FRAMING

_ONCE = (b"content-length:", b"transfer-encoding:", b"trailer:", b"age:")

# A Connection field must not be able to take these away: they say where the message goes and where it ends.
_NEVER_LISTED = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"content-type", b"authorization", b"cookie", b"trailer")
)


@dataclass(slots=True)
class Hop:
    """What a head sent to the backend says about the way it came."""

    target: bytes
    authority: bytes
    """``host:port`` of the backend, for Host."""
    client: bytes
    """Address of the client's connection."""
    prefix: bytes = b""
    """Stripped from the path."""
    keepalive: bool = True
    """False asks the backend to close after the answer."""
    scheme: bytes = b"http"
    """Of the client's connection."""


def request_head(head: RequestHead, hop: Hop) -> bytes:
    """The head for the backend, always HTTP/1.1, with the received target replaced by ``hop.target``.

    Host is the backend's own address; ``origin`` says what that means for fields about the sender's page.
    """
    lines = [b"%b %b HTTP/1.1\r\n" % (head.method, hop.target), *head.lines]
    known: dict[bytes, bytes] = {}  # values by name
    site_fields: list[tuple[int, bytes, bytes]] = []
    for place, (line, name, value) in zip(head.places, head.notable, strict=True):
        if name not in _REQUEST_HANDLED:
            continue
        passed = b""
        if name == b"host":
            passed = b"%b: %b\r\n" % (line[: len(name)], hop.authority)
        elif name in SITE_FIELDS:  # whatever Connection lists: what guards a backend is not the sender's to drop
            site_fields.append((place + 1, line[: len(name)], value))
            passed = line
        elif name == b"expect":
            if head.expects_continue and (head.chunked or head.content_length):
                passed = line
        elif name == b"te":
            if b"trailers" in value.lower():
                passed = b"TE: trailers\r\n"  # we relay trailers; other codings are the client's hop only
        elif name in _REQUEST_REWRITTEN and name not in head.connection:
            known[name] = known[name] + b", " + value if name in known else value
        lines[place + 1] = passed
    if not head.connection <= _HOP_BY_HOP_REQUEST:
        listed = head.connection - _NEVER_LISTED - _REQUEST_HANDLED
        for place, (_, name, _) in enumerate(head.fields, start=1):
            if name in listed:
                lines[place] = b""
    if head.host is None:
        lines[0] += b"Host: %b\r\n" % hop.authority
    forwarded_for = hop.client
    if known:
        previous = known.get(b"x-forwarded-for")
        if previous:
            forwarded_for = previous + b", " + forwarded_for
    if site_fields:
        settle_site_fields(lines, site_fields, head, hop.target, known, secure=hop.scheme == b"https")
    host = known.get(b"x-forwarded-host", head.host)
    proto = known.get(b"x-forwarded-proto", hop.scheme)
    named = b"X-Forwarded-Host: %b\r\n" % host if host is not None else b""
    lines.append(b"X-Forwarded-For: %b\r\n%bX-Forwarded-Proto: %b\r\n" % (forwarded_for, named, proto))
    prefix = hop.prefix
    if b"x-forwarded-prefix" in known:
        prefix = outer_prefix((known[b"x-forwarded-prefix"],)) + prefix
    if prefix:
        lines.append(b"X-Forwarded-Prefix: %b\r\n" % prefix)
    if head.upgrade is not None:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade)
    elif not hop.keepalive:
        lines.append(b"Connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


@dataclass(slots=True)
class ReturnHop:
    """What a head sent to the client must be mapped back by."""

    authority: bytes
    """``host:port`` of the backend, as sent in Host."""
    prefix: bytes = b""
    """Stripped from the path."""
    connection: bytes = b""
    """Value of the Connection field towards the client; empty for none."""
    unframed: bool = False
    """The chunks are taken off (HTTP/1.0 client): no Transfer-Encoding, no Trailer."""
    bare: bool = False
    """The client's path was the prefix alone, without a slash."""
    request_fields: Sequence[Field] = ()
    """Of the client's request; asked for the prefix that proxies in front of us have stripped."""


def response_head(head: ResponseHead, hop: ReturnHop, added: bytes = b"") -> bytes:
    """The head for the client: same status, reason and fields; nothing is added but Connection and ``added``.

    Args:
        head: As the backend sent it.
        hop: What it is mapped back by.
        added: Whole lines of our own.
    """
    lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
    _add_fields(lines, head, hop)
    if head.status == 101 and head.upgrade is not None:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade)
    elif hop.connection:
        lines.append(b"Connection: %b\r\n" % hop.connection)
    if added:
        lines.append(added)
    lines.append(b"\r\n")
    return b"".join(lines)


def end_to_end_fields(head: ResponseHead, hop: ReturnHop) -> bytes:
    """The lines of an answer's fields as the client got them, without those about this one message and connection."""
    lines: list[bytes] = []
    _add_fields(lines, head, hop)
    return b"".join(line for line in lines if not line[:18].lower().startswith(_ONCE))


def _add_fields(lines: list[bytes], head: ResponseHead, hop: ReturnHop) -> None:
    listed = head.connection
    has_length = False
    for line, name, value in head.fields:
        if name not in _RESPONSE_HANDLED:
            if name not in listed or name in _NEVER_LISTED:
                lines.append(line)
        elif name in REWRITTEN:
            lines.append(_mapped_back(line, name, value, hop))
        elif name in _RESPONSE_FRAMING:
            if head.status < 200 or head.status == 204:
                continue  # such a field is a mistake there (RFC 9110 8.6, RFC 9112 6.1), and somebody may believe it
            if name == b"content-length":
                if not has_length:  # repeated equal lengths become one
                    lines.append(b"%b: %d\r\n" % (line[: len(name)], head.content_length or 0))
                has_length = True
            elif not hop.unframed:
                lines.append(line)
        elif name == b"upgrade" and head.status == 426:
            lines.append(line)  # 426 has to say what to upgrade to (RFC 9110 15.5.22)


def _mapped_back(line: bytes, name: bytes, value: bytes, hop: ReturnHop) -> bytes:
    mount = Mount(hop.authority, hop.prefix, forwarded_prefix(hop.request_fields), hop.bare)
    mapped = map_cookie(value, mount) if name == b"set-cookie" else map_location(value, mount)
    return line if mapped == value else b"%b: %b\r\n" % (line[: len(name)], mapped)
