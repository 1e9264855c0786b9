"""Drains a backend's stdout and stderr from the first byte into one bounded ring of lines.

A pipe that nobody reads stops its writer after 64 KiB, so reading never waits for anything, and its cost is bounded
by the pipe, not by the writer: one read per turn of the loop, and of a chunk with more lines than the ring holds
only the last ones are looked at. A flood costs memory copies, neither memory nor the loop's time.
"""

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import Callable
from typing import Literal

from juggler.units import KIB

RING_LINES_MAX = 500
RING_BYTES_MAX = 256 * KIB
LINE_BYTES_MAX = 8 * KIB
"""Longer lines keep their beginning. Python tracebacks and llama.cpp log lines stay below 1 KiB."""
READ_BYTES = 64 * KIB
"""One read per turn: the size of a Linux pipe (``pipe(7)``)."""
DRAIN_READS_MAX = 32
"""Reads when a process has ended; pipes hold at most 1 MiB unless root raised the limit (``pipe(7)``)."""

CUT_MARK = " [cut]"
ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor moves
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC and other strings: titles, links
    r"|\x1b[ -/]*[0-~]?"  # the short ones
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]"  # control characters other than tab and line feed
)

log = logging.getLogger(__name__)

Stream = Literal["stdout", "stderr"]
Subscriber = Callable[[Stream, str], None]


def strip_escapes(text: str) -> str:
    """The text without terminal escape sequences and control characters (tabs and line feeds stay)."""
    return ESCAPES.sub("", text)


class LineCutter:
    """Cuts one byte stream into lines of bounded length. Pure.

    A carriage return means "write this line again": only the last state of a line is kept.
    """

    def __init__(self) -> None:
        self._pending = b""

    @property
    def pending(self) -> bytes:
        """The begun line, as a terminal would show it."""
        return _last_state(self._pending)

    def feed(self, data: bytes) -> tuple[int, list[bytes]]:
        """Add bytes; get the number of complete lines skipped, and the last ``RING_LINES_MAX`` complete ones."""
        head, newline, rest = data.partition(b"\n")
        if not newline:
            self._add(data)
            return 0, []
        self._add(head)
        first = _last_state(self._pending)
        self._pending = b""
        lines = rest.rsplit(b"\n", RING_LINES_MAX)
        self._add(lines.pop())
        skipped = 0
        if len(lines) < RING_LINES_MAX:
            lines.insert(0, first)
        else:
            skipped = 1 + lines[0].count(b"\n")
            lines[0] = lines[0].rpartition(b"\n")[2]
        return skipped, [_last_state(line) for line in lines]

    def finish(self) -> list[bytes]:
        """The stream has ended: a last line without its line end, if there is one."""
        line, self._pending = self.pending, b""
        return [line] if line else []

    def _add(self, data: bytes) -> None:
        # A return at the very end stays: the line feed of a CRLF may follow.
        if (start := data.rfind(b"\r", 0, len(data.rstrip(b"\r")))) >= 0:
            self._pending, data = b"", data[start + 1 :]
        elif data.strip(b"\r") and self._pending.endswith(b"\r"):
            self._pending = b""
        # One byte more than a line may have marks the line as cut.
        self._pending += data[: LINE_BYTES_MAX + 1 - len(self._pending)]


def _last_state(line: bytes) -> bytes:
    line = line.rstrip(b"\r")
    line = line[line.rfind(b"\r") + 1 :]
    return line if len(line) <= LINE_BYTES_MAX else line[: LINE_BYTES_MAX - len(CUT_MARK)] + CUT_MARK.encode()


class OutputRing:
    """The last lines of all streams of one process, bounded in lines and in bytes; and who wants to see them."""

    def __init__(self, *, lines_max: int = RING_LINES_MAX, bytes_max: int = RING_BYTES_MAX) -> None:
        self._lines_max = lines_max
        self._bytes_max = bytes_max
        self._lines: deque[tuple[Stream, bytes]] = deque()
        self._bytes = 0
        self._subscribers: dict[object, Subscriber] = {}
        self._cutters: dict[Stream, LineCutter] = {}
        self.bytes_seen = 0
        """Everything the process has written so far, kept or not."""

    def feed(self, stream: Stream, data: bytes) -> None:
        """Bytes as they were read from ``stream``; lines of two streams never mix."""
        self.bytes_seen += len(data)
        skipped, lines = self._cutters.setdefault(stream, LineCutter()).feed(data)
        if skipped:
            self._append(stream, b"[%d lines skipped]" % skipped)
        for line in lines:
            self._append(stream, line)

    def finish(self, stream: Stream) -> None:
        """``stream`` has ended."""
        if (cutter := self._cutters.pop(stream, None)) is not None:
            for line in cutter.finish():
                self._append(stream, line)

    def tail(self, lines: int = 20) -> list[str]:
        """The last ``lines`` lines as plain text, oldest first; begun lines come last."""
        if lines <= 0:
            return []
        complete = [line.decode("utf-8", "replace") for _, line in self._lines]
        wanted = [*complete, *(text for _, text in self.begun())][-lines:]
        return [strip_escapes(text) for text in wanted]

    def begun(self) -> list[tuple[Stream, str]]:
        """Lines whose end has not come yet, escape sequences kept."""
        pending = [(stream, cutter.pending) for stream, cutter in self._cutters.items()]
        return [(stream, line.decode("utf-8", "replace")) for stream, line in pending if line]

    def subscribe(self, callback: Subscriber, *, replay: bool = False) -> Callable[[], None]:
        """Call ``callback`` with each complete line from now on, escape sequences kept; returns the way to end it.

        ``replay`` passes on what is in the ring first. An exception in the callback is logged and ends nothing.
        """
        if replay:
            for stream, line in tuple(self._lines):
                _notify(callback, stream, line.decode("utf-8", "replace"))
        key = object()
        self._subscribers[key] = callback

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)

        return unsubscribe

    def _append(self, stream: Stream, line: bytes) -> None:
        self._lines.append((stream, line))
        self._bytes += len(line) + 1
        while len(self._lines) > self._lines_max or self._bytes > self._bytes_max:
            self._bytes -= len(self._lines.popleft()[1]) + 1
        if self._subscribers:
            text = line.decode("utf-8", "replace")
            for callback in tuple(self._subscribers.values()):
                _notify(callback, stream, text)


def _notify(callback: Subscriber, stream: Stream, text: str) -> None:
    try:
        callback(stream, text)
    except Exception:
        log.exception("a subscriber to a backend's output failed")


class PipeDrain:
    """Reads one pipe into a ring for as long as it is open. Owns the descriptor.

    Uses ``add_reader``, which asyncio's selector loops and uvloop share, because the end of a process needs a read
    that does not go through the loop (``drain_now``).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, ring: OutputRing, stream: Stream) -> None:
        self._loop = loop
        self._fd = fd
        self._ring = ring
        self._stream = stream
        self.ended: asyncio.Future[None] = loop.create_future()
        """Done when the last writer has closed the pipe, or after ``close``."""
        os.set_blocking(fd, False)
        loop.add_reader(fd, self._read)

    def drain_now(self) -> None:
        """Take what is in the pipe at this moment, without waiting."""
        for _ in range(DRAIN_READS_MAX):
            if self.ended.done() or not self._read():
                return

    def close(self) -> None:
        """Stop reading and close the descriptor; idempotent."""
        if self.ended.done():
            return
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        self._ring.finish(self._stream)
        self.ended.set_result(None)

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            data = b""
        if not data:
            self.close()
            return False
        self._ring.feed(self._stream, data)
        return True
