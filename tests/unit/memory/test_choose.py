"""The order of trust, and where things can be placed."""

import pytest

from juggler.ids import ANY_GPU, PoolId
from juggler.memory.choose import Pools, choose, placements
from juggler.memory.footprint import MemoryEstimate, Origin
from juggler.units import GIB

GPU0, GPU1, RAM = PoolId("gpu0"), PoolId("gpu1"), PoolId("ram")
ONE = Pools({GPU0: 24 * GIB})
TWO = Pools({GPU0: 24 * GIB, GPU1: 8 * GIB})
ESTIMATE = MemoryEstimate(gpu_bytes=6 * GIB, ram_bytes=GIB)


def test_the_order_of_trust() -> None:
    known = {"declared": {ANY_GPU: 1}, "learned": {GPU0: 2}, "estimate": ESTIMATE}
    assert choose(ONE, **known).origin is Origin.DECLARED  # type: ignore[arg-type]
    del known["declared"]
    assert choose(ONE, **known).placements == ({GPU0: 2},)  # type: ignore[arg-type]
    del known["learned"]
    assert choose(ONE, **known).placements == ({GPU0: 6 * GIB},)  # type: ignore[arg-type]
    unknown = choose(ONE)
    assert (unknown.origin, unknown.placements) == (Origin.UNKNOWN, ({GPU0: 24 * GIB},))


def test_one_way_for_each_gpu_that_holds_it() -> None:
    assert placements(6, Pools({GPU0: 10, GPU1: 6})) == ({GPU0: 6}, {GPU1: 6})
    assert placements(8, Pools({GPU0: 10, GPU1: 6})) == ({GPU0: 8},)


def test_what_no_gpu_holds_alone_is_spread_over_all() -> None:
    assert placements(12, Pools({GPU0: 12 - 3, GPU1: 9})) == ({GPU0: 6, GPU1: 6},)
    assert placements(28 * GIB, TWO) == ({GPU0: 21 * GIB, GPU1: 7 * GIB},)


def test_pinned_to_one() -> None:
    pinned = Pools(TWO.capacity, GPU1)
    assert choose(pinned, declared={ANY_GPU: 5}).placements == ({GPU1: 5},)
    assert choose(pinned).placements == ({GPU1: 8 * GIB},)
    assert choose(pinned, estimate=ESTIMATE).placements == ({GPU1: 6 * GIB},)


def test_named_pools_stay_as_they_are() -> None:
    assert choose(TWO, declared={GPU1: 5, GPU0: 7}).placements == ({GPU1: 5, GPU0: 7},)
    assert choose(TWO, declared={ANY_GPU: 5}, declared_unloaded={ANY_GPU: 1}).unloaded == {GPU0: 1}


def test_without_a_gpu_everything_is_in_main_memory() -> None:
    pools = Pools({RAM: 64 * GIB})
    assert choose(pools, estimate=ESTIMATE).placements == ({RAM: 7 * GIB},)
    assert choose(pools, declared={ANY_GPU: 5}).placements == ({RAM: 5},)
    assert choose(pools).placements == ({RAM: 64 * GIB},)


def test_an_estimate_never_exceeds_the_pool() -> None:
    """It would never be loaded; a load that fails tells more than a guess."""
    large = MemoryEstimate(gpu_bytes=90 * GIB, ram_bytes=0)
    assert choose(ONE, estimate=large).placements == ({GPU0: 24 * GIB},)
    assert choose(TWO, estimate=large).placements == ({GPU0: 24 * GIB, GPU1: 8 * GIB},)


def test_a_share_of_each_gpu() -> None:
    found = choose(TWO, estimate=MemoryEstimate(gpu_fraction=0.5)).placements
    assert [sum(way.values()) for way in found] == pytest.approx([12.24 * GIB, 4.08 * GIB])
    assert choose(ONE, estimate=MemoryEstimate(gpu_fraction=1.0)).placements == ({GPU0: 24 * GIB},)


def test_learned_on_one_gpu_holds_for_the_others() -> None:
    assert choose(TWO, learned={GPU0: 5}).placements == ({GPU0: 5}, {GPU1: 5})
    assert choose(TWO, learned={GPU0: 5, GPU1: 6}).placements == ({GPU0: 5, GPU1: 6},)
    assert choose(TWO, learned={}).placements == ({GPU0: 0, GPU1: 0},), "it was seen to need none"
    assert choose(ONE, learned={GPU1: 5}).placements == ({GPU0: 24 * GIB},), "on a GPU that is gone"


def test_what_ran_fits_whatever_its_margin() -> None:
    """A program that takes all there is was seen to run: with the margin on top it must not be refused for ever."""
    assert choose(ONE, learned={GPU0: 25 * GIB}).placements == ({GPU0: 24 * GIB},)
    assert choose(TWO, learned={GPU0: 25 * GIB}).placements == ({GPU0: 24 * GIB},), "nor spread over both"
    assert choose(TWO, learned={GPU0: 25 * GIB, GPU1: 9 * GIB}).placements == ({GPU0: 24 * GIB, GPU1: 8 * GIB},)
    assert choose(Pools({RAM: 8 * GIB}), learned={RAM: 9 * GIB}).placements == ({RAM: 8 * GIB},)


def test_pinned_after_it_was_learned_elsewhere() -> None:
    """The operator's word counts, not the place where it ran before."""
    pinned = Pools(TWO.capacity, GPU1)
    assert choose(pinned, learned={GPU0: 5}).placements == ({GPU1: 5},)
    assert choose(pinned, learned={GPU0: 5, GPU1: 6}).placements == ({GPU1: 11},)
    assert choose(pinned, learned={GPU1: 6}).placements == ({GPU1: 6},)


def test_main_memory_that_is_not_shared_out_is_not_asked_for() -> None:
    """Beside a GPU there is no such pool: a footprint that names it would never fit."""
    found = choose(ONE, declared={GPU0: 5, RAM: 9}, declared_unloaded={RAM: 7})
    assert found.placements == ({GPU0: 5},)
    assert found.unloaded == {}
    both = Pools({GPU0: 24 * GIB, RAM: 64 * GIB})
    assert choose(both, declared={GPU0: 5, RAM: 9}).placements == ({GPU0: 5, RAM: 9},)
    assert choose(ONE, declared={GPU1: 5}).placements == ({GPU1: 5},), "a GPU that is missing is no trifle"


def test_two_sizes_of_one_pool_are_added() -> None:
    """Without a GPU both the part for any GPU and that for main memory are taken of the latter."""
    found = choose(Pools({RAM: 64}), declared={ANY_GPU: 5, RAM: 4}, declared_unloaded={ANY_GPU: 1, RAM: 2})
    assert found.placements == ({RAM: 9},)
    assert found.unloaded == {RAM: 3}


def test_what_is_not_measured_beside_a_gpu_stays_estimated() -> None:
    """A program's GPU memory is learned; what of its weights is in main memory is still known from its files."""
    pools = Pools({GPU0: 24 * GIB, RAM: 64 * GIB})
    estimate = MemoryEstimate(gpu_bytes=9 * GIB, ram_bytes=30 * GIB)
    footprint = choose(pools, learned={GPU0: 8 * GIB}, estimate=estimate)
    assert footprint.origin is Origin.LEARNED
    assert footprint.placements == ({GPU0: 8 * GIB, RAM: 30 * GIB},)
    assert choose(pools, learned={GPU0: 8 * GIB}).placements == ({GPU0: 8 * GIB},)
