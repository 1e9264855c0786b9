"""Sums of a day."""

from juggler.history.records import facts_of
from juggler.history.sums import WHOLE, Sums, add_all, plain_day
from juggler.proxy.contract import ExchangeResult
from juggler.routing.traffic import TrafficClass
from tests.unit.history.make import ended


def test_what_counts_as_waiting_for_loads() -> None:
    """The whole wait of those whose model was loaded; a wait for a slot of a loaded model is waiting only."""
    sums = Sums()
    sums.count(facts_of(ended(queue_s=4.0, load_s=6.0, serve_s=10.0)))
    sums.count(facts_of(ended(queue_s=5.0, serve_s=15.0)))
    plain = sums.plain()
    assert (plain["total_s"], plain["waited_s"], plain["loading_s"]) == (40.0, 15.0, 10.0)
    assert plain["share_waiting"] == 0.25


def test_open_sockets_and_questions_count_without_their_time() -> None:
    """A page that is open all day would make every wait look short."""
    sums = Sums()
    for traffic in (TrafficClass.LIGHT, TrafficClass.HELD_OPEN):
        sums.count(facts_of(ended(serve_s=1000.0, traffic=traffic)))
    assert (sums.requests, sums.bytes_down, sums.total_s) == (2, 40, 0.0)
    assert sums.plain()["share_waiting"] is None


def test_failures() -> None:
    """Refusals and errors are failures; who leaves, or is cancelled, has chosen it."""
    sums = Sums()
    sums.count(facts_of(ended(result=ExchangeResult(502))))
    sums.count(facts_of(ended(granted=False, error="queue_full")))
    sums.count(facts_of(ended(granted=False, error="cancelled_by_operator")))
    sums.count(facts_of(ended(granted=False)))
    assert (sums.requests, sums.failures) == (4, 2)


def test_a_day_as_data() -> None:
    """The whole, and each endpoint by name; adding takes nothing away from what is added."""
    day: dict[str, Sums] = {}
    one = {WHOLE: Sums(requests=1, swaps=1), "b": Sums(requests=1)}
    add_all(day, one)
    add_all(day, {WHOLE: Sums(requests=2), "a": Sums(requests=2)})
    plain = plain_day("2026-11-28", day)
    assert (plain["day"], plain["requests"], plain["swaps"]) == ("2026-11-28", 3, 1)
    assert isinstance(plain["endpoints"], dict)
    assert list(plain["endpoints"]) == ["a", "b"]
    assert one[WHOLE].requests == 1
    assert plain_day("2026-11-29", {})["requests"] == 0
