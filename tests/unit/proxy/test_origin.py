"""Pages that came through us may use a backend, foreign ones stay recognisable as such."""

import pytest

from juggler.proxy.head import parse_request
from juggler.proxy.headers import Hop, request_head
from juggler.proxy.origin import is_own_page, is_same_origin


def site_fields(
    fields: bytes, *, method: bytes = b"POST", target: bytes = b"/prompt", host: bytes = b"box:8021"
) -> bytes:
    """The Origin and Sec-Fetch-Site lines that the backend gets."""
    raw = method + b" /comfy" + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + fields + b"\r\n"
    head = request_head(parse_request(raw), Hop(target, b"127.0.0.1:9", b"10.0.0.1", b"/comfy"))
    kept = [line for line in head.split(b"\r\n") if line.lower().startswith((b"origin:", b"sec-fetch-site:"))]
    return b"".join(line + b"\r\n" for line in kept)


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        (b"http://a:80", b"a", True),
        (b"https://A", b"a:443", True),
        (b"HTTPS://a", b"A:443", True),
        (b"HTTPS://a", b"a:80", False),
        (b"http://a:8080", b"a:8080", True),
        (b"http://[::1]:8080", b"[::1]:8080", True),
        (b"http://b", b"a", False),
        (b"http://a:8081", b"a:8080", False),
        (b"http://localhost:1", b"127.0.0.1:1", False),
        (b"http://a.evil", b"a", False),
        (b"null", b"a", False),
        (b"http://a/x", b"a", False),
        (b"ftp://a", b"a", False),
        (b"http://a", None, False),
    ],
)
def test_same_origin(origin: bytes, host: bytes | None, same: bool) -> None:
    """Ports that are the scheme's own do not matter, letters' case neither."""
    assert is_same_origin(origin, host) is same


@pytest.mark.parametrize(
    ("received", "sent"),
    [
        (b"", b""),
        (b"Origin: http://box:8021\r\n", b""),
        (b"Origin: http://box:8021\r\nSec-Fetch-Site: same-origin\r\n", b"Sec-Fetch-Site: same-origin\r\n"),
        # A proxy in front made Host and Origin alike: the browser's word is about an address we do not know.
        (b"Origin: http://box:8021\r\nSec-Fetch-Site: cross-site\r\n", b"Sec-Fetch-Site: same-origin\r\n"),
        (b"sec-fetch-site: Same-Site\r\nOrigin: http://box:8021\r\n", b"sec-fetch-site: same-origin\r\n"),
        # A proxy in front replaced Host, and the browser vouches for the page.
        (b"Origin: https://ai.example\r\nSec-Fetch-Site: same-origin\r\n", b"Sec-Fetch-Site: same-origin\r\n"),
        # A proxy in front replaced Host, and says so.
        (b"Origin: https://ai.example\r\nX-Forwarded-Host: ai.example\r\nX-Forwarded-Proto: https\r\n", b""),
        (b"X-Forwarded-Host: ai.example, inner\r\nX-Forwarded-Proto: wss\r\nOrigin: https://ai.example\r\n", b""),
    ],
)
def test_own_pages_are_not_refused(received: bytes, sent: bytes) -> None:
    """Whatever would look foreign to the backend, which sees another Host than the browser, is settled here."""
    assert site_fields(received) == sent


@pytest.mark.parametrize(
    "received",
    [
        b"Origin: http://evil.example\r\n",
        b"Origin: http://evil.example\r\nSec-Fetch-Site: cross-site\r\n",
        b"Origin: null\r\nSec-Fetch-Site: cross-site\r\n",
        b"Origin: http://box:3000\r\nSec-Fetch-Site: same-site\r\n",
        b"Origin: http://box:8021\r\nOrigin: http://evil.example\r\n",
        b"Origin: http://evil.example\r\nSec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site\r\n",
        b"Origin: https://evil.example\r\nX-Forwarded-Host: ai.example\r\nX-Forwarded-Proto: https\r\n",
        b"Origin: https://evil.example\r\nX-Forwarded-Host: ai.example, evil.example\r\n",
        b"Sec-Fetch-Site: cross-site\r\n",
        b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n",
    ],
)
def test_foreign_pages_stay_foreign(received: bytes) -> None:
    """Nothing that a backend's own guard looks at is taken from a foreign page's request, forms included."""
    wanted = b"".join(
        line + b"\r\n" for line in received.split(b"\r\n") if line.startswith((b"Origin", b"Sec-Fetch-Site"))
    )
    assert site_fields(received) == wanted
    assert site_fields(b"Connection: origin, sec-fetch-site\r\n" + received) == wanted


def test_another_scheme_is_another_origin() -> None:
    """A page over plain HTTP, which anybody on the way can write, is not the HTTPS one of the same name."""
    secure = b"X-Forwarded-Proto: https\r\n"
    assert site_fields(b"Origin: http://box\r\n" + secure, host=b"box") == b"Origin: http://box\r\n"
    assert site_fields(b"Origin: https://box\r\n" + secure, host=b"box") == b""


OPENED = b"Sec-Fetch-Site: cross-site\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\n"


def test_a_link_may_lead_to_the_start_page() -> None:
    """A top-level navigation to the root counts as typed (Comfy-Org/ComfyUI issue 16203)."""
    for target in (b"/", b"/?x=1"):
        assert site_fields(OPENED, method=b"GET", target=target) == b"Sec-Fetch-Site: none\r\n"


@pytest.mark.parametrize(
    ("method", "target", "fields"),
    [
        (b"GET", b"/manager/reboot", OPENED),
        (b"GET", b"//", OPENED),
        (b"POST", b"/", OPENED),
        (b"GET", b"/", OPENED.replace(b"document", b"iframe")),
        (b"GET", b"/", OPENED.replace(b"navigate", b"no-cors")),
        (b"GET", b"/", OPENED + b"Origin: http://evil.example\r\n"),
        (b"GET", b"/", b"Sec-Fetch-Site: cross-site\r\n"),
    ],
)
def test_a_link_may_not_lead_elsewhere(method: bytes, target: bytes, fields: bytes) -> None:
    """Frames, pictures, forms and other paths from foreign pages are told to the backend as what they are."""
    assert b"Sec-Fetch-Site: cross-site\r\n" in site_fields(fields, method=method, target=target)


def test_pages_of_the_same_host_without_tls_are_foreign_to_https() -> None:
    """Whoever sits in between can change them. Without TLS at our own end nothing is known of the user's."""
    assert not is_own_page(b"http://box", b"box", {}, secure=True)
    assert is_own_page(b"https://box", b"box", {}, secure=True)
    assert is_own_page(b"https://box", b"box", {})
    assert not is_own_page(b"HTTP://box", b"box", {b"x-forwarded-proto": b"HTTPS"})
    assert is_own_page(b"http://box", b"box", {b"x-forwarded-proto": b"http"}, secure=True)
