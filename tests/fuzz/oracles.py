"""What must hold of any bytes, for each target of the fuzzers. A check that fails raises ``AssertionError``.

Everything here runs three times: over the kept corpus, under hypothesis, and inside the coverage-guided fuzzer.
"""

import io
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import h11

from juggler.config.load import load_text
from juggler.config.problems import Source
from juggler.config.reader import read_json
from juggler.config.tree import DEPTH_MAX, is_ignored_key, plain
from juggler.errors import ConfigError
from juggler.proxy.body import RequestBody
from juggler.proxy.framing import ChunkDecoder, Chunked, FramingError
from juggler.proxy.head import RequestHead
from juggler.proxy.headers import Hop, ReturnHop, request_head, response_head
from juggler.proxy.limits import Limits
from juggler.proxy.sse import Dialect, asks_for_events, wanted_dialect
from juggler.proxy.waiting_room import EventStream, StreamedAnswer
from juggler.survey import gguf
from tests.fuzz import differences, reference
from tests.fuzz.readings import (
    Reading,
    Refused,
    h11_request,
    h11_response,
    our_request,
    our_request_head,
    our_response,
    our_response_head,
)
from tests.fuzz.strategies import cut

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,4})[^\r\n]*\r\n")
_STRICT_FIELD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t\x20-\x7e\x80-\xff]*")
_CONTROLS = re.compile(rb"[\x01-\x08\x0b-\x1f\x7f]")
_HOP = Hop(b"/forwarded?x", b"127.0.0.1:1", b"10.0.0.1")
_HOP_BY_HOP = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te", b"proxy-authorization"))
_HOP_BY_HOP_BACK = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"upgrade"))
_MAPPED_BACK = frozenset((b"location", b"content-location", b"set-cookie"))
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"trailer"))
_WRITTEN_BY_US = frozenset((b"host", b"expect", b"origin", b"sec-fetch-site"))
_NEVER_LISTED = frozenset(
    (b"host", b"content-length", b"transfer-encoding", b"content-type", b"authorization", b"cookie", b"trailer")
)


def check_request_head(data: bytes) -> None:
    """Ours is the reading of h11 or a listed difference, and what is forwarded is the same request."""
    ours, theirs = our_request(data), h11_request(data)
    if isinstance(ours, Refused):
        if isinstance(theirs, Reading):
            _explained(differences.WE_REFUSE_REQUESTS, data[: theirs.end], theirs, ours.status)
        return
    if ours is None:
        assert not isinstance(theirs, Reading), ("we wait, h11 does not", data, theirs)
        return
    raw = data[: ours.end]
    if theirs != ours:
        names = [one.name for one in differences.WE_ACCEPT_REQUESTS if one.applies(raw, ours)]
        assert names, ("read otherwise than by h11", data, ours, theirs)
        plain_raw = differences.without_what_only_we_accept(raw)
        ours, theirs = our_request(plain_raw), h11_request(plain_raw)
        assert isinstance(ours, Reading)
        assert ours == theirs, ("read otherwise than by h11, but for " + names[0], data, ours, theirs)
    wrong = [one.name for one in differences.WE_REFUSE_REQUESTS if one.applies(raw, ours)]
    assert not wrong, ("accepted what is to be refused", wrong, data)
    _check_forwarded(data)


def _check_forwarded(data: bytes) -> None:
    """The head for the backend is one request with the same framing, and nothing got in or out unasked."""
    found = our_request_head(data)
    assert isinstance(found, tuple)
    head, _ = found
    sent = request_head(head, _HOP)
    forwarded = h11_request(sent)
    assert isinstance(forwarded, Reading), ("h11 does not read what we forward", data, sent, forwarded)
    assert forwarded.end == len(sent), ("more than a head is forwarded", data, sent)
    assert forwarded.start == (head.method, _HOP.target)
    assert (forwarded.chunked, forwarded.length) == (head.chunked, head.content_length), (data, sent)
    assert forwarded.values(b"host") == [_HOP.authority], (data, sent)
    gone = _HOP_BY_HOP | (head.connection - _NEVER_LISTED)
    before = [(name.lower(), value) for _, name, value in head.fields]
    untouched = [
        (name, value)
        for name, value in before
        if name not in gone
        and name not in _WRITTEN_BY_US
        and not name.startswith((b"x-forwarded-", b"x-juggler-"))
        and name != b"transfer-encoding"
    ]
    after = [
        (name, value)
        for name, value in forwarded.fields
        if not name.startswith(b"x-forwarded-")
        and name not in _HOP_BY_HOP
        and name not in _WRITTEN_BY_US
        and name != b"transfer-encoding"
    ]
    assert after == untouched, (data, sent)


def payload_of(head: RequestHead, body: bytes) -> bytes:
    """A whole body of a request without its chunks."""
    return reference.read_chunked(body).payload if head.chunked else body


def check_response_head(data: bytes) -> None:
    """Framing is never read otherwise than by h11; what is repaired is listed, and so is what is refused."""
    ours, theirs = our_response(data), h11_response(data)
    if isinstance(ours, Refused):
        if isinstance(theirs, Reading):
            _explained(differences.WE_REFUSE_ANSWERS, data[: theirs.end], theirs, 502)
        return
    if ours is None:
        assert not isinstance(theirs, Reading), ("we wait, h11 does not", data, theirs)
        return
    raw = data[: ours.end]
    if isinstance(theirs, Reading):
        assert _without_blanks(ours) == _without_blanks(theirs), ("read otherwise than by h11", data, ours, theirs)
    else:
        names = [one.name for one in differences.WE_ACCEPT_ANSWERS if one.applies(raw, ours)]
        assert names, ("accepted what h11 refuses", data, ours, theirs)
    wrong = [one.name for one in differences.WE_REFUSE_ANSWERS if one.applies(raw, ours)]
    assert not wrong, ("accepted what is to be refused", wrong, data)
    _check_returned(data, strict=isinstance(theirs, Reading))


def _without_blanks(reading: Reading) -> tuple[object, ...]:
    """For comparison: folded lines are joined with one blank by both, but h11 keeps those around it."""
    # Control bytes are blanks to us; h11 keeps them.
    fields = tuple([(name, b" ".join(_CONTROLS.sub(b" ", value).split())) for name, value in reading.fields])
    # Chunked in HTTP/1.0: what follows is anybody's guess, so we close (RFC 9112 6.1).
    keep_alive = reading.keep_alive and not (reading.chunked and reading.minor == b"1.0")
    others = [one for one in fields if one[0] != b"content-length"]  # repeated equal ones are one length
    return (reading.start, reading.minor, others, reading.chunked, reading.length, keep_alive, reading.end)


def _check_returned(data: bytes, *, strict: bool) -> None:
    """The head for the client is one answer with the same framing, and nothing got in or out unasked."""
    found = our_response_head(data)
    assert isinstance(found, tuple)
    head, _ = found
    sent = response_head(head, ReturnHop(b"127.0.0.1:1", b"/prefix", b"close"))
    again = our_response_head(sent)
    assert isinstance(again, tuple), ("we do not read what we return", data, sent)
    assert again[1] == len(sent), ("more than a head is returned", data, sent)
    bodiless = head.status < 200 or head.status == 204  # they must not have framing fields (RFC 9112 6.1)
    framing = (False, None) if bodiless else (head.chunked, head.content_length)
    assert (again[0].status, again[0].chunked, again[0].content_length) == (head.status, *framing), (data, sent)
    assert sent.count(b"\n") == sent.count(b"\r") == sent.count(b"\r\n"), ("odd line ends returned", data, sent)
    for line in sent.split(b"\r\n")[1:-2]:
        assert _STRICT_FIELD.fullmatch(line) is not None, ("no field is returned", data, line)
    changed = _HOP_BY_HOP_BACK | _FRAMING | _MAPPED_BACK
    gone = changed | (head.connection - _NEVER_LISTED)
    untouched = [(name, value) for _, name, value in head.fields if name not in gone]
    after = [(name, value) for _, name, value in again[0].fields if name not in changed]
    assert after == untouched, (data, sent)
    theirs = h11_response(sent)
    if strict:
        assert isinstance(theirs, Reading), ("h11 does not read what we return", data, sent, theirs)
    if isinstance(theirs, Reading):
        assert (theirs.chunked, theirs.length, theirs.end) == (*framing, len(sent))


def check_chunked(data: bytes) -> None:
    """End, payload and refusal as the slow reader has them, however the stream is cut; h11 agrees on what we accept."""
    expected = reference.read_chunked(data)
    for places in _ways_to_cut(data):
        got = read_in_pieces(cut(data, places))
        assert got == expected.verdict or got == (expected.end, expected.payload), (data, places, got, expected)
        if expected.verdict == "end":
            assert isinstance(got, tuple)
    theirs = _h11_chunks(data)
    if expected.verdict == "end":
        if theirs is None:
            names = [one.name for one in differences.WE_ACCEPT_CHUNKS if one.applies(data[: expected.end])]
            assert names, ("accepted what h11 refuses", data, expected)
        else:
            assert theirs == (expected.payload, data[expected.end :]), (data, expected, theirs)
    elif theirs is not None:
        assert expected.verdict == "bad", ("we wait, h11 does not", data, theirs)
        body = data[: len(data) - len(theirs[1])]
        names = [one.name for one in differences.WE_REFUSE_CHUNKS if one.applies(body)]
        assert names, ("refused what h11 accepts, and it is not on the list", data, theirs)


def _ways_to_cut(data: bytes) -> Iterable[list[int]]:
    """Whole, in single bytes, as a server does that sends each chunk by itself, and by what the bytes say."""
    yield []
    yield list(range(1, len(data)))
    yield _ends_of_chunks(data)
    step = 1 + sum(data) % 7
    yield list(range(step, len(data), step))


def _ends_of_chunks(data: bytes) -> list[int]:
    """As their size lines say, whether or not that is true."""
    ends: list[int] = []
    position = 0
    while match := _SIZE_LINE.match(data, position):
        position = match.end() + int(match[1], 16) + 2
        if position >= len(data):
            break
        ends.append(position)
    return ends


def read_in_pieces(pieces: Iterable[bytes]) -> str | tuple[int, bytes]:
    """Our verdict on a chunked body: where it ends and its payload, else ``more`` or ``bad``."""
    decoder, tracker = ChunkDecoder(), Chunked()
    start = 0
    for piece in pieces:
        ends: list[int | None] = []
        for one in (decoder, tracker):
            try:
                ends.append(one.feed(piece))
            except FramingError:
                ends.append(None)
        assert ends[0] == ends[1], ("the decoder reads otherwise than the tracker", pieces)
        if ends[0] is None:
            return "bad"
        if ends[0] >= 0:
            return start + ends[0], decoder.take_payload()
        start += len(piece)
    return "more"


def _h11_chunks(data: bytes) -> tuple[bytes, bytes] | None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=2**30)
    connection.receive_data(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + data)
    payload = b""
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                payload += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return payload, connection.trailing_data[0]
            elif not isinstance(event, h11.Request):
                return None
    except h11.RemoteProtocolError:
        return None


def check_event_stream(data: bytes) -> None:
    """A backend's answer inside the stream that was begun: whole for h11, and events as WHATWG has them read.

    ``data`` is a byte that picks dialect, framing and cuts, and an answer: head and payload.
    """
    if not data:
        return
    found = our_response_head(data[1:])
    if not isinstance(found, tuple) or found[0].status < 200:
        return
    answer, end = found
    payload = data[1 + end :]
    dialect = list(Dialect)[data[0] % 3]
    chunked = data[0] & 0x40 == 0
    room = 64 if data[0] & 0x20 else 65536
    stream = EventStream(dialect, "e", chunked=chunked, closes=not chunked)
    inset = StreamedAnswer(stream, answer, Limits(failure_bytes=room), 0.0)
    step = 1 + data[0] % 13
    sent, passed = stream.head(), b""
    for start in range(0, len(payload), step):
        if inset.full:
            break
        passed += payload[start : start + step]
        sent += inset.take(payload[start : start + step])
    sent += inset.finish()
    body, ended = _h11_answer(sent)
    assert ended, ("not a whole answer", data, sent)
    if inset.passes:
        assert body == passed, (data, sent)
        return
    events = reference.read_events(body)
    assert len(events) == 1, ("not one event", data, events)
    name, text = events[0]
    assert name == ("message" if dialect is Dialect.OPENAI else "error")
    assert body.isascii()
    said = json.loads(text, parse_constant=_no_constant)
    assert isinstance(said["error"], dict)
    assert isinstance(said["error"]["message"], str)
    assert said["error"]["message"]
    assert isinstance(said["error"]["type"], str)
    if dialect is Dialect.ANTHROPIC:
        assert said["type"] == "error"
    if dialect is Dialect.RESPONSES:
        assert isinstance(said["message"], str)


def _no_constant(word: str) -> object:
    raise AssertionError(f"{word} is no JSON")


def _h11_answer(sent: bytes) -> tuple[bytes, bool]:
    """Body of one whole answer that fills ``sent``, and whether it ended."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(sent)
    reader.receive_data(b"")
    body = b""
    while True:
        event = reader.next_event()
        if isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return body, not reader.trailing_data[0]
        elif not isinstance(event, h11.Response):
            return body, False


def check_wants_events(data: bytes) -> None:
    """Whether a request asks for events, against the plain rule: one JSON object with ``"stream": true`` at its top."""
    found = our_request_head(data)
    if not isinstance(found, tuple):
        return
    head, end = found
    body = RequestBody(head)
    rest = data[end:]
    try:
        size = body.feed(rest) if not body.complete else 0
    except FramingError:
        return
    if not body.complete:
        return
    dialect = wanted_dialect(head, head.target)
    pieces = [rest[:size]]
    asks = asks_for_events(head, head.target, pieces)
    accepts = b",".join(value for _, name, value in head.fields if name.lower() == b"accept").lower()
    only = accepts == b"text/event-stream"
    payload = payload_of(head, rest[:size])
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        said = None
    plain_yes = isinstance(said, dict) and said.get("stream") is True
    if asks and b"event-stream" not in accepts and b"api/extra/generate/stream" not in head.target:
        assert plain_yes, (data, said)
    if only or (plain_yes and b'"stream":true' in payload):
        assert asks, (data, said)
    if dialect is not None:
        assert head.method in (b"POST", b"GET")


def check_gguf(data: bytes) -> None:
    """Ours reads what the slow reader reads, wherever the file's first piece ends, and refuses the rest."""
    try:
        theirs: reference.Gguf | None = reference.read_gguf(data)
    except reference.BadGguf:
        theirs = None
    outcomes: list[gguf.GgufHead | None] = []
    whole = gguf._FIRST_READ_BYTES
    for first in (whole, 1, 24):
        gguf._FIRST_READ_BYTES = first
        try:
            outcomes.append(gguf.read_head(cast(Path, _InMemory(data))))
        except gguf.NotGguf:
            outcomes.append(None)
        finally:
            gguf._FIRST_READ_BYTES = whole
    assert all(repr(one) == repr(outcomes[0]) for one in outcomes), ("depends on how it is read", data, outcomes)
    ours = outcomes[0]
    if theirs is None:
        assert ours is None, ("accepted a damaged head", data, ours)
        return
    if ours is None:
        assert theirs.dimensions_max > 8, ("refused a good head", data, theirs)
        return
    values: dict[str, object] = {}
    lengths = {}
    for key, value in theirs.entries:
        if not isinstance(value, list):
            values[key] = value
            continue
        lengths[key] = len(value)
        if not any(isinstance(one, bytes) for one in value) and (len(value) <= gguf.ARRAY_ITEMS_KEPT):
            values[key] = tuple(value)
    ours_values = {key: value for key, value in ours.values.items() if value != ()}  # a list of no texts, or no numbers
    assert repr(ours_values) == repr({key: value for key, value in values.items() if value != ()}), (data, ours, theirs)
    assert ours.lengths == lengths
    assert ours.least_bytes >= theirs.length
    assert ours.has_output == any(name == "output.weight" for name, _ in theirs.tensors)
    _check_numbers(ours)


def _check_numbers(head: gguf.GgufHead) -> None:
    """What the memory estimate asks for is a number that a model can have."""
    assert 0 <= head.layers <= gguf.LAYERS_MAX
    for key in ("context_length", "attention.head_count_kv", "embedding_length"):
        number = head.number(key)
        assert number is None or 0 <= number <= gguf.NUMBER_MAX
        layers = head.per_layer(key, head.layers, 1)
        assert len(layers) == head.layers
        assert all(0 <= one <= gguf.NUMBER_MAX for one in layers)
    assert 0 <= head.token_embedding_bytes <= gguf.SIZE_MAX
    assert all(size >= 0 for size in head.expert_bytes.values())
    assert isinstance(head.is_language_model, bool)
    assert isinstance(head.is_projector, bool)


class _InMemory:
    """A file that is not on a disk."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def open(self, mode: str) -> io.BytesIO:
        assert mode == "rb"
        return io.BytesIO(self._data)


def check_config(data: bytes) -> None:
    """The tolerant reader gives for JSON what ``json`` gives, without a word; for anything else an explanation."""
    text = data.decode("utf-8", "replace")
    read = read_json(Source("config.json", text))
    for problem in read.problems:
        assert problem.line >= 1
        assert problem.column >= 1
        assert str(problem)
    errors = [problem for problem in read.problems if problem.severity == "error"]
    if read.root is None:
        assert errors, ("no reason given", data)
    strict, meant = _as_json(text), _as_json(reference.json_without_extras(text))
    if strict is not _NOT_JSON:
        assert meant is not _NOT_JSON
        assert _same(meant, strict), ("the stripper is wrong", data)
    if meant is not _NOT_JSON and not _out_of_bounds(meant):
        assert not errors, ("good JSON is refused", data, errors)
        assert read.root is not None
        assert _same(plain(read.root), meant), (data, plain(read.root), meant)
    elif not errors:
        assert read.root is not None
        raise AssertionError("no JSON, and no error", data, plain(read.root))
    try:
        load_text(text)
    except ConfigError:
        return
    assert not errors, ("loaded with errors", data)


_NOT_JSON = object()


class _Pairs(dict[str, object]):
    """An object that had a key twice."""


def _as_json(text: str) -> object:
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_once, parse_int=_bounded_int)
    except (ValueError, RecursionError):
        return _NOT_JSON


def _refuse_constant(word: str) -> object:
    raise ValueError(word)


def _bounded_int(digits: str) -> object:
    return int(digits) if len(digits) <= 300 else _Pairs()


def _once(pairs: list[tuple[str, object]]) -> object:
    kept: dict[str, object] = {}
    twice = False
    for key, value in pairs:
        if key not in kept:
            kept[key] = value
        elif not is_ignored_key(key):
            twice = True
    return _Pairs(kept) if twice else kept


def _out_of_bounds(value: object, depth: int = 0) -> bool:
    """Duplicate keys, numbers without end, half characters, or nested too deep: errors of ours."""
    if isinstance(value, _Pairs):
        return True
    if isinstance(value, dict):
        return depth >= DEPTH_MAX or any(
            _out_of_bounds(key) or _out_of_bounds(one, depth + 1) for key, one in value.items()
        )
    if isinstance(value, list):
        return depth >= DEPTH_MAX or any(_out_of_bounds(one, depth + 1) for one in value)
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    return isinstance(value, float) and not math.isfinite(value)


def _same(one: object, other: object) -> bool:
    """Equal, with types, however signed a zero is."""
    return type(one) is type(other) and repr(one) == repr(other)


def _explained(known: tuple[differences.Difference, ...], raw: bytes, theirs: Reading, status: int) -> None:
    """A refusal of what h11 accepts is on the list, and carries its status."""
    statuses = {one.status for one in known if one.applies(raw, theirs)}
    assert statuses, ("refused what h11 accepts, and it is not on the list", status, raw, theirs)
    assert status in statuses, ("refused with another status", status, raw)
