"""Model files in the page cache: where they are, and reading them before they are needed.

A load reads at the disk's speed, or ten times as fast where the files are in the page cache (memory.md section B).
While an endpoint waits for memory the disk has nothing to do: its files are read then. A load that begins has the
disk to itself; what was read so far stays read, and the scheduler may have the rest read later.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from juggler.clock import Clock
from juggler.ids import InstanceId
from juggler.lifecycle.launcher import Launcher
from juggler.lifecycle.page_cache import share_of
from juggler.scheduler import events
from juggler.scheduler.state import SchedulerState
from juggler.scheduler.transitions import GONE

ENOUGH_SHARE = 0.98
"""Of the files in the page cache: the rest is not worth reading."""

_log = logging.getLogger("juggler.memory")


class FileReader:
    """Reads ahead, one instance's files at a time, as the scheduler orders.

    Args:
        state: Read, never changed.
        files: The files of an instance; none where nothing is known of them.
        post: Takes events for the scheduler.
    """

    def __init__(
        self,
        launcher: Launcher,
        state: SchedulerState,
        files: Callable[[InstanceId], Sequence[str]],
        clock: Clock,
        post: Callable[[events.Event], None],
    ) -> None:
        self._launcher = launcher
        self._state = state
        self._files = files
        self._clock = clock
        self._post = post
        self._reading: dict[InstanceId, asyncio.Task[None]] = {}
        self._begun: dict[InstanceId, Sequence[str]] = {}
        """What is being read; not of those whose task has not had its first turn."""

    def read_ahead(self, name: InstanceId) -> None:
        """Read an instance's files into the page cache; answered by ``FilesSeen`` in any case."""
        task = asyncio.get_running_loop().create_task(self._read(name), name=f"read ahead {name}")
        self._reading[name] = task
        task.add_done_callback(lambda task: self._ended(name, task))

    def stop(self, *, except_for: InstanceId | None = None) -> None:
        """End the readings under way: a load needs the disk for itself."""
        for name, task in list(self._reading.items()):
            if name != except_for:
                task.cancel()

    def leave(self, name: InstanceId) -> None:
        """End the reading of an instance's files if it has others now, or is gone."""
        if name in self._begun and self._begun[name] != self._files(name):
            self._reading[name].cancel()

    async def look(self) -> None:
        """Tell the scheduler whose files are where, after a load has moved others out."""
        for name in list(self._state.instances):
            instance, files = self._state.instances.get(name), self._files(name)
            if not files or instance is None or instance.residency not in GONE or name in self._reading:
                continue
            seen = await self._launcher.cached(files)
            share = share_of(seen)
            if share is not None:
                size = sum(one.size_bytes for one in seen)
                self._post(events.FilesSeen(self._clock.monotonic(), name, share, size))

    def _ended(self, name: InstanceId, task: "asyncio.Task[None]") -> None:
        """One that was stopped before its first turn has told nothing, and would be waited for."""
        if self._reading.get(name) is task:
            del self._reading[name]
            instance = self._state.instances.get(name)
            share = instance.cached if instance is not None else None
            self._post(events.FilesSeen(self._clock.monotonic(), name, share or 0.0, 0, finished=True))

    async def _read(self, name: InstanceId) -> None:
        files = self._begun[name] = self._files(name)
        share, size = 0.0, 0
        try:
            seen = await self._launcher.cached(files)
            size = sum(one.size_bytes for one in seen)
            share = share_of(seen) or 0.0
            if share < ENOUGH_SHARE:
                read = await self._launcher.prefetch([one.path for one in seen], 1 << 62)
                told = share_of(await self._launcher.cached(files)) if read else share
                share = told if told is not None else min(1.0, read / max(size, 1))
        except OSError as error:
            _log.info("the files of %s could not be read ahead: %s", name, error)
        finally:
            # Cut short by a load, it tells the share from before: how far it came is looked at when that load is done.
            self._reading.pop(name, None)
            del self._begun[name]
            if self._files(name) != files:  # another configuration has taken its place
                share, size = 0.0, 0
            self._post(events.FilesSeen(self._clock.monotonic(), name, share, size, finished=True))
