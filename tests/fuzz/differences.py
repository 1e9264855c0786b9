"""Where our readings differ from h11's on purpose, each with its reason. Everything else that differs is a fault.

A difference is recognised by what the bytes hold, written down here once more and independently of the parsers, so
that no other refusal can hide behind it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.fuzz.readings import Reading, skipped_empty_lines


@dataclass(frozen=True)
class Difference:
    """One thing that we read otherwise than h11.

    Args:
        name: For messages.
        reason: Why.
        applies: Whether the head, as received, has it; h11's reading is given where h11 accepts it.
        status: With which we refuse it; None where we accept it.
    """

    name: str
    reason: str
    applies: Callable[[bytes, Reading], bool]
    status: int | None = None


def _line(raw: bytes) -> bytes:
    return re.split(rb"\r?\n", raw.lstrip(b"\r\n"), maxsplit=1)[0]


def _lengths(reading: Reading, raw: bytes) -> list[bytes]:
    """Values of Content-Length as received: h11 joins equal ones."""
    return [value.strip(b" \t") for value in re.findall(rb"(?im)^content-length:([^\r\n]*)", raw)]


def _known_target(reading: Reading) -> bool:
    method, target = reading.start
    assert isinstance(target, bytes)
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return True
    return re.match(rb"[A-Za-z][A-Za-z0-9+.-]*://", target) is not None


def _odd_host(reading: Reading) -> bool:
    # RFC 3986 3.2.2: unreserved, sub-delims without the comma, percent, brackets and colon of addresses and ports.
    if reading.host is None:
        return False
    target = reading.start[1]
    assert isinstance(target, bytes)
    authority = re.match(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)", target)
    said = reading.host + (authority[1] if authority else b"")  # an absolute form names a host too
    return re.search(rb"[^A-Za-z0-9\-._~!$&'()*+;=%:\[\]]", said) is not None


def _coded_in_two_ways(reading: Reading) -> bool:
    return reading.chunked and (reading.length is not None or reading.minor == b"1.0")


WE_REFUSE_REQUESTS = (
    Difference(
        "bare LF",
        "RFC 9112 2.2 allows a recipient to take it for a line end; who does not, sees another head",
        lambda raw, reading: re.search(rb"(?<!\r)\n", raw) is not None,
        400,
    ),
    Difference(
        "folded field",
        "RFC 9112 5.2 has a server refuse it or unfold it; who forwards it unchanged hides a field",
        lambda raw, reading: re.search(rb"\n[ \t]", raw) is not None,
        400,
    ),
    Difference(
        "control character in a value",
        "RFC 9110 5.5: invalid; some parsers end a line at them",
        lambda raw, reading: re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", raw) is not None,
        400,
    ),
    Difference("CONNECT", "no tunnels to anywhere", lambda raw, reading: reading.start[0] == b"CONNECT", 501),
    Difference(
        "form of the target",
        "RFC 9112 3.2: origin, absolute or, for OPTIONS, asterisk form; everything else is refused by routing anyway",
        lambda raw, reading: not _known_target(reading),
        400,
    ),
    Difference(
        "version",
        "h11 takes any digits; HTTP/1.0 and 1.1 are what we speak",
        lambda raw, reading: reading.minor not in (b"1.0", b"1.1"),
        505,
    ),
    Difference(
        "Host that is no host",
        "h11 does not look at it; it decides about the origin of pages and goes into X-Forwarded-Host",
        lambda raw, reading: _odd_host(reading),
        400,
    ),
    Difference(
        "two framings",
        "RFC 9112 6.1: a request with both is an attempt to smuggle; chunks in HTTP/1.0 are not known there",
        lambda raw, reading: _coded_in_two_ways(reading),
        400,
    ),
    Difference(
        "Content-Length more than once",
        "h11 joins equal ones (RFC 9110 8.6 allows it); no client sends them",
        lambda raw, reading: len(_lengths(reading, raw)) > 1 or b"," in b"".join(_lengths(reading, raw)),
        400,
    ),
    Difference(
        "length beyond 2**63",
        "h11 takes 20 digits; many count in 64 bits and would wrap around",
        lambda raw, reading: any(len(value) > 18 for value in _lengths(reading, raw)),
        400,
    ),
    Difference(
        "unknown expectation",
        "RFC 9110 10.1.1: 417; h11 leaves it to its user",
        lambda raw, reading: [value.lower() for value in reading.values(b"expect")] not in ([], [b"100-continue"]),
        417,
    ),
    Difference("long line", "Limits.request_line_bytes", lambda raw, reading: len(_line(raw)) > 16 * 1024, 414),
    Difference("long head", "Limits.head_bytes", lambda raw, reading: len(raw) > 64 * 1024, 431),
)

WE_ACCEPT_REQUESTS = (
    Difference(
        "empty lines before the request",
        "RFC 9112 2.2 asks a server to ignore at least one; old clients send one after a body",
        lambda raw, reading: skipped_empty_lines(raw) > 0,
    ),
    Difference(
        "bytes from 0x80 in the target",
        "browsers and curl send raw UTF-8; every backend of ours takes it, and it has one reading",
        lambda raw, reading: re.search(rb"[\x80-\xff]", _line(raw)) is not None,
    ),
)


def without_what_only_we_accept(raw: bytes) -> bytes:
    """A request head that we accept, changed so that h11 has to read it in the same way."""
    raw = raw[skipped_empty_lines(raw) :]
    line, rest = raw.split(b"\r\n", 1)
    return re.sub(rb"[\x80-\xff]", b"x", line) + b"\r\n" + rest


WE_REFUSE_ANSWERS = (
    Difference(
        "two framings",
        "h11 lets the coding win (RFC 9112 6.3); the operator should hear of a backend that does this",
        lambda raw, reading: reading.chunked and reading.length is not None,
        502,
    ),
    Difference(
        "version",
        "h11 takes any digits",
        lambda raw, reading: reading.minor not in (b"1.0", b"1.1"),
        502,
    ),
    Difference(
        "length beyond 2**63",
        "h11 takes 20 digits",
        lambda raw, reading: any(len(value) > 18 for value in _lengths(reading, raw)),
        502,
    ),
    Difference(
        "control character in the status line",
        "RFC 9112 4: invalid; not seen in any backend, and clients stumble over it",
        lambda raw, reading: re.search(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", _line(raw)) is not None,
        502,
    ),
)

_STRICT_FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00\n\r\x0b\x0c]*")

WE_ACCEPT_ANSWERS = (
    Difference(
        "a field that is none",
        "odd names are left out, blanks before a colon too: the operator cannot fix the program (Go takes them too)",
        lambda raw, reading: any(
            _STRICT_FIELD.fullmatch(line) is None for line in re.split(rb"\r?\n", raw.strip(b"\r\n"))[1:]
        ),
    ),
    Difference(
        "empty lines before the answer",
        "old servers send them behind an answer to HEAD",
        lambda raw, reading: raw[:1] in (b"\r", b"\n"),
    ),
    Difference(
        "carriage returns at the end of the head",
        "stripped with the line end",
        lambda raw, reading: re.search(rb"\r\r\n\r?\n\Z", raw) is not None,
    ),
)


@dataclass(frozen=True)
class BodyDifference:
    """One thing about chunked bodies that we read otherwise than h11; fields as in ``Difference``."""

    name: str
    reason: str
    applies: Callable[[bytes], bool]


def _any_line(pattern: bytes) -> Callable[[bytes], bool]:
    """Whether a line of the body, payload included, looks so."""
    return lambda body: re.search(pattern, body, re.MULTILINE) is not None


WE_REFUSE_CHUNKS = (
    BodyDifference("bare LF or folding in the trailer", "as in heads", _any_line(rb"(?<!\r)\n|\n[ \t]")),
    BodyDifference("blanks behind a size", "RFC 9112 7.1.1 has them before a semicolon only", _any_line(rb"[ \t]\r\n")),
    BodyDifference(
        "control character in an extension or trailer",
        "as in heads; CVE-2025-22871 and its like hide chunks behind a bare line end there",
        _any_line(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n)"),
    ),
    BodyDifference(
        "size of 16 digits or more", "h11 takes 20; beyond 2**60 nobody counts alike", _any_line(rb"[0-9A-Fa-f]{16}")
    ),
    BodyDifference("lines over 4 KiB, trailers over 16 KiB", "bounded memory", lambda body: len(body) > 4096),
)

WE_ACCEPT_CHUNKS = (
    BodyDifference(
        "blanks before an extension",
        "RFC 9112 7.1.1 asks recipients to take them",
        _any_line(rb"^[0-9A-Fa-f]+[ \t]+;"),
    ),
    BodyDifference(
        "framing fields in a trailer",
        "h11 checks their values; a trailer frames nothing (RFC 9110 6.5.1), and is passed on as it came",
        _any_line(rb"(?i)^(?:content-length|transfer-encoding):"),
    ),
)
