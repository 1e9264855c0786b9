"""Heads as they are sent on: hop-by-hop fields out, forwarding fields in, addresses mapped. Pure.

Fields we do not touch are copied as received lines, so case, order, repetition and 8-bit bytes stay what they were.
"""

import re
from dataclasses import dataclass

from juggler.proxy.head import RequestHead, ResponseHead

_HOP_BY_HOP_REQUEST = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authorization", b"upgrade", b"te")
)
_REQUEST_REWRITTEN = frozenset(
    (
        b"host",
        b"origin",
        b"expect",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-forwarded-prefix",
    )
)
_REQUEST_HANDLED = _HOP_BY_HOP_REQUEST | _REQUEST_REWRITTEN
_RESPONSE_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"upgrade"))
_RESPONSE_REWRITTEN = frozenset((b"location", b"content-location", b"set-cookie"))
_RESPONSE_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"trailer"))
_RESPONSE_HANDLED = _RESPONSE_HOP_BY_HOP | _RESPONSE_REWRITTEN | _RESPONSE_FRAMING

# A Connection field must not be able to take these away: they say where the message goes and where it ends.
_NEVER_LISTED = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"content-type", b"authorization", b"cookie", b"trailer")
)
_COOKIE_PATH = re.compile(rb"(;[ \t]*path[ \t]*=[ \t]*)(/[^;]*)", re.IGNORECASE)
_ORIGIN = re.compile(rb"(https?)://([^/]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
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


def request_head(head: RequestHead, hop: Hop) -> bytes:
    """The head for the backend, always HTTP/1.1, with the received target replaced by ``hop.target``.

    Host is the backend's own address. Origin goes when it names the same host as the client's Host: backends that
    compare the two (ComfyUI, ollama) would otherwise refuse pages that came through us. A foreign Origin stays, so
    that the backend's own policy against foreign pages decides (backends.md 1.3).
    """
    listed = head.connection - _NEVER_LISTED if head.connection else head.connection
    lines = [b"%b %b HTTP/1.1\r\n" % (head.method, hop.target)]
    if head.host is None:
        lines.append(b"Host: %b\r\n" % hop.authority)
    forwarded_for = hop.client
    known: dict[bytes, bytes] = {}
    for line, name, value in head.fields:
        lowered = name.lower()
        if lowered not in _REQUEST_HANDLED:
            if lowered not in listed:
                lines.append(line)
        elif lowered == b"host":
            lines.append(b"%b: %b\r\n" % (name, hop.authority))
        elif lowered == b"origin":
            if not is_same_origin(value, head.host):
                lines.append(line)
        elif lowered == b"expect":
            if head.expects_continue and (head.chunked or head.content_length):
                lines.append(line)
        elif lowered == b"te":
            if b"trailers" in value.lower():
                lines.append(b"TE: trailers\r\n")  # we relay trailers; other codings are the client's hop only
        elif lowered in _REQUEST_REWRITTEN and lowered not in listed:
            known[lowered] = known[lowered] + b", " + value if lowered in known else value
    if known:
        previous = known.get(b"x-forwarded-for")
        if previous:
            forwarded_for = previous + b", " + forwarded_for
    # A proxy in front of us knows better which host and scheme the user sees.
    host = known.get(b"x-forwarded-host", head.host)
    lines.append(b"X-Forwarded-For: %b\r\n" % forwarded_for)
    if host is not None:
        lines.append(b"X-Forwarded-Host: %b\r\n" % host)
    lines.append(b"X-Forwarded-Proto: %b\r\n" % known.get(b"x-forwarded-proto", b"http"))
    prefix = known.get(b"x-forwarded-prefix", b"").rstrip(b"/") + hop.prefix
    if prefix:
        lines.append(b"X-Forwarded-Prefix: %b\r\n" % prefix)
    if head.upgrade is not None:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade)
    elif not hop.keepalive:
        lines.append(b"Connection: close\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


@dataclass(frozen=True, slots=True)
class ReturnHop:
    """What a head sent to the client must be mapped back by."""

    authority: bytes
    """``host:port`` of the backend, as sent in Host."""
    prefix: bytes = b""
    connection: bytes = b""
    """Value of the Connection field towards the client; empty for none."""
    unframed: bool = False
    """The chunks are taken off (HTTP/1.0 client): no Transfer-Encoding, no Trailer."""


def response_head(head: ResponseHead, hop: ReturnHop) -> bytes:
    """The head for the client: same status, reason and fields; nothing is added but Connection."""
    listed = head.connection - _NEVER_LISTED if head.connection else head.connection
    lines = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
    has_length = False
    for line, name, value in head.fields:
        lowered = name.lower()
        if lowered not in _RESPONSE_HANDLED:
            if lowered not in listed:
                lines.append(line)
        elif lowered in _RESPONSE_REWRITTEN:
            lines.append(_mapped_back(line, name, lowered, value, hop))
        elif lowered in _RESPONSE_FRAMING:
            if lowered == b"content-length":
                if not has_length:  # repeated equal lengths become one
                    lines.append(b"%b: %d\r\n" % (name, head.content_length or 0))
                has_length = True
            elif not hop.unframed:
                lines.append(line)
        elif lowered == b"upgrade" and head.status == 426:
            lines.append(line)  # 426 has to say what to upgrade to (RFC 9110 15.5.22)
    if head.status == 101 and head.upgrade is not None:
        lines.append(b"Connection: Upgrade\r\nUpgrade: %b\r\n" % head.upgrade)
    elif hop.connection:
        lines.append(b"Connection: %b\r\n" % hop.connection)
    lines.append(b"\r\n")
    return b"".join(lines)


def is_same_origin(origin: bytes, host: bytes | None) -> bool:
    """Whether an Origin value names the host (and port) of a Host value."""
    match = _ORIGIN.fullmatch(origin)
    if match is None or host is None:
        return False
    default_port = b":443" if match[1].lower() == b"https" else b":80"
    return match[2].lower().removesuffix(default_port) == host.lower().removesuffix(default_port)


def map_location(value: bytes, authority: bytes, prefix: bytes) -> bytes:
    """A Location of the backend as the client can reach it.

    Paths and URLs on the backend's own address get the stripped prefix back. The result is a path, which clients
    resolve against the address they used. A backend that was told its prefix and already wrote it is left alone.
    """
    path = value
    match = _ORIGIN.match(value)
    if match is not None:
        if match[2].lower() != authority.lower():
            return value
        path = value[match.end() :]
        if not path.startswith(b"/"):
            path = b"/" + path
    if not path.startswith(b"/") or (match is None and path.startswith(b"//")):
        return value
    return _prefixed(path, prefix)


def _prefixed(path: bytes, prefix: bytes) -> bytes:
    if path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/", b"?", b"#", b";"):
        return path
    return prefix + path


def _mapped_back(line: bytes, name: bytes, lowered: bytes, value: bytes, hop: ReturnHop) -> bytes:
    if lowered == b"set-cookie":
        if not hop.prefix:
            return line
        mapped = _COOKIE_PATH.sub(lambda match: match[1] + _prefixed(match[2], hop.prefix), value)
    else:
        mapped = map_location(value, hop.authority, hop.prefix)
    return line if mapped == value else b"%b: %b\r\n" % (name, mapped)
