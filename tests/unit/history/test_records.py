"""Ended requests as records."""

import time

import pytest

from juggler.history.records import TARGET_CHARS_MAX, facts_of, outcome_of, record_of, shown_target
from juggler.proxy.contract import ExchangeResult
from juggler.routing.traffic import TrafficClass
from tests.unit.history.make import ended


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/v1/chat", "/v1/chat"),
        ("/sdapi/v1/png?name=key", "/sdapi/v1/png?name=key"),
        ("/x?api_key=hunter2", "/x?api_key=***"),
        ("/x?a=1&Access-Token=hunter2&b=2", "/x?a=1&Access-Token=***&b=2"),
        ("/x?password=a;sig=b;c=d", "/x?password=***;sig=***;c=d"),
        ("/x?monkey=1", "/x?monkey=***"),
        ("/key=1", "/key=1"),
        ("/x?pw=hunter2&pwd=hunter2&pwm=7", "/x?pw=***&pwd=***&pwm=7"),
    ],
)
def test_secrets_in_the_query_are_masked(target: str, shown: str) -> None:
    """Better one too many than one too few; nothing else changes."""
    assert shown_target(target) == shown


def test_a_long_target_is_cut() -> None:
    """After masking: half a secret at the end is none."""
    assert len(shown_target("/x?" + "a" * 5000)) == TARGET_CHARS_MAX
    assert "hunter2" not in shown_target("/x?" + "a" * 180 + "&token=hunter2")
    assert shown_target("/x?token=" + "hunter2" * 500) == "/x?token=***…"


def test_a_long_target_costs_little() -> None:
    """Whoever sends one would hold everybody else up. What other programs take meanwhile does not count."""
    began = time.thread_time()
    assert shown_target("/x?" + "key" * 20_000).endswith("…")
    assert time.thread_time() - began < 0.1


@pytest.mark.parametrize(
    ("result", "error", "outcome"),
    [
        (ExchangeResult(200), None, "ok"),
        (ExchangeResult(404), None, "ok"),
        (ExchangeResult(500), None, "error"),
        (ExchangeResult(None, error="upstream_closed"), None, "error"),
        (ExchangeResult(200, client_gone=True), None, "client_left"),
        (ExchangeResult(200, client_gone=True, error="upstream_closed"), None, "client_left"),
        (None, "queue_full", "refused"),
        (None, "cancelled_by_operator", "cancelled"),
        (None, None, "client_left"),
    ],
)
def test_outcomes(result: ExchangeResult | None, error: str | None, outcome: str) -> None:
    """One word for each way to end."""
    assert outcome_of(ended(result=result, error=error, granted=result is not None)) == outcome


def test_a_record_as_data() -> None:
    """The keys of the API, with instants since 1970."""
    one = ended(queue_s=2.0, load_s=8.0, serve_s=5.0, target=b"/v1/\xff?key=1")
    record = record_of(one, facts_of(one), 17, 1_000_000.0, 1.5)
    assert record.plain() == {
        "record": 17,
        "request": 7,
        "endpoint": "main/chat",
        "instance": "main/chat",
        "method": "POST",
        "target": "/v1/\\xff?key=***",
        "client": "127.0.0.1",
        "class": "work",
        "arrived_at": 1_000_100.0,
        "granted_at": 1_000_110.0,
        "queue_s": 2.0,
        "load_s": 8.0,
        "evicted_s": 1.5,
        "first_byte_s": 0.25,
        "first_byte_at": 1_000_110.25,
        "ended_at": 1_000_115.0,
        "status": 200,
        "outcome": "ok",
        "error": None,
        "bytes_up": 10,
        "bytes_down": 20,
    }


def test_a_refused_request_as_data() -> None:
    """What never was is null."""
    one = ended(queue_s=3.0, serve_s=0.0, granted=False, error="queue_timeout", traffic=TrafficClass.LIGHT)
    plain = record_of(one, facts_of(one), 18, 0.0, None).plain()
    nothing = ("request", "granted_at", "first_byte_s", "first_byte_at", "status", "evicted_s")
    assert all(plain[name] is None for name in nothing)
    assert (plain["error"], plain["outcome"], plain["class"], plain["queue_s"]) == (
        "queue_timeout",
        "refused",
        "light",
        3.0,
    )
