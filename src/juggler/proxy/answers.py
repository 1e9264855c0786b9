"""Heads of answers that a backend sends again, and what clients get for them. Pure.

Programs answer with the same few heads, but for the length of the body (and the second in Date: a new head each
second costs nothing). What a client gets for one depends on the head alone, as long as nothing is added to it and no
address in it is mapped: then it is read and written anew once.
"""

import re
from dataclasses import replace
from typing import NamedTuple

from juggler.proxy.head import ResponseHead
from juggler.proxy.headers import REWRITTEN
from juggler.units import KIB

KNOWN_MOST = 64
"""Heads per instance; all are forgotten when there are more."""

KNOWN_BYTES_MAX = 2 * KIB

_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: (0|[1-9][0-9]{0,17})(?=\r\n[^ \t])")
"""Only as it would be written again, and not continued on the next line."""


class KnownAnswer(NamedTuple):
    """One head, with the length that it had when it came first."""

    answer: ResponseHead
    """Without its fields: those who look at them are not answered from here."""
    sent: bytes
    """What the client gets."""


class _Known(NamedTuple):
    digits: bytes
    first: KnownAnswer
    before: bytes
    after: bytes
    """What the client gets before and after the digits."""


class AnswerHeads:
    """Those of one instance."""

    __slots__ = ("_known", "_last", "_last_raw")

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], _Known] = {}
        self._last_raw = b""  # what was found last is most often what is looked for next
        self._last: KnownAnswer | None = None

    def find(self, raw: bytes) -> KnownAnswer | None:
        """The answer with a head that came before, whatever its length says.

        Args:
            raw: One whole head.
        """
        if raw == self._last_raw:
            return self._last
        found = self._find(raw)
        if found is not None:
            self._last_raw, self._last = raw, found
        return found

    def _find(self, raw: bytes) -> KnownAnswer | None:
        length = _LENGTH.search(raw)
        if length is None:
            known = self._known.get((raw, b""))
            return known.first if known is not None else None
        start, end = length.span(1)
        known = self._known.get((raw[:start], raw[end:]))
        if known is None:
            return None
        digits = raw[start:end]
        if digits == known.digits:
            return known.first
        answer = replace(known.first.answer, content_length=int(digits))
        return KnownAnswer(answer, known.before + digits + known.after)

    def note(self, raw: bytes, answer: ResponseHead, sent: bytes) -> None:
        """Remember what a client got for a final head, to which nothing was added for anybody in particular.

        Args:
            raw: As it came.
            answer: The same, read.
            sent: The same, as the client got it.
        """
        names = [name for _, name, _ in answer.fields]
        tells_its_end = answer.chunked or answer.content_length is not None  # whatever it answers: HEAD, or GET
        if len(raw) > KNOWN_BYTES_MAX or not tells_its_end or not REWRITTEN.isdisjoint(names):
            return
        length, sent_length = _LENGTH.search(raw), _LENGTH.search(sent)
        if length is None:
            key, digits, before, after = (raw, b""), b"", sent, b""
        elif sent_length is not None and sent_length[1] == length[1] and names.count(b"content-length") == 1:
            key, digits = (raw[: length.start(1)], raw[length.end(1) :]), length[1]
            before, after = sent[: sent_length.start(1)], sent[sent_length.end(1) :]
        else:
            return
        if len(self._known) >= KNOWN_MOST:
            self._known.clear()
        self._known[key] = _Known(digits, KnownAnswer(replace(answer, fields=[]), sent), before, after)
