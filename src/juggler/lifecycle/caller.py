"""Our own small HTTP calls to one instance: probes, unload, wake, busy, saving of state.

One exchange per fresh connection: these calls are rare, and a connection that is never kept cannot be stale, cannot
hold up a server's shutdown and cannot leak. The parser is separate from the socket and sees only bytes, so that
tests can cut an answer anywhere.
"""

import asyncio
import enum
import re
from collections.abc import Mapping
from urllib.parse import quote

from juggler.backends.base import Address, Response
from juggler.tls import HANDSHAKE_LIMIT_S, Trouble, client_context, explain
from juggler.units import KIB, MIB, SECONDS

CONNECT_LIMIT_S = 1 * SECONDS
"""A loopback connect is answered at once, by accept or refusal; more means a full backlog or a dead host."""

HEAD_LIMIT_BYTES = 64 * KIB
"""For a head with its 1xx predecessors, for one chunk-size line, and for the trailer section."""

_READ_BYTES = 64 * KIB
_TARGET_SAFE = "/?:@!$&'()*+,;=-._~%[]|"
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")  # RFC 9110 section 5.6.2
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-9][0-9]{2})(?: [^\r\n]*)?\Z")
_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class TlsFailed(ConnectionError):
    """No connection to a server behind ``https://``."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(trouble.why)
        self.trouble = trouble


class HttpCaller:
    """The ``backends.base.Caller`` for one address; holds no connection and no other resource between calls."""

    def __init__(self, address: Address) -> None:
        self.address = address

    async def call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float = 3.0,
        limit_bytes: int = 4 * MIB,
    ) -> Response:
        """One exchange on a fresh connection, closed before this returns, whatever happens.

        Args:
            method: An upper-case HTTP method.
            path: Origin form with query; characters that may not appear in one are percent-encoded.
            headers: Further fields; they win over our own of the same name.
            body: Sent with ``Content-Length``.
            timeout_s: For everything together; the connect alone gets at most one second of it, three with TLS.
            limit_bytes: Of answer body; a longer one is an error, not a truncated answer.

        Raises:
            OSError: Refused, reset, or not HTTP (``ConnectionError`` and friends).
            TimeoutError: No complete answer within ``timeout_s``.
        """
        request = _request_bytes(self.address, method, path, headers or {}, body)
        answer = ResponseParser(limit_bytes=limit_bytes, bodiless=method == "HEAD")
        try:
            async with asyncio.timeout(timeout_s):
                limit_s = CONNECT_LIMIT_S if self.address.tls is None else HANDSHAKE_LIMIT_S
                return await self._exchange(request, answer, min(limit_s, timeout_s))
        except TimeoutError:
            raise TimeoutError(f"{method} {path} on {self.address}: no answer within {timeout_s:g} s") from None
        except UnicodeError as error:  # a host name that IDNA refuses
            raise ConnectionError(f"{self.address} is not a host that can be called: {error}") from error

    async def _exchange(self, request: bytes, answer: "ResponseParser", connect_limit_s: float) -> Response:
        async with asyncio.timeout(connect_limit_s):
            reader, writer = await connect(self.address)
        try:
            # Not drained: the answer may come before the body has been read, and then nobody reads the rest.
            writer.write(request)
            while True:
                data = await reader.read(_READ_BYTES)
                response = answer.feed(data) if data else answer.end()
                if response is not None:
                    return response
        except ValueError as error:
            raise ConnectionError(f"{self.address} does not speak HTTP as expected: {error}") from error
        finally:
            # Abort instead of close: nothing is left to send that anybody waits for, and it needs no await, so that
            # a cancelled call gives its socket back as well.
            writer.transport.abort()


async def connect(address: Address, *, look: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection, with its TLS handshake if the server wants one.

    Args:
        look: See ``juggler.tls.client_context``.

    Raises:
        OSError: There is none; ``juggler.tls.explain`` has told why, where TLS is to blame.
    """
    tls = address.tls
    if tls is None:
        return await asyncio.open_connection(address.host, address.port)
    try:
        context = await client_context(tls, look=look)
        return await asyncio.open_connection(address.host, address.port, ssl=context, server_hostname=tls.name)
    except ConnectionRefusedError:
        raise
    except OSError as error:
        raise TlsFailed(explain(error, tls)) from error


def _request_bytes(address: Address, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
    """The request as sent.

    Raises:
        ConnectionError: Method or a header would break out of its line; nothing is sent.
    """
    fields = {"host": ("Host", address.authority), "accept-encoding": ("Accept-Encoding", "identity")}
    for name, value in headers.items():
        fields[name.lower()] = (name, value)
    fields["connection"] = ("Connection", "close")
    if body is not None or method in _METHODS_WITH_BODY:
        fields["content-length"] = ("Content-Length", str(len(body or b"")))
    if not _TOKEN.match(method) or any(
        not _TOKEN.match(name) or not value.isprintable() for name, value in fields.values()
    ):
        raise ConnectionError(f"{method!r} with these headers cannot be sent to {address}: not a valid HTTP request")
    lines = [f"{method} {quote(path, safe=_TARGET_SAFE)} HTTP/1.1", *(f"{name}: {v}" for name, v in fields.values())]
    # Field values may be any bytes above 0x7f (RFC 9110 section 5.5); UTF-8 is what today's servers expect there.
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


class _Part(enum.Enum):
    """What the parser reads next."""

    HEAD = "head"
    SIZED = "sized body"
    UNTIL_CLOSE = "body until close"
    CHUNK_SIZE = "chunk size"
    CHUNK_DATA = "chunk data"
    CHUNK_END = "chunk end"
    TRAILERS = "trailers"


class ResponseParser:
    """Bytes of one connection to one ``Response`` (RFC 9112 sections 4, 6 and 7). Pure.

    Bare LF ends a line as CRLF does (section 2.2); bytes after the answer are ignored.
    """

    def __init__(self, *, limit_bytes: int, bodiless: bool = False) -> None:
        """``bodiless``: the request was a HEAD, its answer has no body whatever its head says."""
        self._limit_bytes = limit_bytes
        self._bodiless = bodiless
        self._buffer = bytearray()
        self._body = bytearray()
        self._part = _Part.HEAD
        self._status = 0
        self._headers: dict[str, str] = {}
        self._missing_bytes = 0
        """Of the sized body or of the current chunk."""
        self._head_bytes = 0
        """Consumed by lines so far; bounds a peer that sends 1xx heads or trailers without end."""

    def feed(self, data: bytes) -> Response | None:
        """Take some bytes; the answer once it is complete.

        Raises:
            ValueError: Not an HTTP/1 answer, or longer than allowed.
        """
        self._buffer += data
        while True:
            match self._part:
                case _Part.HEAD:
                    line = self._line()
                    done = line is not None and self._on_head_line(line)
                    stuck = line is None
                case _Part.SIZED | _Part.CHUNK_DATA:
                    self._take(self._missing_bytes)
                    stuck = self._missing_bytes > 0
                    done = not stuck and self._part is _Part.SIZED
                    self._part = _Part.CHUNK_END if self._part is _Part.CHUNK_DATA and not stuck else self._part
                case _Part.UNTIL_CLOSE:
                    self._missing_bytes = len(self._buffer)
                    self._take(self._missing_bytes)
                    done, stuck = False, True
                case _Part.CHUNK_SIZE | _Part.CHUNK_END | _Part.TRAILERS:
                    line = self._line()
                    done = line is not None and self._on_chunk_line(line)
                    stuck = line is None
            if done:
                return Response(self._status, self._headers, bytes(self._body))
            if stuck:
                return None

    def end(self) -> Response:
        """The peer has closed.

        Raises:
            ValueError: In the middle of an answer.
        """
        if self._part is _Part.UNTIL_CLOSE:
            return Response(self._status, self._headers, bytes(self._body))
        if self._part is _Part.HEAD and not self._head_bytes and not self._buffer:
            raise ValueError("it closed the connection without an answer")
        raise ValueError(f"it closed the connection in the middle of its answer ({self._part.value})")

    def _line(self) -> bytes | None:
        end = self._buffer.find(b"\n")
        used = self._head_bytes + (len(self._buffer) if end < 0 else end + 1)
        if used > HEAD_LIMIT_BYTES:
            raise ValueError(f"its answer's head is longer than {HEAD_LIMIT_BYTES} bytes")
        if end < 0:
            return None
        line = bytes(self._buffer[:end]).removesuffix(b"\r")
        del self._buffer[: end + 1]
        self._head_bytes = used
        return line

    def _take(self, wanted_bytes: int) -> None:
        taken = min(wanted_bytes, len(self._buffer))
        if len(self._body) + wanted_bytes > self._limit_bytes:
            raise ValueError(f"its answer is longer than {self._limit_bytes} bytes")
        self._body += self._buffer[:taken]
        del self._buffer[:taken]
        self._missing_bytes -= taken

    def _on_head_line(self, line: bytes) -> bool:
        """One line of the head; True when the answer is complete with it."""
        if not self._status:
            match = _STATUS_LINE.match(line)
            if match is None:
                raise ValueError(f"its answer begins with {line[:60]!r}")
            self._status = int(match.group(1))
            return False
        if line:
            self._on_field(line)
            return False
        if self._status == 101:
            raise ValueError("it switched protocols without being asked")
        if self._status < 200:  # 100 Continue, 102 Processing, 103 Early Hints: the answer is still to come
            self._status, self._headers = 0, {}
            return False
        return self._on_head_end()

    def _on_field(self, line: bytes) -> None:
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon or not _TOKEN.match(name):
            raise ValueError(f"its answer has the header line {line[:60]!r}")
        name, value = name.lower(), value.strip(" \t")
        if name == "content-length" and self._headers.get(name, value) != value:
            raise ValueError("its answer has two different lengths")
        self._headers[name] = value

    def _on_head_end(self) -> bool:
        """Decide how the body ends (RFC 9112 section 6.3); True when there is none."""
        if self._bodiless or self._status in (204, 304):
            return True
        coding, length = self._headers.get("transfer-encoding"), self._headers.get("content-length")
        if coding is not None:
            if coding.lower() != "chunked":
                raise ValueError(f"its answer has the transfer coding {coding[:60]!r}, which was not asked for")
            self._part, self._head_bytes = _Part.CHUNK_SIZE, 0
            return False
        if length is None:
            self._part = _Part.UNTIL_CLOSE
            return False
        if not re.fullmatch("[0-9]{1,18}", length):  # 18 digits: no real length, but int() stays cheap
            raise ValueError(f"its answer has the length {length[:60]!r}")
        self._part, self._missing_bytes = _Part.SIZED, int(length)
        return self._missing_bytes == 0

    def _on_chunk_line(self, line: bytes) -> bool:
        """A size line, the empty line after a chunk, or one of the trailer section; True at its end."""
        if self._part is _Part.TRAILERS:
            return not line
        self._head_bytes = 0
        if self._part is _Part.CHUNK_END:
            if line:
                raise ValueError(f"a chunk of its answer is followed by {line[:60]!r}")
            self._part = _Part.CHUNK_SIZE
            return False
        size = line.partition(b";")[0].strip()
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", size):
            raise ValueError(f"its answer has the chunk size {line[:60]!r}")
        self._missing_bytes = int(size, 16)
        self._part = _Part.CHUNK_DATA if self._missing_bytes else _Part.TRAILERS
        return False
