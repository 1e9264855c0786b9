"""What an order waits for, told on the terminal while it does."""

import sys
import threading
from typing import Any, Self

from juggler.cli.ps import loading_text
from juggler.cli.remote import Remote
from juggler.cli.table import cut, printable, terminal_size
from juggler.errors import JugglerError

EVERY_S = 0.5
CALL_LIMIT_S = 2.0


class Progress:
    """While entered, one line on stderr says how an endpoint's load or end goes on; nothing where that is no terminal.

    A thread asks, because the order itself blocks; it ends within ``CALL_LIMIT_S``.
    """

    def __init__(self, remote: Remote, endpoint: str) -> None:
        self._remote = remote
        self._endpoint = endpoint
        self._ended = threading.Event()
        self._shown = False
        self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(2 * CALL_LIMIT_S)
        if self._shown:
            self._write("")

    def _tell(self) -> None:
        while not self._ended.wait(EVERY_S):
            try:
                status = self._remote.call("GET", "/api/v1/status", "instances", CALL_LIMIT_S)
            except JugglerError:
                continue  # the order itself will tell
            text = progress_text(status, self._endpoint)
            if text and not self._ended.is_set():
                self._write(cut(printable(text), terminal_size().columns - 1))
                self._shown = True

    def _write(self, text: str) -> None:
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()


def progress_text(status: dict[str, Any], endpoint: str) -> str:
    """How it goes with an endpoint, by its full or its own name; empty if there is none of that name."""
    listed = status["endpoints"]
    found = [one for one in listed if one["endpoint"] == endpoint] or [one for one in listed if one["name"] == endpoint]
    for one in status["instances"]:
        if found and one["instance"] == found[0]["instance"]:
            return f"{found[0]['endpoint']}: {loading_text(one, status['now_at']) or one['state']}"
    return ""
