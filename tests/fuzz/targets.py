"""The targets of the fuzzers by name: what is fed with bytes, and the folder of ``corpus`` that each has."""

from collections.abc import Callable, Iterator
from pathlib import Path

from tests.fuzz import conversations, oracles

CORPUS = Path(__file__).parent / "corpus"


def _client_stream(data: bytes) -> None:
    conversations.check_client_stream(data[1:], _places(data))


def _backend_stream(data: bytes) -> None:
    conversations.check_backend_stream(data[1:], _places(data), data[0] if data else 0)


def _places(data: bytes) -> list[int]:
    """Where a stream is cut, as its first byte tells."""
    first = data[0] if data else 0
    return [first * (index + 1) for index in range(first % 7)]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "request_heads": oracles.check_request_head,
    "response_heads": oracles.check_response_head,
    "chunked": oracles.check_chunked,
    "event_streams": oracles.check_event_stream,
    "wants_events": oracles.check_wants_events,
    "gguf": oracles.check_gguf,
    "config": oracles.check_config,
    "client_streams": _client_stream,
    "backend_streams": _backend_stream,
}
"""The last two begin with a byte that says where the stream is cut."""


def corpus(name: str) -> Iterator[Path]:
    """The kept files of a target."""
    yield from sorted((CORPUS / name).iterdir())
