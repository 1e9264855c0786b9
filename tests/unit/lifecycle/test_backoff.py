"""Crash back-off: pauses between starts of an instance that keeps failing."""

import pytest

from juggler.lifecycle.backoff import CrashBackoff


def test_pauses_double_up_to_a_minute() -> None:
    """A model that never comes up is tried at once, then ever more rarely, but never given up."""
    backoff, now, pauses = CrashBackoff(), 100.0, []
    for _ in range(10):
        pauses.append(backoff.failed(now))
        assert backoff.wait_s(now) == pauses[-1]
        now += pauses[-1]
        assert backoff.wait_s(now) == 0
    assert pauses == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert backoff.failures(now) == 10


def test_a_fresh_instance_may_start() -> None:
    """Without a failure there is no pause."""
    backoff = CrashBackoff()
    assert (backoff.wait_s(0.0), backoff.failures(0.0)) == (0, 0)


def test_the_wait_runs_down() -> None:
    """The pause is counted from the failure, not from the question."""
    backoff = CrashBackoff()
    backoff.failed(0.0)
    backoff.failed(0.0)
    backoff.failed(10.0)
    assert [backoff.wait_s(10.0), backoff.wait_s(11.5), backoff.wait_s(99.0)] == [2.0, 0.5, 0.0]


@pytest.mark.parametrize(("healthy_s", "pause_s"), [(0.0, 2.0), (59.9, 2.0), (60.0, 0.0), (5000.0, 0.0)])
def test_a_crash_counts_unless_it_was_healthy_before(healthy_s: float, pause_s: float) -> None:
    """A quick crash goes on with the row; one after a healthy minute begins a new row."""
    backoff = CrashBackoff()
    backoff.failed(0.0)
    backoff.failed(0.0)
    backoff.ready(10.0)
    assert backoff.failed(10.0 + healthy_s) == pause_s


def test_a_healthy_minute_ends_the_row_while_it_still_runs() -> None:
    """The status view sees the row end when the minute is over, not at the next event."""
    backoff = CrashBackoff()
    backoff.failed(0.0)
    backoff.failed(0.0)
    backoff.ready(5.0)
    assert backoff.failures(64.9) == 2
    assert backoff.failures(65.0) == 0


def test_a_stop_on_purpose_neither_counts_nor_heals() -> None:
    """Being evicted quickly is no failure, and no proof of health either."""
    backoff = CrashBackoff()
    backoff.failed(0.0)
    backoff.failed(0.0)
    backoff.ready(10.0)
    backoff.stopped(12.0)
    assert (backoff.failures(500.0), backoff.wait_s(12.0)) == (2, 0)
    backoff.ready(600.0)
    backoff.stopped(700.0)
    assert backoff.failures(700.0) == 0


def test_reset_forgets() -> None:
    """An operator who orders a start does not wait for the back-off."""
    backoff = CrashBackoff()
    for _ in range(5):
        backoff.failed(0.0)
    backoff.reset()
    assert (backoff.wait_s(0.0), backoff.failed(0.0)) == (0, 0)


def test_a_very_long_row_stays_a_number() -> None:
    """Thousands of failures do not overflow."""
    backoff = CrashBackoff()
    assert [backoff.failed(0.0) for _ in range(5000)][-1] == 60
