"""What clients say about their waiting, and what they are told of it."""

import asyncio
import json
from dataclasses import dataclass, replace

import pytest

from juggler.errors import NotReady, QueueFull
from juggler.proxy.contract import LeaseTiming, LocalResponse, RequestInfo, Route
from juggler.proxy.wishes import NO_WISHES, Wishes
from tests.protocol.support import OK, Peer, StubGateway, StubLease, header, rig, until
from tests.protocol.waiting import ANSWERS, EVENTS, SOON, after_comments, answering, go, post, request_of


@dataclass
class TimedStubLease(StubLease):
    """A lease that tells of its wait."""

    timing: LeaseTiming | None = None
    first_bytes: int = 0

    def first_byte(self) -> None:
        assert not self.released
        self.first_bytes += 1


def time_leases(gateway: StubGateway, timing: LeaseTiming | None, name: str = "e") -> list[TimedStubLease]:
    """Have a gateway give out timed leases; returns those it gives."""
    given: list[TimedStubLease] = []
    acquire, try_acquire, route = gateway.acquire, gateway.try_acquire, gateway.route

    async def waited(where: Route, request: RequestInfo) -> StubLease | LocalResponse:
        lease = await acquire(where, request)
        assert isinstance(lease, StubLease)
        return timed(lease)

    def at_once(where: Route, request: RequestInfo) -> StubLease | None:
        lease = try_acquire(where, request)
        return timed(lease) if lease is not None else None

    def timed(lease: StubLease) -> StubLease:
        timed_lease = TimedStubLease(lease.upstream, gateway.results, timing=timing)
        gateway.leases[gateway.leases.index(lease)] = timed_lease
        given.append(timed_lease)
        return timed_lease

    def named(method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
        found = route(method, target, host)
        return replace(found, endpoint_name=name) if isinstance(found, Route) else found

    gateway.try_acquire = at_once  # type: ignore[method-assign,assignment]
    gateway.acquire = waited  # type: ignore[method-assign,assignment]
    gateway.route = named  # type: ignore[method-assign]
    return given


TIMING_FIELDS = (b"x-juggler-wait", b"x-juggler-queue", b"x-juggler-load", b"x-juggler-endpoint")


async def test_wishes_reach_the_gateway_and_not_the_backend() -> None:
    """Our own fields are read and taken out; others pass; the next request has no wishes."""
    heads: list[bytes] = []
    async with rig(answering(OK, heads=heads)) as setup:
        peer = await setup.ask(
            b"GET /a HTTP/1.1\r\nHost: h\r\nX-Juggler-Priority: Batch\r\nx-juggler-max-wait: 2m\r\n"
            b"X-JUGGLER-TIMING: 1\r\nX-Juggler-Other: 1\r\n\r\n"
        )
        assert (await peer.answer())[2] == b"ok"
        peer.send(b"GET /b HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await peer.answer())[2] == b"ok"
        first, second = setup.gateway.asked
        assert first.wishes == Wishes(-10, 120.0, True)
        assert second.wishes is NO_WISHES
        assert heads[0].lower().count(b"x-juggler-") == 1
        assert header(heads[0], b"x-juggler-other") == b"1"


@pytest.mark.parametrize(
    ("field", "accepted"),
    [
        (b"X-Juggler-Priority: high", "interactive, batch"),
        (b"X-Juggler-Max-Wait: soon", "0 means only if ready now"),
        (b"X-Juggler-Timing: yes", "1, or 0"),
    ],
)
async def test_wish_that_cannot_be_understood(field: bytes, accepted: str) -> None:
    """Refused with the name and what it accepts, in the shape of the API; nothing is held; the connection goes on."""
    async with rig() as setup:
        peer = await setup.ask(post(fields=field + b"\r\n"))
        status, _, body = await peer.answer()
        error = json.loads(body)["error"]
        assert (status, error["type"]) == (400, "invalid_request_error")
        assert field.partition(b":")[0].decode() in error["message"]
        assert accepted in error["message"]
        assert not setup.gateway.asked
        peer.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await peer.exactly(OK)


async def test_timing_is_told_when_asked_for() -> None:
    """Wait by our clock, queue and load by the lease, the name percent-encoded where it must be."""
    async with rig() as setup:
        time_leases(setup.gateway, LeaseTiming(1.25, 0.5, True), "für/immer")
        clock = asyncio.get_running_loop().time
        began = clock()
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nX-Juggler-Timing: 1\r\n\r\n")
        _, head, _ = await peer.answer()
        waited = header(head, b"x-juggler-wait")
        assert waited is not None
        assert 0 <= float(waited) <= clock() - began + 0.002
        assert [header(head, name) for name in TIMING_FIELDS[1:]] == [b"1.250", b"0.500", b"f%C3%BCr/immer"]
        peer.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await peer.exactly(OK)


async def test_timing_without_a_lease_that_tells() -> None:
    """Then only what we know ourselves."""
    async with rig() as setup:
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\nX-Juggler-Timing: 1\r\n\r\n")
        _, head, _ = await peer.answer()
        assert header(head, b"x-juggler-wait") is not None
        assert [header(head, name) for name in TIMING_FIELDS[1:]] == [None, None, b"e"]


@pytest.mark.parametrize("asked", [False, True])
async def test_timing_on_errors(asked: bool) -> None:
    """A refusal tells how long it was waited for it, if asked."""
    async with rig() as setup:
        setup.gateway.refusal = QueueFull("Full.", retry_after_s=0.2)
        field = b"X-Juggler-Timing: 1\r\n" if asked else b""
        _, head, _ = await (await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\n" + field + b"\r\n")).answer()
        told = [header(head, name) is not None for name in TIMING_FIELDS]
        assert told == [asked, False, False, asked]


async def test_timing_of_a_stream_that_was_begun() -> None:
    """Its head names the endpoint; the times follow in a comment, when they are known."""
    async with rig(answering(ANSWERS["length"][0]), limits=SOON) as setup:
        time_leases(setup.gateway, LeaseTiming(3, 2, True))
        setup.gateway.hold = asyncio.Event()
        clock = asyncio.get_running_loop().time
        began = clock()
        peer = await setup.ask(post(fields=b"X-Juggler-Timing: 1\r\n"))
        head = await peer.head()
        assert [header(head, name) for name in TIMING_FIELDS] == [None, None, None, b"e"]
        go(setup)
        told, _, events = (await after_comments(peer)).partition(b"\n\n")
        waited, _, rest = told.removeprefix(b": X-Juggler-Wait: ").partition(b"; ")
        assert 0 < float(waited) < clock() - began + 0.002
        assert rest == b"X-Juggler-Queue: 3.000; X-Juggler-Load: 2.000; X-Juggler-Endpoint: e"
        assert events == EVENTS


async def test_lease_hears_of_the_first_byte_once() -> None:
    """Before the answer is over, however many pieces it comes in."""

    async def backend(peer: Peer) -> None:
        await request_of(peer)
        peer.send(b"HTTP/1.1 103 Early Hints\r\n\r\nHTT")
        await until(lambda: leases[0].first_bytes == 1)
        peer.send(OK[3:])
        await peer.gone()

    async with rig(backend) as setup:
        leases = time_leases(setup.gateway, None)
        peer = await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await peer.head()).startswith(b"HTTP/1.1 103 ")
        await peer.exactly(OK)
        await setup.result()
        assert [lease.first_bytes for lease in leases] == [1]


async def test_no_answer_is_no_first_byte() -> None:
    """A backend that closes at once has not answered."""

    async def backend(peer: Peer) -> None:
        await request_of(peer)

    async with rig(backend) as setup:
        leases = time_leases(setup.gateway, None)
        status, _, _ = await (await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")).answer()
        assert status == 502
        await setup.result()
        assert [lease.first_bytes for lease in leases] == [0]


@pytest.mark.parametrize(
    ("retry_after_s", "told"),
    [(0.0, b"1"), (0.2, b"1"), (1.0, b"1"), (1.01, b"2"), (float("inf"), None), (None, None)],
)
async def test_retry_after_is_whole_seconds(retry_after_s: float | None, told: bytes | None) -> None:
    """At least one, rounded up; no promise where there is none. The queue is shown."""
    async with rig() as setup:
        setup.gateway.refusal = QueueFull("Full.", retry_after_s=retry_after_s, details={"queue": {"position": 3}})
        _, head, body = await (await setup.ask(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")).answer()
        assert header(head, b"retry-after") == told
        assert json.loads(body)["juggler"]["queue"] == {"position": 3}
        assert b"Infinity" not in body


@pytest.mark.parametrize("asked", [False, True])
async def test_timing_of_what_is_answered_here(asked: bool) -> None:
    """An answer of the gateway's own and an earlier reply tell it as well; what is kept of a reply has none of it."""
    request = b"GET /v1/models HTTP/1.1\r\nHost: h\r\n" + (b"X-Juggler-Timing: 1\r\n" if asked else b"") + b"\r\n"
    async with rig() as setup:
        setup.gateway.light = True
        peer = await setup.ask(request)
        await peer.answer()
        setup.gateway.refusal = NotReady("Not loaded.")
        peer.send(request)
        _, earlier, _ = await peer.answer()
        assert header(earlier, b"x-juggler") == b"cached"
        setup.gateway.refusal, setup.gateway.local = None, LocalResponse(307, b"", headers=(("Location", "/x/"),))
        peer.send(request)
        _, local, _ = await peer.answer()
        assert header(local, b"location") == b"/x/"
        for head in (earlier, local):
            assert [header(head, name) for name in TIMING_FIELDS[1:]] == [None, None, b"e" if asked else None]
            assert head.lower().count(b"x-juggler-wait: ") == asked
