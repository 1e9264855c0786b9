"""What wakes a backend and what does not, and how a web UI lives behind the whole program."""

import http.client
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import LIMIT_S, PROGRAMS, Answer, Juggler, exclusive, running, web

pytestmark = pytest.mark.slow

UI_TRAFFIC = [{"match": "GET /", "class": "start"}, {"match": "* /ws", "class": "held-open"}]


def ui_and_other() -> dict[str, Any]:
    """Endpoint ``ui``, whose page starts it, and endpoint ``other``; one at a time may be loaded."""
    parameters = [str(PROGRAMS / "web_ui.py"), "--port", "{port}"]
    ui = {"type": "command", "binary": sys.executable, "default_parameters": parameters}
    config = exclusive(ui=ui, other=web("--name", "other"))
    config["servers"][0]["endpoints"][0]["traffic"] = UI_TRAFFIC
    return config


def ask(juggler: Juggler, method: str, path: str, **headers: str) -> Answer:
    """One request with header fields; underscores in their names stand for dashes."""
    connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=LIMIT_S)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def starts(juggler: Juggler, name: str = "ui") -> int:
    return int(juggler.instance(f"S/{name}")["starts"])


def test_polls_get_the_last_reply_while_their_backend_is_out(tmp_path: Path) -> None:
    """Lists asked before stay there after a swap, for the same caller only, and nobody is started for them."""
    with running(tmp_path, ui_and_other()) as juggler:
        assert juggler.ask("POST", "/ui/x", {}).status == 200
        fresh = ask(juggler, "GET", "/ui/v1/models", Authorization="Bearer a")
        chunked = ask(juggler, "GET", "/ui/v1/models?chunked", Authorization="Bearer a")
        assert (fresh.status, fresh.headers.get("x-juggler"), chunked.body) == (200, None, fresh.body)
        assert juggler.ask("POST", "/other/x", {}).json()["name"] == "other"
        for path in ("/ui/v1/models", "/ui/v1/models?chunked"):
            stored = ask(juggler, "GET", path, Authorization="Bearer a")
            assert (stored.status, stored.body, stored.headers["x-juggler"]) == (200, fresh.body, "cached")
            assert int(stored.headers["age"]) <= LIMIT_S
            assert (stored.headers["etag"], stored.headers["content-type"]) == ('"ui"', "application/json")
        head = ask(juggler, "HEAD", "/ui/v1/models", Authorization="Bearer a")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(fresh.body)))
        for refused in (
            ask(juggler, "GET", "/ui/v1/models", Authorization="Bearer b"),
            ask(juggler, "GET", "/ui/v1/models"),
            ask(juggler, "GET", "/ui/v1/other", Authorization="Bearer a"),
            ask(juggler, "OPTIONS", "/ui/v1/models", Authorization="Bearer a"),
        ):
            assert (refused.status, refused.json()["error"]["code"]) == (503, "not_ready")
            assert int(refused.headers["retry-after"]) >= 1
        assert (starts(juggler), starts(juggler, "other")) == (1, 1)
        assert juggler.instance("S/other")["state"] == "ready"
        again = juggler.ask("POST", "/ui/x", {}).json()["pid"]
        fresh = ask(juggler, "GET", "/ui/v1/models", Authorization="Bearer a")
        assert (fresh.json()["pid"], fresh.headers.get("x-juggler")) == (again, None)


def test_opening_a_page_starts_its_backend_and_nothing_else_does(tmp_path: Path) -> None:
    """A browser at the bare prefix is sent on without a start; the page starts its backend, HEAD and files do not."""
    html = "text/html,application/xhtml+xml"
    # A browser would see a page of ours meanwhile: see test_pages.
    with running(tmp_path, {**ui_and_other(), "waiting": {"page_after": LIMIT_S}}) as juggler:
        sent = ask(juggler, "GET", "/ui?theme=dark", Accept=html)
        assert (sent.status, sent.headers["location"]) == (307, "ui/?theme=dark")
        assert ask(juggler, "HEAD", "/ui", Accept=html).status == 307
        for method, path in (("HEAD", "/ui/"), ("OPTIONS", "/ui/"), ("GET", "/ui/style.css"), ("GET", "/ui/ws")):
            assert ask(juggler, method, path).status == 503
        assert starts(juggler) == 0
        page = ask(juggler, "GET", "/ui/?theme=dark", Accept=html)
        assert (page.status, page.headers["content-type"]) == (200, "text/html")
        assert starts(juggler) == 1
        assert ask(juggler, "POST", "/ui").json()["path"] == "/"
        assert ask(juggler, "GET", "/ui/lcpp").headers["location"] == "/ui/lcpp/"
        assert juggler.ask("POST", "/other/x", {}).json()["name"] == "other"
        assert ask(juggler, "GET", "/ui", Accept="*/*").status == 200  # an API client's root is the page too
        assert starts(juggler) == 2


def test_an_open_socket_does_not_keep_others_out(tmp_path: Path) -> None:
    """The page's socket works, a request for another endpoint is served at once, the socket ends with its backend."""
    with running(tmp_path, ui_and_other()) as juggler:
        assert juggler.ask("POST", "/ui/x", {}).status == 200
        own = f"Origin: http://127.0.0.1:{juggler.port}\r\nSec-Fetch-Site: same-origin\r\n"
        with socket.create_connection(("127.0.0.1", juggler.port), LIMIT_S) as page:
            stream = page.makefile("rb")
            page.sendall(
                f"GET /ui/ws HTTP/1.1\r\nHost: 127.0.0.1:{juggler.port}\r\nConnection: Upgrade\r\n"
                f"Upgrade: websocket\r\n{own}\r\nhello".encode()
            )
            assert b" 101 " in stream.readline()
            while stream.readline() != b"\r\n":
                pass
            assert stream.read(5) == b"hello"
            assert (juggler.instance("S/ui")["running"], juggler.instance("S/ui")["light"]) == (0, 1)
            began = time.monotonic()
            assert juggler.ask("POST", "/other/x", {}).json()["name"] == "other"
            assert time.monotonic() - began < 8  # light exchanges would be given 10 s
            try:
                assert stream.read() == b""
            except ConnectionResetError:
                pass
        assert starts(juggler) == 1


def test_foreign_pages_meet_the_backends_own_guard(tmp_path: Path) -> None:
    """A page loaded from our address may work with the backend, one from elsewhere is refused by it."""
    with running(tmp_path, ui_and_other()) as juggler:
        own = f"http://127.0.0.1:{juggler.port}"
        assert ask(juggler, "POST", "/ui/prompt", Origin=own, Sec_Fetch_Site="same-origin").status == 200
        foreign = {"Origin": "http://evil.example", "Sec_Fetch_Site": "cross-site"}
        assert ask(juggler, "POST", "/ui/prompt", **foreign).status == 403
        assert ask(juggler, "POST", "/ui/prompt", Origin="http://evil.example").status == 403
        link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
        assert ask(juggler, "GET", "/ui/", **link).status == 200
        assert ask(juggler, "GET", "/ui/v1/models", **link).status == 403
