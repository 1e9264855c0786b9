"""What was learned, kept over restarts in one JSON file of the state directory.

The file is replaced whole and at once, so that a crash leaves the old or the new one. A damaged file, or one of another
version, is set aside and learning begins anew: it costs some estimates, nothing else. Whatever goes wrong with the
disk is said once; the program goes on with what it has in memory. A disk that hangs is waited for briefly.
"""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from juggler.ids import PoolId
from juggler.memory.footprint import PoolBytes
from juggler.memory.learning import FootprintRecord
from juggler.survey.threads import in_thread
from juggler.units import MIB, SECONDS

VERSION = 1
RECORDS_MAX = 1000
"""Those not used for longest go first."""
FILE_BYTES_MAX = 32 * MIB
SIZE_MAX = 1 << 50
"""No pool is larger."""
SAVE_LIMIT_S = 5 * SECONDS
"""For writing the file; milliseconds, unless its disk is gone."""

_log = logging.getLogger("juggler.memory")


@dataclass(frozen=True, slots=True)
class Learned:
    """Everything that is remembered under one key."""

    footprint: FootprintRecord = field(default_factory=FootprintRecord)
    times: Mapping[str, object] = field(default_factory=dict)
    """As ``scheduler.estimates.Estimates.exported`` gave it."""
    used_at: float = 0.0
    """Seconds since 1970."""


class LearnedStore:
    """See the module. Not for use by two programs at once: the last one to save wins.

    Args:
        path: The file; its directory exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._records: dict[str, Learned] = {}
        self._changed = False
        self._complained = False
        self._writing = threading.Lock()
        """Held by the thread that writes: while it hangs, others give up."""

    def load(self) -> None:
        """Read the file, if there is one. Blocking; never raises."""
        try:
            if self._path.stat().st_size > FILE_BYTES_MAX:
                raise ValueError("it is larger than it can have become")
            document = json.loads(self._path.read_bytes())
            if not isinstance(document, dict) or document.get("version") != VERSION:
                raise ValueError("it is of another version")
            records = document.get("records")
            if not isinstance(records, dict):
                raise ValueError("it holds no records")
        except FileNotFoundError:
            return
        except (ValueError, RecursionError) as error:
            self._set_aside(error)
            return
        except OSError as error:
            self._complain(f"cannot read {self._path}: {error.strerror or error}")
            return
        for key, plain in list(records.items())[-RECORDS_MAX:]:
            learned = _read(plain)
            if learned is not None:
                self._records[key] = learned

    def get(self, key: str) -> Learned | None:
        """What is remembered under ``key``."""
        return self._records.get(key)

    def put(self, key: str, learned: Learned) -> None:
        """Remember; written by the next ``save``."""
        if self._records.get(key) == learned:
            return
        self._records.pop(key, None)
        self._records[key] = learned
        self._changed = True
        while len(self._records) > RECORDS_MAX:
            del self._records[min(self._records, key=lambda one: self._records[one].used_at)]

    async def save(self) -> None:
        """Write the file, if anything has changed. Takes twice ``SAVE_LIMIT_S`` at most, and never raises."""
        if not self._changed:
            return
        self._changed = False
        try:
            text = json.dumps({"version": VERSION, "records": {key: _plain(one) for key, one in self._records.items()}})
            await in_thread(2 * SAVE_LIMIT_S, self._write_alone, text)
        except TimeoutError:
            self._changed = True
            self._complain(f"what was learned cannot be kept in {self._path}: the disk does not answer")
        except (OSError, ValueError, RecursionError) as error:
            self._changed = True
            why = getattr(error, "strerror", None) or error
            self._complain(f"what was learned cannot be kept in {self._path}: {why}")

    def _write_alone(self, text: str) -> None:
        """One after the other: an earlier save that was not waited for must not end after a later one.

        Raises:
            TimeoutError: An earlier one hangs.
        """
        if not self._writing.acquire(timeout=SAVE_LIMIT_S):
            raise TimeoutError
        try:
            self._write(text)
        finally:
            self._writing.release()

    def _write(self, text: str) -> None:
        descriptor, name = tempfile.mkstemp(prefix=".learned-", dir=self._path.parent)  # 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(name).unlink()
            raise

    def _set_aside(self, error: Exception) -> None:
        aside = self._path.with_name(self._path.name + ".damaged")
        try:
            self._path.replace(aside)
        except OSError as problem:
            self._complain(f"{self._path} cannot be used ({error}), nor set aside: {problem.strerror or problem}")
        else:
            _log.warning("%s cannot be used (%s): it was renamed to %s", self._path, error, aside.name)

    def _complain(self, text: str) -> None:
        if not self._complained:
            self._complained = True
            _log.warning("%s", text)


def key_of(command: Sequence[str], files: Iterable[tuple[str, int, int]], devices: Sequence[str]) -> str:
    """What a record is kept under: changes with anything that changes how much memory is needed.

    Args:
        command: The program and its arguments as configured, without the port and private files of one start.
            Secrets may be among them: only a digest is kept.
        files: Path, size and time of change (nanoseconds) of every model file.
        devices: What tells the devices and drivers from others.
    """
    plain = json.dumps([list(command), [list(file) for file in files], list(devices)])
    return hashlib.blake2b(plain.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _plain(learned: Learned) -> dict[str, Any]:
    record = learned.footprint
    return {
        "peak_load": dict(record.peak_load),
        "steady": dict(record.steady),
        "peak_run": dict(record.peak_run),
        "unloaded": None if record.unloaded is None else dict(record.unloaded),
        "seen": record.seen,
        "times": dict(learned.times),
        "used_at": round(learned.used_at),
    }


def _read(plain: object) -> Learned | None:
    """A record from a file that anybody may have written; None if it is none."""
    if not isinstance(plain, dict):
        return None
    unloaded, seen, times, used_at = (plain.get(name) for name in ("unloaded", "seen", "times", "used_at"))
    if not isinstance(seen, int) or isinstance(seen, bool) or not 0 <= seen < 1 << 40:
        return None
    footprint = FootprintRecord(
        _sizes(plain.get("peak_load")),
        _sizes(plain.get("steady")),
        _sizes(plain.get("peak_run")),
        None if unloaded is None else _sizes(unloaded),
        seen,
    )
    when = float(used_at) if isinstance(used_at, (int, float)) and 0 <= used_at < 1e12 else 0.0
    return Learned(footprint, times if isinstance(times, dict) else {}, when)


def _sizes(plain: object) -> PoolBytes:
    if not isinstance(plain, dict):
        return {}
    return {
        PoolId(str(pool)): size
        for pool, size in plain.items()
        if isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= SIZE_MAX
    }
