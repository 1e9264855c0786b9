"""The launcher of this machine: one guardian per backend, and one more started in advance.

Starting an interpreter is what a guardian costs, so a *spare* one waits with its socket and pipes ready; a start
hands it the plan and takes a few milliseconds. The next spare is made in the background. The guardian, not this
module, ends processes and removes temporary files; here are deadlines, the stop ladder and the bookkeeping.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from juggler.backends.base import Address, LaunchPlan, StopStep
from juggler.descriptors import limit_for_others
from juggler.devices.local import LocalDevices
from juggler.errors import BackendError, StartFailed
from juggler.ids import PoolId
from juggler.lifecycle import guardian, ports
from juggler.lifecycle.guardian_link import GuardianLink, Session, portable, portable_env
from juggler.lifecycle.launcher import LOCAL_NODE, ExitReport, LaunchInfo, MachineMemory, PoolUse
from juggler.lifecycle.local_memory import LocalMemory
from juggler.lifecycle.output import Stream, Subscriber
from juggler.lifecycle.page_cache import FileCache, look_at
from juggler.lifecycle.prefetch import budget_bytes, read_ahead
from juggler.lifecycle.start_errors import check_plan, start_failed
from juggler.lifecycle.waiting import succeeded
from juggler.survey.threads import in_thread
from juggler.units import SECONDS

LOOPBACK = "127.0.0.1"
EXEC_LIMIT_S = 30 * SECONDS
"""From plan to exec: 3 ms usually; a program on a sleeping disk or a network may take seconds."""
KILL_LIMIT_S = 5 * SECONDS
"""From SIGKILL to the end of everything; longer means a process hangs in the kernel."""
DRAIN_LIMIT_S = 0.2
"""After the main process ended, for output that others still hold (``exec > >(tee log)``)."""
ENDED_KEPT_MAX = 32
"""Launches that have ended and can still be described; each keeps its ring of output (256 KiB at most)."""

LOOK_LIMIT_S = 5 * SECONDS
"""For a look at model files: microseconds each, unless their disk is gone."""

PREFETCH_LIMIT_S = 3600 * SECONDS
"""For reading ahead: minutes; whoever needs the disk cancels it."""

log = logging.getLogger(__name__)


class LocalHandle:
    """A started process of this machine (``LaunchHandle``)."""

    def __init__(self, launcher: "LocalLauncher", launch_id: str, plan: LaunchPlan, address: Address) -> None:
        self._launcher = launcher
        self._launch_id = launch_id
        self._plan = plan
        self._address = address
        loop = asyncio.get_running_loop()
        self._exit: ExitReport | None = None
        self._exited: asyncio.Future[ExitReport] = loop.create_future()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._hurry: asyncio.Future[None] = loop.create_future()
        self._stopping: asyncio.Task[ExitReport] | None = None
        self._started_at = time.monotonic()
        self._link: GuardianLink
        self._session: Session
        self._guardian_pid = 0

    @property
    def launch_id(self) -> str:
        return self._launch_id

    @property
    def address(self) -> Address:
        return self._address

    @property
    def exit(self) -> ExitReport | None:
        if self._exit is None and self._link.exited.done():
            return self._link.exited.result()  # known, but the watching task had no turn yet
        return self._exit

    @property
    def gone(self) -> bool:
        """Whether nothing is left of the launch, descendants included."""
        return self._gone.done()

    async def wait(self) -> ExitReport:
        return await asyncio.shield(self._exited)

    async def signal(self, name: str) -> None:
        """Send a signal to the whole group.

        Raises:
            ValueError: This system has no signal of that name.
        """
        _check_signal(name)
        self._link.order("signal", name=name)

    async def stop(self, ladder: Sequence[StopStep] | None = None) -> ExitReport:
        """Walk the ladder, then SIGKILL (see ``LaunchHandle``).

        Raises:
            ValueError: The ladder names a signal that this system does not have.
            BackendError: A process survived SIGKILL for 5 s; the guardian goes on trying.
        """
        if self._gone.done():
            return self._exited.result()  # also after a stop that failed: the guardian went on trying
        if self._stopping is None:
            steps = tuple(self._plan.stop_ladder if ladder is None else ladder)
            for step in steps:
                _check_signal(step.signal)
            self._stopping = self._launcher._own(self._walk(steps), f"stop {self._launch_id}")
        return await asyncio.shield(self._stopping)

    async def kill(self) -> ExitReport:
        """SIGKILL everything at once (see ``LaunchHandle``).

        Raises:
            BackendError: A process survived it for 5 s; the guardian goes on trying.
        """
        if not self._hurry.done():
            self._hurry.set_result(None)
        self._link.order("kill")
        await asyncio.wait([self._gone], timeout=KILL_LIMIT_S)
        if not self._gone.done():
            pids = ", ".join(map(str, self._link.stuck)) or "unknown"
            raise BackendError(
                f"A process of {self._plan.argv[0]!r} does not end although it was killed (pid {pids}).",
                hint="It hangs in the kernel or a driver, or belongs to another user; its memory may still be taken.",
                log_tail=self.output(),
            )
        return self._exited.result()

    def output(self, lines: int = 20) -> list[str]:
        return self._link.ring.tail(lines)

    def subscribe(self, callback: Subscriber, *, replay: bool = False) -> Callable[[], None]:
        """Call ``callback`` with each complete line of output (``OutputRing.subscribe``)."""
        return self._link.ring.subscribe(callback, replay=replay)

    def begun(self) -> list[tuple[Stream, str]]:
        return self._link.ring.begun()

    async def _walk(self, steps: tuple[StopStep, ...]) -> ExitReport:
        self._link.order("hold")
        for step in steps:
            if self._gone.done() or self._hurry.done():
                break
            self._link.order("signal", name=step.signal)
            ends = (self._gone, self._hurry)
            await asyncio.wait(ends, timeout=step.grace_s, return_when=asyncio.FIRST_COMPLETED)
        if self._gone.done():
            return self._exited.result()
        return await self.kill()

    def _attach(self, link: GuardianLink, started: Mapping[str, object]) -> None:
        pid, guardian_pid = started["pid"], started["guardian"]
        assert isinstance(pid, int)
        assert isinstance(guardian_pid, int)
        self._link = link
        self._session = Session.of(pid)
        self._guardian_pid = guardian_pid
        self._launcher._own(self._watch(), f"watch {self._launch_id}")

    async def _watch(self) -> None:
        """Follow the process to its end, then let go of everything."""
        report = await self._link.exited
        if report is None:
            await self._end_without_guardian()
            report = ExitReport(status=-int(signal.SIGKILL), runtime_s=time.monotonic() - self._started_at)
        self._exit = report
        await self._link.drain(DRAIN_LIMIT_S)
        self._exited.set_result(report)
        if not await self._link.gone:
            await self._end_without_guardian()
        await self._link.drain(DRAIN_LIMIT_S)
        self._link.close()
        self._gone.set_result(None)

    async def _end_without_guardian(self) -> None:
        """The guardian was killed, which nobody should do: end what can still be found. Repeating it is harmless."""
        log.warning("the guardian of %s was lost; ending its processes", self._launch_id)
        await asyncio.to_thread(self._session.end)
        await asyncio.to_thread(guardian.remove_paths, _absolute_temp_files(self._plan))


class LocalLauncher:
    """Starts and keeps processes on this machine (``Launcher``).

    Bound to the loop it is first used in. ``close`` must be called; without it the guardians end everything as soon
    as this process ends.
    """

    def __init__(self) -> None:
        self._handles: dict[str, LocalHandle] = {}
        self._starting: dict[str, asyncio.Future[None]] = {}
        self._spare: asyncio.Task[GuardianLink] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._prefetches: set[threading.Event] = set()
        self._memory = LocalMemory(LocalDevices(), self._guardians)
        self._closed = False

    def prepare(self) -> None:
        """Start a spare guardian in the background if there is none; called again after each use."""
        spare = self._spare
        if spare is not None and spare.done() and not succeeded(spare):
            self._spare = None  # the trouble of that time may be over
        if self._spare is None and not self._closed and sys.platform != "win32":
            self._spare = self._own(GuardianLink.spawn(), "spare guardian")

    async def reserve(self) -> Address:
        """An address that was free a moment ago.

        Raises:
            StartFailed: No port is free on the loopback interface.
        """
        self.prepare()
        try:
            return Address(LOOPBACK, ports.reserve_port(LOOPBACK))
        except OSError as error:
            raise StartFailed(f"No free port on {LOOPBACK}: {error}.", phase="starting") from error

    async def start(self, launch_id: str, plan: LaunchPlan, address: Address) -> LocalHandle:
        """Start the plan (see ``Launcher``); a few milliseconds through a spare guardian, else about 40.

        Raises:
            StartFailed: The command cannot be executed, the launcher is closed, or this is Windows.
        """
        if sys.platform == "win32":
            raise StartFailed(
                "Starting backends is not supported on Windows.",
                phase="starting",
                hint="Run the juggler under WSL 2, or start the server yourself and use `attach_to`.",
            )
        while (pending := self._starting.get(launch_id)) is not None:
            await asyncio.wait([pending])
        handle = self._handles.get(launch_id)
        if handle is not None and handle.exit is None:
            return handle
        check_plan(plan)
        done = self._starting[launch_id] = asyncio.get_running_loop().create_future()
        try:
            handle = await self._start(launch_id, plan, address)
            self._handles.pop(launch_id, None)  # to the end: the dictionary is in order of start
            self._handles[launch_id] = handle
        finally:
            del self._starting[launch_id]
            done.set_result(None)
        self._forget_ended()
        self.prepare()
        return handle

    async def describe(self, launch_id: str) -> LaunchInfo | None:
        handle = self._handles.get(launch_id)
        if handle is None:
            return None
        return LaunchInfo(launch_id, LOCAL_NODE, handle.address, alive=handle.exit is None, exit=handle.exit)

    async def memory(self, launch_id: str) -> Mapping[str, int]:
        """Resident bytes of the process and its descendants; pages they share count once for each of them."""
        handle = self._handles.get(launch_id)
        if handle is None or handle.gone or not sys.platform.startswith("linux"):
            return {}
        processes = await asyncio.to_thread(guardian.descendants_of, handle._guardian_pid)
        if not processes:
            return {}
        return {"rss": sum(process.rss_pages for process in processes) * os.sysconf("SC_PAGE_SIZE")}

    async def pools(self) -> MachineMemory:
        return await self._memory.pools()

    async def measure(self) -> Mapping[PoolId, PoolUse]:
        return {} if self._closed else await self._memory.measure()

    def _guardians(self) -> Mapping[str, int]:
        return {name: handle._guardian_pid for name, handle in self._handles.items() if not handle.gone}

    async def cached(self, files: Sequence[str]) -> Sequence[FileCache]:
        try:
            return await in_thread(LOOK_LIMIT_S, look_at, tuple(files))
        except TimeoutError:
            return []

    async def prefetch(self, files: Sequence[str], limit_bytes: int) -> int:
        """Read files into the page cache, ``limit_bytes`` in all; a cancelled call stops reading within a chunk."""
        if self._closed:
            return 0
        stop = threading.Event()
        self._prefetches.add(stop)
        try:
            limit_bytes = min(limit_bytes, await in_thread(LOOK_LIMIT_S, budget_bytes))
            # Not a thread of the loop's executor: one that a dead disk holds would keep the program from ending.
            return await in_thread(PREFETCH_LIMIT_S, read_ahead, tuple(files), limit_bytes, stop)
        except TimeoutError:
            return 0
        finally:
            stop.set()
            self._prefetches.discard(stop)

    async def close(self) -> None:
        """Kill whatever still runs and release every resource; at most 5 s for the killing. Idempotent."""
        self._closed = True
        for stop in self._prefetches:
            stop.set()
        await self._memory.close()
        if self._starting:
            await asyncio.wait(list(self._starting.values()), timeout=KILL_LIMIT_S)
        running = [handle for handle in self._handles.values() if not handle.gone]
        for result in await asyncio.gather(*(handle.kill() for handle in running), return_exceptions=True):
            if isinstance(result, BaseException):
                log.error("%s", result)
        for handle in self._handles.values():
            handle._link.close()  # closes what a hanging process keeps open; its guardian stays with it
        if (spare := self._spare) is not None:
            self._spare = None
            spare.add_done_callback(_close_spare)
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=KILL_LIMIT_S)
        await asyncio.sleep(0)  # the callback above
        await asyncio.sleep(0)  # the transports it closed

    def _own(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """A task of this launcher: kept until it ends, its failure never lost."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("%s failed: %s", task.get_name(), error)

    async def _start(self, launch_id: str, plan: LaunchPlan, address: Address) -> LocalHandle:
        cwd = _absolute(plan.cwd or ".")
        for attempt in (1, 2):
            link = await self._take_guardian()
            try:
                link.order(
                    "start",
                    argv=[portable(argument) for argument in plan.argv],
                    env=portable_env(plan.env),
                    cwd=portable(cwd),
                    temp_files=[portable(path) for path in _absolute_temp_files(plan)],
                    descriptors=limit_for_others(),
                )
                handle = LocalHandle(self, launch_id, plan, address)
                await asyncio.wait([link.outcome], timeout=EXEC_LIMIT_S)
                if not link.outcome.done():
                    raise StartFailed(f"{plan.argv[0]!r} could not be executed within {EXEC_LIMIT_S:.0f} s.")
                outcome = link.outcome.result()
                if outcome is None and attempt == 1:  # the spare died while it waited: take a fresh one
                    link.close()
                    continue
                if outcome is None or outcome["event"] == "failed":
                    raise _explain(plan, cwd, outcome)
                if self._closed:
                    raise StartFailed("The juggler is shutting down.", phase="starting")
            except BaseException:
                link.close()  # the guardian ends what it may have started
                raise
            handle._attach(link, outcome)
            return handle
        raise AssertionError("unreachable")

    async def _take_guardian(self) -> GuardianLink:
        """The spare guardian, or a fresh one if there is none or it has died."""
        if self._closed:
            raise StartFailed("The juggler is shutting down.", phase="starting")
        self.prepare()
        task, self._spare = self._spare, None
        assert task is not None
        try:
            link = await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._spare is None and not self._closed:
                self._spare = task  # the next start uses it
            else:
                task.add_done_callback(_close_spare)
            raise
        if not link.lost:
            return link
        link.close()
        return await self._take_guardian_again()

    async def _take_guardian_again(self) -> GuardianLink:
        link = await GuardianLink.spawn()
        if link.lost:
            link.close()
            raise StartFailed("The keeper process ended at once.", phase="starting", hint="Is something killing it?")
        return link

    def _forget_ended(self) -> None:
        ended = [launch_id for launch_id, handle in self._handles.items() if handle.gone]
        for launch_id in ended[: max(0, len(ended) - ENDED_KEPT_MAX)]:
            del self._handles[launch_id]


def _explain(plan: LaunchPlan, cwd: str, outcome: Mapping[str, object] | None) -> StartFailed:
    if outcome is None:
        return StartFailed("The keeper process was killed.", phase="starting", hint="Is something killing it?")
    code = outcome["errno"]
    assert isinstance(code, int)
    return start_failed(plan, cwd, str(outcome["stage"]), code, str(outcome["text"]))


def _absolute(path: str) -> str:
    return str(Path(path).absolute())


def _absolute_temp_files(plan: LaunchPlan) -> list[str]:
    return [_absolute(path) for path in plan.temp_files]


def _check_signal(name: str) -> None:
    if name not in signal.Signals.__members__:
        raise ValueError(f"{name!r} is not a signal of this system")


def _close_spare(task: asyncio.Task[GuardianLink]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
