"""Live views: a terminal's second screen, repainted, with keys; whatever ends it, the terminal is as it was.

Where output is no terminal, or one without cursor moves, there is nothing to repaint: views are printed.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

import click

if sys.platform != "win32":
    import termios
    import tty

from juggler.cli.remote import NotReachable
from juggler.cli.table import terminal_size

Lines = Callable[[int | None, int | None], list[str]]
"""The view as lines, for so many columns and rows; None: any number of them."""

_ENTER = "\x1b[?1049h\x1b[?25l"
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN, _PLAIN = "\x1b[H", "\x1b[K", "\x1b[J", "\x1b[0m"


def can_repaint() -> bool:
    """Whether output goes to a terminal with a second screen."""
    return sys.platform != "win32" and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def watch(lines: Lines, *, every_s: float, on_screen: bool = True) -> None:
    """Show a view again and again until ``q`` or Ctrl-C; what was seen last stays on the terminal.

    Args:
        lines: Asked for the view; while it fails because nobody answers, that is shown, except the first time.
        every_s: Pause between two views.
        on_screen: Repaint where that can be done; else each view that differs from the last is printed.
    """
    shown = lines(*_size())
    if not (on_screen and can_repaint()):
        _print_changes(shown, lines, every_s)
        return
    with Screen() as screen:
        while True:
            screen.paint(shown)
            if _quits(screen.wait(every_s)):
                break
            try:
                shown = lines(*_size())
            except NotReachable as error:
                shown = [error.message, "", "trying again; q ends this"]
    _print(shown)


def show_once_or_live(lines: Lines, *, every_s: float) -> None:
    """As ``watch`` on a terminal; elsewhere the view is printed once."""
    if can_repaint():
        watch(lines, every_s=every_s)
    else:
        _print(lines(None, None))


def _quits(keys: str | None) -> bool:
    """q, Ctrl-D or Escape; other keys send sequences that begin with Escape, and may hold a q."""
    if keys is None or (keys.startswith("\x1b") and keys != "\x1b"):
        return False
    return keys == "\x1b" or any(key in keys for key in ("q", "Q", "\x04"))


def _print_changes(shown: list[str], lines: Lines, every_s: float) -> None:
    _print(shown)
    while True:
        time.sleep(every_s)
        fresh = lines(*_size())
        if fresh != shown:
            _print(fresh)
        shown = fresh


def _print(lines: list[str]) -> None:
    for line in lines:
        click.echo(line)
    sys.stdout.flush()


def _size() -> tuple[int | None, int | None]:
    if not sys.stdout.isatty():
        return None, None
    size = terminal_size()
    return size.columns, size.lines


class Screen:
    """The second screen of the terminal, while it is entered; keys come without Enter and are not shown.

    Ctrl-C, SIGTERM, SIGHUP and Ctrl-Z find the terminal as it was.
    """

    def __init__(self) -> None:
        self._input = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
        self._wake_reader, self._wake_writer = os.pipe()
        self._modes: list[Any] = []
        self._handlers: dict[int, object] = {}
        self._wakeup_fd = -1
        self._suspend = False

    def __enter__(self) -> Self:
        os.set_blocking(self._wake_reader, False)
        os.set_blocking(self._wake_writer, False)
        self._wakeup_fd = signal.set_wakeup_fd(self._wake_writer, warn_on_full_buffer=False)
        handlers = {
            signal.SIGWINCH: _nothing,  # that it came wakes the wait below
            signal.SIGTSTP: self._on_suspend,
            signal.SIGTERM: _end,
            signal.SIGHUP: _end,
        }
        for number, handler in handlers.items():
            self._handlers[number] = signal.signal(number, handler)
        self._take()
        return self

    def __exit__(self, *exception: object) -> None:
        self._give_back()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal itself returned
        signal.set_wakeup_fd(self._wakeup_fd)
        os.close(self._wake_reader)
        os.close(self._wake_writer)

    def paint(self, lines: list[str]) -> None:
        """Show these lines, as many as there is room for."""
        rows = terminal_size().lines
        sys.stdout.write(_HOME + (_END_OF_LINE + "\n").join(lines[:rows]) + _PLAIN + _END_OF_LINE + _END_OF_SCREEN)
        sys.stdout.flush()

    def wait(self, seconds: float) -> str | None:
        """Until a key comes (returned), or the time is over or the size has changed (None)."""
        watched = [self._wake_reader, *([self._input] if self._input is not None else [])]
        ready, _, _ = select.select(watched, [], [], seconds)
        if self._wake_reader in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_reader, 4096)
        if self._suspend:
            self._suspend = False
            self._stand_still()
            return None
        if self._input in ready:
            assert self._input is not None
            return os.read(self._input, 64).decode("utf-8", "replace") or "\x04"  # nothing: the terminal is gone
        return None

    def _take(self) -> None:
        if self._input is not None:
            self._modes = termios.tcgetattr(self._input)
            tty.setcbreak(self._input)
        sys.stdout.write(_ENTER)
        sys.stdout.flush()

    def _give_back(self) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            sys.stdout.write(_PLAIN + _LEAVE)
            sys.stdout.flush()
        if self._input is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._input, termios.TCSADRAIN, self._modes)

    def _on_suspend(self, number: int, frame: FrameType | None) -> None:
        self._suspend = True

    def _stand_still(self) -> None:
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)  # goes on here after SIGCONT
        self._take()


def _nothing(number: int, frame: FrameType | None) -> None:
    """That a signal came is all there is to know."""


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
