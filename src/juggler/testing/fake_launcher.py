"""Processes that exist only in memory, with the manners of bad ones where a test asks for them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from juggler.backends.base import Address, LaunchPlan, StopStep
from juggler.ids import PoolId
from juggler.lifecycle.launcher import LOCAL_NODE, ExitReport, LaunchInfo, MachineMemory, PoolUse
from juggler.lifecycle.output import Stream, Subscriber
from juggler.lifecycle.page_cache import FileCache
from juggler.testing.scripted import Act


@dataclass(frozen=True, slots=True)
class FakeProgram:
    """How one fake process behaves."""

    exits_after_s: float | None = None
    """It ends by itself this long after its start; None: never."""
    exit_status: int = 1
    """Then."""
    output: tuple[str, ...] = ()
    """Written at once."""
    last_words: tuple[str, ...] = ()
    """Written 5 ms after its end, as by a slow pipe."""
    ends_on: str | None = "SIGTERM"
    """The polite signal it obeys; None: only SIGKILL ends it."""
    lingers_s: float = 0.0
    """How long members of its group outlive the main process, unless they are killed."""
    kill_s: float = 0.0
    """How long a SIGKILL takes to empty the group."""
    kill_failures: int = 0
    """So many calls of ``kill`` fail first."""
    spawn: Act | None = None
    """Played by ``start`` while the process exists already."""
    start_error: Exception | None = None
    """Raised by ``start``; then there is no process."""


class FakeHandle:
    """A ``LaunchHandle``."""

    def __init__(self, launch_id: str, program: FakeProgram, plan: LaunchPlan, address: Address) -> None:
        self._launch_id = launch_id
        self._program = program
        self._address = address
        self._loop = asyncio.get_running_loop()
        self._started = self._loop.time()
        self._output = list(program.output)
        self._subscribers: list[Subscriber] = []
        self._ended = asyncio.Event()
        self._kill_failures = program.kill_failures
        self.plan = plan
        self.report: ExitReport | None = None
        self.empty = asyncio.Event()
        """Nothing of the group is left."""
        self.received: list[str] = []
        """Signals, and ``"stop"`` and ``"kill"`` for these calls, in order."""
        if program.exits_after_s is not None:
            self._loop.call_later(program.exits_after_s, self.end, program.exit_status)

    @property
    def launch_id(self) -> str:
        return self._launch_id

    @property
    def address(self) -> Address:
        return self._address

    @property
    def exit(self) -> ExitReport | None:
        return self.report

    def end(self, status: int) -> None:
        """The main process ends; the rest of its group as its program says."""
        if self.report is None:
            self.report = ExitReport(status, self._loop.time() - self._started)
            self._ended.set()
            self._loop.call_later(0.005, self.write, *self._program.last_words)
            if self._program.lingers_s:
                self._loop.call_later(self._program.lingers_s, self.empty.set)
            else:
                self.empty.set()

    async def wait(self) -> ExitReport:
        await self._ended.wait()
        assert self.report is not None
        return self.report

    async def signal(self, name: str) -> None:
        self.received.append(name)
        if name == self._program.ends_on:
            self.end(0)

    async def stop(self, ladder: Sequence[StopStep] | None = None) -> ExitReport:
        self.received.append("stop")
        for step in self.plan.stop_ladder if ladder is None else ladder:
            if not self.empty.is_set():
                await self.signal(step.signal)
                try:
                    await asyncio.wait_for(self.empty.wait(), step.grace_s)
                except TimeoutError:
                    pass
        return await self._kill()

    async def kill(self) -> ExitReport:
        self.received.append("kill")
        if self._kill_failures:
            self._kill_failures -= 1
            raise OSError("the guardian does not answer")
        return await self._kill()

    async def _kill(self) -> ExitReport:
        if not self.empty.is_set():
            if self._program.kill_s:
                await asyncio.sleep(self._program.kill_s)
            self.end(-9)
            self.empty.set()
        return await self.wait()

    def write(self, *lines: str) -> None:
        """Add lines of output."""
        self._output.extend(lines)
        for line in lines:
            for callback in self._subscribers:
                callback("stdout", line)

    def output(self, lines: int = 20) -> list[str]:
        return self._output[-lines:]

    def subscribe(self, callback: Subscriber, *, replay: bool = False) -> Callable[[], None]:
        for line in self._output if replay else ():
            callback("stdout", line)
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    def begun(self) -> list[tuple[Stream, str]]:
        return []


class FakeLauncher:
    """A ``Launcher``; each start takes the next program, the last one repeats."""

    def __init__(self, *programs: FakeProgram, reserve: Act | None = None) -> None:
        self._programs = list(programs) or [FakeProgram()]
        self._reserve = reserve or Act()
        self._next_port = 40001
        self.machine = MachineMemory()
        """What ``pools`` finds."""
        self.use: Callable[[], Mapping[PoolId, PoolUse]] | None = None
        """What ``measure`` sees; None: nothing."""
        self.measured = 0
        """Calls of ``measure``."""
        self.files: dict[str, tuple[int, float | None]] = {}
        """Size of each file, and the share of it that is in the page cache."""
        self.prefetched: list[str] = []
        self.handles: list[FakeHandle] = []
        """Every process that was ever started, in order."""

    @property
    def live(self) -> list[FakeHandle]:
        """Processes of which something is left."""
        return [handle for handle in self.handles if not handle.empty.is_set()]

    async def reserve(self) -> Address:
        await self._reserve.play()
        port, self._next_port = self._next_port, self._next_port + 1
        return Address("127.0.0.1", port)

    async def start(self, launch_id: str, plan: LaunchPlan, address: Address) -> FakeHandle:
        known = [handle for handle in self.live if handle.launch_id == launch_id]
        if known:
            return known[-1]
        program = self._programs.pop(0) if len(self._programs) > 1 else self._programs[0]
        if program.start_error is not None:
            raise program.start_error
        handle = FakeHandle(launch_id, program, plan, address)
        self.handles.append(handle)  # from here on it lives, even if nobody gets the handle
        if program.spawn is not None:
            await program.spawn.play()
        return handle

    async def describe(self, launch_id: str) -> LaunchInfo | None:
        for handle in reversed(self.handles):
            if handle.launch_id == launch_id:
                return LaunchInfo(launch_id, LOCAL_NODE, handle.address, handle.exit is None, handle.exit)
        return None

    async def memory(self, launch_id: str) -> Mapping[str, int]:
        return {}

    async def pools(self) -> MachineMemory:
        return self.machine

    async def measure(self) -> Mapping[PoolId, PoolUse]:
        self.measured += 1
        return self.use() if self.use is not None else {}

    async def cached(self, files: Sequence[str]) -> Sequence[FileCache]:
        return [FileCache(file, *self.files[file]) for file in files if file in self.files]

    async def prefetch(self, files: Sequence[str], limit_bytes: int) -> int:
        """Reads at 1 GB/s of the loop's time."""
        total = 0
        for file in files:
            size, share = self.files.get(file, (0, 0.0))
            count = min(size, limit_bytes - total)
            await asyncio.sleep(count / 1e9)
            self.files[file] = (size, max(share or 0.0, count / size if size else 1.0))
            self.prefetched.append(file)
            total += count
        return total

    async def close(self) -> None:
        for handle in self.live:
            await handle.kill()
