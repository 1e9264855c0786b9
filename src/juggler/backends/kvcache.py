"""The KV cache of all slots of a llama-server, kept over a stop: saved before it, restored after the next start.

Layout: ``<state_dir>/kv/<signature>/`` holds one file per slot and ``manifest.json``, which names the files of the
last complete save. The server writes straight to the name it is given, so each save gets new names and the manifest
changes over in one rename; a save that ends half-way leaves the good files as they were.

Nothing here may fail a start or a stop, or hold one up for long: every call has a limit, every failure is one log
line. A busy slot is skipped, for a save would wait until its generation ends (backends.md 2.4).
"""

import asyncio
import json
import logging
import os
import shutil
import time
from collections.abc import Awaitable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from juggler.backends.base import Caller, Response
from juggler.units import GIB, MIB, format_size

_log = logging.getLogger("juggler.backends.llamacpp")

MANIFEST = "manifest.json"
SAVE_BASE_S = 5.0
SAVE_BYTES_PER_S = 200 * MIB
"""A disk slower than this is not worth waiting for: the time limit of a save is 5 s and this rate."""

SAVE_LIMIT_S = 25.0
"""Longest time one stop may spend here; the supervisor's own last resort is 30 s."""

FREE_DISK_FRACTION = 0.05
FREE_DISK_LEAST = GIB
BYTES_PER_TOKEN_GUESS = 256 * 1024
"""For the time limit of the first save, before a size was seen: a large model's row (backends.md 2.4)."""


class SlotServer(Protocol):
    """What is needed of the backend module."""

    async def slots(self, caller: Caller) -> list[dict[str, object]]: ...

    async def build(self, caller: Caller) -> str: ...

    def call(
        self, caller: Caller, method: str, path: str, body: bytes | None = None, timeout_s: float = 3.0
    ) -> Awaitable[Response]: ...


@dataclass(frozen=True, slots=True)
class SavedSlot:
    """One file of a complete save."""

    slot: int
    file: str
    tokens: int
    size_bytes: int


class KvCache:
    """The saved slots of one signature.

    Args:
        root: ``<state_dir>/kv``.
        signature: Names what the files fit (``kvsignature``).
        quota_bytes: For all signatures together; the oldest saves go first.
    """

    def __init__(self, root: Path, signature: str, quota_bytes: int) -> None:
        self._root = root
        self._directory = root / signature
        self._signature = signature
        self._quota_bytes = quota_bytes
        self._off = False
        self._restored: dict[int, SavedSlot] = {}
        """Slots of the present process that hold what a file holds, until a task runs on them."""

    def prepare(self) -> Path:
        """Make the directory (mode 0700), remove what an interrupted save left; returns it. Blocks on the disk."""
        for directory in (self._root, self._directory):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
        known = {saved.file for saved in self._manifest()}
        for leftover in self._directory.iterdir():
            if leftover.name != MANIFEST and leftover.name not in known:
                leftover.unlink(missing_ok=True)
        return self._directory

    # -- restore -----------------------------------------------------------------------------------------------

    async def restore(self, server: SlotServer, caller: Caller) -> None:
        """Put saved slots back, before the first request is let in."""
        self._restored = {}
        saved, build = await asyncio.to_thread(self._read)
        if not saved or self._off:
            return
        try:
            if await server.build(caller) != build:
                _log.info("saved slots are not restored: another build of the server wrote them")
                return
            count = len(await server.slots(caller))
        except (OSError, TimeoutError, ValueError) as error:
            _log.warning("saved slots are not restored: %s", error)
            return
        for entry in saved:
            if entry.slot >= count:
                continue  # slot numbers wrap around: a larger one would land in somebody else's (backends.md 2.4)
            body = json.dumps({"filename": entry.file}).encode()
            limit_s = self._limit_s(entry.size_bytes)
            try:
                answer = await server.call(caller, "POST", f"/slots/{entry.slot}?action=restore", body, limit_s)
            except (OSError, TimeoutError) as error:
                _log.warning("slot %d could not be restored: %s", entry.slot, error or "no answer in time")
                return
            if self._is_refused(answer):
                return
            if answer.status != 200:
                _log.warning("slot %d could not be restored: %s", entry.slot, _reason(answer))
            else:
                self._restored[entry.slot] = entry
                _log.info("slot %d: %d tokens restored", entry.slot, entry.tokens)

    # -- save --------------------------------------------------------------------------------------------------

    async def save(self, server: SlotServer, caller: Caller) -> None:
        """Save every slot that holds tokens and does not work."""
        if self._off:
            return
        try:
            async with asyncio.timeout(SAVE_LIMIT_S):
                await self._save(server, caller)
        except TimeoutError:
            _log.warning("saving the slots took longer than %.0f s and was given up", SAVE_LIMIT_S)
        except (OSError, ValueError) as error:
            _log.warning("the slots could not be saved: %s", error)

    async def _save(self, server: SlotServer, caller: Caller) -> None:
        everything = await server.slots(caller)
        slots = [slot for slot in everything if _tokens(slot) > 0 and not slot.get("is_processing")]
        if not slots:
            return
        # A restored slot that ran no task since says nothing of its tokens (backends.md 2.4); its file is still good.
        untouched = {slot.get("id") for slot in everything if "n_prompt_tokens" not in slot}
        kept = [entry for number, entry in self._restored.items() if number in untouched]
        build = await server.build(caller)
        if not await asyncio.to_thread(self._has_room):
            _log.warning("the slots are not saved: the disk of %s is nearly full", self._root)
            return
        before = {entry.slot: entry for entry in await asyncio.to_thread(self._manifest)}
        stamp = f"{time.time_ns():x}"
        saved: list[SavedSlot] = []
        for slot in slots:
            number = slot.get("id")
            if not isinstance(number, int):
                continue
            entry = await self._save_slot(server, caller, number, f"slot{number}-{stamp}.bin", _tokens(slot), before)
            if self._off:
                return
            if entry is not None:
                saved.append(entry)
        if saved:
            await asyncio.to_thread(self._commit, saved, kept, build)

    async def _save_slot(
        self,
        server: SlotServer,
        caller: Caller,
        number: int,
        file: str,
        tokens: int,
        before: dict[int, SavedSlot],
    ) -> SavedSlot | None:
        last = before.get(number)
        per_token = last.size_bytes / last.tokens if last and last.tokens else BYTES_PER_TOKEN_GUESS
        body = json.dumps({"filename": file}).encode()
        try:
            answer = await server.call(
                caller, "POST", f"/slots/{number}?action=save", body, self._limit_s(int(tokens * per_token))
            )
        except (OSError, TimeoutError) as error:
            _log.warning("slot %d could not be saved: %s", number, error or "no answer in time")
            return None
        if self._is_refused(answer):
            return None
        saved = answer.json_object().get("n_saved") if answer.status == 200 else None
        if not isinstance(saved, int):
            _log.warning("slot %d could not be saved: %s", number, _reason(answer))
            return None
        if saved <= 0:
            return None  # an empty save succeeds too; it must not take the place of a good file
        path = self._directory / file
        try:
            path.chmod(0o600)
            return SavedSlot(number, file, saved, path.stat().st_size)
        except OSError as error:
            _log.warning("slot %d was not saved where we look for it: %s", number, error)
            return None

    def _commit(self, saved: list[SavedSlot], kept: list[SavedSlot], build: str) -> None:
        """Make the new files and the kept ones the saved state, drop the others, keep the quota."""
        total = sum(entry.size_bytes for entry in (*saved, *kept))
        if total > self._quota_bytes:
            _log.warning(
                "the saved slots (%s) exceed the quota of %s and are dropped",
                format_size(total),
                format_size(self._quota_bytes),
            )
            for entry in saved:
                (self._directory / entry.file).unlink(missing_ok=True)
            return
        replaced = self._manifest()
        document = {"saved_at": time.time(), "build": build, "slots": [asdict(entry) for entry in (*saved, *kept)]}
        fresh = self._directory / (MANIFEST + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            json.dump(document, stream)
        fresh.replace(self._directory / MANIFEST)
        for entry in replaced:
            if entry not in kept:
                (self._directory / entry.file).unlink(missing_ok=True)
        _log.info("%d slots saved, %d tokens, %s", len(saved), sum(one.tokens for one in saved), format_size(total))
        self._keep_quota()

    def _keep_quota(self) -> None:
        """Remove the oldest saves of other signatures until all together fit."""
        sizes: list[tuple[float, int, Path]] = []
        for directory in self._root.iterdir():
            if directory.is_dir():
                files = [(one.stat().st_mtime, one.stat().st_size) for one in directory.iterdir() if one.is_file()]
                newest = max((mtime for mtime, _ in files), default=0.0)
                sizes.append((newest, sum(size for _, size in files), directory))
        total = sum(size for _, size, _ in sizes)
        for _, size, directory in sorted(sizes):
            if total <= self._quota_bytes:
                return
            if directory != self._directory and size:
                # The directory itself stays: a running server may have it as its --slot-save-path.
                (directory / MANIFEST).unlink(missing_ok=True)
                for file in directory.iterdir():
                    file.unlink(missing_ok=True)
                total -= size
                _log.info("saved slots of %s dropped: over the quota", directory.name)

    # -- helpers -----------------------------------------------------------------------------------------------

    def _manifest(self) -> list[SavedSlot]:
        return self._read()[0]

    def _read(self) -> tuple[list[SavedSlot], str]:
        """Slots and build of the last complete save, files checked; nothing if there is none or it is damaged."""
        try:
            document = json.loads((self._directory / MANIFEST).read_text(encoding="utf-8"))
            entries = [SavedSlot(**entry) for entry in document["slots"]]
            whole = [one for one in entries if (self._directory / one.file).stat().st_size == one.size_bytes]
            return whole, str(document["build"])
        except FileNotFoundError:
            return [], ""
        except (OSError, ValueError, TypeError, KeyError) as error:
            _log.warning("the list of saved slots in %s is unreadable: %s", self._directory, error)
            return [], ""

    def _has_room(self) -> bool:
        usage = shutil.disk_usage(self._directory)
        return usage.free > min(FREE_DISK_LEAST, int(usage.total * FREE_DISK_FRACTION))

    def _limit_s(self, size_bytes: int) -> float:
        return min(SAVE_BASE_S + size_bytes / SAVE_BYTES_PER_S, SAVE_LIMIT_S)

    def _is_refused(self, answer: Response) -> bool:
        """501: this build cannot save slots of such a model (multimodal, say). Said once, then left alone."""
        if answer.status == 501 and not self._off:
            self._off = True
            _log.info("this server cannot save its slots: %s", _reason(answer))
        return self._off


def _tokens(slot: dict[str, object]) -> int:
    """Cached tokens of a slot; a slot that ran no task lacks the key."""
    tokens = slot.get("n_prompt_tokens")
    return tokens if isinstance(tokens, int) else 0


def _reason(answer: Response) -> str:
    error = answer.json_object().get("error")
    return f"{answer.status} {error.get('message')}" if isinstance(error, dict) else f"status {answer.status}"
