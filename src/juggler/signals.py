"""What the signals of the system mean to a juggler."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

_TERMINAL = "/dev/tty"


def install(stop: Callable[[], None], reload: Callable[[], None] | None) -> None:
    """SIGTERM and Ctrl-C stop, a second one hurries. SIGHUP reloads the configuration.

    A terminal that is closed sends SIGHUP as well: a juggler that was started there, and not with ``nohup``, is to end
    with it as before.

    Args:
        stop: Called for each signal to stop.
        reload: Called for SIGHUP; None: the system's way with it stays.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C arrives as KeyboardInterrupt
            loop.add_signal_handler(number, stop)
    if reload is None or not hasattr(signal, "SIGHUP"):
        return
    again = reload
    ends_with_it = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and _has_terminal()

    def hung_up() -> None:
        if ends_with_it and not _has_terminal():
            stop()
        else:
            again()

    loop.add_signal_handler(signal.SIGHUP, hung_up)


def _has_terminal() -> bool:
    """Whether there is a terminal that could be closed."""
    try:
        os.close(os.open(_TERMINAL, os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
