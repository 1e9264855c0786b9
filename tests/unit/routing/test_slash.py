"""Browsers at a bare prefix are sent to its slash; nobody else is."""

from urllib.parse import urljoin

import pytest

from juggler.ids import EndpointId
from juggler.proxy.contract import RequestInfo
from juggler.routing.slash import slash_redirect
from juggler.routing.table import Entry, RoutingTable
from juggler.routing.traffic import TrafficTable

HTML = b"text/html,application/xhtml+xml,*/*;q=0.8"


def redirect(
    target: bytes, *, prefix: str = "/a/vision", strip: bool = True, method: bytes = b"GET", accept: bytes | None = HTML
) -> str | None:
    """The Location of the redirect, or None."""
    table = RoutingTable("S", [Entry(EndpointId("v"), "v", prefix, strip, TrafficTable())])
    sent = [(b"Host: h\r\n", b"host", b"h")]
    if accept is not None:
        sent.append((b"Accept: %b\r\n" % accept, b"accept", accept))
    answer = slash_redirect(table.match(method, target), RequestInfo(method, target, "127.0.0.1", sent))
    if answer is None:
        return None
    assert answer.status == 307
    fields = dict(answer.headers)
    assert (fields["Vary"], fields["Cache-Control"]) == ("Accept", "no-store")
    return fields["Location"]


@pytest.mark.parametrize(
    ("target", "location", "opened"),
    [
        (b"/a/vision", "vision/", "http://h/a/vision/"),
        (b"/a/vision?x=1&y=/z", "vision/?x=1&y=/z", "http://h/a/vision/?x=1&y=/z"),
        (b"http://other/a/vision", "vision/", "http://h/a/vision/"),
    ],
)
def test_the_redirect_leads_to_the_slash(target: bytes, location: str, opened: str) -> None:
    """Relative, query kept: right under whatever address the client used."""
    assert redirect(target) == location
    assert urljoin("http://h/a/vision", location) == opened
    assert urljoin("https://front/outer/a/vision", location) == opened.replace("http://h", "https://front/outer")


def test_names_that_need_care() -> None:
    """A colon would read as a scheme; bytes outside ASCII are encoded."""
    assert redirect(b"/llama:8b", prefix="/llama:8b") == "./llama:8b/"
    assert redirect("/größe".encode(), prefix="/größe") == "gr%C3%B6%C3%9Fe/"
    assert redirect(b"/gr%C3%B6%C3%9Fe", prefix="/größe") == "gr%C3%B6%C3%9Fe/"


def test_head_is_redirected_like_get() -> None:
    """Link checkers see what a browser would."""
    assert redirect(b"/a/vision", method=b"HEAD") == "vision/"


@pytest.mark.parametrize(
    ("target", "changes"),
    [
        (b"/a/vision/", {}),
        (b"/a/vision/x", {}),
        (b"/a/vision", {"accept": b"application/json"}),
        (b"/a/vision", {"accept": b"*/*"}),
        (b"/a/vision", {"accept": None}),
        (b"/a/vision", {"method": b"POST"}),
        (b"/a/vision", {"strip": False}),
        (b"/", {"prefix": ""}),
    ],
)
def test_everybody_else_reaches_the_backend(target: bytes, changes: dict[str, object]) -> None:
    """API clients with the bare prefix as base URL, and endpoints whose backend knows its prefix."""
    assert redirect(target, **changes) is None  # type: ignore[arg-type]
