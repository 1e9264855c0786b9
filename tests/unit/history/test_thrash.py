"""Two models in turns."""

from juggler.history.thrash import thrashing
from juggler.history.timeline import Span


def turns(number: int, serve_s: float, swap_s: float, pair: tuple[str, str] = ("m/a", "m/b")) -> list[Span]:
    """Each loads, serves and is pushed out by the other, again and again."""
    spans: list[Span] = []
    at = 1000.0
    for turn in range(number):
        own, other = pair[turn % 2], pair[(turn + 1) % 2]
        for state, seconds in (("starting", swap_s / 2), ("busy", serve_s), ("stopping", swap_s / 2)):
            by = other if state == "stopping" else None
            spans.append(Span(len(spans), own, state, at, at + seconds, evicted_by=by))
            at += seconds
    return spans


def name_of(instance: str) -> str:
    return instance.rpartition("/")[2]


def test_turns_without_service() -> None:
    """Swapping longer than serving, four times within five minutes: both are named, and what may help."""
    (found,) = thrashing(turns(6, 2.0, 20.0), 2000.0, name_of)
    assert found.instances == ("m/a", "m/b")
    assert found.swaps == 6
    assert found.text.startswith("a and b took turns 6 times within ")
    assert set(found.plain()) == {"instances", "swaps", "from_at", "to_at", "text"}


def test_turns_that_get_work_done_are_no_harm() -> None:
    """That is what swapping is for."""
    assert thrashing(turns(6, 30.0, 20.0), 2000.0, name_of) == []


def test_seldom_turns_are_no_harm() -> None:
    """Three swaps, or four in an hour."""
    assert thrashing(turns(3, 2.0, 20.0), 2000.0, name_of) == []
    spread = turns(8, 2.0, 20.0)
    for number, span in enumerate(spread):
        span.from_at += number * 300.0
        span.to_at = span.from_at + 10.0
    assert thrashing(spread, 5000.0, name_of) == []


def test_the_same_victim_again_and_again_is_one_turn() -> None:
    """An endpoint that is loaded by hand and pushed out is not two that alternate."""
    spans = [Span(one, "m/a", "stopping", one * 10.0, one * 10.0 + 9.0, evicted_by="m/b") for one in range(8)]
    assert thrashing(spans, 100.0, name_of) == []


def test_pairs_are_told_apart() -> None:
    """The worst pair comes first; one that lasts still counts up to now."""
    spans = turns(5, 2.0, 20.0) + turns(6, 2.0, 20.0, ("m/c", "m/d"))
    spans[-1].to_at = None
    found = thrashing(spans, 2000.0, name_of)
    assert [one.instances for one in found] == [("m/c", "m/d"), ("m/a", "m/b")]
    assert thrashing([], 0.0, name_of) == []
