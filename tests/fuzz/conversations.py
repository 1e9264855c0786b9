"""What must hold of whole connections: the backend hears what h11 hears, the client what the backend said."""

import asyncio
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from string import ascii_letters, digits
from typing import Any, TypeVar

import h11

from juggler.proxy.body import RequestBody
from juggler.proxy.framing import FramingError
from tests.fuzz import differences, reference
from tests.fuzz.memory_rig import Backend, Heard, Spoken, speak
from tests.fuzz.oracles import check_response_head
from tests.fuzz.readings import (
    Reading,
    Refused,
    h11_request,
    our_request_head,
    our_response_head,
    skipped_empty_lines,
)
from tests.fuzz.strategies import cut

_T = TypeVar("_T")
_local = threading.local()


def run(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """In a loop that is kept: opening one takes longer than a conversation."""
    loop: asyncio.AbstractEventLoop | None = getattr(_local, "loop", None)
    if loop is None:
        loop = _local.loop = asyncio.new_event_loop()
    return loop.run_until_complete(coroutine)


def close() -> None:
    """Close the loop of ``run``, if there is one."""
    loop: asyncio.AbstractEventLoop | None = getattr(_local, "loop", None)
    if loop is not None:
        loop.close()
        _local.loop = None


def answer_of(index: int) -> bytes:
    """A body that tells which request was answered."""
    return b"answer %d" % index


def _numbered(index: int, heard: Heard) -> list[bytes | None]:
    body = answer_of(index)
    return [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + (b"" if heard.method == b"HEAD" else body)]


def check_client_stream(data: bytes, places: list[int]) -> None:
    """The backend hears exactly the requests that h11 reads from the stream, up to the first that we refuse.

    ``places`` are those where the stream is cut.
    """
    ways = {"at_once": len(data) % 4 != 0, "keepalive": len(data) % 5 != 0}
    spoken = run(speak(cut(data, places), Backend(_numbered), **ways))
    check_heard(data, spoken)
    _check_told(data, spoken)


@dataclass
class Expected:
    """A request that is to be forwarded; ``whole``, or cut off by the end of the stream or by a fault in its body."""

    method: bytes
    target: bytes
    body: bytes = b""
    whole: bool = False

    @property
    def said(self) -> tuple[bytes, bytes, bytes]:
        return self.method, self.target, self.body


@dataclass
class Requests:
    """What h11 reads from a client's stream, as far as we do not refuse it."""

    requests: list[Expected]
    refused: bool
    """Then comes something that is to be refused."""
    goes_on: bool
    """Neither refused nor ended: more could come."""


def requests_of(data: bytes) -> Requests:
    """Read a client's stream."""
    requests, end = _requests_of(data)
    return Requests(requests, end == "refused", end == "open")


def _requests_of(data: bytes) -> tuple[list[Expected], str]:
    found: list[Expected] = []
    while True:
        data = data[skipped_empty_lines(data) :]
        ours = our_request_head(data)
        if ours is None:
            return found, "refused" if data and not _may_start(data) else "open"
        if isinstance(ours, Refused):
            theirs = h11_request(data)
            if isinstance(theirs, Reading):
                raw = data[: theirs.end]
                assert any(one.applies(raw, theirs) for one in differences.WE_REFUSE_REQUESTS), (data, ours)
            return found, "refused"
        raw = data[: ours[1]]
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=2**30)
        reader.receive_data(differences.without_what_only_we_accept(raw) + data[ours[1] :])
        head = reader.next_event()
        assert isinstance(head, h11.Request), ("h11 refuses what we forward", data, head)
        # The target as sent: h11 refuses bytes from 0x80, and for its eyes they were changed.
        request = Expected(bytes(head.method), raw.split(b" ")[1])
        found.append(request)
        try:
            while not isinstance(event := reader.next_event(), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    return found, "refused" if _body_verdict(data) == "bad" else "open"
                request.body += bytes(event.data)
        except h11.RemoteProtocolError:
            if _body_verdict(data) == "bad":
                return found, "refused"
            raise AssertionError("h11 refuses a body that we forward", data) from None
        if _body_verdict(data) == "bad":
            request.body = b""  # where the fault is seen depends on what h11 lets pass: check_chunked compares that
            return found, "refused"
        request.whole = True
        data = reader.trailing_data[0]
        options = b",".join(bytes(value) for name, value in head.headers if name == b"connection").lower().split(b",")
        options = [option.strip() for option in options]
        if b"close" in options or (head.http_version == b"1.0" and b"keep-alive" not in options):
            return found, "closed"


def _body_verdict(data: bytes) -> str:
    found = our_request_head(data)
    assert isinstance(found, tuple)
    body = RequestBody(found[0])
    if body.complete:
        return "end"
    try:
        body.feed(data[found[1] :])
    except FramingError:
        return "bad"
    return "end" if body.complete else "more"


def _may_start(data: bytes) -> bool:
    return chr(data[0]) in "!#$%&'*+-.^_`|~\r" or chr(data[0]) in ascii_letters + digits


def check_heard(data: bytes, spoken: Spoken) -> None:
    """The backend heard what h11 reads from the client's stream, no request more and none less."""
    expected, backend = requests_of(data).requests, spoken.backend
    assert not backend.garbage, ("the backend heard garbage", data, backend.garbage)
    whole = [one for one in expected if one.whole]
    heard = [one for one in backend.heard if one.whole]
    assert [one.said for one in heard] == [one.said for one in whole], (
        "the backend heard other requests than h11 reads",
        data,
        [one.said for one in heard],
        [one.said for one in whole],
    )
    partial = [one for one in backend.heard if not one.whole]
    assert len(partial) <= 1, ("more than one request is cut off", data, [one.said for one in partial])
    if partial:
        rest = expected[len(whole) :]
        assert rest, ("the backend heard the start of a request that h11 does not read", data, partial[0].said)
        assert (partial[0].method, partial[0].target) == (rest[0].method, rest[0].target), data
        if rest[0].body:
            assert rest[0].body.startswith(partial[0].body), (data, partial[0].said, rest[0].body)


def _check_told(data: bytes, spoken: Spoken) -> None:
    """The client gets one answer for each whole request, in order, and at most one refusal behind them."""
    expected = requests_of(data)
    rest = spoken.received
    for index, request in enumerate(one for one in expected.requests if one.whole):
        status, body, rest = _answer(request.method, rest)
        if request.method != b"HEAD":
            assert (status, body) == (200, answer_of(index)), ("a wrong answer", data, status, body, index)
    if expected.refused:
        status, _, rest = _answer(b"GET", rest)
        assert status in (400, 414, 417, 431, 501, 505), ("not a refusal", data, status)
        assert spoken.ended, ("a refused connection goes on", data)
    assert not rest, ("more answers than requests", data, rest)


def _answer(method: bytes, data: bytes) -> tuple[int, bytes, bytes]:
    """Status, body and what follows."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "h"), ("Connection", "close")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(data)
    status, body = 0, b""
    while True:
        event = reader.next_event()
        assert event is not h11.NEED_DATA, ("an answer is missing", data)
        if isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return status, body, reader.trailing_data[0]


@dataclass
class _Answer:
    """What a stream holds in answer to one request."""

    interim: list[int]
    """Statuses of the interim answers that are passed on."""
    status: int = 0
    reason: bytes = b""
    body: bytes = b""
    fate: str = "cut"
    """``whole``; ``cut``: it ends or breaks in the middle; ``none``: there is no final head that can be read."""
    until_close: bool = False
    end: int = 0


ASKERS = (
    b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx",
)
_LAST = b"GET /last HTTP/1.1\r\nHost: h\r\n\r\n"


def check_backend_stream(data: bytes, places: list[int], asker: int = 0) -> None:
    """The client gets the answer that the backend gave, whole or visibly cut, and the next request gets its own.

    ``data`` is all that the backend sends on the first connection before it ends it. ``places`` are those where it is
    cut, ``asker`` picks from ``ASKERS``.
    """
    asked = ASKERS[asker % len(ASKERS)]
    method = asked.split(b" ")[0]
    expected = _answer_in(method, data)
    first = True

    def answer(index: int, heard: Heard) -> list[bytes | None]:
        nonlocal first
        if first:
            first = False
            return [*cut(data, places), None]
        return _numbered(index, heard)

    backend = Backend(answer)
    spoken = run(speak([asked, _LAST], backend, at_once=len(data) % 4 != 0))
    assert not backend.garbage, (data, backend.garbage)
    _check_passed_on(asked, data, expected, spoken)


def _answer_in(method: bytes, data: bytes) -> _Answer:
    """By our heads, which are compared with h11's on the way, and the slow readers of bodies."""
    found = _Answer([])
    while True:
        check_response_head(data[found.end :])
        head = our_response_head(data[found.end :])
        if not isinstance(head, tuple):
            found.fate = "none"
            return found
        answer, size = head
        found.end += size
        if answer.status >= 200:
            break
        if answer.status == 101:
            found.fate = "none"
            return found
        if answer.status != 100:  # nobody asked for one
            found.interim.append(answer.status)
    found.status, found.reason = answer.status, answer.reason
    rest = data[found.end :]
    if method == b"HEAD" or answer.status in (204, 304):
        found.fate = "whole"
        return found
    if answer.chunked:
        body = reference.read_chunked(rest)
    elif answer.content_length is not None:
        body = reference.read_length(rest, answer.content_length)
    else:
        found.until_close = True
        body = reference.Body("end", len(rest), rest)
    found.fate = "whole" if body.verdict == "end" else "cut"
    found.body = body.payload
    found.end += body.end
    return found


def _check_passed_on(asked: bytes, data: bytes, expected: _Answer, spoken: Spoken) -> None:
    method, old = asked.split(b" ")[0], b"HTTP/1.0" in asked
    got = _answer_in_output(method, spoken, old=old)
    refused = got.status == 502 and b"X-Juggler: error" in spoken.received
    if expected.fate == "none":
        assert refused, ("an answer was made of none", data, spoken.received)
    elif expected.fate == "cut":
        assert refused or (spoken.aborted and (got.fate == "cut" or got.until_close)), (
            "half an answer looks whole",
            data,
            spoken.received,
        )
        if got.fate == "cut" and got.status:
            assert expected.body.startswith(got.body) or not expected.body, (data, spoken.received)
    else:
        assert not refused, ("a good answer is refused", data, spoken.received)
        assert (got.status, got.reason, got.body) == (expected.status, expected.reason, expected.body), (
            "another answer than the backend gave",
            data,
            spoken.received,
        )
        assert not spoken.aborted, ("cut behind a whole answer", data, spoken.received)
    if not old and not refused:
        assert got.interim == expected.interim, ("interim answers", data, spoken.received)
    rest = spoken.received[got.end :]
    if rest:
        status, body, rest = _answer(b"GET", rest)
        number = sum(one.whole for one in spoken.backend.heard) - 1
        assert (status, body) == (200, answer_of(number)), ("the next request got another answer", data, status, body)
        assert not rest, ("more answers than requests", data, rest)
        assert [one.target for one in spoken.backend.heard if one.whole][-1] == b"/last"
    else:
        # Then the connection has ended: the answer said so, or it was cut.
        assert spoken.aborted or spoken.ended, ("the next request got no answer", data, spoken.received)


def _answer_in_output(method: bytes, spoken: Spoken, *, old: bool) -> _Answer:
    """What the client got, as a lenient client reads it: heads that h11 refuses are the backend's own."""
    found = _Answer([])
    data = spoken.received
    while True:
        head = our_response_head(data[found.end :])
        if head is None:
            assert not data[found.end :], ("half a head", data)
            return found
        assert isinstance(head, tuple), ("the client got no HTTP", data)
        answer, size = head
        found.end += size
        if answer.status >= 200:
            break
        assert not old, ("HTTP/1.0 knows no interim answers", data)
        found.interim.append(answer.status)
    found.status, found.reason = answer.status, answer.reason
    rest = data[found.end :]
    if method == b"HEAD" or answer.status in (204, 304):
        body = reference.Body("end", 0, b"")
    elif answer.chunked:
        assert not old, ("HTTP/1.0 knows no chunks", data)
        body = reference.read_chunked(rest)
        assert body.verdict != "bad", ("the client got bad chunks", data)
    elif answer.content_length is not None:
        body = reference.read_length(rest, answer.content_length)
    else:
        found.until_close = True
        body = reference.Body("end", len(rest), rest)
        assert answer.status == 101 or not answer.keep_alive, ("nothing tells where the answer ends", data)
    found.fate = "whole" if body.verdict == "end" else "cut"
    found.body = body.payload
    found.end += body.end
    return found
