"""Our own answers as bytes, errors in the shape of the API that was called. Pure.

Clients of three families read errors: OpenAI's (also llama.cpp's), ollama's (``/api/...``) and Anthropic's
(``/v1/messages``). Each finds its own shape, and beside it a ``juggler`` object with what a person needs.
"""

import json
import math
from collections.abc import Sequence
from email.utils import formatdate
from http.client import responses as _reasons

from juggler.errors import JugglerError
from juggler.proxy.contract import LocalResponse

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {**_OPENAI_TYPES, 413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}


def error_response(
    error: JugglerError,
    *,
    path: bytes = b"/",
    head_only: bool = False,
    close: bool = False,
    added: Sequence[tuple[str, str]] = (),
) -> bytes:
    """A whole HTTP answer for ``error``.

    Args:
        error: What to report.
        path: Path the API is recognised by: the backend's view if the request was routed, else the client's.
        head_only: The request was HEAD: same head, no body.
        close: The connection closes after this answer.
        added: Further fields, name and value.
    """
    body = to_json(error_body(error, path))
    fields = [("X-Juggler", "error"), *added]
    retry_after_s = _retry_after_s(error)
    if retry_after_s is not None:
        fields.append(("Retry-After", str(math.ceil(retry_after_s))))  # whole seconds (RFC 9110 10.2.3)
    if error.status >= 500 and (retry_after_s is None or not error.repeatable):
        # The SDKs of OpenAI repeat a 5xx twice unless told not to: each click would cost three load attempts.
        fields.append(("x-should-retry", "false"))
    return _response(error.status, "application/json", fields, body, head_only, close)


def local_response(
    response: LocalResponse, *, head_only: bool = False, close: bool = False, added: Sequence[tuple[str, str]] = ()
) -> bytes:
    """A whole HTTP answer for something answered here; ``added`` are further fields, name and value."""
    fields = [*response.headers, *added]
    return _response(response.status, response.content_type, fields, response.body, head_only, close)


def to_json(body: object) -> bytes:
    """JSON in UTF-8; what has no place in JSON (details may come from anywhere) becomes its text."""
    return json.dumps(body, ensure_ascii=False, default=str).encode("utf-8", "replace")


def error_body(error: JugglerError, path: bytes) -> dict[str, object]:
    """The JSON object of an error answer."""
    juggler: dict[str, object] = {
        **error.details,
        "endpoint": error.endpoint,
        "phase": error.phase,
        "hint": error.hint,
        "retry_after_s": _retry_after_s(error),
        "exit_status": error.exit_status,
        "log_tail": list(error.log_tail),
    }
    path = path.partition(b"?")[0]
    if path.startswith(b"/api/"):
        return {"error": error.message, "juggler": {"code": error.code, **juggler}}
    if path == b"/v1/messages" or path.startswith(b"/v1/messages/"):
        details = {"type": anthropic_type(error.status), "message": error.message}
        return {"type": "error", "error": details, "juggler": {"code": error.code, **juggler}}
    details = {"message": error.message, "type": openai_type(error.status), "code": error.code}
    return {"error": details, "juggler": juggler}


def openai_type(status: int) -> str:
    """What OpenAI's API calls an error of this HTTP status."""
    return _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def anthropic_type(status: int) -> str:
    """What Anthropic's API calls an error of this HTTP status."""
    return _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def _retry_after_s(error: JugglerError) -> float | None:
    """Seconds, up to the next tenth; an estimate that nobody could make is none: JSON has no infinity.

    A second at least: 0 makes clients come back in the same instant, again and again.
    """
    seconds = error.retry_after_s
    if seconds is None or not math.isfinite(seconds):
        return None
    return max(1.0, math.ceil(round(seconds * 10, 6)) / 10)


def _response(
    status: int, content_type: str, fields: list[tuple[str, str]], body: bytes, head_only: bool, close: bool
) -> bytes:
    bodiless = status < 200 or status in (204, 304)
    lines = [f"HTTP/1.1 {status} {_reasons.get(status, '')}", f"Date: {formatdate(usegmt=True)}"]
    if not bodiless:
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    # Values come from our own code, but may quote names the operator chose: no line ends may slip in.
    lines += [f"{name}: {value}".replace("\r", " ").replace("\n", " ") for name, value in fields]
    if close:
        lines.append("Connection: close")
    head = "\r\n".join((*lines, "", "")).encode("latin-1", "replace")
    return head if head_only or bodiless else head + body
