"""Requests that follow each other on one connection get what each would get on a connection of its own.

Heads that come again are not read again (``proxy.repeats``, ``proxy.answers``): nothing of the request before may be
left in the next one, and nothing of the answer before.
"""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from juggler.ids import EndpointId
from juggler.proxy import sending
from juggler.proxy.contract import LocalResponse, Route
from juggler.proxy.head import RequestHead
from juggler.proxy.headers import Hop, request_head
from juggler.proxy.upstream import UpstreamPool
from juggler.routing.table import Entry, RoutingTable
from juggler.routing.traffic import TrafficClass, TrafficRule, TrafficTable
from tests.protocol.support import FakeUpstream, Peer, Rig, header, rig

POST = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer a\r\n"


def table(name: str = "e", prefix: str = "/v1", *, strip: bool = True) -> RoutingTable:
    """Everything is work: no reply is recorded, which would need every head whole."""
    traffic = TrafficTable([TrafficRule("* *", TrafficClass.WORK)])
    return RoutingTable("s", [Entry(EndpointId(f"s/{name}"), name, prefix, strip, traffic)])


def routed_by(setup: Rig, routes: RoutingTable) -> None:
    """Route as the product does: the same request gets the same route."""

    def route(method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
        return routes.match(method, target)

    setup.gateway.route = route  # type: ignore[method-assign]


@dataclass(frozen=True)
class Case:
    """One request, and what the backend answers."""

    request: bytes
    answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
    body: bytes = b""
    ends: bool = False
    """The client's connection ends after it."""


CASES = {
    "plain": Case(POST + b"Content-Length: 3\r\n\r\n", body=b"abc"),
    "longer": Case(POST + b"Content-Length: 11\r\n\r\n", body=b"abcdefghijk"),
    "empty": Case(POST + b"Content-Length: 0\r\n\r\n"),
    "other key": Case(POST.replace(b"Bearer a", b"Bearer b") + b"Content-Length: 3\r\n\r\n", body=b"abc"),
    "other target": Case(POST.replace(b"/v1/x", b"/v1/y") + b"Content-Length: 3\r\n\r\n", body=b"abc"),
    "query": Case(POST.replace(b"/v1/x", b"/v1/x?q") + b"Content-Length: 3\r\n\r\n", body=b"abc"),
    "listed": Case(POST + b"Content-Length: 3\r\nX-Hop: 1\r\nConnection: X-Hop\r\n\r\n", body=b"abc"),
    "not listed": Case(POST + b"Content-Length: 3\r\nX-Hop: 1\r\n\r\n", body=b"abc"),
    "length listed": Case(POST + b"Content-Length: 3\r\nConnection: Content-Length\r\n\r\n", body=b"abc"),
    "expects": Case(POST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n", body=b"abc"),
    "wishes": Case(POST + b"Content-Length: 3\r\nX-Juggler-Priority: batch\r\n\r\n", body=b"abc"),
    "head": Case(b"HEAD /v1/x HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
    "get": Case(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n"),
    "get of HEAD's length": Case(
        b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\nlonger than!"
    ),
    "no content": Case(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"),
    "not modified": Case(
        b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n"
    ),
    "chunked": Case(
        b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
    "redirect": Case(
        b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n",
    ),
    "close": Case(b"GET /v1/x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", ends=True),
    "1.0": Case(b"GET /v1/x HTTP/1.0\r\n\r\n", ends=True),
    "1.0 kept": Case(b"GET /v1/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
    "1.0 chunked": Case(
        b"GET /v1/x HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        ends=True,
    ),
}


class Script:
    """A backend that answers the n-th request with what the n-th case says, and remembers what it got."""

    def __init__(self, cases: list[Case]) -> None:
        self._cases = iter(cases)
        self.got: list[bytes] = []

    async def __call__(self, peer: Peer) -> None:
        while True:
            head = await peer.head()
            case = next(self._cases)
            if header(head, b"Expect"):
                peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.got.append(head + await peer.body(len(case.body)))
            peer.send(case.answer)


async def _ask(peer: Peer, case: Case) -> bytes:
    """Send a request; returns the answer: to the end of the connection, or as long as the case's own."""
    peer.send(case.request + case.body)
    if case.ends:
        return await peer.to_end()
    answer = await peer.head()
    if answer.startswith(b"HTTP/1.1 100"):
        answer = await peer.head()
    return answer + await peer.body(len(case.answer.partition(b"\r\n\r\n")[2]))


async def _together(cases: list[Case]) -> tuple[list[bytes], list[bytes]]:
    """What the backend and the client get when all come on one connection, as far as that goes."""
    script = Script(cases)
    async with rig(script, prefix=b"/v1") as setup:
        routed_by(setup, table())
        peer = await setup.connect()
        answers = [await _ask(peer, case) for case in cases]
        port = b":%d" % setup.upstream.port
        assert [result.error for result in setup.gateway.results] == [None] * len(cases)
    return [got.replace(port, b":PORT") for got in script.got], answers


ENDING = [name for name, case in CASES.items() if case.ends]
LASTING = [name for name in CASES if name not in ENDING]


@pytest.mark.parametrize("name", CASES)
async def test_each_after_each(name: str) -> None:
    """A case after every other one, and after itself, comes to the same as alone."""
    alone = await _together([CASES[name]])
    for before in LASTING:
        cases = [CASES[before], CASES[before], CASES[name]]
        got, answers = await _together(cases)
        assert ([got[-1]], [answers[-1]]) == alone, f"after {before}"


async def test_in_turn() -> None:
    """All of them in turn, three times over, each as alone."""
    names = LASTING * 3
    alone = {name: await _together([CASES[name]]) for name in LASTING}
    got, answers = await _together([CASES[name] for name in names])
    for name, one, answer in zip(names, got, answers, strict=True):
        assert ([one], [answer]) == alone[name], name


@pytest.mark.parametrize("size", [1, 50, len(CASES["plain"].request)])
async def test_however_they_are_cut(size: int) -> None:
    """A head that comes again in pieces, and two of them at once."""
    case = CASES["plain"]
    async with rig(Script([case] * 5)) as setup:
        routed_by(setup, table())
        peer = await setup.connect()
        whole = await _ask(peer, case)
        data = case.request + case.body
        for start in range(0, len(data), size):
            peer.send(data[start : start + size])
            await asyncio.sleep(0)
        await peer.exactly(whole)
        peer.send(data * 3)
        await peer.exactly(whole * 3)


async def test_another_backend_has_another_address() -> None:
    """The instance was started anew, at another port: its Host, and what is known of answers, are its own."""
    case, other = CASES["plain"], FakeUpstream()
    first = Script([case] * 2)
    second = Script([Case(case.request, case.answer.replace(b"\r\n\r\n", b"\r\nX-New: 1\r\n\r\n"), case.body)] * 2)
    other.handler = second
    async with rig(first) as setup, other.running():
        routed_by(setup, table())
        peer = await setup.connect()
        for _ in range(2):
            await _ask(peer, case)
        before, setup.gateway.pool = setup.gateway.pool, UpstreamPool("127.0.0.1", other.port)
        before.close()
        for _ in range(2):
            assert header(await _ask(peer, case), b"X-New") == b"1"
        assert [header(got, b"Host") for got in first.got] == [b"127.0.0.1:%d" % setup.upstream.port] * 2
        assert [header(got, b"Host") for got in second.got] == [b"127.0.0.1:%d" % other.port] * 2
        setup.gateway.pool.close()


@pytest.mark.parametrize(
    ("routes", "line", "prefix"),
    [
        (lambda: table(strip=False), b"POST /v1/x HTTP/1.1", None),
        (lambda: table(prefix=""), b"POST /v1/x HTTP/1.1", None),
        (lambda: table("other"), b"POST /x HTTP/1.1", b"/v1"),
    ],
)
async def test_changed_routes_count_at_once(
    routes: Callable[[], RoutingTable], line: bytes, prefix: bytes | None
) -> None:
    """The operator has changed the routes while a connection repeats its request."""
    case = CASES["plain"]
    script = Script([case] * 3)
    async with rig(script) as setup:
        routed_by(setup, table())
        peer = await setup.connect()
        for _ in range(2):
            await _ask(peer, case)
        routed_by(setup, routes())
        await _ask(peer, case)
    assert [got.partition(b"\r\n")[0] for got in script.got] == [b"POST /x HTTP/1.1"] * 2 + [line]
    assert [header(got, b"X-Forwarded-Prefix") for got in script.got] == [b"/v1", b"/v1", prefix]


async def test_clients_are_told_apart() -> None:
    """Another key, or the same on another connection: whom the gateway hears of is who asks."""
    plain, other = CASES["plain"], CASES["other key"]
    async with rig(Script([plain] * 6)) as setup:
        routed_by(setup, table())
        one, two = await setup.connect(), await setup.connect()
        for peer, case in itertools.product((one, two), (plain, other, plain)):
            await _ask(peer, case)
        asked = [info.who for info in setup.gateway.asked]
    assert asked[0] == asked[2] == asked[3] == asked[5]
    assert asked[1] == asked[4] != asked[0]


async def test_a_draining_listener_says_so() -> None:
    """The last answer of a connection announces its end, though its head is known."""
    case = CASES["plain"]
    async with rig(Script([case] * 3)) as setup:
        routed_by(setup, table())
        peer = await setup.connect()
        for _ in range(2):
            assert header(await _ask(peer, case), b"Connection") is None
        setup.listener.draining = True
        peer.send(case.request + case.body)
        assert header(await peer.to_end(), b"Connection") == b"close"


async def test_an_early_answer_ends_the_connection() -> None:
    """A backend that answers before the body is there whole: nobody can tell where the next request would begin."""
    case = CASES["longer"]

    async def backend(peer: Peer) -> None:
        for _ in range(2):
            await peer.head()
            await peer.body(len(case.body))
            peer.send(case.answer)
        await peer.head()
        peer.send(case.answer)
        await peer.gone()

    async with rig(backend) as setup:
        routed_by(setup, table())
        peer = await setup.connect()
        for _ in range(2):
            await _ask(peer, case)
        peer.send(case.request + case.body[:5])
        answer = await peer.to_end()
    assert header(answer, b"Connection") == b"close"
    assert answer.endswith(b"\r\n\r\nok")


async def test_an_answer_to_head_has_no_body() -> None:
    """A backend that sends one all the same is not believed, though others with this head had one."""
    get, head = CASES["get"], CASES["head"]
    script = Script([get, get, Case(head.request, get.answer), get])
    async with rig(script) as setup:
        routed_by(setup, table())
        peer = await setup.connect()
        for _ in range(2):
            await _ask(peer, get)
        peer.send(head.request)
        await peer.exactly(head.answer)
        assert (await _ask(peer, get)).endswith(b"\r\n\r\nok")
        assert setup.upstream.accepted == 2


async def test_a_stream_keeps_nothing_of_its_head() -> None:
    """Streams stay open for long, beside many others; the request after one is read anew."""
    get, more = CASES["get"], asyncio.Event()

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(get.answer)
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n")
        await more.wait()
        peer.send(b"0\r\n\r\n")
        await peer.head()
        peer.send(get.answer)

    async with rig(backend) as setup:
        routed_by(setup, table())
        peer = await setup.connect()
        first = await _ask(peer, get)
        connection = next(iter(setup.listener.connections))
        last = connection._last
        assert last is not None
        peer.send(get.request)
        await peer.head()
        await peer.exactly(b"2\r\nok\r\n")
        assert connection._last is None
        assert (last.raw, last.sent, last.lines) == (b"", None, [])
        more.set()
        await peer.exactly(b"0\r\n\r\n")
        assert await _ask(peer, get) == first


async def test_a_lease_comes_back_whatever_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake between lease and exchange costs the request, not the instance's slot."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    async with rig(Script([])) as setup:
        monkeypatch.setattr("juggler.proxy.client.Exchange", broken)
        peer = await setup.connect()
        peer.send(CASES["get"].request)
        status, _, _ = await peer.answer()
        assert status == 500
        assert setup.gateway.leases
        assert all(lease.released == 1 for lease in setup.gateway.leases)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("pipelined", [True, False])
async def test_a_mistake_in_the_head_for_the_backend_is_told(
    at_once: bool, pipelined: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the request would go on its way from the callback of another connection."""

    def wrong(head: RequestHead, hop: Hop) -> bytes:
        if head.target == b"/bug":
            raise RuntimeError("a bug")
        return request_head(head, hop)

    monkeypatch.setattr(sending, "request_head", wrong)
    first, second = (b"GET /%b HTTP/1.1\r\nHost: h\r\n\r\n" % name for name in (b"a", b"bug"))
    async with rig() as setup:
        setup.gateway.at_once = at_once
        peer = await setup.ask(first)
        await peer.answer()
        peer.send(first + second if pipelined else second)
        if pipelined:
            assert (await peer.answer())[0] == 200
        assert (await peer.answer())[0] == 500
        peer.send(first)
        assert (await peer.answer())[0] == 200
