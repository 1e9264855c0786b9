"""All call lists against one juggler, in four states of their backends; what came of each call is written down.

1. *down*: nothing was ever started. Calls that may not wake are made.
2. *loading*: all others are made at once, and wait. Meanwhile those of state 1 are made again. When every event stream
   has got its head, the backends may load.
3. *ready*: every call, and the same call to the backend itself.
4. *away*: the operator has stopped the backends. Calls that may not wake are made again.

Lists do not disturb each other: each has a backend of its own. So they are replayed side by side.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tests.contract.libraries import LIMIT_S, Outcome, perform
from tests.contract.lists import Call, CallList
from tests.contract.stand_ins import Gate, backends, instances, juggled, stopped
from tests.e2e.support import Juggler, eventually

State = Literal["down", "loading", "ready", "direct", "away"]
Key = tuple[str, State, int]
"""List, state of its backend, number of the call."""

LISTS_AT_ONCE = 4


@dataclass(slots=True)
class Record:
    """What happened."""

    outcomes: dict[Key, Outcome] = field(default_factory=dict)
    began_before_load: dict[Key, bool] = field(default_factory=dict)
    """Of event streams in state *loading*: whether the head came while the backend could not be ready."""
    starts: dict[tuple[str, State], int] = field(default_factory=dict)
    """Starts of a list's backend, counted at the end of a state."""


class Replay:
    """One run through all states."""

    def __init__(self, lists: Sequence[CallList], juggler: Juggler, urls: dict[str, str]) -> None:
        self.lists = lists
        self.record = Record()
        self._juggler = juggler
        self._urls = urls
        self._learned: dict[str, dict[str, str]] = {one.slug: {} for one in lists}

    def run(self, gate: Gate) -> None:
        self._each(lambda one: self._make(one, "down", light=True))
        self._loading(gate)
        self._each(self._ready)
        self._each(lambda one: stopped(self._juggler, one.slug))
        self._count("ready")
        self._each(lambda one: self._make(one, "away", light=True))
        self._count("away")

    # -- states ----------------------------------------------------------------------------------------------------

    def _loading(self, gate: Gate) -> None:
        self._count("down")
        waking = [(one, number) for one in self.lists for number, call in enumerate(one.calls) if call.wakes]
        heads: dict[Key, threading.Event] = {
            (one.slug, "loading", number): threading.Event()
            for one, number in waking
            if one.calls[number].stream == "events"
        }
        with ThreadPoolExecutor(len(waking)) as pool:
            jobs = [
                pool.submit(self._one, one, "loading", number, {}, heads.get((one.slug, "loading", number)))
                for one, number in waking
            ]
            try:
                wanted = {one.slug: sum(call.wakes for call in one.calls) for one in self.lists}
                eventually(lambda: self._waiting() == wanted, "everything that wakes waits", LIMIT_S)
                self._each(lambda one: self._make(one, "loading", light=True))
                end = time.monotonic() + LIMIT_S / 2
                for key, head in heads.items():
                    began = head.wait(max(0.0, end - time.monotonic()))
                    self.record.began_before_load[key] = began
            finally:
                gate.open()
            wait(jobs)
        for job in jobs:
            job.result()
        self._count("loading")

    def _ready(self, one: CallList) -> None:
        if not any(call.wakes for call in one.calls):
            answer = self._juggler.ask(
                "POST", f"/api/v1/endpoints/{one.slug}/load?wait_s=60", port=self._juggler.control_port
            )
            assert answer.status == 200, answer.body
        base = f"http://{instances(self._juggler)[one.slug]['address']}"
        learned = self._learned[one.slug]
        for number, call in enumerate(one.calls):
            before = dict(learned)
            self._one(one, "ready", number, learned)
            if call.traffic != "blocked":
                self._one(one, "direct", number, before, base=base)

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _each(self, act: Callable[[CallList], None]) -> None:
        with ThreadPoolExecutor(LISTS_AT_ONCE) as pool:
            for result in [pool.submit(act, one) for one in self.lists]:
                result.result()

    def _waiting(self) -> dict[str, int]:
        return {name: one["waiting"] for name, one in instances(self._juggler).items()}

    def _count(self, state: State) -> None:
        for name, one in instances(self._juggler).items():
            self.record.starts[name, state] = one["starts"]

    def _make(self, one: CallList, state: State, *, light: bool) -> None:
        for number, call in enumerate(one.calls):
            if call.wakes != light:
                self._one(one, state, number, dict(self._learned[one.slug]))

    def _one(
        self,
        one: CallList,
        state: State,
        number: int,
        learned: dict[str, str],
        head: threading.Event | None = None,
        base: str | None = None,
    ) -> None:
        call = one.calls[number]
        if base is None:
            base = self._urls[one.slug] + one.prefix
        path = re.sub(r"{(\w+)}", lambda match: learned.get(match[1], "none"), call.path)
        end = time.monotonic() + LIMIT_S
        while True:
            outcome = perform(base, call, path, head.set if head is not None else lambda: None)
            found = {name: _look_up(outcome, place) for name, place in call.learn.items()}
            if state in ("down", "loading", "away") or None not in found.values() or time.monotonic() > end:
                break
            time.sleep(0.02)  # as the clients poll
        learned.update({name: value for name, value in found.items() if value is not None})
        self.record.outcomes[one.slug, state, number] = outcome


def _look_up(outcome: Outcome, place: str) -> str | None:
    """A text in the JSON of an answer."""
    try:
        value: Any = json.loads(outcome.body)
        for key in place.split("."):
            if isinstance(value, dict):
                value = next(iter(value.values())) if key == "*" else value[key]
            else:
                value = value[int(key)]
    except (ValueError, KeyError, IndexError, StopIteration):
        return None
    return str(value)


def replayed(folder: Path, lists: Sequence[CallList]) -> Record:
    """The record of a run through all states."""
    gate = Gate(folder)
    endpoints = {
        one.slug: {
            "backend": one.backend,
            "path_prefix": one.prefix,
            "strip_prefix": bool(one.prefix),
            "traffic": one.traffic,
            "kv_cache_saving": False,
        }
        for one in lists
    }
    used = {one.backend for one in lists}
    entries = {name: entry for name, entry in backends(folder, gate).items() if name in used}
    with juggled(folder, endpoints, backends=entries) as (juggler, urls):
        replay = Replay(lists, juggler, urls)
        replay.run(gate)
        return replay.record


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def without_changes(text: str, call_list: CallList) -> str:
    """An answer without what is different in the next one; llama.cpp's stand-in never changes its mind."""
    return text if call_list.backend == "llamacpp" else _NUMBER.sub("0", _UUID.sub("U", text))


def of_answer(outcome: Outcome, call: Call, call_list: CallList) -> dict[str, object]:
    """What must be the same with and without the juggler."""
    hop = ("date", "connection", "keep-alive", "transfer-encoding", "content-length")
    return {
        "status": outcome.status,
        "error": outcome.error,
        "message": outcome.message,
        "headers": {name: value for name, value in outcome.headers.items() if name not in hop},
        "body": without_changes(outcome.body.decode("latin-1"), call_list),
        "events": [without_changes(event, call_list) for event in outcome.events],
    }
