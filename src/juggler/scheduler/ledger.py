"""Who holds how many bytes of which pool. Amounts are plain dicts from pool to bytes; absent means none."""

from collections.abc import Iterable, Mapping

from juggler.ids import InstanceId, PoolId

Amounts = Mapping[PoolId, int]

EXCLUSIVE_POOL = PoolId("exclusive")
"""The pool of capacity 1 that stands in where nothing is known of memory: one loaded instance at a time."""

NOTHING: Amounts = {}


def shortage(need: Amounts, available: Amounts) -> dict[PoolId, int]:
    """What of ``need`` is missing from ``available``, pool by pool; empty when it fits.

    Of a pool of which more is taken than there is, nothing can be had; who needs none of it is not short of it.
    """
    return {pool: size - available.get(pool, 0) for pool, size in need.items() if size > max(0, available.get(pool, 0))}


def fits(need: Amounts, available: Amounts) -> bool:
    """Whether nothing is short: as ``not shortage``, for where the numbers are of no interest."""
    return all(size <= 0 or size <= available.get(pool, 0) for pool, size in need.items())


def added(left: Amounts, right: Amounts) -> dict[PoolId, int]:
    """Sum, pool by pool."""
    total = dict(left)
    for pool, size in right.items():
        total[pool] = total.get(pool, 0) + size
    return total


def greater(left: Amounts, right: Amounts) -> Amounts:
    """The larger of both, pool by pool."""
    if not right:
        return left
    return {pool: max(left.get(pool, 0), right.get(pool, 0)) for pool in {**left, **right}}


def claimed_from(available: Amounts, claim: Amounts) -> dict[PoolId, int]:
    """What is left for others after a claim. It makes good what is taken beyond the pools that it names."""
    return {pool: max(0, size - claim[pool]) if pool in claim else size for pool, size in available.items()}


def reduced(left: Amounts, right: Amounts) -> dict[PoolId, int]:
    """Difference, pool by pool, never below zero; pools of ``left`` only."""
    return {pool: max(0, size - right.get(pool, 0)) for pool, size in left.items()}


class Ledger:
    """Bytes held per instance and by others; the ledger itself never lets their sum exceed a pool's capacity.

    Reality may: an instance that grows, a server that is attached to, another program.
    """

    def __init__(self, capacity: Amounts) -> None:
        self.capacity = dict(capacity)
        self.foreign: Amounts = {}
        """Bytes per pool that others hold, as measured last."""
        self._held: dict[InstanceId, Amounts] = {}
        self._used: dict[PoolId, int] = dict.fromkeys(self.capacity, 0)

    def hold(self, instance: InstanceId, amounts: Amounts) -> None:
        """From now on ``instance`` holds ``amounts``, instead of what it held before."""
        for pool, size in self._held.pop(instance, NOTHING).items():
            self._used[pool] -= size
        if amounts:
            self._held[instance] = amounts
            for pool, size in amounts.items():
                self._used[pool] = self._used.get(pool, 0) + size

    def resize(self, capacity: Amounts) -> None:
        """From now on there is so much; what is held stays held, also where that is more than there is."""
        self.capacity = dict(capacity)
        for pool in capacity:
            self._used.setdefault(pool, 0)

    def held(self, instance: InstanceId) -> Amounts:
        return self._held.get(instance, NOTHING)

    def used(self, pool: PoolId) -> int:
        return self._used.get(pool, 0)

    def free(self) -> dict[PoolId, int]:
        return {pool: size - self._used[pool] - self.foreign.get(pool, 0) for pool, size in self.capacity.items()}

    def holders(self) -> Iterable[tuple[InstanceId, Amounts]]:
        return self._held.items()
