"""Commands in a terminal of their own: what they paint, what keys and signals do, and what they leave behind."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from typing import Any

LIMIT_S = 20.0

ENTER, LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
"""Second screen and no cursor; and back."""

_WITH_ITS_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """One program in a new terminal of which it is the owner, so that Ctrl-C and the like reach it."""

    def __init__(self, words: Sequence[str], env: dict[str, str], columns: int = 100, rows: int = 30) -> None:
        self._master, self._slave = pty.openpty()
        self.resize(columns, rows)
        self.modes: list[Any] = termios.tcgetattr(self._slave)
        self.seen = ""
        """Everything that was written to the terminal."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WITH_ITS_TERMINAL, *words],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**os.environ, "TERM": "xterm-256color", **env},
            start_new_session=True,
        )

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait_for(self, text: str, after: int = 0) -> int:
        """Until it was written behind the first ``after`` characters; where it ends."""
        end = time.monotonic() + LIMIT_S
        while text not in self.seen[after:]:
            assert time.monotonic() < end, f"{text!r} was not written: {self.seen[-1000:]!r}"
            ended = self.process.poll() is not None  # looked at first: what it wrote until then is read below
            assert self._read(0.1) or not ended, f"it ended before {text!r}: {self.seen[-1000:]!r}"
        return self.seen.index(text, after) + len(text)

    def ends(self) -> int:
        """Its exit status; everything it wrote was read."""
        end = time.monotonic() + LIMIT_S
        while self.process.poll() is None:
            assert time.monotonic() < end, f"it goes on: {self.seen[-1000:]!r}"
            self._read(0.05)
        while self._read(0.0):
            pass
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Modes, screen and cursor."""
        return (
            termios.tcgetattr(self._slave) == self.modes
            and self.seen.count(ENTER) == self.seen.count(LEAVE)
            and self.seen.rfind("\x1b[?1049h") <= self.seen.rfind("\x1b[?1049l")
        )

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._slave)

    def _read(self, wait_s: float) -> bool:
        if not select.select([self._master], [], [], wait_s)[0]:
            return False
        self.seen += os.read(self._master, 65536).decode("utf-8", "replace")
        return True


def lines_of(painted: str) -> list[str]:
    """The text of one view, without sequences."""
    return _SEQUENCE.sub("", painted).replace("\r", "").split("\n")


@contextlib.contextmanager
def terminal(words: Sequence[str], env: dict[str, str], columns: int = 100, rows: int = 30) -> Iterator[Terminal]:
    """A terminal that is closed at the end."""
    opened = Terminal(words, env, columns, rows)
    try:
        yield opened
    finally:
        opened.close()
