"""Web UIs and sloppy servers behind the proxy: origins, addresses under a prefix, HTTP/1.0 answers, request framing."""

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import pytest

from tests.protocol.support import Peer, header, rig

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


def comfy_refuses(head: bytes) -> bool:
    """ComfyUI's rule for Host, Origin and Sec-Fetch-Site (backends.md 5.5), for a Host that is a loopback address."""
    if header(head, b"sec-fetch-site") == b"cross-site":
        return True
    host, origin = header(head, b"host"), header(head, b"origin")
    if host is None or origin is None:
        return False
    asked, came = urlsplit("//" + host.decode().lower()), urlsplit(origin.decode().lower())
    left = asked.netloc if came.port is not None else asked.hostname
    right = came.netloc if asked.port is not None else came.hostname
    return bool(left and right and left != right)


def ollama_refuses(head: bytes) -> bool:
    """ollama's rule for Origin (backends.md 6.4), without its list of other local origins."""
    host, origin = header(head, b"host"), header(head, b"origin")
    assert host is not None
    return origin is not None and origin not in (b"http://" + host, b"https://" + host)


def guarded(refuses: Callable[[bytes], bool]) -> Callable[[Peer], Awaitable[None]]:
    """A backend that answers 403, else switches or says 200."""

    async def backend(peer: Peer) -> None:
        head = await peer.head()
        if refuses(head):
            peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif header(head, b"upgrade"):
            peer.send(SWITCH)
        else:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    return backend


OWN = b"Origin: http://box:8021\r\n"
FOREIGN = b"Origin: http://evil.example\r\n"


@pytest.mark.parametrize("refuses", [comfy_refuses, ollama_refuses])
@pytest.mark.parametrize(
    ("request_line", "fields", "status"),
    [
        (b"POST /prompt", OWN, 200),
        (b"POST /prompt", OWN + b"Sec-Fetch-Site: same-origin\r\n", 200),
        (b"GET /ws", OWN + b"Sec-Fetch-Site: same-origin\r\n" + WEBSOCKET, 101),
        (b"GET /ws", OWN + WEBSOCKET, 101),
        (b"POST /prompt", b"", 200),
        (b"POST /prompt", FOREIGN, 403),
        (b"POST /prompt", FOREIGN + b"Sec-Fetch-Site: cross-site\r\n", 403),
        (b"POST /prompt", b"Origin: null\r\nSec-Fetch-Site: cross-site\r\n", 403),
        (b"POST /prompt", b"Origin: http://box:3000\r\nSec-Fetch-Site: same-site\r\n", 403),
        (b"GET /ws", FOREIGN + WEBSOCKET, 403),
        (b"GET /ws", b"Origin: null\r\nSec-Fetch-Site: cross-site\r\n" + WEBSOCKET, 403),
    ],
)
async def test_backends_guard_themselves_against_foreign_pages_only(
    refuses: Callable[[bytes], bool], request_line: bytes, fields: bytes, status: int
) -> None:
    """Pages loaded from our address use a backend, also by WebSocket; others meet the backend's own guard."""
    async with rig(guarded(refuses)) as setup:
        peer = await setup.ask(request_line + b" HTTP/1.1\r\nHost: box:8021\r\n" + fields + b"\r\n")
        assert int((await peer.head())[9:12]) == status


async def test_a_link_from_elsewhere_opens_the_start_page_only() -> None:
    """The bookmark in a wiki works; a picture or a frame in it does not reach ComfyUI unmarked."""
    async with rig(guarded(comfy_refuses), prefix=b"/comfy") as setup:
        for path, dest, status in ((b"/", b"document", 200), (b"/", b"iframe", 403), (b"/free", b"document", 403)):
            fields = b"Host: box\r\nSec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: " + dest
            peer = await setup.ask(b"GET /comfy" + path + b" HTTP/1.1\r\n" + fields + b"\r\n\r\n")
            assert (await peer.answer())[0] == status


@pytest.mark.parametrize(
    ("path", "location", "mapped"),
    [
        (b"/kobold/lcpp", b"http://127.0.0.1:%d/lcpp/", b"/kobold/lcpp/"),
        (b"/kobold/lcpp", b"http://localhost:%d/lcpp/", b"/kobold/lcpp/"),
        (b"/kobold/lcpp", b"/lcpp/", b"/kobold/lcpp/"),
        (b"/kobold/api", b"lcpp/", b"lcpp/"),
        (b"/kobold", b"lcpp/", b"/kobold/lcpp/"),
        (b"/kobold/x", b"https://elsewhere.example/x", b"https://elsewhere.example/x"),
    ],
)
async def test_redirects_of_koboldcpp_stay_under_the_prefix(path: bytes, location: bytes, mapped: bytes) -> None:
    """HTTP/1.0 redirects without a length, with the backend's own address or a path, lead where the client can go."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        where = location % setup.upstream.port if b"%d" in location else location
        peer.send(b"HTTP/1.0 302 Found\r\nlocation: " + where + b"\r\nContent-type: text/html\r\n\r\n")

    async with rig(backend, prefix=b"/kobold") as setup:
        peer = await setup.ask(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
        head = await peer.head()
        assert (head[9:12], header(head, b"location")) == (b"302", mapped)
        assert await peer.to_end() == b""


@pytest.mark.parametrize(
    ("path", "cookie", "mapped"),
    [
        (b"/ui/login", b"a=b; HttpOnly", b"a=b; HttpOnly"),
        (b"/ui/login", b"a=b; Path=/", b"a=b; Path=/ui"),
        (b"/ui/login", b"a=b; path=/deep; SameSite=lax", b"a=b; path=/ui/deep; SameSite=lax"),
        (b"/ui", b"a=b", b"a=b; Path=/ui"),
    ],
)
async def test_cookies_stay_under_the_prefix(path: bytes, cookie: bytes, mapped: bytes) -> None:
    """A cookie of one endpoint is not sent to the others of the listener."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.1 200 OK\r\nSet-Cookie: " + cookie + b"\r\nContent-Length: 0\r\n\r\n")

    async with rig(backend, prefix=b"/ui") as setup:
        peer = await setup.ask(b"GET " + path + b" HTTP/1.1\r\nHost: h\r\n\r\n")
        assert header((await peer.answer())[1], b"set-cookie") == mapped


async def test_event_stream_of_an_http_1_0_server() -> None:
    """koboldcpp ends its event streams by closing, though it says keep-alive; every event passes as it comes."""

    async def backend(peer: Peer) -> None:
        await peer.head()
        peer.send(b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\nContent-type: text/event-stream\r\n\r\n")
        for number in range(3):
            peer.send(b"event: message\ndata: %d\n\n" % number)
            assert await peer.reader.read(1) in (b"", b"n")

    async with rig(backend) as setup:
        # The three bytes after the head stand for a client that goes on only when it has seen an event.
        peer = await setup.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n")
        assert header(await peer.head(), b"connection") == b"close"
        for number in range(3):
            await peer.exactly(b"event: message\ndata: %d\n\n" % number)
            peer.send(b"n")
        assert await peer.to_end() == b""
        assert (await setup.result()).error is None


async def test_a_request_with_a_length_keeps_it() -> None:
    """koboldcpp refuses more than 512 chunks: a body that came with a length is never put into chunks."""
    body = bytes(range(256)) * 1024
    seen: list[bytes] = []

    async def backend(peer: Peer) -> None:
        head = await peer.head()
        seen.append(head)
        assert await peer.body(len(body)) == body
        peer.send(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok")

    async with rig(backend) as setup:
        peer = await setup.ask(b"POST /x HTTP/1.1\r\nHost: h\r\ncontent-length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 10_000):
            peer.send(body[start : start + 10_000])
            await peer.writer.drain()
        assert (await peer.answer())[0] == 200
    assert header(seen[0], b"content-length") == b"%d" % len(body)
    assert header(seen[0], b"transfer-encoding") is None


async def test_a_chunked_request_keeps_its_chunks() -> None:
    """As many chunks as the client made, however the network cuts them."""
    body = b"".join(b"%x\r\n%b\r\n" % (size, b"x" * size) for size in range(1, 400)) + b"0\r\n\r\n"
    seen: list[bytes] = []

    async def backend(peer: Peer) -> None:
        seen.append(await peer.head())
        assert await peer.body(len(body)) == body
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async with rig(backend) as setup:
        peer = await setup.ask(b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        for start in range(0, len(body), 777):
            peer.send(body[start : start + 777])
            await peer.writer.drain()
        assert (await peer.answer())[0] == 200
    assert header(seen[0], b"transfer-encoding") == b"chunked"
    assert header(seen[0], b"content-length") is None
