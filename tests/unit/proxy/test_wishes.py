"""The request fields about waiting."""

import pytest

from juggler.config.resolve import PRIORITIES
from juggler.errors import BadRequest
from juggler.ids import EndpointId
from juggler.proxy.contract import Route
from juggler.proxy.head import parse_request
from juggler.proxy.headers import Hop, request_head
from juggler.proxy.replies import Replies
from juggler.proxy.wishes import MAX_WAIT_S_MAX, NO_WISHES, PRIORITY_WORDS, WISH_FIELDS, Wishes, parse_wishes
from juggler.routing.traffic import TrafficClass
from juggler.units import DAYS


def test_none() -> None:
    """The same constant for everybody who wishes nothing, fields of a similar name included."""
    assert parse_wishes([]) is NO_WISHES
    assert parse_wishes([(b"Host", b"h"), (b"X-Juggler", b"1"), (b"X-Juggler-Priority2", b"1")]) is NO_WISHES
    assert Wishes(None, None, False) == NO_WISHES


@pytest.mark.parametrize(
    ("value", "priority"),
    [(b"interactive", 0), (b"BATCH", -10), (b"0", 0), (b"100", 100), (b"-100", -100), (b"+7", 7)],
)
def test_priority(value: bytes, priority: int) -> None:
    """Words or numbers."""
    assert parse_wishes([(b"x-JUGGLER-priority", value)]) == Wishes(priority=priority)


def test_words_mean_what_they_mean_in_the_file() -> None:
    """One word, one number."""
    assert {word.decode(): number for word, number in PRIORITY_WORDS.items()} == PRIORITIES


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"0", 0.0), (b"30", 30.0), (b"1.5", 1.5), (b"30s", 30.0), (b"2m", 120.0), (b"1h30m", 5400.0), (b"7d", 7 * DAYS)],
)
def test_max_wait(value: bytes, seconds: float) -> None:
    """Seconds or a duration; 0 is a wish too."""
    assert parse_wishes([(b"X-Juggler-Max-Wait", value)]) == Wishes(max_wait_s=seconds)


def test_timing() -> None:
    """1 asks, 0 does not."""
    assert parse_wishes([(b"X-Juggler-Timing", b"1")]).timing
    assert not parse_wishes([(b"X-Juggler-Timing", b"0")]).timing


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("X-Juggler-Priority", [b"", b"high", b"101", b"-101", b"1.5", b"1000", b"\xb2", b"batch, batch"]),
        ("X-Juggler-Max-Wait", [b"", b"-1", b"soon", b"inf", b"nan", b"1e3", b"8d", b"9" * 400, b"\xb2", b"1,2"]),
        ("X-Juggler-Timing", [b"", b"true", b"2", b"1,1"]),
    ],
)
def test_refused(name: str, values: list[bytes]) -> None:
    """Named, shown, and told what is accepted; the text is bounded."""
    for value in values:
        with pytest.raises(BadRequest) as caught:
            parse_wishes([(name.encode(), value)])
        assert caught.value.status == 400
        assert name in caught.value.message
        assert "it accepts" in caught.value.message
        assert len(caught.value.message) < 250


def test_repeated_fields_are_refused() -> None:
    """Two answers to one question are none."""
    with pytest.raises(BadRequest):
        parse_wishes([(b"X-Juggler-Priority", b"batch"), (b"x-juggler-priority", b"batch")])


def test_bound_is_said() -> None:
    """The longest wait is in the text of the refusal."""
    assert MAX_WAIT_S_MAX == 7 * DAYS


@pytest.mark.parametrize("name", sorted(WISH_FIELDS))
def test_head_marks_them_and_the_backend_does_not_get_them(name: bytes) -> None:
    """Only a marked head is searched, so each of them has to mark it."""
    start = b"GET / HTTP/1.1\r\nHost: h\r\n"
    assert not parse_request(start + b"X-Juggler-Other: 1\r\n\r\n").wishes
    head = parse_request(start + name.title() + b": 1\r\nX-Juggler-Other: 1\r\n\r\n")
    assert head.wishes
    sent = request_head(head, Hop(b"/", b"b:1", b"c"))
    assert name not in sent.lower()
    assert b"X-Juggler-Other: 1\r\n" in sent


@pytest.mark.parametrize("name", sorted(WISH_FIELDS))
def test_they_do_not_tell_replies_apart(name: bytes) -> None:
    """The backend never sees them, so its answer cannot depend on them."""
    replies = Replies()
    route = Route(EndpointId("s/e"), "e", b"/models", TrafficClass.LIGHT, cacheable=True)
    plain = parse_request(b"GET /models HTTP/1.1\r\nHost: h\r\n\r\n")
    wishing = parse_request(b"GET /models HTTP/1.1\r\nHost: h\r\n" + name + b": 1\r\n\r\n")
    assert replies.key(route, plain) == replies.key(route, wishing)
