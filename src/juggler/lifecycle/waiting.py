"""Waits that a plain ``await`` does not offer: against the end of a process, and in spite of a cancellation."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from juggler.lifecycle.launcher import ExitReport, LaunchHandle
from juggler.units import SECONDS

CANCEL_LIMIT_S = 1 * SECONDS
"""For work that was cancelled to really end; what ignores its cancellation longer is left behind and logged."""

_log = logging.getLogger("juggler.lifecycle")
_T = TypeVar("_T")


class ProcessEnded(Exception):
    """The main process ended while something waited for it to do something else. Never leaves ``lifecycle``."""

    def __init__(self, report: ExitReport) -> None:
        super().__init__(str(report))
        self.report = report


async def unless_ended(handle: LaunchHandle, work: Coroutine[Any, Any, _T], name: str) -> _T:
    """The result of ``work``, given up as soon as the main process ends.

    When both happen at once, the work's own result counts. Cancelling this cancels ``work``.

    Raises:
        ProcessEnded: The process ended first.
        Exception: Whatever ``work`` raises.
    """
    if handle.exit is not None:
        work.close()
        raise ProcessEnded(handle.exit)
    working = asyncio.create_task(work, name=f"{handle.launch_id} {name}")
    ending = asyncio.create_task(handle.wait(), name=f"{handle.launch_id} wait")
    try:
        await asyncio.wait((working, ending), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ProcessEnded(ending.result())
    finally:
        working.cancel()
        ending.cancel()
        # What stays behind, or fails while it is cancelled, must not be reported again by the loop.
        working.add_done_callback(succeeded)
        ending.add_done_callback(succeeded)
        await asyncio.wait((working, ending), timeout=CANCEL_LIMIT_S)
        if not working.done():
            _log.error("%s does not end although it was cancelled; it is left behind", working.get_name())


async def settle(task: asyncio.Task[Any], limit_s: float, cancelled_limit_s: float) -> None:
    """Wait until ``task`` is done, at most ``limit_s``; when cancelled meanwhile, ``cancelled_limit_s`` more at most.

    Raises:
        CancelledError: The caller was cancelled; raised only afterwards.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    cancelled: asyncio.CancelledError | None = None
    while not task.done() and loop.time() < deadline:
        try:
            await asyncio.wait((task,), timeout=deadline - loop.time())
        except asyncio.CancelledError as error:
            if cancelled is None:
                deadline = min(deadline, loop.time() + cancelled_limit_s)
            cancelled = error
    if cancelled is not None:
        raise cancelled


def succeeded(task: asyncio.Task[Any]) -> bool:
    """Whether it has a result; as a side effect an exception of it counts as seen."""
    return task.done() and not task.cancelled() and task.exception() is None
