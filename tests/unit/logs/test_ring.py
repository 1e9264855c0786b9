"""What a reader of a log gets, and what a log costs."""

import asyncio

import pytest

from juggler.logs.ring import LINE_COST_BYTES, LogRing


def ring_of(count: int, lines_max: int = 100, bytes_max: int = 10**6) -> LogRing:
    """One line a second from second 1 on; it is second ``count`` now."""
    ring = LogRing(lambda: float(count), lines_max=lines_max, bytes_max=bytes_max)
    for number in range(1, count + 1):
        ring.add("stdout", f"line {number}", at=float(number))
    return ring


@pytest.mark.parametrize(
    ("after", "limit", "since_s", "seqs", "lost"),
    [
        (None, 500, None, [6, 7, 8, 9, 10], 0),
        (None, 2, None, [9, 10], 0),
        (None, 0, None, [], 0),
        (None, 500, 2.5, [8, 9, 10], 0),
        (None, 1, 2.5, [10], 0),
        (0, 500, None, [6, 7, 8, 9, 10], 5),
        (4, 500, None, [6, 7, 8, 9, 10], 1),
        (5, 2, None, [6, 7], 0),
        (8, 500, None, [9, 10], 0),
        (8, 500, 0.5, [10], 0),
        (10, 500, None, [], 0),
        (11, 2, None, [9, 10], 0),
    ],
)
def test_reading(after: int | None, limit: int, since_s: float | None, seqs: list[int], lost: int) -> None:
    """On from a number, or the end; what was lost is counted, a number of another run is none."""
    reading = ring_of(10, lines_max=5).read(after, limit, since_s)
    assert [line.seq for line in reading.lines] == seqs
    assert (reading.last, reading.lost) == (10, lost)
    assert all(line.text == f"line {line.seq}" and line.at == line.seq for line in reading.lines)


def test_an_empty_log() -> None:
    reading = LogRing(lambda: 0.0).read(0)
    assert (reading.lines, reading.begun, reading.last, reading.lost) == ([], [], 0, 0)


def test_bounds() -> None:
    """Neither many nor long lines make it grow, and the newest is always there."""
    assert len(ring_of(1000, lines_max=7)) == 7
    ring = LogRing(lambda: 0.0, bytes_max=10_000)
    for number in range(1000):
        ring.add("stderr", str(number % 10) * 850)
    assert len(ring) == 10_000 // (850 + LINE_COST_BYTES)
    assert ring.read(limit=1).lines[0].text == "9" * 850


def test_begun_lines_come_beside() -> None:
    """They have no number: they are told again, longer, or whole under a number."""
    ring = ring_of(2)
    ring.begun = lambda: [("stderr", "30%")]
    reading = ring.read(2)
    assert reading.lines == []
    assert [(line.seq, line.at, line.stream, line.text) for line in reading.begun] == [(None, 2.0, "stderr", "30%")]


async def test_waiting() -> None:
    """Every waiter wakes at the next line, none before; who asks for what is there does not wait."""
    ring = ring_of(3)
    assert await ring.wait(2, 0.0)
    assert await ring.wait(7, 0.0)  # of another run: all is new
    assert not await ring.wait(3, 0.001)
    waiters = [asyncio.ensure_future(ring.wait(3, 60)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(waiter.done() for waiter in waiters)
    waiters[0].cancel()
    ring.add("stdout", "next")
    ring.add("stdout", "and one more")
    await asyncio.wait(waiters, timeout=20)
    assert [waiter.cancelled() for waiter in waiters] == [True, False, False]
    assert [waiter.result() for waiter in waiters[1:]] == [True, True]
    assert ring._waiting == []
