"""Requests for events, and errors told as events."""

import json

import pytest

from juggler.errors import QueueFull, StartFailed
from juggler.proxy.head import RequestHead, ResponseHead, parse_request, parse_response
from juggler.proxy.sse import (
    Dialect,
    asks_for_events,
    comment,
    error_event,
    failure_event,
    field_value,
    is_event_stream,
    wanted_dialect,
)


def request(method: bytes = b"POST", fields: bytes = b"") -> RequestHead:
    return parse_request(method + b" /front HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n")


def answer(status: bytes, fields: bytes = b"") -> ResponseHead:
    return parse_response(b"HTTP/1.1 " + status + b"\r\n" + fields + b"\r\n")


def data_of(event: bytes) -> dict[str, object]:
    lines = event.decode("ascii").splitlines()  # splits at more than SSE does, as some readers do
    assert lines[-1] == ""
    found = json.loads(lines[-2].removeprefix("data: "))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("target", "dialect"),
    [
        (b"/v1/chat/completions", Dialect.OPENAI),
        (b"/v1/completions?x=1", Dialect.OPENAI),
        (b"/chat/completions", Dialect.OPENAI),
        (b"/completions", Dialect.OPENAI),
        (b"/completion", Dialect.OPENAI),
        (b"/infill", Dialect.OPENAI),
        (b"/my/model/v1/chat/completions/", Dialect.OPENAI),
        (b"/api/extra/generate/stream", Dialect.OPENAI),
        (b"/v1/responses", Dialect.RESPONSES),
        (b"/x/v1/messages", Dialect.ANTHROPIC),
        (b"/v1/messages/count_tokens", None),
        (b"/messages", None),
        (b"/api/chat", None),
        (b"/api/generate", None),
        (b"/v1/embeddings", None),
        (b"/mycompletion", None),
        (b"/?/v1/completions", None),
    ],
)
def test_paths(target: bytes, dialect: Dialect | None) -> None:
    """Of the APIs that answer events, below any prefix; ollama's own and everything unknown are not among them."""
    assert wanted_dialect(request(), target) is dialect


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream; q=0.9", True),
        (b"text/event-stream, text/event-stream", True),
        (b"application/json, text/event-stream", False),
        (b"text/event-stream, */*", False),
        (b"*/*", False),
    ],
)
def test_accept(accept: bytes, expected: bool) -> None:
    """Only who takes nothing else is sure to get events."""
    head = request(b"GET", b"Accept: " + accept + b"\r\n")
    assert (wanted_dialect(head, b"/queue/data") is Dialect.OPENAI) is expected
    if expected:
        assert asks_for_events(head, b"/queue/data", ())


@pytest.mark.parametrize("method", [b"HEAD", b"PUT", b"OPTIONS", b"get"])
def test_other_methods(method: bytes) -> None:
    """They have no stream for an answer."""
    assert wanted_dialect(request(method, b"Accept: text/event-stream\r\n"), b"/v1/completions") is None


def test_get_of_a_post_path() -> None:
    """Without a body nobody asks for a stream."""
    assert wanted_dialect(request(b"GET"), b"/v1/completions") is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"stream": true}', True),
        (b'{"stream"\n:\ttrue, "prompt": "\xc3\xa4"}', True),
        (b'{"a": {"stream": false}, "stream": true}', True),
        (b'{"stream": false, "stream": true}', True),
        (b'{"stream": false}', False),
        (b'{"stream": 1}', False),
        (b'{"stream": "true"}', False),
        (b'{"a": {"stream": true}}', False),
        (b'[{"stream": true}]', False),
        (b'{"a": "\\"stream\\": true"}', False),
        (b'{"stream": true', False),
        (b'{"stream": true, "a": ' + b"[" * 200_000, False),
        (b'{"stream": true, "a": "\xff"}', False),
        (b"", False),
    ],
)
def test_bodies(body: bytes, expected: bool) -> None:
    """``"stream": true`` at the top of one JSON object, and nothing that merely looks like it."""
    assert asks_for_events(request(), b"/v1/completions", [body[:5], body[5:]]) is expected


def test_chunked_body() -> None:
    """Chunks may cut the words anywhere; malformed ones are no request for events."""
    head = request(fields=b"Transfer-Encoding: chunked\r\n")
    assert asks_for_events(head, b"/v1/completions", [b'5\r\n{"str\r\nb\r\neam": true}\r\n', b"0\r\n\r\n"])
    assert not asks_for_events(head, b"/v1/completions", [b"zz"])


@pytest.mark.parametrize(
    ("status", "fields", "expected"),
    [
        (b"200 OK", b"Content-Type: text/event-stream\r\n", True),
        (b"201 Created", b"content-type: TEXT/Event-Stream;charset=utf-8\r\nContent-Encoding: identity\r\n", True),
        (b"200 OK", b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n", False),
        (b"500 No", b"Content-Type: text/event-stream\r\n", False),
        (b"200 OK", b"Content-Type: text/event-streams\r\n", False),
        (b"200 OK", b"", False),
    ],
)
def test_event_stream(status: bytes, fields: bytes, expected: bool) -> None:
    """What can be passed on as it comes."""
    assert is_event_stream(answer(status, fields)) is expected


def test_field_value() -> None:
    """Repeated fields are joined."""
    assert field_value(request(fields=b"A: 1\r\na: 2\r\n"), b"a") == b"1,2"
    assert field_value(request(), b"a") == b""


def test_comment_is_one_line() -> None:
    """Whatever the operator calls an endpoint, it stays in its comment."""
    assert comment("waiting for a\r\nb\u2028c\x85d ä") == ": waiting for a b c d ä\n\n".encode()


def test_error_event_is_one_line_to_every_reader() -> None:
    """Some split lines at U+2028 as well."""
    error = StartFailed("a\u2028b\nc", details={"odd": object()})
    assert data_of(error_event(error, Dialect.OPENAI))["error"] == {
        "message": "a\u2028b\nc",
        "type": "server_error",
        "code": "backend_start_failed",
    }


def test_error_event_in_each_dialect() -> None:
    """Where its client looks for the text, and what makes it raise."""
    error = QueueFull("Full.", retry_after_s=float("inf"))
    assert error_event(error, Dialect.OPENAI).startswith(b'data: {"error": {')
    anthropic = error_event(error, Dialect.ANTHROPIC)
    assert anthropic.startswith(b"event: error\ndata: ")
    assert data_of(anthropic)["error"] == {"type": "rate_limit_error", "message": "Full."}
    named = error_event(error, Dialect.RESPONSES)
    assert named.startswith(b"event: error\ndata: ")
    data = data_of(named)
    assert (data["type"], data["message"], data["code"]) == ("error", "Full.", "queue_full")
    assert data["error"] == {"message": "Full.", "type": "rate_limit_error", "code": "queue_full"}
    assert b"Infinity" not in named


JSON = b"Content-Type: application/json\r\n"


@pytest.mark.parametrize(
    ("head", "payload", "expected"),
    [
        (answer(b"500 Oh", JSON), b'{"error": {"message": "m", "type": "t", "n": 3, "x": [1], "y": 0.5}}', ("m", "t")),
        (answer(b"404 No", JSON), b'{"error": {"type": 3}}', ('{"type": 3}', "not_found_error")),
        (answer(b"400 No", JSON), b'{"error": "e"}', ("e", "invalid_request_error")),
        (answer(b"503 No", JSON), b'{"message": "m"}', ("m", "server_error")),
        (answer(b"422 No", JSON), b'{"detail": [{"msg": "m"}]}', ('[{"msg": "m"}]', "invalid_request_error")),
        (answer(b"500 No", JSON), b'"text"', ("text", "server_error")),
        (answer(b"500 No", JSON), b"{}", ("The backend of e answered 500 No.", "server_error")),
        (answer(b"500", JSON), b"", ("The backend of e answered 500 Internal Server Error.", "server_error")),
        (answer(b"500 No", JSON), b"\xff" * 9999, ("\ufffd" * 4096, "server_error")),
        (answer(b"500 No", JSON), b'{"error":' * 500 + b"1" + b"}" * 500, ("1", "server_error")),
        (answer(b"500 No", JSON), b'{"detail":' + b"[" * 50_000, ('{"detail":' + "[" * 4086, "server_error")),
        (answer(b"302 Found"), b"", ("The backend of e answered 302 Found.", "server_error")),
        (answer(b"200 OK", JSON), b'{"error": "e"}', ("e", "server_error")),
        (
            answer(b"500 Oh", b"Content-Encoding: gzip\r\n"),
            b"\x1f\x8b",
            ("The backend of e answered 500 Oh.", "server_error"),
        ),
    ],
)
def test_failure_event(head: ResponseHead, payload: bytes, expected: tuple[str, str]) -> None:
    """The backend's words wherever its kind puts them; something true where it has none."""
    error = data_of(failure_event(head, payload, Dialect.OPENAI, "e"))["error"]
    assert isinstance(error, dict)
    assert (error["message"], error["type"]) == expected


def test_failure_event_keeps_plain_details_only() -> None:
    """Numbers that clients show stay; what may be no JSON elsewhere does not."""
    payload = b'{"error": {"message": "m", "code": 7, "n_ctx": 8, "nan": NaN, "deep": {"a": 1}}}'
    data = data_of(failure_event(answer(b"400 No", JSON), payload, Dialect.ANTHROPIC, "e"))
    assert data["type"] == "error"
    assert data["error"] == {"message": "m", "code": 7, "n_ctx": 8, "type": "invalid_request_error"}
    assert data["juggler"] == {"endpoint": "e", "phase": "forward", "status": 400}
