"""Error bodies in the shape of the API that was called."""

import pytest

from juggler.errors import BadRequest, JugglerError, QueueFull, RoutingError, StartFailed
from juggler.proxy.shapes import error_body, error_text
from juggler.routing.apis import Api

FULL = QueueFull("Full.", endpoint="e", retry_after_s=1, hint="Wait.")
FAILED = StartFailed("Crashed.", endpoint="e", exit_status=3, log_tail=["boom"])


@pytest.mark.parametrize(
    ("api", "shape"),
    [
        (Api.OPENAI, {"error": {"message": "Full.", "type": "rate_limit_error", "code": "queue_full"}}),
        (Api.ANTHROPIC, {"type": "error", "error": {"type": "rate_limit_error", "message": "Full."}}),
        (Api.OLLAMA, {"error": "Full."}),
        (Api.A1111, {"error": "queue_full", "detail": "Full.", "body": "", "errors": "Full."}),
        (
            Api.COMFYUI,
            {
                "error": {"type": "queue_full", "message": "Full.", "details": "Wait.", "extra_info": {}},
                "node_errors": {},
            },
        ),
        (Api.KOBOLDCPP, {"detail": {"msg": "Full.", "type": "bad_input"}}),
    ],
)
def test_shapes(api: Api, shape: dict[str, object]) -> None:
    """Each family of clients finds the text where it looks for it, and a person what he needs beside it."""
    body = error_body(FULL, api)
    juggler = body.pop("juggler")
    assert body == shape
    assert isinstance(juggler, dict)
    assert (juggler["endpoint"], juggler["hint"], juggler["retry_after_s"]) == ("e", "Wait.", 1.0)
    if api is not Api.OPENAI:
        assert juggler["code"] == "queue_full"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FAILED, "service_unavailable"),
        (RoutingError("No."), "not_found"),
        (BadRequest("No.", status=413), "bad_input"),
        (JugglerError("No."), "server_error"),
    ],
)
def test_koboldcpp_types(error: JugglerError, kind: str) -> None:
    """As koboldcpp calls its own refusals."""
    assert error_body(error, Api.KOBOLDCPP)["detail"] == {"msg": error.message, "type": kind}


def test_comfyui_details_are_text() -> None:
    """Its page joins them to the message, also where there is no hint."""
    told = error_body(FAILED, Api.COMFYUI)["error"]
    assert told == {"type": "backend_start_failed", "message": "Crashed.", "details": "", "extra_info": {}}


def test_text() -> None:
    """Everything a person needs, in lines."""
    assert error_text(FULL) == "Full.\nWait.\n"
    assert error_text(FAILED) == "Crashed.\n\nIts last output:\n  boom\n"
