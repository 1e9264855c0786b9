"""What memory there is, what each instance takes of it, and whether it is there when it is needed.

Theory of operation. The scheduler decides by footprints and a ledger; the keeper makes both agree with the machine:

* Before anything is decided it finds the pools and what each instance will need: declared, learned in earlier runs,
  estimated from the model's files, or unknown (``open``).
* Before a load it looks whether the memory is free, and waits up to ``SETTLE_S`` for what an instance of ours has just
  given back. Memory that others hold is told to the scheduler, which then decides anew (``before_load``).
* After a soft unload it looks whether the memory came back; if not, the unload has failed (``unload_failure``).
* While instances load and run it samples what they hold, corrects the ledger, and remembers it for the next run.
* While one waits for memory its files are read into the page cache (``files``).

Nothing here delays a request that needs no load. Where nothing can be measured all of this does nothing, at no cost.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from juggler.backends.base import Backend
from juggler.clock import Clock
from juggler.config.resolve import ResolvedInstance
from juggler.ids import InstanceId, PoolId
from juggler.known import LOOK_LIMIT_S, UNLOADED_LEAST, Known, not_freed, phase_of
from juggler.lifecycle.launcher import Launcher, MachineMemory, PoolUse
from juggler.memory.choose import RAM, Pools, choose
from juggler.memory.footprint import Footprint, Origin
from juggler.memory.learning import NOISE_BYTES, FootprintLearner, FootprintRecord, Phase
from juggler.memory.store import Learned, LearnedStore
from juggler.read_ahead import FileReader
from juggler.scheduler import events
from juggler.scheduler.core import Scheduler
from juggler.scheduler.ledger import Amounts
from juggler.scheduler.state import Instance, InstanceSpec
from juggler.scheduler.transitions import GONE, LEAVING, LOADING, UP, Residency
from juggler.survey.threads import in_thread
from juggler.units import GIB, MIB, SECONDS, format_size

OPEN_LIMIT_S = LOOK_LIMIT_S
"""For finding the pools and reading the heads of model files; what is not known by then is taken as unknown."""

DECLARED_LIMIT_S = 3 * SECONDS
"""For finding the pools where they are declared: the first requests wait for it, and decisions do without."""

SETTLE_S = 5 * SECONDS
"""Drivers give memory back 0.5 to 1.5 s after a process has ended (memory.md section B)."""

LOOK_EVERY_S = 0.1
LOADING_EVERY_S = 0.2
READY_EVERY_S = 1 * SECONDS
RUNNING_EVERY_S = 5 * SECONDS
STEADY_AFTER_S = 10 * SECONDS
"""How long after its start an instance is watched closely."""

SAVE_EVERY_S = 60 * SECONDS

_log = logging.getLogger("juggler.memory")


class MemoryKeeper:
    """See the module.

    Args:
        scheduler: Read, never changed; it is told by ``post``.
        instances: The configuration's.
        declared: Pools of the operator; None: those of the machine, where ``automatic``, else one exclusive pool.
        store: What was learned in earlier runs.
        post: Takes events for the scheduler.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        instances: Mapping[InstanceId, tuple[ResolvedInstance, Backend]],
        launcher: Launcher,
        store: LearnedStore,
        clock: Clock,
        post: Callable[[events.Event], None],
        *,
        declared: Amounts | None,
        automatic: bool,
    ) -> None:
        self._scheduler = scheduler
        self._state = scheduler.state
        self._launcher = launcher
        self._store = store
        self._clock = clock
        self._post = post
        self._declared = declared
        self._automatic = automatic
        self._known = {name: Known(backend, config) for name, (config, backend) in instances.items()}
        self._machine = MachineMemory()
        self._measurable: frozenset[PoolId] = frozenset()
        self._left_at = -SETTLE_S
        """When an instance of ours last gave memory back."""
        self.files = FileReader(launcher, self._state, self._files, clock, post)
        """Reads model files ahead while their endpoint waits."""
        self._woken = asyncio.Event()
        self._load_begins = asyncio.Event()
        """Cuts a pause between two samples short; a forwarded request does not."""
        self._blind = False
        """It was said that a sample failed."""
        self._saved_at = clock.monotonic()

    def _files(self, name: InstanceId) -> Sequence[str]:
        known = self._known.get(name)
        return known.files if known is not None else ()

    # -- at the start ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Find the pools and the footprints, and tell the scheduler. Bounded by ``OPEN_LIMIT_S``; never raises."""
        try:
            async with asyncio.timeout(OPEN_LIMIT_S):
                await asyncio.gather(in_thread(OPEN_LIMIT_S, self._store.load), self._find_machine())
                await asyncio.gather(*(one.look_at_files(self._devices) for one in self._known.values()))
        except TimeoutError:
            _log.warning("not all of the machine and the models could be looked at within %.0f s", OPEN_LIMIT_S)
        for trouble in self._machine.troubles:
            _log.warning("%s", trouble)
        for name in self._known:
            self.recall(name)
        capacity = self._capacity()
        if capacity is None:
            return  # one exclusive pool, as the scheduler was made
        self._post(events.PoolsFound(self._clock.monotonic(), capacity))
        for name in self._known:
            self._expect(name)
        use = await self._launcher.measure() if self._machine.pools else {}
        self._measurable = frozenset(use) & frozenset(capacity)
        if self._has_gpus:
            # Beside a GPU main memory is shared out by what is declared and estimated. What is free of it says little:
            # most of what models keep there is page cache, which the system drops by itself.
            self._measurable -= {RAM}
        self._tell_foreign(use)
        _log.info("memory: %s", ", ".join(f"{pool} {format_size(size)}" for pool, size in capacity.items()))

    async def _find_machine(self) -> None:
        """What the drivers tell; not waited for long where the operator has said how much memory there is."""
        limit_s = OPEN_LIMIT_S if self._declared is None else DECLARED_LIMIT_S
        try:
            async with asyncio.timeout(limit_s):
                self._machine = await self._launcher.pools()
        except TimeoutError:
            _log.warning("the machine's memory could not be looked at within %.0f s: nothing is measured", limit_s)

    def _capacity(self) -> Amounts | None:
        """Bytes per pool; None: one exclusive pool."""
        if self._declared is not None:
            return self._declared
        if not self._automatic or self._machine.troubles or not self._machine.pools:
            return None
        return {one.pool: usable(one.pool, one.total_bytes) for one in self._machine.pools}

    @property
    def _devices(self) -> list[str]:
        return [one.key for one in self._machine.pools]

    def _expect(self, name: InstanceId) -> None:
        known = self._known[name]
        expected, whole, sure = self._expected(known)
        now = self._clock.monotonic()
        self._post(events.FootprintExpected(now, name, expected.placements, expected.unloaded, whole, sure))

    def _expected(self, known: Known) -> tuple[Footprint, bool, bool]:
        """What it will need; whether that is merely all there is, and whether it can be relied on."""
        remembered = self._remembered(known)
        record = remembered.footprint if remembered is not None else None
        expected = choose(
            Pools(dict(self._capacity() or self._state.ledger.capacity), known.config.pool),
            declared=known.config.memory,
            declared_unloaded=known.config.memory_unloaded or None,
            learned=record.need() if record is not None and record.seen else None,
            learned_unloaded=record.unloaded if record is not None else None,
            estimate=known.estimate,
        )
        known.origin = expected.origin
        whole = expected.origin is Origin.UNKNOWN
        return expected, whole, expected.origin in (Origin.DECLARED, Origin.LEARNED)

    def expect_again(self, name: InstanceId) -> None:
        """After its end: an instance of which little was known may have been seen for long enough to know better."""
        known = self._known.get(name)
        if known is None:
            return  # it was removed from the configuration
        remembered = self._remembered(known)
        if known.outdated:
            known.outdated = False
            self._expect(name)
        elif known.origin in (Origin.UNKNOWN, Origin.ESTIMATED) and remembered and remembered.footprint.seen:
            self._expect(name)
            known.origin = Origin.MEASURED

    # -- a new configuration ---------------------------------------------------------------------------------------

    async def look(self, config: ResolvedInstance, backend: Backend) -> Known:
        """What can be known of an instance that is to come. Bounded by ``OPEN_LIMIT_S``."""
        known = Known(backend, config)
        try:
            await known.look_at_files(self._devices)
        except TimeoutError:
            _log.warning("the files of %s could not be looked at within %.0f s", config.id, OPEN_LIMIT_S)
        return known

    def informed(self, spec: InstanceSpec, known: Known) -> InstanceSpec:
        """The same, with what is known of its footprint."""
        if self._capacity() is None:
            return spec
        expected, whole, sure = self._expected(known)
        return replace(
            spec,
            footprint=expected.placements[0],
            footprint_unloaded=expected.unloaded or {},
            footprint_kept=expected.placements[0] if spec.footprint_kept else {},
            placements=expected.placements,
            whole=whole,
            sure=sure,
        )

    def updated(self, spec: InstanceSpec, config: ResolvedInstance) -> InstanceSpec:
        """The same, ``informed`` if an instance that stays gets another declaration of its memory."""
        known = self._known[spec.id]
        if _declared(known.config) == _declared(config):
            return spec
        return self.informed(spec, replace(known, config=config))

    def take(self, name: InstanceId, known: Known) -> None:
        """A new instance is there, perhaps in the place of another, or is about to be."""
        self._known[name] = known
        self.files.leave(name)
        self.recall(name)

    def recall(self, name: InstanceId) -> None:
        """What was learned of an instance's times in earlier runs, once it is there."""
        remembered = self._remembered(self._known[name])
        if remembered is not None and name in self._state.instances:
            self._state.instances[name].estimates.restore(remembered.times)

    def forget(self, name: InstanceId) -> None:
        """An instance is no more; what was learned of it is kept, should it come back."""
        self._known.pop(name, None)
        self.files.leave(name)

    def change(self, name: InstanceId, config: ResolvedInstance) -> None:
        """An instance that stays has other rules; its declared memory counts at once where that can be."""
        known, instance = self._known[name], self._state.instances[name]
        before, known.config = known.config, config
        if _declared(before) == _declared(config):
            return
        known.warned = False
        if self._capacity() is None:
            return
        known.outdated = instance.residency not in GONE
        if not known.outdated:
            self._expect(name)  # the scheduler has it from ``updated``; this tells where it is known from
        elif config.memory is not None and not instance.attached:
            expected, _, _ = self._expected(known)
            ways, place = expected.placements, set(instance.full)
            placed = next((way for way in ways if set(way) == place), ways[0])
            self._post(events.FootprintMeasured(self._clock.monotonic(), name, placed, expected.unloaded))

    def resize(self, declared: Amounts) -> None:
        """The operator's pools have other sizes: what is ``informed`` from now on is for those."""
        self._declared = declared

    def resized(self) -> None:
        """The scheduler has the pools in their new sizes: tell it how each instance fits into them."""
        for name in list(self._known):
            self._expect(name)

    def environment(self, name: InstanceId, placed: Amounts) -> Mapping[str, str]:
        """What makes a program use the GPUs it was placed on, where there are more; else nothing.

        Nothing, too, where the operator's own ``env`` says which GPUs it is to use: half of ours beside it would change
        what it means.
        """
        gpus = [one for one in self._machine.pools if one.pool != RAM]
        chosen = [one.placement for one in gpus if placed.get(one.pool, 0)]
        if not chosen or len(chosen) == len(gpus) or any(set(one) != set(chosen[0]) for one in chosen):
            return {}
        if any(variable in self._known[name].config.settings.env for variable in chosen[0]):
            return {}
        # Each variable holds a list of GPUs, or what is the same for all of them.
        return {name: ",".join(dict.fromkeys(one[name] for one in chosen)) for name in chosen[0]}

    def origin(self, name: InstanceId) -> Origin:
        """Where the footprint of an instance is known from."""
        return self._known[name].origin

    @property
    def _has_gpus(self) -> bool:
        return any(pool != RAM for pool in self._state.ledger.capacity)

    # -- before a load and after an unload -------------------------------------------------------------------------

    @property
    def measures(self) -> bool:
        """Whether anything of the pools can be measured at all."""
        return bool(self._measurable)

    async def before_load(self, name: InstanceId, generation: int, needed: Amounts) -> events.StartDeferred | None:
        """Wait until the memory for a load is seen free; what to tell the scheduler if it is not, else None."""
        self.files.stop(except_for=name)
        while True:
            use = await self._launcher.measure()
            short = self._short(self._state.instances[name], needed, use)
            if not short:
                break
            now = self._clock.monotonic()
            # Main memory is given back by the time a process has ended; drivers take their time.
            if set(short) == {RAM} or now >= self._left_at + SETTLE_S:
                self._correct_from(use)
                short = self._short(self._state.instances[name], needed, use)
                if self._state.instances[name].whole:
                    self._tell_foreign(use, loading=name)
                    break  # it takes what there is
                return events.StartDeferred(now, name, generation, short, self._users(use))
            await asyncio.sleep(LOOK_EVERY_S)
        self._load_begins.set()
        return None

    def _correct_from(self, use: Mapping[PoolId, PoolUse]) -> None:
        """What instances of ours hold beyond the ledger is theirs, and can be had back from them; not a stranger's."""
        for name, instance in self._state.instances.items():
            launch = self._launch(name)
            if launch is None or instance.residency in LOADING or instance.residency in LEAVING:
                continue
            ledger = self._state.ledger.held(name)
            held = {
                pool: one.launches[launch]
                for pool, one in use.items()
                if pool in self._measurable and one.launches is not None and launch in one.launches
            }
            if not any(size > ledger.get(pool, 0) + UNLOADED_LEAST for pool, size in held.items()):
                continue
            now = self._clock.monotonic()
            if instance.residency is Residency.UNLOADED:
                self._post(events.FootprintMeasured(now, name, instance.full, held))
            else:
                seen = {pool: max(size, ledger.get(pool, 0)) for pool, size in held.items()}
                self._post(events.FootprintMeasured(now, name, {**instance.full, **seen}))

    def _short(self, instance: Instance, needed: Amounts, use: Mapping[PoolId, PoolUse]) -> dict[PoolId, int]:
        """What others hold of the pools in which less is free than the load needs; empty: go on."""
        ledger = self._state.ledger
        held = ledger.held(instance.id)
        foreign = {}
        for pool, size in needed.items():
            if pool not in use or pool not in self._measurable or not size:
                continue
            slack = max(256 * MIB, size * 3 // 100)
            if instance.whole:
                slack = max(GIB, size // 10)
            free = use[pool].free_bytes - self._to_come(pool, use[pool], instance.id)
            if free >= size - slack:
                continue
            ours = ledger.used(pool) - held.get(pool, 0)
            expected = ledger.capacity[pool] - ours
            foreign[pool] = max(0, expected - free)
        return foreign

    def _to_come(self, pool: PoolId, use: PoolUse, but: InstanceId | None) -> int:
        """What others that load have yet to take of what is free now; as far as it is told who holds what."""
        if use.launches is None:
            return 0
        return sum(
            max(0, self._state.ledger.held(name).get(pool, 0) - use.launches.get(f"{name}#{instance.generation}", 0))
            for name, instance in self._state.instances.items()
            if name != but and instance.residency in LOADING and not instance.attached
        )

    async def unload_failure(self, name: InstanceId) -> str | None:
        """Why an unload that the backend calls done has not freed its memory; None: it has, or nobody can tell."""
        self._left_at = self._clock.monotonic()
        learner = self._known[name].learner
        before = learner.loaded() if learner is not None else {}
        if not before or self._launch(name) is None:
            return None
        instance = self._state.instances[name]
        deadline = self._clock.monotonic() + SETTLE_S
        while True:
            held = await self._held(name)
            if held is None:
                return None
            worst = not_freed(before, held, instance.residue)
            if worst is None:
                assert learner is not None
                learner.sample(self._clock.monotonic(), Phase.UNLOADED, held)
                return None
            if self._clock.monotonic() >= deadline:
                pool, size = worst
                return f"{format_size(size)} of {pool} are still held {SETTLE_S:.0f} s later"
            await asyncio.sleep(LOOK_EVERY_S)

    def gave_back(self, name: InstanceId) -> None:
        """An instance's process has ended."""
        self._left_at = self._clock.monotonic()
        self._remember(name, ended=True)
        self._known[name].learner = None

    async def measure_pools(self) -> None:
        """Answer ``MeasurePools``; what an instance of ours has just given back is waited for, as before a load."""
        use = await self._launcher.measure()
        while any(self._foreign(use).values()) and self._clock.monotonic() < self._left_at + SETTLE_S:
            await asyncio.sleep(LOOK_EVERY_S)
            use = await self._launcher.measure()
        self._tell_foreign(use)

    def _tell_foreign(self, use: Mapping[PoolId, PoolUse], loading: InstanceId | None = None) -> None:
        foreign = self._foreign(use, loading)
        self._post(events.PoolsMeasured(self._clock.monotonic(), foreign, self._users(use)))

    def _foreign(self, use: Mapping[PoolId, PoolUse], loading: InstanceId | None = None) -> dict[PoolId, int]:
        """What is taken and no instance holds; one that is ``loading`` has the memory to come, not that."""
        ledger = self._state.ledger
        promised = ledger.held(loading) if loading is not None else {}
        return {
            pool: max(
                0,
                ledger.capacity[pool]
                - ledger.used(pool)
                + promised.get(pool, 0)
                - (one.free_bytes - self._to_come(pool, one, loading)),
            )
            for pool, one in use.items()
            if pool in self._measurable
        }

    def _users(self, use: Mapping[PoolId, PoolUse]) -> dict[PoolId, str]:
        return {
            pool: ", ".join(f"{format_size(size)} by {name}" for name, size in one.others[:3])
            for pool, one in use.items()
            if one.others
        }

    # -- sampling ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something loads or runs: sample soon."""
        if self._measurable:
            self._woken.set()

    async def run(self) -> None:
        """Sample what loads and runs, until cancelled; then end what is under way."""
        try:
            while True:
                self._woken.clear()  # before the look: what begins from here on is not missed
                self._load_begins.clear()
                pause_s = self._pause_s()
                if pause_s is None:
                    await self._save_when_due()
                    await self._woken.wait()
                    continue
                try:
                    await self._sample()
                except Exception:
                    self._say_blind()
                await self._save_when_due()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._load_begins.wait()
        finally:
            self.files.stop()

    def _say_blind(self) -> None:
        """A mistake in here costs the sample, not the program that serves."""
        if not self._blind:
            self._blind = True
            _log.exception("what instances hold could not be looked at")

    def _pause_s(self) -> float | None:
        """Seconds between two samples now; None: there is nothing to see."""
        if not self._measurable:
            return None
        now = self._clock.monotonic()
        pause_s: float | None = None
        for instance in self._state.instances.values():
            if instance.residency in LOADING:
                return LOADING_EVERY_S
            if instance.residency in UP and now < instance.ready_at + STEADY_AFTER_S + 2 * READY_EVERY_S:
                pause_s = READY_EVERY_S
            elif instance.running and pause_s is None:
                pause_s = RUNNING_EVERY_S
        return pause_s

    async def _sample(self) -> None:
        use = await self._launcher.measure()
        now = self._clock.monotonic()
        for name, known in self._known.items():
            instance = self._state.instances[name]
            launch = self._launch(name)
            if launch is None or instance.attached:
                continue
            held = {
                pool: one.launches.get(launch, 0)
                for pool, one in use.items()
                if one.launches is not None and pool in self._measurable
            }
            phase = phase_of(instance)
            if not held or phase is None:
                continue
            if known.learner is None or known.generation != instance.generation:
                known.learner, known.generation = FootprintLearner(), instance.generation
            known.learner.sample(now, phase, held)
            if instance.residency in UP and now >= instance.loaded_at + STEADY_AFTER_S:
                self._correct(name, instance, known)

    def _correct(self, name: InstanceId, instance: Instance, known: Known) -> None:
        """Bring the ledger in line with what an instance was seen to hold."""
        assert known.learner is not None
        if not known.shown:
            return
        record = known.learner.record()
        declared = known.config.memory is not None
        need = record.need()
        seen = {
            pool: need.get(pool, 0) for pool in self._state.ledger.capacity if pool in instance.full or pool in need
        }
        if RAM in seen and RAM not in self._measurable:
            seen[RAM] = instance.full.get(RAM, 0)
        if declared:
            most = record.most()  # what the operator knows needs no margin
            more = {pool for pool, size in most.items() if size > instance.full.get(pool, 0) + NOISE_BYTES}
            seen = {pool: size for pool, size in seen.items() if pool in more}
            if not seen:
                return
            self._say_too_small(name, known, seen)
            seen = {**instance.full, **seen}
        else:
            known.origin = Origin.MEASURED
        if any(abs(size - instance.full.get(pool, 0)) > max(64 * MIB, size // 50) for pool, size in seen.items()):
            self._post(events.FootprintMeasured(self._clock.monotonic(), name, seen, record.unloaded))

    def _say_too_small(self, name: InstanceId, known: Known, seen: Amounts) -> None:
        if not known.warned:
            known.warned = True
            text = ", ".join(f"{format_size(size)} of {pool}" for pool, size in seen.items())
            _log.warning("%s needs more than its `memory` declares: %s are reckoned with from now on", name, text)

    async def _held(self, name: InstanceId) -> dict[PoolId, int] | None:
        """Bytes per pool that an instance's processes hold now; None: nobody can tell."""
        launch = self._launch(name)
        if launch is None:
            return None
        use = await self._launcher.measure()
        told = {
            pool: one.launches.get(launch, 0)
            for pool, one in use.items()
            if one.launches is not None and pool in self._measurable
        }
        return told or None

    def _launch(self, name: InstanceId) -> str | None:
        instance = self._state.instances.get(name)
        if instance is None or instance.residency in GONE or instance.attached:
            return None
        return f"{name}#{instance.generation}"

    # -- what is remembered ------------------------------------------------------------------------------------

    def _remembered(self, known: Known) -> Learned | None:
        return self._store.get(known.key) if known.key else None

    def _remember(self, name: InstanceId, *, ended: bool) -> None:
        known, instance = self._known[name], self._state.instances[name]
        if not known.key:
            return
        remembered = self._remembered(known)
        footprint = remembered.footprint if remembered is not None else None
        if ended and known.learner is not None and known.shown:
            footprint = known.learner.record(footprint)
        times = instance.estimates.exported()
        if times or footprint is not None:
            self._store.put(known.key, Learned(footprint or FootprintRecord(), times, time.time()))

    async def _save_when_due(self) -> None:
        if self._clock.monotonic() >= self._saved_at + SAVE_EVERY_S:
            await self.save()

    async def save(self) -> None:
        """Write down what was learned; a failure is logged once, by the store."""
        self._saved_at = self._clock.monotonic()
        for name, instance in self._state.instances.items():
            if instance.estimates.arrivals or instance.estimates.load_samples:
                self._remember(name, ended=False)
        await self._store.save()


def _declared(config: ResolvedInstance) -> tuple[object, object]:
    return config.memory, config.memory_unloaded


def usable(pool: PoolId, total_bytes: int) -> int:
    """What of a device's memory is shared out: the driver keeps some of a GPU, the system some of main memory."""
    return total_bytes * 85 // 100 if pool == RAM else total_bytes - max(256 * MIB, total_bytes // 50)
