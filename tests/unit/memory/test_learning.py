"""Samples become a need."""

from juggler.ids import PoolId
from juggler.memory.learning import FootprintLearner, FootprintRecord, Phase
from juggler.units import GIB, MIB

GPU = PoolId("gpu0")


def run(learner: FootprintLearner, *samples: tuple[float, Phase, int]) -> FootprintLearner:
    for at, phase, size in samples:
        learner.sample(at, phase, {GPU: size})
    return learner


def test_the_largest_of_the_three_counts_and_a_margin_on_top() -> None:
    for load, steady, running in ((9, 4, 5), (4, 9, 5), (4, 5, 9)):
        learner = run(
            FootprintLearner(),
            (0, Phase.LOADING, load * GIB),
            (1, Phase.READY, steady * GIB),
            (2, Phase.READY, steady * GIB),
            (20, Phase.RUNNING, running * GIB),
        )
        assert learner.record().need() == {GPU: 9 * GIB + int(9 * GIB * 0.03)}


def test_a_median_shrugs_off_one_odd_sample() -> None:
    learner = run(FootprintLearner(), *((float(at), Phase.READY, 4 * GIB) for at in range(5)))
    run(learner, (5.0, Phase.READY, 20 * GIB))
    assert learner.steady() == {GPU: 4 * GIB}


def test_what_is_to_be_given_back_is_what_was_seen_last() -> None:
    learner = run(FootprintLearner(), (0, Phase.READY, GIB))
    assert (learner.worked, learner.loaded()) == (False, {GPU: GIB})
    run(learner, (20, Phase.RUNNING, 12 * GIB))
    assert (learner.worked, learner.loaded()) == (True, {GPU: 12 * GIB})
    run(learner, (30, Phase.READY, GIB // 2))
    assert learner.loaded() == {GPU: GIB}
    assert run(FootprintLearner(), (0, Phase.LOADING, GIB)).loaded() == {}


def test_what_was_never_seen_ready_teaches_nothing() -> None:
    learner = run(FootprintLearner(), (0, Phase.LOADING, 9 * GIB))
    before = FootprintRecord(steady={GPU: GIB}, seen=3)
    assert learner.record(before) is before
    assert FootprintRecord().need() == {}


def test_noise_is_no_need() -> None:
    learner = run(FootprintLearner(), (0, Phase.READY, 8 * MIB))
    assert learner.record().need() == {}
    assert learner.record().seen == 1


def test_old_peaks_fade() -> None:
    record = FootprintRecord(steady={GPU: 4 * GIB}, peak_run={GPU: 9 * GIB}, seen=1)
    for _ in range(200):
        record = run(FootprintLearner(), (0, Phase.READY, 4 * GIB)).record(record)
    assert record.need()[GPU] < 4.5 * GIB
    assert record.seen == 201


def test_the_residue_of_an_unload() -> None:
    learner = run(FootprintLearner(), (0, Phase.READY, 4 * GIB), (9, Phase.UNLOADED, GIB))
    record = learner.record()
    assert record.unloaded == {GPU: GIB}
    again = run(FootprintLearner(), (0, Phase.READY, 4 * GIB)).record(record)
    assert again.unloaded == {GPU: GIB}
