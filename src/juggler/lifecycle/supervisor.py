"""One owner task per instance: the only one that starts, wakes, unloads and stops its process.

Theory of operation. Others give orders, synchronously and without waiting; the owner carries them out one after the
other and reports what came of them. Each order carries the scheduler's generation (one per start), each report
echoes it. The rules a reader of the reports may rely on:

* Every ``start`` is followed by exactly one ``stopped`` of its generation, and that is its last report: nothing of
  it is left then.
* A failed start or wake is ``start_failed`` as soon as it is known (clients wait for it), and ``stopped`` once the
  process, which may still hold memory until then, is gone. An unexpected end is ``exited`` and then ``stopped``.
* After ``stop`` was ordered, ``stopped`` is the only report of that generation. A stop ends a running start, wake,
  unload or probe at once, and makes earlier orders of its generation void that have not begun.
* Orders for a generation that has ended are void: its ``stopped`` was their answer.

Mistakes in a backend module are logged with a traceback and become failures of the order; they never end the owner.
"""

import asyncio
import enum
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from juggler.backends.base import Address, Backend, LaunchPlan
from juggler.clock import Clock
from juggler.errors import BackendError, InvalidTransition, ReadyTimeout, StartFailed
from juggler.ids import InstanceId
from juggler.lifecycle.caller import HttpCaller
from juggler.lifecycle.guardian import remove_paths
from juggler.lifecycle.launcher import ExitReport, Launcher, LaunchHandle
from juggler.lifecycle.readiness import LOG_TAIL_LINES, PortTaken, start_ended, unexpected_end, wait_until_ready
from juggler.lifecycle.reports import Reports, log_failure, masked_command
from juggler.lifecycle.waiting import ProcessEnded, settle, succeeded, unless_ended
from juggler.units import SECONDS, format_duration

PORT_ATTEMPTS = 4
"""One start and three more on other ports, when another program takes the port between our test and the bind."""

RESERVE_LIMIT_S = 5 * SECONDS
PLAN_LIMIT_S = 30 * SECONDS
"""A plan may read a model file's header from a slow disk; a dead network file system must not hold us for ever."""

SPAWN_LIMIT_S = 60 * SECONDS
"""The last resort: a launcher bounds its own ``start`` (the local one at 30 s, for a program on a sleeping disk)."""

SPAWN_CANCEL_LIMIT_S = 5 * SECONDS
"""For a start that nobody wants any more, to say whether there is a process to kill."""

HOOK_LIMIT_S = 30 * SECONDS
"""The last resort for saving and restoring of state, and for an unload; modules bound themselves."""

BUSY_LIMIT_S = 5 * SECONDS
STOP_SLACK_S = 10 * SECONDS
"""Beyond the grace times of the ladder; a launcher's own bound is 5 s beyond them."""

KILL_LIMIT_S = 10 * SECONDS
"""For one SIGKILL to empty the group. A process stuck in a driver survives it; then it is tried again."""

KILL_PAUSE_LIMIT_S = 30 * SECONDS
ORDERS_LIMIT = 1000
"""The scheduler has at most a few orders open per generation; more is a mistake of ours."""

_log = logging.getLogger("juggler.lifecycle")
_T = TypeVar("_T")


class _Kind(enum.Enum):
    START = "start"
    WAKE = "wake"
    UNLOAD = "unload"
    STOP = "stop"
    PROBE_BUSY = "probe_busy"


@dataclass(frozen=True, slots=True)
class _Order:
    kind: _Kind
    generation: int


@dataclass(slots=True)
class _Launch:
    """One process and what the owner remembers of it."""

    generation: int
    handle: LaunchHandle
    caller: HttpCaller
    grace_s: float
    """Sum of the stop ladder."""
    unsaved: bool = False
    """Ready, and since then ``before_stop`` has not been through: there may be state worth saving."""


class _Interrupted(Exception):
    """A newer order made the running work pointless."""


class Supervisor:
    """The owner of one instance. Orders and properties belong to the loop's thread; ``run`` is a task of its own.

    Args:
        instance: Echoed in every report.
        backend: The module's view of the instance; its hooks are called one at a time.
        launcher: Where processes come from.
        reports: Gets what happened.
        clock: For log lines, deadlines and the status view.
        environ: The juggler's own environment, for ``Backend.plan``.
    """

    def __init__(
        self,
        instance: InstanceId,
        backend: Backend,
        launcher: Launcher,
        reports: Reports,
        clock: Clock,
        environ: Mapping[str, str],
    ) -> None:
        self.instance = instance
        self._backend = backend
        self._launcher = launcher
        self._reports = reports
        self._clock = clock
        self._environ = environ
        self._orders: deque[_Order] = deque()
        self._ordered = asyncio.Event()
        self._hurried = False
        self._open_generation: int | None = None
        """Started, and neither ordered to stop nor ended."""
        self._ended_generation = -1
        """The latest of which ``stopped`` was reported; generations count up."""
        self._launch: _Launch | None = None
        """What must be killed before the owner may end."""
        self._handle: LaunchHandle | None = None
        """The latest process, kept after its end for its output and exit status."""
        self._started_at: float | None = None
        self._scope: asyncio.Timeout | None = None
        self._scope_is_pointless: Callable[[], bool] = lambda: False

    # ---------------------------------------------------------------- orders

    def start(self, generation: int) -> None:
        """Start a process for a new generation; ``instance_ready`` or ``start_failed``, finally ``stopped``.

        Raises:
            InvalidTransition: The generation is not new, or the one before was neither stopped nor has it ended.
        """
        if generation <= self._ended_generation or self._open_generation is not None:
            raise InvalidTransition(
                f"{self.instance}: start of generation {generation} while {self._open_generation} is open "
                f"and {self._ended_generation} has ended"
            )
        self._open_generation = generation
        self._give(_Order(_Kind.START, generation))

    def wake(self, generation: int) -> None:
        """Bring the weights back after ``unloaded``; ``instance_ready``, or ``start_failed`` and then ``stopped``."""
        self._give(_Order(_Kind.WAKE, generation))

    def unload(self, generation: int) -> None:
        """Save state, free the weights, keep the process; ``unloaded`` or ``unload_failed``."""
        self._give(_Order(_Kind.UNLOAD, generation))

    def stop(self, generation: int) -> None:
        """Save state (if it was ready) and end the process; ``stopped`` and nothing else, also for a running start."""
        if generation <= self._ended_generation or self._stop_is_ordered(generation):
            return
        if generation == self._open_generation:
            self._open_generation = None
        self._give(_Order(_Kind.STOP, generation))
        self._interrupt_if_pointless()

    def probe_busy(self, generation: int) -> None:
        """Ask the backend whether it works on something; ``busy_probed``. One open question is enough."""
        order = _Order(_Kind.PROBE_BUSY, generation)
        if order not in self._orders:
            self._give(order)

    def hurry(self) -> None:
        """From now on stops are SIGKILL at once, without saving; also for one that is under way."""
        self._hurried = True
        self._interrupt_if_pointless()

    # ---------------------------------------------------------------- status view

    def output(self, lines: int = LOG_TAIL_LINES) -> list[str]:
        """The last lines of the latest process, oldest first; also after its end."""
        return self._handle.output(lines) if self._handle is not None else []

    @property
    def address(self) -> Address | None:
        """Where the process listens or will listen; None without one."""
        return self._launch.handle.address if self._launch is not None else None

    @property
    def exit(self) -> ExitReport | None:
        """How the latest process ended; None while it runs and before the first."""
        return self._handle.exit if self._handle is not None else None

    @property
    def started_at(self) -> float | None:
        """When the latest process was started, in seconds since 1970."""
        return self._started_at

    # ---------------------------------------------------------------- the owner

    async def run(self) -> None:
        """Carry out orders until cancelled; then kill what runs, at most ``KILL_LIMIT_S`` long, and propagate."""
        try:
            while True:
                await self._carry_out(await self._next_order())
        finally:
            await self._kill_on_the_way_out()

    async def _next_order(self) -> _Order:
        while not self._orders:
            self._ordered.clear()
            launch = self._launch
            if launch is None:
                await self._ordered.wait()
                continue
            try:
                await unless_ended(launch.handle, self._ordered.wait(), "idle")
            except ProcessEnded as ended:
                await self._on_unexpected_end(launch, ended.report)
        return self._orders.popleft()

    async def _carry_out(self, order: _Order) -> None:
        generation, launch = order.generation, self._launch
        if generation <= self._ended_generation or self._stop_is_ordered(generation):
            _log.debug("%s: %s of generation %d is void", self.instance, order.kind.value, generation)
        elif order.kind is _Kind.START:
            await self._start(generation)
        elif order.kind is _Kind.STOP:
            await self._stop(generation)
        elif launch is None or launch.generation != generation:
            _log.warning("%s: %s of unknown generation %d", self.instance, order.kind.value, generation)
        elif order.kind is _Kind.WAKE:
            await self._wake(launch)
        elif order.kind is _Kind.UNLOAD:
            await self._unload(launch)
        else:
            await self._probe_busy(launch)

    # ---------------------------------------------------------------- start and wake

    async def _start(self, generation: int) -> None:
        began = self._clock.monotonic()
        try:
            await self._unless_stopped(generation, self._bring_up(generation, began))
        except _Interrupted:
            return  # the stop order is in the queue and ends what has been started
        except Exception as error:
            await self._give_up(generation, self._as_backend_error(error, "could not be started"))
        else:
            self._on_ready(generation, began, "ready")

    async def _bring_up(self, generation: int, began: float) -> None:
        for attempts_left in range(PORT_ATTEMPTS - 1, -1, -1):
            try:
                launch = await self._launch_once(generation)
                await self._until_ready(launch, began)
                await self._hook(launch, self._backend.after_start(launch.caller), "after_start")
            except ProcessEnded as ended:  # in the hook; a thief of the port would have been found out before
                raise await start_ended(self._backend, launch.handle, ended.report) from None
            except PortTaken as error:
                if not attempts_left:
                    raise
                _log.warning("%s; trying another port", error.message)
                await self._end(polite=False)
            else:
                return

    async def _launch_once(self, generation: int) -> _Launch:
        async with asyncio.timeout(RESERVE_LIMIT_S):
            address = await self._launcher.reserve()
        plan = await self._plan(address)
        _log.info("starting %s: %s", self.instance, masked_command(plan.argv))
        spawning = asyncio.create_task(
            self._launcher.start(f"{self.instance}#{generation}", plan, address), name=f"{self.instance} spawn"
        )
        try:
            # Never cancelled half-way: then nobody would know whether there is a process to kill.
            await settle(spawning, SPAWN_LIMIT_S, SPAWN_CANCEL_LIMIT_S)
        finally:
            if succeeded(spawning):
                self._handle = handle = spawning.result()
                self._started_at = self._clock.wall()
                grace_s = sum(step.grace_s for step in plan.stop_ladder)
                self._launch = _Launch(generation, handle, HttpCaller(handle.address), grace_s)
            else:
                spawning.cancel()
                # Private files of a plan that never became a process; for all others it is the launcher's task.
                remove_paths(list(plan.temp_files))
        if not spawning.done():
            raise StartFailed(f"no process after {format_duration(SPAWN_LIMIT_S)}")
        spawning.result()  # raises what the launcher raised
        assert self._launch is not None
        return self._launch

    async def _plan(self, address: Address) -> LaunchPlan:
        planning = asyncio.create_task(
            asyncio.to_thread(self._backend.plan, address, self._environ), name=f"{self.instance} plan"
        )
        try:
            # The thread cannot be cancelled; a plan that comes too late must not leave its private files behind.
            done, _ = await asyncio.wait((planning,), timeout=PLAN_LIMIT_S)
        except asyncio.CancelledError:
            planning.add_done_callback(_discard_plan)
            raise
        if not done:
            planning.add_done_callback(_discard_plan)
            raise StartFailed(
                f"the command was not ready after {format_duration(PLAN_LIMIT_S)}",
                hint="the disk with its files may be slow or gone",
            )
        return planning.result()

    async def _until_ready(self, launch: _Launch, began: float) -> None:
        left_s = began + self._backend.settings.start_timeout_s - self._clock.monotonic()
        await wait_until_ready(
            self._backend, launch.caller, launch.handle, timeout_s=max(0.0, left_s), clock=self._clock
        )

    async def _wake(self, launch: _Launch) -> None:
        began = self._clock.monotonic()
        try:
            await self._unless_stopped(launch.generation, self._bring_back(launch, began))
        except _Interrupted:
            return
        except Exception as error:
            await self._give_up(launch.generation, self._as_backend_error(error, "could not be woken"))
        else:
            self._on_ready(launch.generation, began, "awake")

    async def _bring_back(self, launch: _Launch, began: float) -> None:
        limit_s = self._backend.settings.start_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await unless_ended(launch.handle, self._backend.wake(launch.caller), "wake")
        except ProcessEnded as ended:
            raise await start_ended(self._backend, launch.handle, ended.report) from None
        except TimeoutError:
            raise ReadyTimeout(
                f"{self._endpoint}: its {self._backend.type_name} server was not awake "
                f"after {format_duration(self._clock.monotonic() - began)}",
                endpoint=self._endpoint,
                phase="starting",
                log_tail=self.output(),
            ) from None
        await self._until_ready(launch, began)

    def _on_ready(self, generation: int, began: float, state: str) -> None:
        assert self._launch is not None
        self._launch.unsaved = True
        _log.info("%s %s after %s", self.instance, state, format_duration(self._clock.monotonic() - began))
        self._reports.instance_ready(self.instance, generation, self._launch.handle.address)

    async def _give_up(self, generation: int, error: BackendError) -> None:
        """Report a failed start or wake at once, then remove what is left of the process."""
        log_failure(self.instance, error)
        self._reports.start_failed(self.instance, generation, error)
        await self._end(polite=False)
        self._on_gone(generation)

    # ---------------------------------------------------------------- unload, busy

    async def _unload(self, launch: _Launch) -> None:
        began = self._clock.monotonic()
        try:
            failure = await self._unless_stopped(launch.generation, self._free(launch))
        except _Interrupted:
            return
        except ProcessEnded as ended:
            await self._on_unexpected_end(launch, ended.report)
            return
        if failure is None:
            _log.info("%s unloaded after %s", self.instance, format_duration(self._clock.monotonic() - began))
            self._reports.unloaded(self.instance, launch.generation)
        else:
            _log.warning("%s could not be unloaded: %s", self.instance, failure)
            self._reports.unload_failed(self.instance, launch.generation, failure)

    async def _free(self, launch: _Launch) -> str | None:
        """Save and unload; None when verified, else what went wrong.

        Raises:
            ProcessEnded: It did, meanwhile.
        """
        await self._save(launch)
        try:
            async with asyncio.timeout(HOOK_LIMIT_S):
                verified = await unless_ended(launch.handle, self._backend.unload(launch.caller), "unload")
        except ProcessEnded:
            raise
        except TimeoutError as error:
            return str(error) or f"not done after {format_duration(HOOK_LIMIT_S)}"
        except (OSError, BackendError) as error:
            return str(error) or type(error).__name__
        except Exception as error:
            _log.exception("%s: the %s module failed in unload", self.instance, self._backend.type_name)
            return f"{type(error).__name__}: {error}"
        return None if verified else "the server did not confirm it"

    async def _probe_busy(self, launch: _Launch) -> None:
        asking = unless_ended(launch.handle, self._backend.busy(launch.caller), "busy")
        busy = False
        try:
            busy = await self._unless_stopped(launch.generation, asking, BUSY_LIMIT_S)
        except _Interrupted:
            return
        except ProcessEnded as ended:
            await self._on_unexpected_end(launch, ended.report)
            return
        except (OSError, BackendError) as error:  # includes TimeoutError
            _log.warning("%s could not be asked whether it is busy: %s", self.instance, error or "no answer")
        except Exception:
            _log.exception("%s: the %s module failed in busy", self.instance, self._backend.type_name)
        self._reports.busy_probed(self.instance, launch.generation, bool(busy))

    # ---------------------------------------------------------------- stop and end

    async def _stop(self, generation: int) -> None:
        began, launch = self._clock.monotonic(), self._launch
        if launch is not None:
            try:
                await self._unless(lambda: self._hurried, self._save(launch))
            except (_Interrupted, ProcessEnded):
                pass  # there is no time, or nothing, to save
            await self._end(polite=True)
            _log.info("%s stopped after %s", self.instance, format_duration(self._clock.monotonic() - began))
        self._on_gone(generation)

    async def _on_unexpected_end(self, launch: _Launch, report: ExitReport) -> None:
        error = await unexpected_end(self._backend, launch.handle, report)
        if self._stop_is_ordered(launch.generation):
            return
        log_failure(self.instance, error)
        self._reports.exited(self.instance, launch.generation, error)
        await self._end(polite=False)
        self._on_gone(launch.generation)

    async def _end(self, *, polite: bool) -> None:
        """Return when nothing of the process is left, however often that must be tried.

        Never gives up: memory that is reported as free and is not would be given to the next model.
        """
        launch = self._launch
        if launch is None:
            return
        gone = polite and not self._hurried and await self._end_politely(launch)
        pause_s = 1 * SECONDS
        while not gone:
            try:
                async with asyncio.timeout(KILL_LIMIT_S):
                    await launch.handle.kill()
                gone = True
            except TimeoutError:
                _log.error("%s survives SIGKILL, probably stuck in a driver; trying again", self.instance)
            except (OSError, BackendError) as error:
                _log.error("%s could not be killed: %s; trying again", self.instance, error)
            except Exception:
                _log.exception("%s: killing it failed; trying again", self.instance)
            if not gone:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, KILL_PAUSE_LIMIT_S)
        self._launch = None

    async def _end_politely(self, launch: _Launch) -> bool:
        """Walk the ladder; False when SIGKILL must follow."""
        try:
            await self._unless(lambda: self._hurried, launch.handle.stop(), launch.grace_s + STOP_SLACK_S)
            return True
        except _Interrupted:
            _log.info("%s: no time for a polite stop", self.instance)
        except TimeoutError:
            _log.error("%s does not end within its grace times", self.instance)
        except (OSError, BackendError) as error:
            _log.error("%s could not be stopped: %s", self.instance, error)
        except Exception:
            _log.exception("%s: stopping it failed", self.instance)
        return False

    def _on_gone(self, generation: int) -> None:
        self._ended_generation = max(generation, self._ended_generation)
        if self._open_generation == generation:
            self._open_generation = None
        self._reports.stopped(self.instance, generation)

    async def _kill_on_the_way_out(self) -> None:
        launch = self._launch
        if launch is None:
            return
        killing = asyncio.create_task(launch.handle.kill(), name=f"{self.instance} last kill")
        try:
            await settle(killing, KILL_LIMIT_S, KILL_LIMIT_S)
        finally:
            if succeeded(killing):
                self._launch = None
            else:
                killing.cancel()
                why = killing.exception() if killing.done() and not killing.cancelled() else "it takes too long"
                _log.error("%s could not be killed: %s", self.instance, why)

    # ---------------------------------------------------------------- helpers

    @property
    def _endpoint(self) -> str:
        return self._backend.settings.endpoint_name

    def _give(self, order: _Order) -> None:
        if len(self._orders) >= ORDERS_LIMIT:
            raise InvalidTransition(f"{self.instance}: more than {ORDERS_LIMIT} orders are open")
        self._orders.append(order)
        self._ordered.set()

    def _stop_is_ordered(self, generation: int) -> bool:
        return _Order(_Kind.STOP, generation) in self._orders

    async def _unless_stopped(self, generation: int, work: Coroutine[Any, Any, _T], limit_s: float | None = None) -> _T:
        return await self._unless(lambda: self._stop_is_ordered(generation), work, limit_s)

    async def _unless(
        self, pointless: Callable[[], bool], work: Coroutine[Any, Any, _T], limit_s: float | None = None
    ) -> _T:
        """The result of ``work``; cancelled as soon as an order makes it ``pointless``. Does not nest.

        Raises:
            _Interrupted: It became pointless, even if it was done in the same moment.
            TimeoutError: Not done within ``limit_s``, or raised by ``work``.
        """
        try:
            async with asyncio.timeout(limit_s) as scope:
                self._scope, self._scope_is_pointless = scope, pointless
                result = await work
        except Exception:
            if pointless():
                raise _Interrupted from None
            raise
        finally:
            self._scope = None
        if pointless():
            raise _Interrupted
        return result

    def _interrupt_if_pointless(self) -> None:
        # An expired scope is already on its way out; moving its deadline is an error then.
        if self._scope is not None and not self._scope.expired() and self._scope_is_pointless():
            self._scope.reschedule(asyncio.get_running_loop().time())

    async def _save(self, launch: _Launch) -> None:
        if launch.unsaved and not self._hurried:
            await self._hook(launch, self._backend.before_stop(launch.caller), "before_stop")
            launch.unsaved = False

    async def _hook(self, launch: _Launch, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run a hook whose failure costs speed later, not correctness: it is logged.

        Raises:
            ProcessEnded: It did, meanwhile.
        """
        try:
            async with asyncio.timeout(HOOK_LIMIT_S):
                await unless_ended(launch.handle, work, name)
        except ProcessEnded:
            raise
        except (OSError, BackendError) as error:  # includes TimeoutError
            _log.warning("%s: %s failed: %s", self.instance, name, error or f"not done after {HOOK_LIMIT_S:.0f} s")
        except Exception:
            _log.exception("%s: the %s module failed in %s", self.instance, self._backend.type_name, name)

    def _as_backend_error(self, error: Exception, what: str) -> BackendError:
        if isinstance(error, BackendError):
            if error.endpoint is None:  # a launcher knows of no endpoints; the text must name it all the same
                error.endpoint, error.message = self._endpoint, f"{self._endpoint}: {error.message}"
                error.args = (error.message,)
            error.phase = error.phase or "starting"
            return error
        if not isinstance(error, OSError):
            _log.error("%s: the %s module failed", self.instance, self._backend.type_name, exc_info=error)
        return StartFailed(
            f"{self._endpoint}: its {self._backend.type_name} server {what}: {str(error) or type(error).__name__}",
            endpoint=self._endpoint,
            phase="starting",
            log_tail=self.output() if self._launch is not None else (),
        )


def _discard_plan(planning: asyncio.Task[LaunchPlan]) -> None:
    if succeeded(planning):
        remove_paths(list(planning.result().temp_files))
