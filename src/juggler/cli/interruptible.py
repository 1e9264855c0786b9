"""Running a command's coroutine so that a signal ends it with everything it started."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


def run_interruptibly(coroutine: Coroutine[Any, Any, _T]) -> _T:
    """Run to the end; Ctrl-C, SIGTERM and SIGHUP cancel it first, so that its children end with it.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        SystemExit: SIGTERM or SIGHUP, with 128 plus the signal's number, as shells have it.
    """
    received: list[int] = []

    async def body() -> _T:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def on_signal(number: int) -> None:
            received.append(number)
            task.cancel()

        for name in ("SIGTERM", "SIGHUP"):
            with contextlib.suppress(NotImplementedError, AttributeError, ValueError):
                number = getattr(signal, name)
                loop.add_signal_handler(number, on_signal, number)
        return await coroutine

    try:
        return asyncio.run(body())
    except asyncio.CancelledError:
        if received:
            sys.exit(128 + received[0])
        raise
