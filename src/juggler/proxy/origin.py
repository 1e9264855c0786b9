"""Whose page sent a request: one that came through us, or a foreign one. Pure.

Backends on a loopback address guard themselves against foreign web pages, which may send them a POST without asking
anybody (CORS holds back only the answer): ComfyUI refuses an ``Origin`` unlike ``Host``, and since 2026
``Sec-Fetch-Site: cross-site`` (server.py create_origin_only_middleware); ollama refuses an ``Origin`` that is neither
its ``Host`` nor on its list (backends.md 5.5, 6.4). They see our hop's Host, so we have to translate:

- The page's origin is the address the client used, or the browser says ``Sec-Fetch-Site: same-origin`` (no script
  can; it holds where a proxy in front has replaced Host): the page came through us. Origin goes, and a
  ``Sec-Fetch-Site`` that says otherwise (a proxy in front has rewritten Host and Origin) becomes ``same-origin``.
- Any other Origin, ``null`` included, is foreign. It stays with everything that says so, and the backend decides: it
  knows its own allowances (``--enable-cors-header``, ``OLLAMA_ORIGINS``), and those that allow everybody (llama.cpp,
  koboldcpp) have users who rely on it.
- Without Origin, ``Sec-Fetch-Site`` stays too, with one exception: a link or a login page elsewhere that leads to
  the start page of a UI (a top-level navigation to the backend's ``/``) counts as if the user had typed it. The
  foreign page sees nothing of the answer, and a start page acts on nothing; ComfyUI up to 0.35 answers it 403
  (Comfy-Org/ComfyUI issue 16203).
"""

import re

from juggler.proxy.head import RequestHead

SITE_FIELDS = frozenset((b"origin", b"sec-fetch-site"))

_ORIGIN = re.compile(rb"(https?)://([^/]+)", re.IGNORECASE)
_ELSEWHERE = (b"cross-site", b"same-site")
_FORWARDED = frozenset((b"x-forwarded-host", b"x-forwarded-proto"))
_SCHEMES = {b"http": b"http", b"ws": b"http", b"https": b"https", b"wss": b"https"}


def is_same_origin(origin: bytes, host: bytes | None, scheme: bytes | None = None) -> bool:
    """Whether an Origin value names the host and port of a Host value, and the scheme if that is known."""
    match = _ORIGIN.fullmatch(origin)
    if match is None or host is None:
        return False
    if scheme is not None and match[1].lower() != scheme:
        return False
    default_port = b":443" if match[1].lower() == b"https" else b":80"
    return match[2].lower().removesuffix(default_port) == host.lower().removesuffix(default_port)


def is_own_page(origin: bytes, host: bytes | None, forwarded: dict[bytes, bytes], *, secure: bool = False) -> bool:
    """Whether the page that sent the request was loaded through us.

    Args:
        origin: Value of Origin.
        host: Value of the client's Host.
        forwarded: The request's ``X-Forwarded-*`` fields. What a proxy in front says about the user's address counts
            as much as Host: a foreign page can add such a field only after the backend has allowed it in the answer
            to a preflight.
        secure: The request came over TLS: the same host without it is somebody else. The reverse proves nothing, as
            not every proxy in front that ends TLS says so.
    """
    said = _first(forwarded.get(b"x-forwarded-proto", b"https" if secure else b""))
    scheme = _SCHEMES.get(said.lower())
    outside = forwarded.get(b"x-forwarded-host")
    return is_same_origin(origin, host, scheme) or (
        outside is not None and is_same_origin(origin, _first(outside), scheme)
    )


def is_from_own_page(head: RequestHead, *, secure: bool = False) -> bool:
    """Whether no page sent the request, or one that was loaded through us: no foreign page wants to read the answer.

    Args:
        head: As the client sent it.
        secure: See ``is_own_page``.
    """
    origins, sites, forwarded = [], set(), {}
    for _, name, value in head.fields:
        lowered = name.lower()
        if lowered == b"origin":
            origins.append(value)
        elif lowered == b"sec-fetch-site":
            sites.add(value.lower())
        elif lowered in _FORWARDED:
            forwarded[lowered] = value
    if not origins:
        return True
    own = sites == {b"same-origin"} or is_own_page(origins[0], head.host, forwarded, secure=secure)
    return len(origins) == 1 and own


def opens_start_page(head: RequestHead, target: bytes) -> bool:
    """Whether the request is a top-level navigation to the backend's root document.

    Args:
        head: As the client sent it.
        target: As the backend gets it.
    """
    if head.method not in (b"GET", b"HEAD") or target.partition(b"?")[0] != b"/":
        return False
    said = {name.lower(): value.lower() for _, name, value in head.fields if name[:10].lower() == b"sec-fetch-"}
    return said.get(b"sec-fetch-mode") == b"navigate" and said.get(b"sec-fetch-dest") == b"document"


def settle_site_fields(
    lines: list[bytes],
    found: list[tuple[int, bytes, bytes]],
    head: RequestHead,
    target: bytes,
    forwarded: dict[bytes, bytes],
    *,
    secure: bool = False,
) -> None:
    """Apply the rules of this module to the lines of a head.

    Args:
        lines: The head for the backend so far; changed in place.
        found: Of each field in ``SITE_FIELDS``: its index in ``lines``, its name as sent, its value.
        head: As the client sent it.
        target: As the backend gets it.
        forwarded: See ``is_own_page``.
        secure: The same.
    """
    origins = [value for _, name, value in found if name.lower() == b"origin"]
    sites = {value.lower() for _, name, value in found if name.lower() != b"origin"}
    # Two origins are no browser's doing: the backend may take either, so neither is ours to remove.
    own = len(origins) == 1 and (
        sites == {b"same-origin"} or is_own_page(origins[0], head.host, forwarded, secure=secure)
    )
    opened = not origins and opens_start_page(head, target)
    for index, name, value in found:
        if name.lower() == b"origin":
            if own:
                lines[index] = b""
        elif value.lower() in _ELSEWHERE:
            if own:
                lines[index] = b"%b: same-origin\r\n" % name
            elif opened:
                lines[index] = b"%b: none\r\n" % name


def _first(value: bytes) -> bytes:
    """The first of a list: the proxy nearest to the user wrote it."""
    return value.partition(b",")[0].strip(b" \t")
