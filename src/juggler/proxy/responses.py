"""Our own answers as bytes, errors in the shape of the API that was called. Pure.

Clients of three families read errors: OpenAI's (also llama.cpp's), ollama's (``/api/...``) and Anthropic's
(``/v1/messages``). Each finds its own shape, and beside it a ``juggler`` object with what a person needs.
"""

import json
import math
from email.utils import formatdate
from http.client import responses as _reasons

from juggler.errors import JugglerError
from juggler.proxy.contract import LocalResponse

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {**_OPENAI_TYPES, 413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}


def error_response(error: JugglerError, *, path: bytes = b"/", head_only: bool = False, close: bool = False) -> bytes:
    """A whole HTTP answer for ``error``.

    Args:
        error: What to report.
        path: Path the API is recognised by: the backend's view if the request was routed, else the client's.
        head_only: The request was HEAD: same head, no body.
        close: The connection closes after this answer.
    """
    body = json.dumps(error_body(error, path), ensure_ascii=False).encode("utf-8", "replace")
    fields = [("X-Juggler", "error")]
    if error.retry_after_s is not None:
        fields.append(("Retry-After", str(max(0, math.ceil(error.retry_after_s)))))
    elif error.status >= 500:
        # openai-python retries 5xx twice unless told not to: each click would cost three load attempts.
        fields.append(("x-should-retry", "false"))
    return _response(error.status, "application/json", fields, body, head_only, close)


def local_response(response: LocalResponse, *, head_only: bool = False, close: bool = False) -> bytes:
    """A whole HTTP answer for something answered here."""
    return _response(response.status, response.content_type, list(response.headers), response.body, head_only, close)


def error_body(error: JugglerError, path: bytes) -> dict[str, object]:
    """The JSON object of an error answer."""
    juggler: dict[str, object] = {
        **error.details,
        "endpoint": error.endpoint,
        "phase": error.phase,
        "hint": error.hint,
        "retry_after_s": error.retry_after_s,
        "exit_status": error.exit_status,
        "log_tail": list(error.log_tail),
    }
    path = path.partition(b"?")[0]
    if path.startswith(b"/api/"):
        return {"error": error.message, "juggler": {"code": error.code, **juggler}}
    if path == b"/v1/messages" or path.startswith(b"/v1/messages/"):
        kind = _ANTHROPIC_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
        details = {"type": kind, "message": error.message}
        return {"type": "error", "error": details, "juggler": {"code": error.code, **juggler}}
    kind = _OPENAI_TYPES.get(error.status, "server_error" if error.status >= 500 else "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "code": error.code}, "juggler": juggler}


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
