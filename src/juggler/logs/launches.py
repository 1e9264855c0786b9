"""One instance's log as its owner writes it: what its processes print, between lines of ours."""

import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from juggler.lifecycle.launcher import ExitReport
from juggler.lifecycle.output import CUT_MARK, ESCAPES
from juggler.logs.masking import Masker, inherited_secrets
from juggler.logs.ring import LogRing, Stream

FLOOD_LINES = 5000
FLOOD_S = 5.0
"""So many lines are recorded in so many seconds, as many as a log keeps; each costs some 10 us of the loop's time."""

_COLOUR = re.compile(r"\x1b\[[0-9;:]*m")


class Printing(Protocol):
    """What a log needs of a process (``LaunchHandle``)."""

    def subscribe(self, callback: Callable[[Stream, str], None], *, replay: bool = False) -> Callable[[], None]: ...

    def begun(self) -> Sequence[tuple[Stream, str]]: ...


class LaunchLog:
    """Written by the owner of an instance, start after start.

    Args:
        ring: Where to; asked each time, since a log that was silent for long may have been dropped.
        secrets: The words to mask, asked at each start.
    """

    def __init__(self, ring: Callable[[], LogRing], secrets: Callable[[], Sequence[str]]) -> None:
        self._ring = ring
        self._secrets = secrets
        self._masker = Masker()
        self._flood = _Flood()

    def started(self, command: str, process: Printing) -> None:
        """A process was started; from now on what it prints is recorded."""
        self._masker = Masker(self._secrets())
        ring = self._ring()
        ring.running = True
        ring.begun = lambda: [(stream, self._clean(text, cut=True)) for stream, text in process.begun()]
        self.note(f"started: {command}")
        process.subscribe(self._on_line, replay=True)

    def ended(self, report: ExitReport | None) -> None:
        """Nothing is left of the process, and all it printed was recorded."""
        ring = self._ring()
        if not ring.running:
            return  # an attached server: it is not ours to say how it ended
        ring.running = False
        ring.begun = tuple
        self._tell_skipped()
        if report is None:
            self.note("ended")
        elif report.status >= 0:
            self.note(f"exited with status {report.status}")
        else:
            self.note(f"was ended by signal {-report.status}")

    def note(self, text: str) -> None:
        """A line of ours."""
        self._ring().add("juggler", self._clean(text), "info")

    def _on_line(self, stream: Stream, text: str) -> None:
        ring = self._ring()
        if self._flood.skips(ring.now()):
            return
        self._tell_skipped()
        ring.add(stream, self._clean(text, cut=text.endswith(CUT_MARK)))

    def _tell_skipped(self) -> None:
        if self._flood.skipped:
            self.note(f"{self._flood.skipped} lines were skipped: more than {FLOOD_LINES} came in {FLOOD_S:.0f} s")
            self._flood.skipped = 0

    def _clean(self, text: str, *, cut: bool = False) -> str:
        return _masked(self._masker, only_colours(text), cut=cut)


class _Flood:
    """Lets so many lines through as may be recorded."""

    def __init__(self) -> None:
        self.skipped = 0
        """Since this was told last."""
        self._began = 0.0
        self._lines = 0

    def skips(self, now: float) -> bool:
        """Whether the line that came now is skipped."""
        if not 0 <= now - self._began < FLOOD_S:
            self._began, self._lines = now, 0
        self._lines += 1
        if self._lines <= FLOOD_LINES:
            return False
        self.skipped += 1
        return True


def shown_output(lines: Iterable[str], secrets: Sequence[str], *, cut: bool = True) -> list[str]:
    """What a program printed, or what was made of it, for others to read: masked as in its log.

    Args:
        secrets: The words of its own that must not be seen; those of our environment are masked too.
        cut: Lines may have only begun, and may end within a secret.
    """
    masker = Masker((*secrets, *inherited_secrets(os.environ)))
    return [_masked(masker, line, cut=cut) for line in lines]


def _masked(masker: Masker, text: str, *, cut: bool) -> str:
    if cut and text.endswith(CUT_MARK):
        return masker.mask(text.removesuffix(CUT_MARK), cut=True) + CUT_MARK
    return masker.mask(text, cut=cut)


def only_colours(text: str) -> str:
    """One line: the text without control characters and terminal sequences other than colours and tabs.

    Colours are all that a terminal may be told by a program that does not own it: the rest could clear it, rename its
    window, or make it type.
    """
    if text.isprintable():
        return text
    return ESCAPES.sub(lambda match: match[0] if _COLOUR.fullmatch(match[0]) else "", text.replace("\n", " "))
