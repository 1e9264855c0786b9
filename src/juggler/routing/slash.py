"""Browsers that open an endpoint's bare prefix are sent to its slash, where relative links of a page work. Pure.

A page at ``/vision`` that loads ``style.css`` asks for ``/style.css``; at ``/vision/`` it asks for
``/vision/style.css``. Web UIs rely on it (backends.md section 9). API clients whose base URL is the bare prefix are
no browsers: they reach the backend's ``/``.
"""

from urllib.parse import quote_from_bytes

from juggler.proxy.contract import LocalResponse, RequestInfo, Route

_KEPT = "".join(map(chr, range(0x21, 0x7F)))
"""Visible ASCII stays as the client wrote it; other bytes are percent-encoded, for fields carry ASCII only."""

_PAGE_METHODS = frozenset((b"GET", b"HEAD"))


def slash_redirect(route: Route, request: RequestInfo) -> LocalResponse | None:
    """The redirect for a browser that navigates to a bare prefix; None for every other request.

    The status is 307, not 308: a browser would keep a permanent redirect after the operator gave the path to
    another endpoint. The Location is relative (``vision/``): it holds whatever host, scheme and further prefix the
    client used, also behind a proxy in front that strips a prefix of its own without saying so.
    """
    if not route.bare or request.method not in _PAGE_METHODS or not _wants_page(request):
        return None
    segment = route.prefix.rpartition(b"/")[2]
    if b":" in segment:
        segment = b"./" + segment  # else it would read as a scheme (RFC 3986 section 4.2)
    query = route.target[1:]
    location = quote_from_bytes(segment + b"/" + query, safe=_KEPT)
    return LocalResponse(
        307,
        f"Go to {location}\n".encode(),
        "text/plain; charset=utf-8",
        (("Location", location), ("Vary", "Accept"), ("Cache-Control", "no-store")),
    )


def _wants_page(request: RequestInfo) -> bool:
    """Whether ``Accept`` names HTML: browsers do when they navigate, their scripts and API clients do not."""
    return any(name.lower() == b"accept" and b"text/html" in value.lower() for name, value in request.headers)
