"""Our own records as lines of a log, from whatever thread they come."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

Add = Callable[[str, str, float], None]
"""Takes the text of one line, its level and when it was, in the loop's thread."""


class RingHandler(logging.Handler):
    """Hands records to ``add``; those of other threads through the loop.

    Made in the loop's thread.
    """

    def __init__(self, add: Add) -> None:
        super().__init__()
        self._add_line = add
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            area = record.name.removeprefix("juggler.")
            text = f"{area}: {record.getMessage()}"
            if record.exc_info:
                text += "\n" + logging.Formatter().formatException(record.exc_info)
        except Exception:
            self.handleError(record)
            return
        level = record.levelname.lower()
        if threading.get_ident() == self._thread:
            self._add_lines(text, level, record.created)
        else:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._add_lines, text, level, record.created)

    def _add_lines(self, text: str, level: str, at: float) -> None:
        for line in text.splitlines():
            self._add_line(line, level, at)
