"""One owner task per instance: the only one that starts, wakes, unloads and stops its process.

Theory of operation. Others give orders, synchronously and without waiting; the owner carries them out one after the
other and reports what came of them. Each order carries the scheduler's generation (one per start), each report
echoes it. The rules a reader of the reports may rely on:

* Every ``start`` is followed by exactly one ``stopped`` of its generation, and that is its last report: nothing of
  it is left then.
* A failed start or wake is ``start_failed`` as soon as it is known (clients wait for it), and ``stopped`` once the
  process, which may still hold memory until then, is gone. An unexpected end is ``exited`` and then ``stopped``.
* An ``attach`` ends with ``instance_ready``, and then as a start does, or with ``not_attached`` alone. Stopping an
  attached server means to let go of it.
* After ``stop`` was ordered, ``stopped`` is the only report of that generation. A stop ends a running start, wake,
  unload or probe at once, and makes earlier orders of its generation void that have not begun.
* Orders for a generation that has ended are void: its ``stopped`` was their answer.

Mistakes in a backend module are logged with a traceback and become failures of the order; they never end the owner.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from juggler.backends.base import Address, Backend
from juggler.backends.command_line import find_program
from juggler.clock import Clock
from juggler.errors import BackendError, InvalidTransition, ReadyTimeout, StartFailed
from juggler.ids import InstanceId
from juggler.lifecycle.attaching import AttachedHandle, AttachTarget, has_died
from juggler.lifecycle.caller import HttpCaller
from juggler.lifecycle.ending import end_by_force, end_politely, kill_on_the_way_out
from juggler.lifecycle.guardian import remove_paths
from juggler.lifecycle.hooks import can_unload, run_hook, unload_problem
from juggler.lifecycle.interruption import Interrupted, Interruption
from juggler.lifecycle.launcher import ExitReport, Launcher, LaunchHandle
from juggler.lifecycle.orders import Kind, Order
from juggler.lifecycle.out_of_memory import as_out_of_memory, kernel_kills
from juggler.lifecycle.planning import planned
from juggler.lifecycle.readiness import LOG_TAIL_LINES, PortTaken, start_ended, unexpected_end, wait_until_ready
from juggler.lifecycle.reports import Reports, as_backend_error, log_failure, masked_command
from juggler.lifecycle.target_watch import TargetWatch
from juggler.lifecycle.waiting import ProcessEnded, settle, succeeded, unless_ended
from juggler.logs.book import Logs
from juggler.logs.launches import LaunchLog, shown_output
from juggler.units import SECONDS, format_duration

PORT_ATTEMPTS = 4
"""One start and three more on other ports, when another program takes the port between our test and the bind."""

RESERVE_LIMIT_S = 5 * SECONDS
SPAWN_LIMIT_S = 60 * SECONDS
"""The last resort: a launcher bounds its own ``start`` (the local one at 30 s, for a program on a sleeping disk)."""

SPAWN_CANCEL_LIMIT_S = 5 * SECONDS
"""For a start that nobody wants any more, to say whether there is a process to kill."""

BUSY_LIMIT_S = 5 * SECONDS
SILENCES_MOST = 3
"""A backend that does not say in time whether it works is taken to work, until it kept silent so often in a row."""

STOP_SLACK_S = 10 * SECONDS
"""Beyond the grace times of the ladder; a launcher's own bound is 5 s beyond them."""

ORDERS_LIMIT = 1000
"""The scheduler has at most a few orders open per generation; more is a mistake of ours."""

_log = logging.getLogger("juggler.lifecycle")
_T = TypeVar("_T")


@dataclass(slots=True)
class _Launch:
    """One process and what the owner remembers of it."""

    generation: int
    handle: LaunchHandle
    caller: HttpCaller
    grace_s: float
    """Sum of the stop ladder."""
    attached: AttachedHandle | None = None
    """The same handle, where the process is somebody else's."""
    unsaved: bool = False
    """Ready, and since then ``before_stop`` has not been through: there may be state worth saving."""
    silences: int = 0  # how often in a row it has not said whether it is busy


class Supervisor:
    """The owner of one instance. Orders and properties belong to the loop's thread; ``run`` is a task of its own.

    Args:
        instance: Echoed in every report.
        backend: The module's view of the instance; its hooks are called one at a time.
        launcher: Where processes come from.
        reports: Gets what happened.
        clock: For log lines, deadlines and the status view.
        environ: The juggler's own environment, for ``Backend.plan``.
        printed: Where what its processes print is kept.
    """

    def __init__(
        self,
        instance: InstanceId,
        backend: Backend,
        launcher: Launcher,
        reports: Reports,
        clock: Clock,
        environ: Mapping[str, str],
        printed: LaunchLog | None = None,
    ) -> None:
        self.instance = instance
        self._backend = backend
        self._launcher = launcher
        self._reports = reports
        self._clock = clock
        self._environ = environ
        self._printed = printed or Logs().of(instance, backend)
        self._orders: deque[Order] = deque()
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
        url = backend.settings.attach_to
        self._interruption = Interruption()
        self._watch: TargetWatch | None = None
        """On the server to attach to, where the configuration names one."""
        if url is not None:
            target = AttachTarget(url, backend, clock)
            self._watch = TargetWatch(target, backend, self._orders, self._ordered, self._interruption)
        self._placement: Mapping[str, str] = {}
        self._kills_before = 0

    # ---------------------------------------------------------------- orders

    def start(self, generation: int, environment: Mapping[str, str] | None = None) -> None:
        """Start a process for a new generation; ``instance_ready`` or ``start_failed``, finally ``stopped``.

        Args:
            environment: Added to the juggler's own for this start: where the program is to be placed.

        Raises:
            InvalidTransition: The generation is not new, or the one before was neither stopped nor has it ended.
        """
        self._open(generation)
        self._placement = dict(environment or {})
        self._give(Order(Kind.START, generation))

    def attach(self, generation: int) -> None:
        """Use the server that runs already; ``instance_ready`` or ``not_attached``, finally as for ``start``.

        Raises:
            InvalidTransition: As for ``start``, or there is no server to attach to in the configuration.
        """
        if self._watch is None:
            raise InvalidTransition(f"{self.instance}: there is nothing to attach to")
        self._open(generation)
        self._give(Order(Kind.ATTACH, generation))

    def wake(self, generation: int) -> None:
        """Bring the weights back after ``unloaded``; ``instance_ready``, or ``start_failed`` and then ``stopped``."""
        self._give(Order(Kind.WAKE, generation))

    def unload(self, generation: int) -> None:
        """Save state, free the weights, keep the process; ``unloaded`` or ``unload_failed``."""
        self._give(Order(Kind.UNLOAD, generation))

    def stop(self, generation: int) -> None:
        """Save state (if it was ready) and end the process; ``stopped`` and nothing else, also for a running start."""
        if generation <= self._ended_generation or self._stop_is_ordered(generation):
            return
        if generation == self._open_generation:
            self._open_generation = None
        self._give(Order(Kind.STOP, generation))
        self._interruption.check()

    def probe_busy(self, generation: int) -> None:
        """Ask the backend whether it works on something; ``busy_probed``. One open question is enough."""
        order = Order(Kind.PROBE_BUSY, generation)
        if order not in self._orders:
            self._give(order)

    def suspect(self) -> None:
        """A request could not be passed on: look at once whether the attached server is still there."""
        if self._watch is not None and self._launch is not None and self._launch.attached is not None:
            self._watch.suspect()

    def hurry(self) -> None:
        """From now on stops are SIGKILL at once, without saving; also for one that is under way."""
        self._hurried = True
        self._interruption.check()

    def look_for_program(self) -> None:
        """Whether the program that a start would run is there; file work, for a worker thread.

        Asked before anything is taken from others: they shall not go for a program that was moved or deleted.

        Raises:
            StartFailed: It is not, with a hint.
        """
        settings = self._backend.settings
        # A bare name may be meant for a file in the program's directory (sdwebui): the start will tell.
        if settings.binary is not None and not (Path(settings.cwd or ".") / settings.binary).is_file():
            path = {**self._environ, **settings.env}.get("PATH")
            find_program(settings.binary, endpoint=settings.endpoint_name, cwd=settings.cwd, path=path)

    # ---------------------------------------------------------------- status view

    def output(self, lines: int = LOG_TAIL_LINES) -> list[str]:
        """The last lines of the latest process, oldest first; also after its end."""
        return shown_output(self._handle.output(lines), self._backend.secrets) if self._handle is not None else []

    @property
    def generation(self) -> int | None:
        """The generation that was started or attached and neither ordered to stop nor has ended."""
        return self._open_generation

    @property
    def address(self) -> Address | None:
        """Where the process listens or will listen; None without one."""
        return self._launch.handle.address if self._launch is not None else None

    @property
    def exit(self) -> ExitReport | None:
        """How the latest process ended; None while it runs and before the first."""
        return self._handle.exit if self._handle is not None else None

    @property
    def ends(self) -> bool:
        """Its process is known to have ended, though that may not have been reported yet."""
        return self._launch is not None and self._launch.handle.exit is not None

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
            if self._launch is not None and await kill_on_the_way_out(self.instance, self._launch.handle):
                self._launch = None

    async def _next_order(self) -> Order:
        while not self._orders:
            self._ordered.clear()
            launch = self._launch
            if launch is None:
                await self._look_for_target()
                continue
            try:
                if launch.attached is not None and self._watch is not None:
                    await self._watch.look_after(launch.attached)
                else:
                    await unless_ended(launch.handle, self._ordered.wait(), "idle")
            except ProcessEnded as ended:
                await self._on_unexpected_end(launch, ended.report)
        return self._orders.popleft()

    async def _carry_out(self, order: Order) -> None:
        generation, launch = order.generation, self._launch
        if generation <= self._ended_generation or self._stop_is_ordered(generation):
            _log.debug("%s: %s of generation %d is void", self.instance, order.kind.value, generation)
        elif order.kind is Kind.START:
            await self._start(generation)
        elif order.kind is Kind.ATTACH:
            await self._attach(generation)
        elif order.kind is Kind.STOP:
            await self._stop(generation)
        elif launch is None or launch.generation != generation:
            _log.warning("%s: %s of unknown generation %d", self.instance, order.kind.value, generation)
        elif order.kind is Kind.WAKE:
            await self._wake(launch)
        elif order.kind is Kind.UNLOAD:
            await self._unload(launch)
        else:
            await self._probe_busy(launch)

    # ---------------------------------------------------------------- attach

    async def _look_for_target(self) -> None:
        """Until an order comes, or the server to attach to was looked for."""
        if self._watch is None:
            await self._ordered.wait()
        elif await self._watch.finds():
            self._reports.attachable(self.instance)

    async def _attach(self, generation: int) -> None:
        assert self._watch is not None
        began = self._clock.monotonic()
        self._backend.attached = True
        try:
            await self._unless_stopped(generation, self._take_hold(generation, self._watch.target))
        except Interrupted:
            return  # the stop order is in the queue and lets go of what was found
        except Exception as error:
            self._launch = None
            failure = self._as_backend_error(error, "could not be attached to")
            self._watch.tell_missed(failure)
            self._close(generation)
            self._reports.not_attached(self.instance, generation, failure)
        else:
            self._watch.tell_missed(None)
            self._on_ready(generation, began, f"attached at {self._watch.target.url}")

    async def _take_hold(self, generation: int, target: AttachTarget) -> None:
        caller = await target.find()
        attached = AttachedHandle(f"{self.instance}#{generation}", caller.address, self._clock)
        self._launch = launch = _Launch(generation, attached, caller, 0.0, attached)
        self._printed.note(f"attached at {target.url}; what it prints is not seen here")
        await self._hook(launch, self._backend.after_start(caller), "after_start")

    # ---------------------------------------------------------------- start and wake

    async def _start(self, generation: int) -> None:
        began = self._clock.monotonic()
        self._kills_before = kernel_kills()
        self._backend.attached = False
        try:
            await self._unless_stopped(generation, self._bring_up(generation, began))
        except Interrupted:
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
        plan = await planned(self._backend, address, {**self._environ, **self._placement})
        command = self._shown(masked_command(plan.argv))
        _log.info("starting %s: %s", self.instance, command)
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
                self._printed.started(command, handle)
            else:
                spawning.cancel()
                # Private files of a plan that never became a process; for all others it is the launcher's task.
                remove_paths(list(plan.temp_files))
        if not spawning.done():
            raise StartFailed(f"no process after {format_duration(SPAWN_LIMIT_S)}")
        spawning.result()  # raises what the launcher raised
        assert self._launch is not None
        return self._launch

    async def _until_ready(self, launch: _Launch, began: float) -> None:
        left_s = began + self._backend.settings.start_timeout_s - self._clock.monotonic()
        await wait_until_ready(
            self._backend, launch.caller, launch.handle, timeout_s=max(0.0, left_s), clock=self._clock
        )

    async def _wake(self, launch: _Launch) -> None:
        began, self._kills_before = self._clock.monotonic(), kernel_kills()
        try:
            await self._unless_stopped(launch.generation, self._bring_back(launch, began))
        except Interrupted:
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
        took = format_duration(self._clock.monotonic() - began)
        _log.info("%s %s after %s", self.instance, state, took)
        self._printed.note(f"{state} after {took}")
        attached = self._launch.attached is not None
        self._reports.instance_ready(
            self.instance,
            generation,
            self._launch.handle.address,
            attached=attached,
            soft_unload=can_unload(self._backend),
        )

    async def _give_up(self, generation: int, error: BackendError) -> None:
        """Report a failed start or wake at once, then remove what is left of the process."""
        error = as_out_of_memory(error, killed_by_kernel=kernel_kills() > self._kills_before)
        log_failure(self.instance, error)
        self._printed.note(error.message)
        self._reports.start_failed(self.instance, generation, error)
        await self._end(polite=False)
        self._on_gone(generation)

    # ---------------------------------------------------------------- unload, busy

    async def _unload(self, launch: _Launch) -> None:
        began = self._clock.monotonic()
        try:
            failure = await self._unless_stopped(launch.generation, self._free(launch))
        except Interrupted:
            return
        except ProcessEnded as ended:
            await self._on_unexpected_end(launch, ended.report)
            return
        if failure is not None and launch.attached is not None and await has_died(launch.attached.address):
            await self._on_unexpected_end(launch, launch.attached.lost())
        elif failure is None:
            took = format_duration(self._clock.monotonic() - began)
            _log.info("%s unloaded after %s", self.instance, took)
            self._printed.note(f"unloaded after {took}")
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
        problem = await unload_problem(self._backend, launch.handle, launch.caller)
        return None if problem is None else self._shown(problem)

    async def _probe_busy(self, launch: _Launch) -> None:
        asking = unless_ended(launch.handle, self._backend.busy(launch.caller), "busy")
        busy, silences = False, 0
        try:
            busy = await self._unless_stopped(launch.generation, asking, BUSY_LIMIT_S)
        except Interrupted:
            return
        except ProcessEnded as ended:
            await self._on_unexpected_end(launch, ended.report)
            return
        except TimeoutError as error:
            silences = (launch.silences + 1) % SILENCES_MOST
            busy = silences > 0
            word = "is taken to be busy" if busy else "counts as idle"
            _log.warning("%s did not say whether it works, and %s: %s", self.instance, word, error or "no answer")
        except (OSError, BackendError) as error:
            _log.warning("%s could not be asked whether it is busy: %s", self.instance, error)
        except Exception:
            _log.exception("%s: the %s module failed in busy", self.instance, self._backend.type_name)
        launch.silences = silences
        self._reports.busy_probed(self.instance, launch.generation, bool(busy))

    # ---------------------------------------------------------------- stop and end

    async def _stop(self, generation: int) -> None:
        began, launch = self._clock.monotonic(), self._launch
        if launch is not None and launch.attached is not None:
            await self._end(polite=True)
            _log.info("%s let go: the attached server runs on", self.instance)
        elif launch is not None:
            self._printed.note("is being stopped")
            try:
                await self._interruption.unless(lambda: self._hurried, self._save(launch))
            except (Interrupted, ProcessEnded):
                pass  # there is no time, or nothing, to save
            await self._end(polite=True)
            _log.info("%s stopped after %s", self.instance, format_duration(self._clock.monotonic() - began))
        self._on_gone(generation)

    async def _on_unexpected_end(self, launch: _Launch, report: ExitReport) -> None:
        if launch.attached is not None and self._watch is not None:
            error: BackendError = self._watch.target.lost()
        else:
            error = await unexpected_end(self._backend, launch.handle, report)
        if self._stop_is_ordered(launch.generation):
            return
        log_failure(self.instance, error)
        self._reports.exited(self.instance, launch.generation, error)
        await self._end(polite=False)
        self._on_gone(launch.generation)

    async def _end(self, *, polite: bool) -> None:
        """Return when nothing of the process is left, however often that must be tried."""
        launch = self._launch
        if launch is None:
            return
        gone = False
        if polite and not self._hurried:
            walking = end_politely(self.instance, launch.handle, launch.grace_s + STOP_SLACK_S)
            try:
                gone = await self._interruption.unless(lambda: self._hurried, walking)
            except Interrupted:
                _log.info("%s: no time for a polite stop", self.instance)
        if not gone:
            await end_by_force(self.instance, launch.handle)
        self._launch = None
        self._printed.ended(launch.handle.exit)

    def _on_gone(self, generation: int) -> None:
        self._close(generation)
        self._reports.stopped(self.instance, generation)

    # ---------------------------------------------------------------- helpers

    @property
    def _endpoint(self) -> str:
        return self._backend.settings.endpoint_name

    def _open(self, generation: int) -> None:
        if generation <= self._ended_generation or self._open_generation is not None:
            raise InvalidTransition(
                f"{self.instance}: start of generation {generation} while {self._open_generation} is open "
                f"and {self._ended_generation} has ended"
            )
        self._open_generation = generation

    def _close(self, generation: int) -> None:
        self._ended_generation = max(generation, self._ended_generation)
        if self._open_generation == generation:
            self._open_generation = None
        if self._watch is not None:
            self._watch.pause()

    def _give(self, order: Order) -> None:
        if len(self._orders) >= ORDERS_LIMIT:
            raise InvalidTransition(f"{self.instance}: more than {ORDERS_LIMIT} orders are open")
        self._orders.append(order)
        self._ordered.set()
        self._interruption.check()

    def _stop_is_ordered(self, generation: int) -> bool:
        return Order(Kind.STOP, generation) in self._orders

    async def _unless_stopped(self, generation: int, work: Coroutine[Any, Any, _T], limit_s: float | None = None) -> _T:
        return await self._interruption.unless(lambda: self._stop_is_ordered(generation), work, limit_s)

    async def _save(self, launch: _Launch) -> None:
        if launch.unsaved and not self._hurried:
            await self._hook(launch, self._backend.before_stop(launch.caller), "before_stop")
            launch.unsaved = False

    async def _hook(self, launch: _Launch, work: Coroutine[Any, Any, None], name: str) -> None:
        await run_hook(self._backend, launch.handle, work, name)

    def _as_backend_error(self, error: Exception, what: str) -> BackendError:
        told = as_backend_error(error, self._backend, what, self.output() if self._launch is not None else ())
        told.message = self._shown(told.message)
        told.log_tail = tuple(shown_output(told.log_tail, self._backend.secrets))
        told.args = (told.message,)
        return told

    def _shown(self, text: str) -> str:
        """A sentence of ours, which may quote what the backend answered."""
        return shown_output([text], self._backend.secrets, cut=False)[0]
