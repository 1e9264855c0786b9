"""Errors in the shape of the API that was called, and as text. Pure.

Each family of clients finds its own shape, and beside it a ``juggler`` object with what a person needs.
"""

import math

from juggler.errors import JugglerError
from juggler.routing.apis import Api

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {**_OPENAI_TYPES, 413: "request_too_large", 503: "overloaded_error", 504: "timeout_error"}
_KOBOLDCPP_TYPES = {503: "service_unavailable", 404: "not_found"}


def error_body(error: JugglerError, api: Api = Api.OPENAI) -> dict[str, object]:
    """The JSON object of an error answer."""
    message = error.message
    juggler: dict[str, object] = {
        **error.details,
        "endpoint": error.endpoint,
        "phase": error.phase,
        "hint": error.hint,
        "retry_after_s": retry_after_s(error),
        "exit_status": error.exit_status,
        "log_tail": list(error.log_tail),
    }
    if api is Api.OPENAI:
        return {
            "error": {"message": message, "type": openai_type(error.status), "code": error.code},
            "juggler": juggler,
        }
    juggler = {"code": error.code, **juggler}
    if api is Api.ANTHROPIC:
        details = {"type": anthropic_type(error.status), "message": message}
        return {"type": "error", "error": details, "juggler": juggler}
    if api is Api.A1111:
        # modules/api/api.py of both programs, handle_exception: name of the exception, its detail, its text.
        return {"error": error.code, "detail": message, "body": "", "errors": message, "juggler": juggler}
    if api is Api.COMFYUI:
        # server.py, post_prompt; its page shows message and details (web's api.queuePrompt).
        told = {"type": error.code, "message": message, "details": error.hint or "", "extra_info": {}}
        return {"error": told, "node_errors": {}, "juggler": juggler}
    if api is Api.KOBOLDCPP:
        kind = _KOBOLDCPP_TYPES.get(error.status, "bad_input" if error.status < 500 else "server_error")
        return {"detail": {"msg": message, "type": kind}, "juggler": juggler}
    return {"error": message, "juggler": juggler}


def error_text(error: JugglerError) -> str:
    """The same for somebody who reads it in a terminal."""
    lines = [error.message]
    if error.hint:
        lines.append(error.hint)
    if error.log_tail:
        lines += ["", "Its last output:", *(f"  {line}" for line in error.log_tail)]
    return "\n".join(lines) + "\n"


def openai_type(status: int) -> str:
    """What OpenAI's API calls an error of this HTTP status."""
    return _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def anthropic_type(status: int) -> str:
    """What Anthropic's API calls an error of this HTTP status."""
    return _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")


def retry_after_s(error: JugglerError) -> float | None:
    """Seconds, up to the next tenth; an estimate that nobody could make is none: JSON has no infinity.

    A second at least: 0 makes clients come back in the same instant, again and again.
    """
    seconds = error.retry_after_s
    if seconds is None or not math.isfinite(seconds):
        return None
    return max(1.0, math.ceil(round(seconds * 10, 6)) / 10)
