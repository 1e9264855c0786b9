"""Which footprint to believe, and on which pools it can be placed. Pure.

Main memory is a pool of its own. Beside a GPU it is shared out by what is declared or estimated for it (layers and
experts that stay on the processor, weights that a sleeping server keeps); what is not known there counts as nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from juggler.ids import ANY_GPU, PoolId
from juggler.memory.footprint import Footprint, MemoryEstimate, Origin, PoolBytes

RAM = PoolId("ram")
WHOLE_DEVICE = 1.02
"""A pool is what is shared out of a device, a fiftieth less than all of it."""


@dataclass(frozen=True, slots=True)
class Pools:
    """Where an instance may go."""

    capacity: PoolBytes
    """Bytes of every pool, main memory included."""
    pinned: PoolId | None = None
    """The GPU pool that the operator chose for it."""

    @property
    def gpus(self) -> tuple[PoolId, ...]:
        """The GPU pools it may use; all pools but main memory count, whatever the operator calls them."""
        gpus = tuple(pool for pool in self.capacity if pool != RAM)
        return (self.pinned,) if self.pinned in gpus and self.pinned is not None else gpus


def choose(
    pools: Pools,
    *,
    declared: PoolBytes | None = None,
    declared_unloaded: PoolBytes | None = None,
    learned: PoolBytes | None = None,
    learned_unloaded: PoolBytes | None = None,
    estimate: MemoryEstimate | None = None,
) -> Footprint:
    """The footprint by the first source that knows it, in the order of trust.

    Args:
        declared: The operator's, with ``ANY_GPU`` for a size that names no pool.
        declared_unloaded: The same after a soft unload.
        learned: Seen in earlier runs, on the pools it was placed on then.
        estimate: By files and options.
    """
    unloaded = _anywhere(declared_unloaded, pools) if declared_unloaded else learned_unloaded
    if declared is not None:
        return Footprint(_placed(declared, pools), Origin.DECLARED, unloaded)
    if learned is not None:
        beside = estimate.ram_bytes if estimate is not None and pools.gpus and RAM not in learned else 0
        ways = _again(learned, pools)
        if beside and RAM in pools.capacity:  # what is measured of a program beside a GPU is its GPU memory
            ways = tuple({**way, RAM: min(beside, pools.capacity[RAM])} for way in ways)
        return Footprint(ways, Origin.LEARNED, unloaded)
    if estimate is not None:
        return Footprint(_estimated(estimate, pools), Origin.ESTIMATED, unloaded)
    return Footprint((_everything(pools),), Origin.UNKNOWN, unloaded)


def placements(gpu_bytes: int, pools: Pools, beside: PoolBytes | None = None) -> tuple[PoolBytes, ...]:
    """The ways to place something that needs ``gpu_bytes`` of one GPU, or of several together.

    One for each GPU pool that holds it alone; where none does, one over all of them in proportion to their size, as
    llama.cpp splits by default. ``beside`` is added to each.
    """
    gpus, extra = pools.gpus, dict(beside or {})
    alone = [pool for pool in gpus if gpu_bytes <= pools.capacity[pool]]
    if alone:
        return tuple({pool: gpu_bytes, **extra} for pool in alone)
    total = sum(pools.capacity[pool] for pool in gpus)
    if not total:
        return (extra,)
    return ({**{pool: gpu_bytes * pools.capacity[pool] // total for pool in gpus}, **extra},)


def _placed(declared: PoolBytes, pools: Pools) -> tuple[PoolBytes, ...]:
    named = _named(declared, pools)
    if ANY_GPU not in declared:
        return (named,)
    if not pools.gpus:  # a machine without a GPU: what was meant for one is taken of main memory
        for pool in list(pools.capacity)[:1]:
            named[pool] = named.get(pool, 0) + declared[ANY_GPU]
        return (named,)
    return placements(declared[ANY_GPU], pools, named)


def _anywhere(sizes: PoolBytes, pools: Pools) -> PoolBytes:
    """A residue that names no pool counts on the first it may be on."""
    named = _named(sizes, pools)
    place = next(iter(pools.gpus or tuple(pools.capacity)), None)
    if ANY_GPU in sizes and place is not None:
        named[place] = named.get(place, 0) + sizes[ANY_GPU]
    return named


def _named(sizes: PoolBytes, pools: Pools) -> dict[PoolId, int]:
    """What is said of pools by name. Main memory counts where it is shared out; no other pool is passed over."""
    return {pool: size for pool, size in sizes.items() if pool != ANY_GPU and (pool != RAM or RAM in pools.capacity)}


def _again(learned: PoolBytes, pools: Pools) -> tuple[PoolBytes, ...]:
    """What was seen on one GPU holds for any other; what was spread over several was so for a reason.

    It did run: what it needs with a margin on top is no more than a pool has. The operator may have chosen another GPU
    for it since.
    """
    if not learned:  # it was seen to need nothing of any pool
        return (dict.fromkeys(pools.gpus or tuple(pools.capacity), 0),)
    known = _capped({pool: size for pool, size in learned.items() if pool in pools.capacity}, pools)
    gpus = [pool for pool, size in known.items() if pool != RAM and size]
    beside = {pool: size for pool, size in known.items() if pool == RAM}
    if len(gpus) == 1:
        return tuple(_capped(way, pools) for way in placements(known[gpus[0]], pools, beside))
    if pools.pinned in pools.gpus and any(pool != pools.pinned for pool in gpus):
        total = sum(known[pool] for pool in gpus)
        return tuple(_capped(way, pools) for way in placements(total, pools, beside))
    return (known or _everything(pools),)


def _estimated(estimate: MemoryEstimate, pools: Pools) -> tuple[PoolBytes, ...]:
    beside = {RAM: min(estimate.ram_bytes, pools.capacity[RAM])} if RAM in pools.capacity else {}
    if estimate.gpu_fraction is not None and pools.gpus:
        share = min(1.0, estimate.gpu_fraction * WHOLE_DEVICE)
        return tuple({pool: int(share * pools.capacity[pool]), **beside} for pool in pools.gpus)
    if not pools.gpus:
        return (_capped({RAM: estimate.ram_bytes + estimate.gpu_bytes}, pools),)
    ways = placements(estimate.gpu_bytes, pools, beside)
    return tuple(_capped(way, pools) for way in ways)


def _everything(pools: Pools) -> PoolBytes:
    return {pool: pools.capacity[pool] for pool in pools.gpus or tuple(pools.capacity)}


def _capped(way: Mapping[PoolId, int], pools: Pools) -> dict[PoolId, int]:
    """An estimate above the pool would never fit (scheduling.md section 10.4)."""
    return {pool: min(size, pools.capacity.get(pool, size)) for pool, size in way.items()}
