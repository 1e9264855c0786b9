"""One waiting request: when its client hears of it."""

from dataclasses import replace

import pytest

from juggler.errors import QueueFull
from juggler.ids import EndpointId
from juggler.proxy.body import Request, RequestBody
from juggler.proxy.contract import ExchangeResult, LeaseTiming, Route
from juggler.proxy.head import parse_request
from juggler.proxy.limits import Limits
from juggler.proxy.origin import is_from_own_page
from juggler.proxy.upstream import UpstreamPool
from juggler.proxy.waiting_room import Wait, lease_timing, tell_first_byte
from juggler.proxy.wishes import NO_WISHES, Wishes
from juggler.routing.traffic import TrafficClass

COMMENT = b": waiting for e\n\n"


class Client:
    """A connection that notes what is written to it."""

    def __init__(self) -> None:
        self.write_paused = False
        self.draining = False
        self.secure = False
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def take(self) -> list[bytes]:
        written, self.written = self.written, []
        return written


class PlainLease:
    """As few members as a lease may have."""

    def __init__(self, pool: UpstreamPool) -> None:
        self.upstream = pool

    def switched(self) -> None:
        raise AssertionError("never a tunnel")

    def release(self, result: ExchangeResult) -> None:
        raise AssertionError("not the room's to release")


class TimedLease(PlainLease):
    def __init__(self, pool: UpstreamPool, timing: LeaseTiming | None) -> None:
        super().__init__(pool)
        self.timing = timing
        self.first_bytes = 0

    def first_byte(self) -> None:
        self.first_bytes += 1


@pytest.fixture
def client() -> Client:
    return Client()


def wait_for(
    client: Client,
    *,
    limits: Limits | None = None,
    wishes: Wishes = NO_WISHES,
    name: str = "e",
    fields: bytes = b"",
    body: bytes = b'{"stream": true}',
    version: bytes = b"1.1",
) -> Wait:
    """A request that arrived at 100 s."""
    start = b"POST /v1/completions HTTP/" + version + b"\r\nHost: h\r\nContent-Length: %d\r\n" % len(body)
    head = parse_request(start + fields + b"\r\n")
    request = Request(head, RequestBody(head))
    request.body.feed(body)
    request.body.keep(body)
    route = Route(EndpointId("s/e"), name, b"/v1/completions", TrafficClass.WORK)
    return Wait(client, request, route, wishes, limits or Limits(), 100.0)


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_rhythm(client: Client) -> None:
    """Silence for ten seconds, then the head and a comment, then a comment every ten seconds."""
    wait = wait_for(client)
    wait.check(109.9)
    assert client.take() == []
    wait.check(110.0)
    head, first = client.take()
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert first == framed(COMMENT)
    wait.check(119.9)
    assert client.take() == []
    wait.check(120.5)
    assert client.take() == [framed(COMMENT)]
    wait.check(130.0)
    assert client.take() == []


def test_comments_do_not_pile_up(client: Client) -> None:
    """A client that does not read is sent none, and one again when it reads."""
    wait = wait_for(client)
    wait.check(110.0)
    client.take()
    client.write_paused = True
    wait.check(120.0)
    assert client.take() == []
    client.write_paused = False
    wait.check(125.0)
    assert client.take() == []
    wait.check(130.0)
    assert client.take() == [framed(COMMENT)]


def test_nothing_is_begun_after_the_lease(client: Client) -> None:
    """From then on the backend has the word, until the lease is lost."""
    wait = wait_for(client)
    lease = PlainLease(UpstreamPool("127.0.0.1", 1))
    wait.leased(lease, 105.0)
    wait.check(200.0)
    assert wait.stream is None
    wait.lost_lease()
    wait.check(201.0)
    assert wait.stream is not None


def test_no_comment_after_the_last_word(client: Client) -> None:
    """Once an error was told, the sweep finds nothing to do."""
    wait = wait_for(client)
    wait.check(110.0)
    client.take()
    last = wait.failed(QueueFull("Full."))
    assert last.endswith(b"\n\n\r\n0\r\n\r\n")
    wait.check(500.0)
    assert client.take() == []


@pytest.mark.parametrize(
    ("version", "fields", "draining", "closes"),
    [
        (b"1.1", b"", False, False),
        (b"1.1", b"Connection: close\r\n", False, True),
        (b"1.1", b"", True, True),
        (b"1.0", b"Connection: keep-alive\r\n", False, True),
    ],
)
def test_end_of_the_connection_is_announced(
    client: Client, version: bytes, fields: bytes, draining: bool, closes: bool
) -> None:
    """In the head, since nothing can be said later."""
    client.draining = draining
    wait = wait_for(client, version=version, fields=fields)
    wait.check(110.0)
    head, first = client.take()
    assert (b"\r\nConnection: close\r\n" in head) is closes
    assert (b"\r\nTransfer-Encoding: chunked\r\n" in head) is (version == b"1.1")
    assert first == (framed(COMMENT) if version == b"1.1" else COMMENT)
    assert wait.stream is not None
    assert wait.stream.closes is closes


def test_processing_every_ten_seconds(client: Client) -> None:
    """The first after ten seconds; none where it is off."""
    wait = wait_for(client, limits=Limits(send_processing=True), body=b"{}")
    silent = wait_for(client, body=b"{}")
    counts = []
    for now in (109.0, 110.0, 115.0, 120.0, 121.0, 131.0):
        wait.check(now)
        silent.check(now)
        counts.append(len(client.take()))
    assert counts == [0, 1, 0, 1, 0, 1]


def test_timing(client: Client) -> None:
    """So far, then up to the lease; with the lease's own numbers if it has any; nothing unasked."""
    pool = UpstreamPool("127.0.0.1", 1)
    wait = wait_for(client, wishes=Wishes(timing=True))
    assert wait.timing(101.5) == [("X-Juggler-Wait", "1.500"), ("X-Juggler-Endpoint", "e")]
    wait.leased(TimedLease(pool, LeaseTiming(0.5, 1.5, True)), 102.0)
    lines = b"X-Juggler-Wait: 2.000\r\nX-Juggler-Queue: 0.500\r\nX-Juggler-Load: 1.500\r\nX-Juggler-Endpoint: e\r\n"
    assert wait.timing_lines(200.0) == lines
    wait.leased(TimedLease(pool, None), 102.0)
    assert [name for name, _ in wait.timing(200.0)] == ["X-Juggler-Wait", "X-Juggler-Endpoint"]
    unasked = wait_for(client)
    assert unasked.timing_lines(200.0) == b""


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a b/c", "a b/c"), ("ä", "%C3%A4"), ("a%20b", "a%2520b"), ("a\r\nX: y", "a%0D%0AX%3A%20y")],
)
def test_endpoint_name_in_a_field(client: Client, name: str, shown: str) -> None:
    """Percent-encoded where it would not fit or would be read wrongly."""
    wait = wait_for(client, wishes=Wishes(timing=True), name=name)
    assert wait.timing(100.0)[-1] == ("X-Juggler-Endpoint", shown)
    wait.check(110.0)
    head, _ = client.take()
    assert head.count(b"\r\nX-Juggler-Endpoint: " + shown.encode() + b"\r\n") == 1
    assert b"\r\nX: y" not in head


def test_leases_need_not_tell() -> None:
    """A lease without the two optional members is one like any other."""
    pool = UpstreamPool("127.0.0.1", 1)
    plain, timed = PlainLease(pool), TimedLease(pool, LeaseTiming(1.0))
    tell_first_byte(plain)
    tell_first_byte(timed)
    assert timed.first_bytes == 1
    assert lease_timing(plain) is None
    assert lease_timing(None) is None
    assert lease_timing(timed) == LeaseTiming(1.0, 0.0, False)


def test_long_bodies_are_not_looked_at(client: Client) -> None:
    """The bound is exact."""
    body = b'{"stream": true}'
    for bound, begun in ((len(body), True), (len(body) - 1, False)):
        wait = wait_for(client, limits=replace(Limits(), stream_look_bytes=bound))
        wait.check(110.0)
        assert (wait.stream is not None) is begun


@pytest.mark.parametrize(
    ("fields", "own"),
    [
        (b"", True),
        (b"Sec-Fetch-Site: cross-site\r\n", True),
        (b"Origin: http://h\r\n", True),
        (b"Origin: http://h:8020\r\n", False),
        (b"Origin: null\r\n", False),
        (b"Origin: http://h\r\nOrigin: http://h\r\n", False),
        (b"Origin: http://x\r\nSec-Fetch-Site: same-origin\r\n", True),
        (b"Origin: https://x\r\nX-Forwarded-Host: x\r\nX-Forwarded-Proto: https\r\n", True),
        (b"Origin: http://x\r\nX-Forwarded-Host: x\r\nX-Forwarded-Proto: https\r\n", False),
    ],
)
def test_pages_of_other_sites(fields: bytes, own: bool) -> None:
    """Whether such a page may read an answer is the backend's to say."""
    assert is_from_own_page(parse_request(b"GET / HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n")) is own
