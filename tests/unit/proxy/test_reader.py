"""Who reads an answer: a browser's window, somebody who likes text, or a program."""

import pytest

from juggler.proxy.reader import Reader, is_prefetch, reader_of

CHROME = b"text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
FIREFOX = b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
LYNX = b"text/html, text/plain, text/sgml, text/css, application/xhtml+xml, */*;q=0.01"


def reader(accept: bytes | None, method: bytes = b"GET", **fields: bytes) -> Reader:
    sent = [(name.replace("_", "-").encode(), value) for name, value in fields.items()]
    if accept is not None:
        sent.append((b"accept", accept))
    return reader_of(method, sent)


@pytest.mark.parametrize("accept", [CHROME, FIREFOX, LYNX, b"text/html", b"TEXT/HTML;q=0.9, */*;q=0.8"])
def test_browsers_that_say_nothing_else(accept: bytes) -> None:
    """Over plain HTTP in a network browsers send no Fetch Metadata."""
    assert reader(accept) is Reader.PAGE


@pytest.mark.parametrize("kind", [b"document", b"iframe", b"frame", b"Document"])
def test_navigations(kind: bytes) -> None:
    """In the window or in a frame of another page."""
    assert reader(CHROME, Sec_Fetch_Mode=b"navigate", Sec_Fetch_Dest=kind) is Reader.PAGE


@pytest.mark.parametrize(
    "fields",
    [
        {"Sec_Fetch_Mode": b"cors", "Sec_Fetch_Dest": b"empty"},
        {"Sec_Fetch_Mode": b"same-origin", "Sec_Fetch_Dest": b"empty"},
        {"Sec_Fetch_Mode": b"no-cors", "Sec_Fetch_Dest": b"script"},
        {"Sec_Fetch_Mode": b"websocket", "Sec_Fetch_Dest": b"websocket"},
        {"Sec_Fetch_Mode": b"navigate", "Sec_Fetch_Dest": b"object"},
        {"Sec_Fetch_Dest": b"image"},
        {"Sec_Fetch_Mode": b"cors"},
        {"X_Requested_With": b"XMLHttpRequest"},
        {"HX_Request": b"true"},
        {"Turbo_Frame": b"x"},
        {"Upgrade": b"websocket"},
        {"Range": b"bytes=0-"},
    ],
)
def test_scripts_never_get_a_page(fields: dict[str, bytes]) -> None:
    """Even if they ask for HTML: they would put ours into the middle of theirs."""
    assert reader(CHROME, **fields) is Reader.TEXT


@pytest.mark.parametrize("method", [b"POST", b"HEAD", b"PUT", b"get"])
def test_only_a_get_gets_a_page(method: bytes) -> None:
    """Anything else cannot be asked again without harm."""
    assert reader(CHROME, method) is Reader.TEXT


@pytest.mark.parametrize(
    "accept",
    [
        None,
        b"",
        b"*/*",
        b"application/json",
        b"application/json, text/plain, */*",  # axios
        b"application/json, text/javascript, */*; q=0.01",  # jQuery
        b"text/event-stream",
        b"application/json, text/event-stream",  # MCP
        b"image/avif,image/webp,*/*;q=0.8",
        b"text/html;q=0, */*",
        b"text/html;q=0",
        b"application/json, text/html",
        b"application/octet-stream",
        b"text/plain;q=0.5, application/json;q=0.9",
    ],
)
def test_programs(accept: bytes | None) -> None:
    """JSON for whoever takes it as gladly, says nothing, or takes neither."""
    assert reader(accept) is Reader.PROGRAM


@pytest.mark.parametrize(
    "accept", [b"text/plain", b"text/plain, */*;q=0.1", b"text/*", b"text/plain, application/json;q=0.9"]
)
def test_text(accept: bytes) -> None:
    """For whoever prefers it."""
    assert reader(accept) is Reader.TEXT


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"Sec-Purpose", b"prefetch", True),
        (b"sec-purpose", b"Prefetch;prerender", True),
        (b"Sec-Purpose", b"other", False),
        (b"Purpose", b"prefetch", False),
    ],
)
def test_prefetches(name: bytes, value: bytes, expected: bool) -> None:
    """They say so themselves; an older field that only some browsers sent is gone."""
    assert is_prefetch([(b"Accept", CHROME), (name, value)]) is expected


def test_repeated_fields_and_nonsense() -> None:
    """Lines of one field are one list; weights that are none count as 1, or leave their type out."""
    assert reader_of(b"GET", [(b"Accept", b"*/*;q=0.1"), (b"ACCEPT", b"text/html")]) is Reader.PAGE
    assert reader(b"text/html;q=x;level=1, ,;") is Reader.PAGE
    assert reader(b", text/html;q=0.9") is Reader.PAGE
    assert reader(b"text/html;q=7, text/plain;q=nan") is Reader.PROGRAM
