"""Requests that are understood by their body: the POST that only asks, and the order that is no work."""

import dataclasses
from dataclasses import dataclass, field

import pytest

from juggler.errors import BackendExited, JugglerError, NotReady, QueueFull, UpstreamClosed
from juggler.proxy import questions
from juggler.proxy.contract import Route
from juggler.proxy.replies import QUESTION_BYTES_MAX
from juggler.routing.stand_in import Question, StandInAnswer
from juggler.routing.traffic import TrafficClass
from tests.protocol.support import Peer, Rig, header, rig, until

SMALL = b'{"model":"small"}'
LARGE = b'{"model":"large"}'


def post(body: bytes = SMALL, *, fields: bytes = b"", length: int | None = None) -> bytes:
    head = b"POST /api/show HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n"
    return head % (fields, len(body) if length is None else length) + body


async def echo(peer: Peer) -> None:
    """Answers each request with its body."""
    while True:
        head = await peer.head()
        body = await peer.body(int(header(head, b"content-length") or 0))
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def asking(route: Route) -> Route:
    return dataclasses.replace(route, traffic=TrafficClass.LIGHT, cacheable=True)


def down(setup: Rig, error: JugglerError | None = None) -> None:
    setup.gateway.refusal = error or NotReady("not loaded", retry_after_s=3)


async def ask(setup: Rig, request: bytes) -> tuple[int, bytes | None, bytes]:
    """Status, ``X-Juggler`` and body of the answer."""
    status, head, body = await (await setup.ask(request)).answer()
    return status, header(head, b"x-juggler"), body


@dataclass
class Known:
    """A stand-in that knows one thing, or fails."""

    failure: Exception | None = None
    asked: list[Question] = field(default_factory=list)

    def knows(self, method: bytes, path: bytes) -> bool:
        return True

    async def answer(self, question: Question) -> StandInAnswer | None:
        self.asked.append(question)
        if self.failure is not None:
            raise self.failure
        return StandInAnswer(b"known", "files") if question.body in (b"", SMALL) else None


def with_stand_in(setup: Rig, known: Known, traffic: TrafficClass = TrafficClass.LIGHT) -> None:
    setup.gateway.changed = lambda route: dataclasses.replace(route, traffic=traffic, stand_in=known)


@pytest.mark.parametrize("at_once", [True, False])
async def test_the_same_body_gets_the_last_reply_to_it(at_once: bool) -> None:
    """Each body its own; another one, a GET, another caller or another endpoint gets none of them."""
    async with rig(echo) as setup:
        setup.gateway.changed, setup.gateway.at_once = asking, at_once
        for body in (SMALL, LARGE):
            assert await ask(setup, post(body)) == (200, None, body)
        down(setup)
        for body in (SMALL, LARGE):
            assert await ask(setup, post(body)) == (200, b"cached", body)
        assert (await ask(setup, post(b'{"model": "small"}')))[0] == 503
        assert (await ask(setup, post(b"")))[0] == 503
        assert (await ask(setup, post(fields=b"Authorization: x\r\n")))[0] == 503
        assert (await ask(setup, b"GET /api/show HTTP/1.1\r\nHost: h\r\n\r\n"))[0] == 503
        setup.gateway.endpoint = "s/other"
        assert (await ask(setup, post()))[0] == 503


async def in_pieces(setup: Rig) -> tuple[int, bytes | None, bytes]:
    """As ``ask``, with a body that comes when its head was looked at, byte by byte."""
    before = len(setup.gateway.asked)
    peer = await setup.ask(post()[: -len(SMALL)])
    await until(lambda: len(setup.gateway.asked) > before)
    for byte in SMALL:
        peer.send(bytes([byte]))
    status, head, body = await peer.answer()
    return status, header(head, b"x-juggler"), body


async def test_the_body_may_come_behind_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many libraries send it: while the backend is up, and while it is not."""
    monkeypatch.setattr(questions, "BODY_LIMIT_S", 3600.0)
    async with rig(echo) as setup:
        setup.gateway.changed = asking
        assert await in_pieces(setup) == (200, None, SMALL)
        down(setup)
        assert await in_pieces(setup) == (200, b"cached", SMALL)


async def test_what_comes_behind_the_body_is_the_next_request() -> None:
    """Questions keep their place in a pipeline."""
    async with rig(echo) as setup:
        setup.gateway.changed = asking
        await ask(setup, post())
        down(setup)
        peer = await setup.ask(post() + post(LARGE) + post())
        assert [(await peer.answer())[0] for _ in range(3)] == [200, 503, 200]


@pytest.mark.parametrize("fields", [b"Expect: 100-continue\r\n", b"Transfer-Encoding: chunked\r\n"])
async def test_no_body_is_waited_for_that_need_not_come(fields: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits to be asked for it, or does not say how long it is, is refused at once."""
    monkeypatch.setattr(questions, "BODY_LIMIT_S", 3600.0)
    async with rig(echo) as setup:
        setup.gateway.changed = asking
        down(setup)
        request = post(fields=fields).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        if b"chunked" in fields:
            request = request.replace(b"Content-Length: %d\r\n" % len(SMALL), b"")
        peer = await setup.ask(request)
        assert b" 503 " in await peer.head()


async def test_a_body_that_does_not_come_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal comes all the same; a client that leaves meanwhile leaves nothing behind."""
    async with rig(echo) as setup:
        setup.gateway.changed = asking
        down(setup)
        peer = await setup.ask(post()[:-1])
        await until(lambda: len(setup.gateway.asked) == 1)
        peer.reset()
        await until(lambda: not setup.listener.connections)
        monkeypatch.setattr(questions, "BODY_LIMIT_S", 0.01)
        peer = await setup.ask(post()[:-1])
        assert b" 503 " in await peer.head()


async def test_long_bodies_are_no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """They pass and are not kept; while the backend is down nobody waits for their end."""
    monkeypatch.setattr(questions, "BODY_LIMIT_S", 3600.0)
    body = b" " * (QUESTION_BYTES_MAX + 1)
    async with rig(echo) as setup:
        setup.gateway.changed = asking
        assert (await ask(setup, post(body)))[0] == 200
        assert len(setup.listener.replies) == 0
        down(setup)
        peer = await setup.ask(post(body)[:-9])
        assert b" 503 " in await peer.head()


async def test_an_answer_to_half_a_question_is_not_kept() -> None:
    """It came before the body had: whatever it says, it is no answer to that body."""

    async def hasty(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
        await peer.gone()

    async with rig(hasty) as setup:
        setup.gateway.changed = asking
        peer = await setup.ask(post()[:-1])
        assert (await peer.answer())[2] == b"no"
        await setup.result()
        assert (len(setup.listener.replies), setup.listener.replies.copying_bytes) == (0, 0)


async def test_a_refusal_drops_the_reply_to_its_body_alone() -> None:
    """A model that is gone; the others are still there."""

    async def backend(peer: Peer) -> None:
        for status in (b"200 OK", b"200 OK", b"404 No"):
            head = await peer.head()
            await peer.body(int(header(head, b"content-length") or 0))
            peer.send(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % status)

    async with rig(backend) as setup:
        setup.gateway.changed = asking
        assert [(await ask(setup, post(body)))[0] for body in (SMALL, LARGE, SMALL)] == [200, 200, 404]
        down(setup)
        assert [(await ask(setup, post(body)))[0] for body in (SMALL, LARGE)] == [503, 200]


async def test_a_stand_in_is_asked_after_the_replies() -> None:
    """The backend's own words first; then what somebody else knows; then the refusal."""
    async with rig(echo) as setup:
        known = Known()
        setup.gateway.changed = lambda route: dataclasses.replace(asking(route), stand_in=known)
        await ask(setup, post(LARGE))
        down(setup)
        assert await ask(setup, post(LARGE)) == (200, b"cached", LARGE)
        assert known.asked == []
        assert await ask(setup, post()) == (200, b"files", b"known")
        assert (await ask(setup, post(b"{}")))[0] == 503
        assert known.asked == [Question(b"POST", b"/api/show", SMALL), Question(b"POST", b"/api/show", b"{}")]
        peer = await setup.ask(b"HEAD /api/tags?x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert b"\r\nContent-Length: 5\r\n" in await peer.to_end()
        assert known.asked[-1] == Question(b"HEAD", b"/api/tags")


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (NotReady("down"), True),
        (BackendExited("gone"), True),
        (UpstreamClosed("broken"), False),
        (QueueFull("too many"), False),
    ],
)
async def test_a_stand_in_is_asked_only_if_nothing_runs(error: JugglerError, asked: bool) -> None:
    """A backend that runs may know better, also where it just did not answer."""
    async with rig(echo) as setup:
        known = Known()
        with_stand_in(setup, known)
        down(setup, error)
        assert (await ask(setup, post()))[0] == (200 if asked else error.status)
        assert bool(known.asked) == asked


async def test_a_stand_in_that_fails_is_as_good_as_none(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets the refusal, the log the mistake."""
    async with rig(echo) as setup:
        with_stand_in(setup, Known(ZeroDivisionError("oops")))
        down(setup)
        assert (await ask(setup, post()))[0] == 503
        assert "ZeroDivisionError" in caplog.text


async def test_work_is_light_if_its_body_says_so() -> None:
    """Only then somebody else may answer it; whoever does real work is refused, or waits."""
    async with rig(echo) as setup:
        known = Known()
        setup.gateway.changed = lambda route: dataclasses.replace(
            route, traffic=TrafficClass.WORK, light_if=SMALL.__eq__, stand_in=known
        )
        assert (await ask(setup, post()))[0] == 200  # the backend is up: it is forwarded as ever
        down(setup)
        assert await ask(setup, post()) == (200, b"files", b"known")
        assert (await ask(setup, post(LARGE)))[0] == 503
        assert len(known.asked) == 1


@pytest.mark.parametrize(("status", "kept"), [(b"200 OK", False), (b"404 No", True), (b"500 Oops", True)])
async def test_what_changes_the_models_makes_old_answers_wrong(status: bytes, kept: bool) -> None:
    """A model that was removed or made anew is not described as it was; lists are looked at again by themselves."""

    async def backend(peer: Peer) -> None:
        for said in (b"200 OK", b"200 OK", status):
            head = await peer.head()
            await peer.body(int(header(head, b"content-length") or 0))
            peer.send(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % said)

    listing = b"GET /api/tags HTTP/1.1\r\nHost: h\r\n\r\n"
    async with rig(backend) as setup:
        setup.gateway.changed = asking
        await ask(setup, post())
        await ask(setup, listing)
        setup.gateway.changed = lambda route: dataclasses.replace(route, traffic=TrafficClass.LIGHT, changes=True)
        await ask(setup, b"DELETE /api/delete HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}")
        setup.gateway.changed = asking
        down(setup)
        assert (await ask(setup, post()))[0] == (200 if kept else 503)
        assert (await ask(setup, listing))[0] == 200
