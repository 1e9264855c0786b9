"""One stream of events for everybody who looks: made once, kept in a ring, sent as each reader can take it.

Four times a second at most, and only while somebody looks, the state is compared with what was last told; what changed
becomes one message. Then the readers are woken, one in each turn of the loop, so that those whom models serve wait for
one of them at most; each gets all that is new in one piece. Who was away for a while goes on where it was
(``Last-Event-ID``), or gets a snapshot if the ring does not reach back. A slow reader holds nothing but its own place
in the ring.
"""

import asyncio
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping
from itertools import islice
from typing import NamedTuple

from juggler.control.decisions import plain_decision
from juggler.control.snapshot import Item, Snapshots
from juggler.control.subject import Subject
from juggler.errors import TooManyReaders
from juggler.history.history import Batch
from juggler.units import KIB, MIB, SECONDS

_log = logging.getLogger("juggler.control")

TICK_S = 0.25
ALIVE_EVERY_S = 10 * SECONDS
"""So long without a message one that has only the time tells the reader that the stream is alive."""

RING_MESSAGES = 512
RING_BYTES = 4 * MIB
PIECE_BYTES = 64 * KIB
"""What a reader gets at once, unless one message is longer: a slow one holds no more of its own."""
READERS_MAX = 64
LINGER_S = 30 * SECONDS
"""So long after the last reader left the ring is still filled: a reader that was cut off comes back sooner."""
REQUESTS_TOLD = 20
"""Ended requests in one message: four times a second more than anybody reads, and each costs what a look costs."""
RESEND_AFTER_S = 5 * SECONDS
"""What only counts is told anew after this time."""

_COUNTING = frozenset(
    (
        *("waited_s", "expected_wait_s", "expected_s", "idle_s", "load_expected_s", "retry_in_s"),
        *("waits_for", "why", "connections"),
    )
)
"""Fields that change by themselves while nothing happens."""
_KEYS = {
    "pools": "pool",
    "instances": "instance",
    "endpoints": "endpoint",
    "waiting": "request",
    "running": "request",
    "listeners": "server",
}


class Message(NamedTuple):
    """One event as it goes out."""

    number: int
    data: bytes


class _Told:
    """What was last told of one item."""

    __slots__ = ("at", "item", "steady")

    def __init__(self, item: Item, steady: Item, at: float) -> None:
        self.item = item
        self.steady = steady
        self.at = at


class EventStream:
    """See the module.

    Args:
        subject: What is looked at.
        snapshots: Makes the snapshots of it.
        boot: What tells this run from others; part of every id.
    """

    def __init__(self, subject: Subject, snapshots: Snapshots, boot: str) -> None:
        self._subject = subject
        self._snapshots = snapshots
        self._boot = boot
        self._ring: deque[Message] = deque()
        self._ring_bytes = 0
        self._number = 0
        self._readers: set[asyncio.Event] = set()
        self._to_wake: list[asyncio.Event] = []
        self._woken_for = 0
        """The number of the last message that readers were woken for."""
        self._told: dict[str, dict[object, _Told]] = {}
        self._scalars: Item = {}
        self._wanted = asyncio.Event()
        self._unwanted_since = 0.0
        self._closed = False
        self._complained = False
        self._fresh = False
        """``_told`` is what the readers know."""

    def close(self) -> None:
        """End every reader's stream."""
        self._closed = True
        for reader in self._readers:
            reader.set()

    async def run(self) -> None:
        """Look, while anybody does; the owner's task, ended by cancelling it."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            end_history = self._subject.history.subscribe(self._on_batch)
            end_reloads = self._subject.when_changed(self._on_reload)
            try:
                while self._readers or loop.time() < self._unwanted_since + LINGER_S:
                    self._look_in_any_case()
                    if self._number != self._woken_for and not self._to_wake:
                        self._woken_for = self._number
                        self._to_wake = list(self._readers)
                        if self._to_wake:  # nobody, for a while after the last one has gone
                            self._wake_next()
                    await asyncio.sleep(TICK_S)
            finally:
                end_history()
                end_reloads()
                self._wanted.clear()
                self._forget()

    def _look_in_any_case(self) -> None:
        """A mistake in one snapshot is told once, and costs the readers what it would have told them."""
        try:
            self._look()
        except Exception:
            if not self._complained:
                self._complained = True
                _log.exception("this is a bug in the juggler: what is to be shown could not be looked at")

    def _wake_next(self) -> None:
        self._to_wake.pop().set()
        if self._to_wake:
            asyncio.get_running_loop().call_soon(self._wake_next)

    def open(self, last_id: str | None) -> AsyncIterator[bytes]:
        """The stream for one reader.

        Args:
            last_id: The last id it got; None: it is new.

        Raises:
            TooManyReaders: See there.
        """
        if len(self._readers) >= READERS_MAX:
            raise TooManyReaders("too many pages follow this juggler already", hint="close some of them")
        return self._messages(last_id)

    async def _messages(self, last_id: str | None) -> AsyncIterator[bytes]:
        news = asyncio.Event()
        self._readers.add(news)
        try:
            if not self._wanted.is_set():
                self._wanted.set()
                self._look()
            position = self._position(last_id)
            yield b"retry: 1000\n\n"
            resumed = position is not None
            while not self._closed:
                if position is None:
                    position, data = self._number, self._snapshot()
                    yield data
                news.clear()
                messages = self._after(position)
                if messages is None:
                    position = None
                    continue
                if messages:
                    position = messages[-1].number
                    yield b"".join([message.data for message in messages])
                    if position < self._number:
                        continue
                if resumed:  # its clock stood while it was away, and what it missed has old times
                    resumed = False
                    yield _alive()
                if not news.is_set() and not self._closed:
                    try:
                        async with asyncio.timeout(ALIVE_EVERY_S):
                            await news.wait()
                    except TimeoutError:
                        yield _alive()
        finally:
            self._readers.discard(news)
            self._unwanted_since = asyncio.get_running_loop().time()

    def _position(self, last_id: str | None) -> int | None:
        """The number behind an id, if everything after it is still there."""
        boot, _, number = (last_id or "").rpartition("-")
        if boot != self._boot or not (number.isascii() and number.isdigit() and len(number) < 20):
            return None
        position = int(number)
        return position if position <= self._number and self._after(position) is not None else None

    def _after(self, position: int) -> list[Message] | None:
        """What comes behind a number, at most a piece of it; None: the ring does not reach back so far."""
        if position >= self._number:
            return []
        if not self._ring or position + 1 < self._ring[0].number:
            return None
        found: list[Message] = []
        size = 0
        for message in islice(self._ring, position + 1 - self._ring[0].number, None):
            size += len(message.data)
            if found and size > PIECE_BYTES:
                break
            found.append(message)
        return found

    def _snapshot(self) -> bytes:
        self._look()  # so that what comes next is told against what this shows
        return _event(f"{self._boot}-{self._number}", "snapshot", self._snapshots.status())

    # -- what is new -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Compare with what was told last."""
        now = time.monotonic()
        changed: Item = {}
        removed: dict[str, list[object]] = {}
        for name, items in self._snapshots.collections().items():
            told = self._told.setdefault(name, {})
            key = _KEYS[name]
            fresh = [item for item in items if _is_news(told, item[key], item, now)]
            gone = list(told.keys() - {item[key] for item in items})
            for one in gone:
                del told[one]
            if fresh:
                changed[name] = fresh
            if gone:
                removed[name] = gone
        scalars = self._snapshots.scalars()
        changed |= {name: value for name, value in scalars.items() if self._scalars.get(name, ...) != value}
        self._scalars = scalars
        if not self._fresh:
            self._fresh = True  # nobody has been told anything yet: a snapshot comes first
            return
        if removed:
            changed["removed"] = removed
        if changed:
            self._put("change", {"now_at": round(time.time(), 3), **changed})

    def _on_batch(self, batch: Batch) -> None:
        if batch.requests or batch.skipped:
            told = [one.plain() for one in batch.requests[-REQUESTS_TOLD:]]
            self._put("finished", {"requests": told, "skipped": batch.skipped + len(batch.requests) - len(told)})
        if batch.decisions:
            now = self._subject.engine.now()
            self._put("decisions", {"decisions": [plain_decision(one, now, time.time()) for one in batch.decisions]})
        if batch.spans:
            self._put("spans", {"spans": [span.plain() for span in batch.spans]})

    def _on_reload(self) -> None:
        self._put("change", {"now_at": round(time.time(), 3), "config": self._subject.config_summary()})

    def _put(self, name: str, data: Mapping[str, object]) -> None:
        self._number += 1
        message = Message(self._number, _event(f"{self._boot}-{self._number}", name, data))
        self._ring.append(message)
        self._ring_bytes += len(message.data)
        while len(self._ring) > RING_MESSAGES or (self._ring_bytes > RING_BYTES and len(self._ring) > 1):
            self._ring_bytes -= len(self._ring.popleft().data)

    def _forget(self) -> None:
        """Nobody looks: what happens from now on is in no message, so nobody can go on where it was."""
        self._number += 1
        self._ring.clear()
        self._ring_bytes = 0
        self._told.clear()
        self._scalars = {}
        self._fresh = False


def _is_news(told: dict[object, _Told], key: object, item: Item, now: float) -> bool:
    """Whether an item is to be told; notes it if so."""
    before = told.get(key)
    if before is not None:
        if before.item is item or before.item == item:
            return False
        steady = _steady(item)
        if before.steady == steady and now < before.at + RESEND_AFTER_S:
            return False
    told[key] = _Told(item, _steady(item), now)
    return True


def _steady(item: Item) -> Item:
    steady = {name: value for name, value in item.items() if name not in _COUNTING}
    if isinstance(error := steady.get("error"), dict):
        steady["error"] = _steady(error)
    return steady


def _alive() -> bytes:
    """Without an id, so it changes nothing for who resumes; browsers keep comments to themselves."""
    return b'event: alive\ndata: {"now_at":%.3f}\n\n' % time.time()


def _event(identity: str, name: str, data: Mapping[str, object]) -> bytes:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), default=str)
    return f"id: {identity}\nevent: {name}\ndata: {text}\n\n".encode("utf-8", "replace")
