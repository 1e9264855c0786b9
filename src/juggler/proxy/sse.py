"""Answers that are streams of events: which requests ask for one, and how an error is told inside of one. Pure.

A client that asked for events can be kept while it waits: it gets the head of an answer, then comments, which every
reader of events has to ignore (WHATWG HTML 9.2.6; llama.cpp sends them itself). The price: the status is spent. What
goes wrong afterwards is told as an event, in the shape on which the client of that API raises.
"""

import enum
import json
import re
from collections.abc import Mapping, Sequence

from juggler.errors import JugglerError
from juggler.proxy.framing import ChunkDecoder, FramingError
from juggler.proxy.head import RequestHead, ResponseHead
from juggler.proxy.responses import REASONS
from juggler.proxy.shapes import anthropic_type, error_body, openai_type
from juggler.routing.apis import Api

_TEXT_MAX = 4096
"""Characters of an answer that is no JSON, quoted in an error's message."""

_EVENT_PATH = re.compile(
    rb"(?:/.*)?/(?:(?P<anthropic>v1/messages)|(?P<responses>(?:v1/)?responses)"
    rb"|(?:v1/)?(?:chat/)?completions|completion|infill|(?P<always>api/extra/generate/stream))/?",
    re.DOTALL,
)
"""Of the APIs of OpenAI, Anthropic, llama.cpp and koboldcpp (the last streams without being asked in the body).

Below any prefix. ollama's ``/api/chat`` is not among them: it answers lines of JSON, where a comment is a fault.
"""
_LINES_PATH = re.compile(rb"(?:/.*)?/api/(?:chat|generate|pull|push|create)/?", re.DOTALL)
_SAYS_STREAM = re.compile(rb'"stream"[ \t\r\n]*:[ \t\r\n]*true')


class Dialect(enum.Enum):
    """Whose clients read the events."""

    OPENAI = "openai"
    """Also llama.cpp's and koboldcpp's own, and whoever else asks for events."""
    RESPONSES = "responses"
    """OpenAI's newer API, in which each event has a name and a type."""
    ANTHROPIC = "anthropic"


def wanted_dialect(head: RequestHead, target: bytes) -> Dialect | None:
    """Whether the request may be one for events, as far as its head tells.

    Args:
        head: As the client sent it.
        target: As the backend gets it.
    """
    path = target.partition(b"?")[0]
    if head.method not in (b"POST", b"GET") or head.upgrade is not None or _LINES_PATH.fullmatch(path):
        return None
    match = _EVENT_PATH.fullmatch(path)
    if match is None:
        return Dialect.OPENAI if _accepts_events_only(head) else None
    if head.method == b"GET" and not _accepts_events_only(head):
        return None
    if match["anthropic"]:
        return Dialect.ANTHROPIC
    return Dialect.RESPONSES if match["responses"] else Dialect.OPENAI


def asks_for_events(head: RequestHead, target: bytes, pieces: Sequence[bytes]) -> bool:
    """Whether a request for which ``wanted_dialect`` knows one will be answered with events.

    Args:
        head: As the client sent it.
        target: As the backend gets it.
        pieces: The whole body as received. Its length is for the caller to bound: 1 MiB of text takes 5 ms.
    """
    if _accepts_events_only(head):
        return True
    match = _EVENT_PATH.fullmatch(target.partition(b"?")[0])
    if match is not None and match["always"]:
        return True
    data = b"".join(pieces)
    if head.chunked:
        decoder = ChunkDecoder()
        try:
            decoder.feed(data)
        except FramingError:
            return False
        data = decoder.take_payload()
    if _SAYS_STREAM.search(data) is None:
        return False
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and body.get("stream") is True


def is_event_stream(answer: ResponseHead) -> bool:
    """Whether an answer of a backend is a stream of events that can be read as it comes."""
    coded = field_value(answer, b"content-encoding").lower() not in (b"", b"identity")
    return 200 <= answer.status < 300 and _media_type(answer) == b"text/event-stream" and not coded


def field_value(head: RequestHead | ResponseHead, wanted: bytes) -> bytes:
    """All values of a field, joined as RFC 9110 5.2 says; empty if there is none."""
    return b",".join(value for _, name, value in head.fields if name.lower() == wanted)


def comment(text: str) -> bytes:
    """A comment of one line; readers ignore it. Line ends of any alphabet become blanks."""
    return b": %b\n\n" % " ".join(text.split()).encode("utf-8", "replace")


def error_event(error: JugglerError, dialect: Dialect) -> bytes:
    """The event that tells of an error of our own."""
    api = Api.ANTHROPIC if dialect is Dialect.ANTHROPIC else Api.OPENAI
    return _event(error_body(error, api), dialect)


def failure_event(answer: ResponseHead, payload: bytes, dialect: Dialect, endpoint: str) -> bytes:
    """The event that tells of a backend's answer that is no stream of events.

    Args:
        answer: Its head.
        payload: Its body without chunks, as far as it was read.
        dialect: Whose clients read it.
        endpoint: Name of the endpoint.
    """
    said = _said(answer, payload)
    details = said.get("error") if isinstance(said, Mapping) else None
    shown = _plain(details) if isinstance(details, Mapping) else {}
    message = _message(said) if said is not None else ""
    if 200 <= answer.status < 300 and not details:
        kind = _media_type(answer).decode("latin-1") or "something of no stated type"
        message = f"The backend of {endpoint} answered {kind} where events were asked for."
    status = answer.status if answer.status >= 400 else 502
    if not message:
        reason = answer.reason.decode("latin-1") or REASONS.get(answer.status, "")
        message = f"The backend of {endpoint} answered {answer.status} {reason}".rstrip() + "."
    if not isinstance(shown.get("message"), str) or not shown["message"]:
        shown["message"] = message
    anthropic = dialect is Dialect.ANTHROPIC
    if not isinstance(shown.get("type"), str):
        shown["type"] = anthropic_type(status) if anthropic else openai_type(status)
    if not anthropic:
        shown.setdefault("code", answer.status)
    juggler = {"endpoint": endpoint, "phase": "forward", "status": answer.status}
    body: dict[str, object] = {"error": shown, "juggler": juggler}
    return _event({"type": "error", **body} if anthropic else body, dialect)


def _event(body: dict[str, object], dialect: Dialect) -> bytes:
    """One event.

    OpenAI's clients raise on data with a top-level ``error``, whatever the event is called (clients.md section 5;
    ``_streaming.py`` of openai 3.57), Anthropic's on the event ``error`` (the same file of anthropic 2.13). No
    ``[DONE]`` follows: that would say to those who do not look that the answer is whole.
    """
    named = b"" if dialect is Dialect.OPENAI else b"event: error\n"
    if dialect is Dialect.RESPONSES:
        error = body["error"]
        assert isinstance(error, dict)
        said = {"code": error.get("code"), "message": error.get("message"), "param": None, "sequence_number": 0}
        body = {"type": "error", **said, **body}
    # ASCII: some readers split lines also at U+0085 and U+2028.
    return b"%bdata: %b\n\n" % (named, json.dumps(body, default=str).encode("ascii"))


def _accepts_events_only(head: RequestHead) -> bool:
    # Together with JSON it leaves the choice to the server (the streamable HTTP of MCP): then nobody can know.
    kinds = [one.partition(b";")[0].strip(b" \t").lower() for one in field_value(head, b"accept").split(b",")]
    return set(kinds) == {b"text/event-stream"}


def _media_type(answer: ResponseHead) -> bytes:
    return field_value(answer, b"content-type").partition(b";")[0].strip(b" \t").lower()


def _said(answer: ResponseHead, payload: bytes) -> object:
    """What the answer says, as JSON or a short text; None if that is nothing for a person."""
    if field_value(answer, b"content-encoding").lower() not in (b"", b"identity"):
        return None
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        kind = _media_type(answer)
        return None if kind == b"text/html" else payload.decode("utf-8", "replace").strip()[:_TEXT_MAX]


def _plain(details: Mapping[str, object]) -> dict[str, object]:
    """What clients may look at in an error object, such as the numbers of a context that is too small."""
    return {name: value for name, value in details.items() if value is None or isinstance(value, (str, int))}


def _message(said: object) -> str:
    """The text for a person in an error answer of any of the known servers; may be empty."""
    while isinstance(said, Mapping):
        # OpenAI, llama.cpp: error.message; ollama, A1111: error; FastAPI (vLLM, koboldcpp): detail, perhaps a list.
        inner = next((said[key] for key in ("error", "message", "detail", "msg") if said.get(key)), None)
        if inner is None:
            break
        said = inner
    if isinstance(said, str) or not said:
        return said if isinstance(said, str) else ""
    try:
        return json.dumps(said)[:_TEXT_MAX]
    except RecursionError:
        return ""
