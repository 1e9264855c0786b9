"""Samples on a grid."""

from typing import Any, cast

from juggler.history.series import POINTS_MAX, SAMPLES_KEPT, STEP_S, Sample, Series, joined, on_grid


def grid(samples: list[Sample], *more: float) -> dict[str, Any]:
    return cast(dict[str, Any], on_grid(samples, *more))


def test_memory_holds_until_the_next_sample() -> None:
    """Where nothing was sampled nothing has changed; before the first nothing is known, after an end neither."""
    samples = [
        Sample(100.0, {"gpu0": (5, 1)}),
        Sample(130.0, {"gpu0": (7, 1), "ram": (1, 0)}),
        Sample(160.0, None),
        Sample(190.0, {"ram": (2, 0)}),
    ]
    answer = grid(samples, 90.0, 200.0, 10.0)
    assert answer["at"] == [90.0 + 10.0 * number for number in range(12)]
    assert answer["pools"]["gpu0"]["used_bytes"] == [None, 5, 5, 5, 7, 7, 7, None, None, None, None, None]
    assert answer["pools"]["gpu0"]["foreign_bytes"] == [None, 1, 1, 1, 1, 1, 1, None, None, None, None, None]
    assert answer["pools"]["ram"]["used_bytes"] == [None] * 4 + [1] * 3 + [None] * 3 + [2, 2]


def test_counts_are_sums_over_each_step() -> None:
    """Every sample counts once, in the step that ends with or after it."""
    samples = [Sample(100.0 + number, {}, 1, 2, 3) for number in range(1, 61)]
    answer = grid(samples, 100.0, 160.0, 20.0)
    assert answer["at"] == [100.0, 120.0, 140.0, 160.0]
    assert (answer["loads"], answer["requests"], answer["bytes_down"]) == (
        [0, 20, 20, 20],
        [0, 40, 40, 40],
        [0, 60, 60, 60],
    )


def test_answers_are_bounded() -> None:
    """A year in steps of a second is told in larger ones; a time that ends before it begins is empty."""
    answer = grid([], 0.0, 366 * 86400.0, 1.0)
    assert len(answer["at"]) <= POINTS_MAX
    assert answer["step_s"] > 10_000
    assert grid([], 10.0, 0.0, 1.0)["at"] == []
    assert grid([Sample(5.0, {"ram": (1, 1)})], 10.0, 10.0, 0.0)["pools"]["ram"]["used_bytes"] == [1]


def test_what_is_due() -> None:
    """Every ten seconds, at once at the start, and after the clock was set back; what was counted is told once."""
    series = Series()
    assert series.due(100.0)
    series.counts.requests = 3
    assert series.sample(100.0, {}).requests == 3
    assert not series.due(100.0 + STEP_S - 0.1)
    assert series.due(100.0 + STEP_S)
    assert series.due(10.0)
    assert series.sample(110.0, {}).requests == 0
    assert series.samples.maxlen == SAMPLES_KEPT == 8640


def test_two_sources() -> None:
    """What memory has is not taken from the disk again."""
    disk = [Sample(float(at), {}) for at in (1, 2, 3, 4)]
    memory = [Sample(3.0, {}, 9), Sample(5.0, {}, 9)]
    assert [(one.at, one.loads) for one in joined(disk, memory)] == [(1.0, 0), (2.0, 0), (3.0, 9), (5.0, 9)]
    assert joined(disk, []) == disk
