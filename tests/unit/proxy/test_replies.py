"""Earlier replies: what is kept, for whom, and how much of it."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from juggler.backends.koboldcpp import KoboldCppBackend
from juggler.ids import EndpointId
from juggler.proxy.contract import Route
from juggler.proxy.head import RequestHead, parse_request, parse_response
from juggler.proxy.headers import ReturnHop
from juggler.proxy.replies import Replies, Reply
from juggler.routing.traffic import Placeholder, TrafficClass, TrafficRule

HOP = ReturnHop(b"127.0.0.1:9")
GOOD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n"


def route(target: bytes = b"/models", *, endpoint: str = "S/a", cacheable: bool = True) -> Route:
    return Route(EndpointId(endpoint), endpoint, target, TrafficClass.LIGHT, cacheable=cacheable)


def asked(fields: bytes = b"", *, method: bytes = b"GET") -> RequestHead:
    return parse_request(method + b" /x HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n")


def record(
    replies: Replies, answer: bytes = GOOD, *, fields: bytes = b"", body: bytes = b"{}", where: Route | None = None
) -> bool:
    """One exchange with ``answer``; returns whether it was kept."""
    before = len(replies)
    recorder = replies.recorder(where or route(), asked(fields))
    if recorder is None or not recorder.begin(parse_response(answer)):
        return False
    if not all(recorder.take(body[at : at + 1000]) for at in range(0, len(body), 1000)):
        return False
    recorder.finish(HOP)
    return len(replies) > before


def test_a_reply_is_shown_again_with_its_age() -> None:
    """Status, fields and body as the client got them; how old it is, and that it is not fresh."""
    now = 100.0
    replies = Replies(clock=lambda: now)
    answer = (
        b'HTTP/1.1 200 Sure\r\nDate: d\r\nContent-Encoding: gzip\r\nETag: "e"\r\nAge: 3\r\nContent-Length: 2\r\n\r\n'
    )
    assert record(replies, answer)
    reply = replies.find(route(), asked())
    assert reply is not None
    head = (
        b'HTTP/1.1 200 OK\r\nDate: d\r\nContent-Encoding: gzip\r\nETag: "e"\r\nContent-Length: 2\r\n'
        b"Age: 10\r\nX-Juggler: cached\r\n"
    )
    assert reply.message(107.9) == head + b"\r\n{}"
    assert reply.message(107.9, head_only=True, close=True) == head + b"Connection: close\r\n\r\n"


@pytest.mark.parametrize(
    "fields",
    [
        b"Authorization: Bearer other\r\n",
        b"X-Api-Key: other\r\n",
        b"Cookie: session=other\r\n",
        b"X-Forwarded-User: other\r\n",
        b"Comfy-User: other\r\n",
        b"X-Nobody-Heard-Of: other\r\n",
        b"Accept-Encoding: gzip\r\n",
        b"Accept: text/html\r\n",
        b"Accept-Language: de\r\n",
        b"Origin: http://evil.example\r\n",
        b"Sec-Fetch-Site: cross-site\r\n",
        b"X-Forwarded-Host: other\r\n",
    ],
)
def test_replies_are_kept_apart(fields: bytes) -> None:
    """Whoever sends a field that may matter, or one more of it, or one less, finds only replies to the same."""
    replies = Replies()
    assert record(replies)
    assert replies.find(route(), asked(fields)) is None
    assert record(replies, fields=fields, body=b"[]")
    found = replies.find(route(), asked(fields))
    assert found is not None
    assert found.body == b"[]"
    assert replies.find(route(), asked(fields + fields)) is None
    assert replies.find(route(), asked()) is not found


def test_what_differs_from_poll_to_poll_does_not_matter() -> None:
    """Order and case of names, tracing, conditions and notes about the client find the same reply."""
    replies = Replies()
    assert record(
        replies, fields=b"Accept: */*\r\nAuthorization: k\r\nUser-Agent: a\r\nSec-Fetch-Site: same-origin\r\n"
    )
    again = (
        b"authorization: k\r\nUser-Agent: b\r\nx-request-id: 2\r\nX-Stainless-Retry-Count: 1\r\nTraceparent: 00\r\n"
        b'If-None-Match: "e"\r\nCache-Control: no-cache\r\nPragma: no-cache\r\nRange: bytes=0-\r\nAccept: */*\r\n'
    )
    assert replies.find(route(), asked(again)) is not None
    assert replies.find(route(), asked(again, method=b"HEAD")) is not None


def test_a_placeholder_stands_in_until_there_is_a_reply() -> None:
    """It says what it is; for the plain question only, and a real answer takes its place."""
    replies = Replies()
    where = dataclasses.replace(route(), placeholder=Placeholder(b"I am here", "text/plain"))
    found = replies.find(where, asked())
    assert found is not None
    message = found.message(replies.clock())
    assert b"\r\nX-Juggler: placeholder\r\n" in message
    assert b"\r\nContent-Type: text/plain\r\nContent-Length: 9\r\n" in message
    assert message.endswith(b"\r\n\r\nI am here")
    assert found.message(replies.clock(), head_only=True) + found.body == message
    assert replies.find(where, asked(b"Content-Length: 2\r\n")) is None
    assert replies.find(dataclasses.replace(where, cacheable=False), asked()) is None
    assert record(replies, where=where, body=b"[1]")
    found = replies.find(where, asked())
    assert found is not None
    assert found.body == b"[1]"


def test_endpoints_and_targets_are_kept_apart() -> None:
    """The query belongs to the question."""
    replies = Replies()
    assert record(replies, where=route(b"/models?key=1"))
    assert replies.find(route(b"/models?key=1"), asked()) is not None
    assert replies.find(route(b"/models?key=2"), asked()) is None
    assert replies.find(route(b"/models?key=1", endpoint="S/b"), asked()) is None


def test_keys_hold_no_credentials() -> None:
    """Nothing of what a client sent to identify itself stays in memory readable."""
    key = Replies().key(route(), asked(b"Authorization: Bearer s3cret\r\n"))
    assert b"s3cret" not in b"".join(part if isinstance(part, bytes) else part.encode() for part in key)
    assert Replies().key(route(), asked()) != Replies().key(route(), asked())  # each with a secret of its own


@pytest.mark.parametrize(
    "field",
    [
        b"Set-Cookie: a=b",
        b"Cache-Control: max-age=1, No-Store",
        b"Cache-Control: private",
        b'Cache-Control: private="x"',
        b"Vary: *",
        b"Vary: Accept, User-Agent",
        b"Vary: Sec-Fetch-Site",
        b"Vary: Sec-CH-Width",
        b"Content-Type: text/event-stream; charset=utf-8",
        b"Content-Type: multipart/x-mixed-replace; boundary=f",
    ],
)
def test_some_answers_are_never_kept(field: bytes) -> None:
    """The backend's word counts, and what cannot be told apart or never ends is left alone."""
    assert not record(Replies(), b"HTTP/1.1 200 OK\r\n" + field + b"\r\nContent-Length: 2\r\n\r\n")


def test_a_program_that_forbids_it_for_everything_has_said_nothing() -> None:
    """koboldcpp sends ``no-store`` with every answer (``end_headers`` of its handler); what is private stays so."""
    habit = dataclasses.replace(route(), no_store_everywhere=True)
    answer = GOOD.replace(b"Content-Length", b"cache-control: no-store\r\nContent-Length")
    assert not record(Replies(), answer)
    assert record(Replies(), answer, where=habit)
    assert not record(Replies(), answer.replace(b"no-store", b"no-store, private"), where=habit)
    assert KoboldCppBackend.traffic.extended_by(()).no_store_everywhere
    assert KoboldCppBackend.traffic.extended_by((TrafficRule("GET /x", TrafficClass.WORK),)).no_store_everywhere


@pytest.mark.parametrize(
    "field",
    [b"Cache-Control: no-cache", b"Cache-Control: max-age=0, must-revalidate", b"Vary: Accept-Encoding, Origin"],
)
def test_answers_that_ask_for_revalidation_are_kept(field: bytes) -> None:
    """ComfyUI says ``no-cache`` of every script; the backend is asked whenever it is up."""
    assert record(Replies(), b"HTTP/1.1 200 OK\r\n" + field + b"\r\nContent-Length: 2\r\n\r\n")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 8388609\r\n\r\n",
    ],
)
def test_only_whole_good_answers_of_bounded_length_are_kept(answer: bytes) -> None:
    """An answer that ends with its connection may have been cut off."""
    assert not record(Replies(), answer)


@pytest.mark.parametrize(
    ("fields", "method"),
    [
        (b"Range: bytes=0-1\r\n", b"GET"),
        (b"", b"HEAD"),
        (b"", b"POST"),
        (b"Content-Length: 2\r\n", b"GET"),
        (b"Transfer-Encoding: chunked\r\n", b"GET"),
        (b"Connection: Upgrade\r\nUpgrade: websocket\r\n", b"GET"),
    ],
)
def test_only_plain_requests_record(fields: bytes, method: bytes) -> None:
    """A part, a body or a wish to switch protocols makes another question."""
    recorder = Replies().recorder(route(), asked(fields, method=method))
    assert recorder is None or not recorder.begin(parse_response(GOOD))


def test_requests_with_a_body_are_not_answered_from_earlier() -> None:
    """The key does not know the body."""
    replies = Replies()
    assert record(replies)
    assert replies.find(route(), asked(b"Content-Length: 2\r\n")) is None
    assert replies.find(route(cacheable=False), asked()) is None
    assert replies.recorder(route(cacheable=False), asked()) is None


def test_an_endless_body_is_let_go_at_the_bound() -> None:
    """A chunked answer shows its length only as it comes; an earlier reply stays."""
    replies = Replies(reply_bytes=5000)
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert record(replies, chunked, body=b"x" * 5000)
    assert not record(replies, chunked, body=b"x" * 5001)
    found = replies.find(route(), asked())
    assert found is not None
    assert len(found.body) == 5000


@pytest.mark.parametrize(
    ("status", "stays"), [(401, False), (403, False), (404, False), (410, False), (500, True), (304, True)]
)
def test_a_refusal_takes_the_earlier_reply_with_it(status: int, stays: bool) -> None:
    """Credentials that were withdrawn, or a thing that is gone, show nothing any more; a failure changes nothing."""
    replies = Replies()
    assert record(replies)
    assert record(replies, fields=b"Authorization: other\r\n")
    assert not record(replies, b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status)
    assert (replies.find(route(), asked()) is not None) is stays
    assert replies.find(route(), asked(b"Authorization: other\r\n")) is not None


def test_an_answer_that_may_not_be_kept_takes_the_earlier_reply_with_it() -> None:
    """Since it came to depend on a session, say, the older one is nobody's any more."""
    replies = Replies()
    assert record(replies)
    assert not record(replies, b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\n")
    assert len(replies) == 0


def test_the_least_recently_used_make_room() -> None:
    """Bytes and number are bounded; being shown counts as use; a newer reply replaces the older."""
    replies = Replies(total_bytes=10_000, count=3)
    for name in (b"/1", b"/2", b"/3"):
        assert record(replies, where=route(name))
    assert replies.find(route(b"/1"), asked()) is not None
    record(replies, where=route(b"/4"))
    assert [replies.find(route(name), asked()) is not None for name in (b"/1", b"/2", b"/3", b"/4")] == [1, 0, 1, 1]
    record(replies, where=route(b"/1"), body=b"[1]")
    assert len(replies) == 3
    record(replies, GOOD.replace(b": 2\r", b": 9000\r"), where=route(b"/5"), body=b"x" * 9000)
    assert len(replies) == 1
    record(replies, GOOD.replace(b": 2\r", b": 9999\r"), where=route(b"/5"), body=b"x" * 9999)
    assert (len(replies), replies.size_bytes) == (0, 0)  # alone too large, and the older one is no longer true


def test_an_answer_on_its_way_while_replies_are_forgotten_is_not_kept() -> None:
    """Nobody knows whether its endpoint still leads to the backend that gave it."""
    replies = Replies()
    recorder = replies.recorder(route(), asked())
    assert recorder is not None
    assert recorder.begin(parse_response(GOOD))
    assert recorder.take(b"{}")
    replies.forget_endpoints({EndpointId("S/a")})
    recorder.finish(HOP)
    assert (len(replies), replies.copying_bytes) == (0, 0)
    assert record(replies)


def test_keys_are_short() -> None:
    """What clients write into a target costs no memory that is not counted."""
    key = Replies().key(route(b"/" + b"x" * 16_000), asked())
    assert sum(len(part) for part in key) < 100
    assert Replies().key(route(b"/a"), asked()) != Replies().key(route(b"/b"), asked())


def test_what_is_being_copied_is_bounded_too() -> None:
    """Any number of slow readers of large answers: most get theirs without a copy, and the first one's is kept."""
    replies = Replies(total_bytes=10_000, reply_bytes=4000)
    recorders = []
    for number in range(9):
        recorder = replies.recorder(route(b"/%d" % number), asked())
        assert recorder is not None
        assert recorder.begin(parse_response(GOOD))
        recorders.append(recorder)
    taken = [recorder.take(b"x" * 3000) for recorder in recorders]
    assert taken == [True] * 3 + [False] * 6
    assert replies.copying_bytes == 9000
    recorders[0].finish(HOP)
    recorders[1].drop()
    recorders[1].drop()
    recorders[3].drop()
    assert replies.copying_bytes == 3000
    assert replies.find(route(b"/0"), asked()) is not None
    assert recorders[2].take(b"x")
    assert not recorders[2].take(b"x" * 4000)
    assert replies.copying_bytes == 0


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3000), st.booleans()), max_size=60))
def test_the_bounds_hold_and_the_count_is_right(steps: list[tuple[int, int, bool]]) -> None:
    """Whatever is stored and dropped in whatever order, the sum is that of what is there, and within its bound."""
    replies = Replies(total_bytes=8000, reply_bytes=2500, count=5)
    keys = [replies.key(route(b"/%d" % number), asked()) for number in range(9)]
    for number, size, drop in steps:
        if drop:
            replies.forget(keys[number])
        else:
            replies.store(keys[number], Reply(b"", b"x" * size, 0.0))
        there = [replies.find(route(b"/%d" % one), asked()) for one in range(9)]
        assert replies.size_bytes == sum(reply.size_bytes for reply in there if reply is not None) <= 8000
        assert len(replies) == sum(reply is not None for reply in there) <= 5
