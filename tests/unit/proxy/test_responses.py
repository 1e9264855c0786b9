"""Error bodies in the shape of the API that was called."""

import json

import pytest

from juggler.errors import BackendExited, QueueFull
from juggler.proxy.contract import LocalResponse
from juggler.proxy.responses import error_body, error_response, local_response


def test_shapes() -> None:
    """OpenAI's, ollama's and Anthropic's clients each find the text where they look for it."""
    error = QueueFull("Full.", endpoint="e", retry_after_s=1)
    assert error_body(error, b"/v1/chat/completions")["error"] == {
        "message": "Full.",
        "type": "rate_limit_error",
        "code": "queue_full",
    }
    assert error_body(error, b"/api/chat?x")["error"] == "Full."
    anthropic = error_body(error, b"/v1/messages")
    assert anthropic["type"] == "error"
    assert anthropic["error"] == {"type": "rate_limit_error", "message": "Full."}


def test_retry_hints() -> None:
    """A time to come back is rounded up; where no retry helps, that is said."""
    assert b"\r\nRetry-After: 2\r\n" in error_response(QueueFull("F", retry_after_s=1.1))
    final = error_response(BackendExited("gone"))
    assert b"\r\nx-should-retry: false\r\n" in final
    assert b"Retry-After" not in final


@pytest.mark.parametrize(
    ("seconds", "told", "header"),
    [(1.2665111359999628, 1.3, b"2"), (0.0, 1.0, b"1"), (0.97, 1.0, b"1"), (2, 2.0, b"2"), (1.1, 1.1, b"2")],
)
def test_retry_hints_agree(seconds: float, told: float, header: bytes) -> None:
    """Body and header say the same, in tenths and in whole seconds, and never "at once"."""
    head, _, body = error_response(QueueFull("F", retry_after_s=seconds)).partition(b"\r\n\r\n")
    assert json.loads(body)["juggler"]["retry_after_s"] == told
    assert b"\r\nRetry-After: %s" % header in head


@pytest.mark.parametrize("text", ['ä\n"quoted"', "\ud800"])
def test_any_text_fits(text: str) -> None:
    """Names the operator chose cannot break the answer."""
    head, _, body = error_response(QueueFull(text)).partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"


def test_local_response() -> None:
    """Own fields are kept, line ends in them are not."""
    answer = local_response(LocalResponse(200, b"x", "text/plain", (("A", "b\r\nC: d"),)), close=True)
    assert b"\r\nA: b  C: d\r\n" in answer
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.endswith(b"\r\n\r\nx")
    assert b"Content-Length" not in local_response(LocalResponse(204, b""))
