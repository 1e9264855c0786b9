"""What the dashboard's "Try it" sends: one request to an endpoint, through the juggler's own listener.

A browser that shows the dashboard may talk to nobody but the control listener. So the request is handed on from here,
to the listener that every other client uses: it is queued, counted and recorded as theirs are. The answer comes back
as it is, but as bytes of no type, so that nothing a backend says is ever a page of ours; what its head said is in
``X-Try-...`` fields. Closing the connection gives the request up, wherever it is then.
"""

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import h11  # of uvicorn, which serves the control plane with it
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from juggler.control.guard import error_document
from juggler.control.server import Receive, Scope, Send
from juggler.control.subject import Subject
from juggler.control.urls import urls_of
from juggler.errors import BadRequest, JugglerError, TooManyTrials, UpstreamError
from juggler.units import MINUTES

BODY_BYTES_MAX = 1 << 20
"""Of a request; what somebody types, or a small picture."""
ANSWER_BYTES_MAX = 64 << 20
"""Of an answer; then it is cut off."""
TRIALS_AT_ONCE = 4
TRIAL_LIMIT_S = 30 * MINUTES
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
TARGET_PATTERN = r'^/[!"$-~]{0,1999}$'
"""Path and query, as they go over the wire: no blanks, no fragment."""

_TARGET = re.compile(TARGET_PATTERN.removesuffix("$"))
_HEAD_BYTES_MAX = 512 * 1024
"""More than the listener hands on (``Limits.response_head_bytes``)."""
_PIECE_BYTES = 64 * 1024
_FIELDS = {
    b"content-type": b"x-try-type",
    b"retry-after": b"x-try-retry-after",
    b"x-juggler": b"x-try-source",
    b"x-juggler-wait": b"x-try-wait",
    b"x-juggler-queue": b"x-try-queue",
    b"x-juggler-load": b"x-try-load",
}
"""What is told of the head of an answer, and how."""

_Event = h11.Response | h11.Data


class _Destination(NamedTuple):
    host: str
    port: int
    tls: ssl.SSLContext | None
    name: str
    """For ``Host``."""
    prefix: str


class Trials:
    """See the module.

    Args:
        subject: Whose endpoints are tried.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.under_way = 0

    async def answer(self, request: Request) -> Response:
        """``POST /api/v1/try/{endpoint}?method=POST&path=/v1/chat/completions``.

        Raises:
            RoutingError: There is no such endpoint.
            BadRequest: Its parameters are not what they have to be, or the body is too large.
        """
        query = request.query_params
        destination = self._find(request.path_params["endpoint"])
        method, path = query.get("method", "POST"), query.get("path", "/")
        if method not in METHODS:
            raise BadRequest(f"`method` is one of {', '.join(METHODS)}", code="bad_parameter")
        if _TARGET.fullmatch(path) is None:
            raise BadRequest(
                "`path` begins with / and has neither blanks nor a fragment",
                code="bad_parameter",
                hint="percent-encode what else it has",
            )
        kind = request.headers.get("content-type", "application/json")
        if not (kind.isascii() and kind.isprintable()):
            raise BadRequest("`Content-Type` is visible ASCII", code="bad_parameter")
        body = await _body_of(request)
        fields = [
            ("Host", destination.name),
            ("User-Agent", "juggler-dashboard"),
            ("Accept", "*/*"),
            ("X-Juggler-Timing", "1"),
            ("Connection", "close"),
            *([("Content-Type", kind)] if body else []),
            *([("Content-Length", str(len(body)))] if body or method != "GET" else []),
        ]
        head = h11.Request(method=method, target=destination.prefix + path, headers=fields)
        return _Relay(self, destination, head, body)

    def _find(self, wanted: str) -> _Destination:
        endpoint = self._subject.steering.endpoint(wanted)
        for server in self._subject.config.servers:
            listener = self._subject.listeners.get(server.name)
            for one in server.endpoints:
                if one.id == endpoint and listener is not None:
                    url = urlsplit(urls_of(server, one, listener.addresses[:1])[0])
                    assert url.hostname is not None
                    assert url.port is not None
                    tls = _unverified() if url.scheme == "https" else None
                    return _Destination(url.hostname, url.port, tls, url.netloc, url.path.rstrip("/"))
        raise UpstreamError(f"{endpoint} has no open listener now", hint="try again in a moment")


class _Relay(Response):
    """Sends the request and hands the answer on, as it comes."""

    def __init__(self, trials: Trials, destination: _Destination, head: h11.Request, body: bytes) -> None:
        super().__init__()
        self._trials = trials
        self._destination = destination
        self._head = head
        self._body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._trials.under_way >= TRIALS_AT_ONCE:
            error = TooManyTrials("enough is being tried already", hint="wait for one of them, or cancel it")
            await _refusal(error)(scope, receive, send)
            return
        self._trials.under_way += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                relay = tasks.create_task(self._relay(scope, receive, send), name="trial")
                watch = tasks.create_task(_cancel_when_gone(receive, relay), name="reader of a trial")
                relay.add_done_callback(lambda _: watch.cancel())
        finally:
            self._trials.under_way -= 1

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun, left = False, ANSWER_BYTES_MAX
        try:
            async with (
                asyncio.timeout(TRIAL_LIMIT_S),
                contextlib.aclosing(_exchange(self._destination, self._head, self._body)) as events,
            ):
                async for event in events:
                    if isinstance(event, h11.Response):
                        begun = True
                        await send(_start(event))
                        continue
                    left -= len(event.data)
                    if left < 0:
                        return  # without an end, so that the reader's connection breaks: this is not all of it
                    await send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        except (OSError, h11.RemoteProtocolError) as error:
            if not begun:  # else as above
                told = UpstreamError(f"the juggler's own listener does not answer: {error or type(error).__name__}")
                await _refusal(told)(scope, receive, send)


async def _exchange(destination: _Destination, head: h11.Request, body: bytes) -> AsyncGenerator[_Event, None]:
    """The head of the answer, then its body in pieces.

    Raises:
        OSError: The listener cannot be reached, or the connection broke.
        h11.RemoteProtocolError: The answer ended early.
    """
    reader, writer = await asyncio.open_connection(destination.host, destination.port, ssl=destination.tls)
    try:
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD_BYTES_MAX)
        # Not drained: it is a megabyte at most, and a queue may keep it for long while there is an answer to read.
        for out in (head, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(connection.send(out) or b"")
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_PIECE_BYTES))
            elif isinstance(event, _Event):
                yield event
            elif not isinstance(event, h11.InformationalResponse):
                return
    finally:
        writer.transport.abort()


def _start(answer: h11.Response) -> dict[str, object]:
    fields: list[tuple[bytes, bytes]] = [
        (b"content-type", b"application/octet-stream"),
        (b"cache-control", b"no-store"),
        (b"x-accel-buffering", b"no"),
        (b"x-try-status", str(answer.status_code).encode()),
    ]
    told: Sequence[tuple[bytes, bytes]] = list(answer.headers)
    fields += [(_FIELDS[name], value) for name, value in told if name in _FIELDS]
    return {"type": "http.response.start", "status": 200, "headers": fields}


async def _body_of(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > BODY_BYTES_MAX:
            raise BadRequest("a trial's body has a megabyte at most", status=413, code="body_too_large")
    return bytes(body)


async def _cancel_when_gone(receive: Receive, relay: "asyncio.Task[None]") -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    relay.cancel()


def _refusal(error: JugglerError) -> Response:
    headers = {"x-juggler": "error", "cache-control": "no-store"}
    return JSONResponse(error_document(error), error.status, headers)


def _unverified() -> ssl.SSLContext:
    """The other end is a socket of this very process; its certificate names what clients call it, not the loopback."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
