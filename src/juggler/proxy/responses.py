"""Our own answers as bytes: JSON, text, or a page, as their reader likes it. Pure."""

import json
import math
from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus

from juggler.errors import JugglerError
from juggler.proxy.contract import LocalResponse, Route
from juggler.proxy.head import RequestHead
from juggler.proxy.page import PAGE_POLICY, PAGE_TYPE, PLAIN_FIELDS, error_page
from juggler.proxy.reader import Reader, reader_of
from juggler.proxy.shapes import error_body, error_text, retry_after_s
from juggler.routing.apis import api_of

REASONS = {one.value: one.phrase for one in HTTPStatus}
"""Per status. Not from ``http.client``: its import is a hundredth of the start."""


def error_response(
    error: JugglerError,
    head: RequestHead | None = None,
    route: Route | None = None,
    *,
    close: bool = False,
    added: Sequence[tuple[str, str]] = (),
) -> bytes:
    """A whole HTTP answer for ``error``.

    Args:
        error: What to report.
        head: Of the request, for the form of the answer; None: it could not be read.
        route: Where the request goes; None: it was not routed.
        close: The connection closes after this answer.
        added: Further fields, name and value.
    """
    # Whom it was made for depends on more fields than Vary could name, and a 404 may be kept unasked (RFC 9110 15.1).
    fields = [("X-Juggler", "error"), *added, *PLAIN_FIELDS]
    after_s = retry_after_s(error)
    if after_s is not None:
        fields.append(("Retry-After", str(math.ceil(after_s))))  # whole seconds (RFC 9110 10.2.3)
    if error.status >= 500 and (after_s is None or not error.repeatable):
        # The SDKs of OpenAI repeat a 5xx twice unless told not to: each click would cost three load attempts.
        fields.append(("x-should-retry", "false"))
    reader = Reader.PROGRAM
    if head is not None:
        reader = reader_of(head.method, ((name, value) for _, name, value in head.fields))
    if reader is Reader.PAGE:
        kind, body = PAGE_TYPE, error_page(error)
        fields.append(PAGE_POLICY)
    elif reader is Reader.TEXT:
        kind, body = "text/plain; charset=utf-8", error_text(error).encode("utf-8", "replace")
    else:
        target = route.target if route is not None else head.target if head is not None else b"/"
        api = api_of(target.partition(b"?")[0], route.api if route is not None else None)
        kind, body = "application/json", to_json(error_body(error, api))
    return _response(error.status, kind, fields, body, head is not None and head.method == b"HEAD", close)


def local_response(
    response: LocalResponse, *, head_only: bool = False, close: bool = False, added: Sequence[tuple[str, str]] = ()
) -> bytes:
    """A whole HTTP answer for something answered here; ``added`` are further fields, name and value."""
    fields = [*response.headers, *added]
    return _response(response.status, response.content_type, fields, response.body, head_only, close)


def to_json(body: object) -> bytes:
    """JSON in UTF-8; what has no place in JSON (details may come from anywhere) becomes its text."""
    return json.dumps(body, ensure_ascii=False, default=str).encode("utf-8", "replace")


def _response(
    status: int, content_type: str, fields: list[tuple[str, str]], body: bytes, head_only: bool, close: bool
) -> bytes:
    bodiless = status < 200 or status in (204, 304)
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, '')}", f"Date: {formatdate(usegmt=True)}"]
    if not bodiless:
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    # Values come from our own code, but may quote names the operator chose: no line ends may slip in.
    lines += [f"{name}: {value}".replace("\r", " ").replace("\n", " ") for name, value in fields]
    if close:
        lines.append("Connection: close")
    head = "\r\n".join((*lines, "", "")).encode("latin-1", "replace")
    return head if head_only or bodiless else head + body
