"""What is known of an ollama server of ours while it is not running (clients.md section 4.2).

Without it no client could name a model: lists would be refused until somebody loads something. Nothing here starts
it, and nothing is made up: its models are on the disk (``ollama_store``), and a server that does not run holds none.
Only where a server would be started here: where an attached one keeps its models, nobody here knows. With both
``attach_to`` and ``binary`` it is told what the start would find; whether the other server still holds a model, and is
merely out of reach, is not.
"""

import asyncio
import json
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime

from juggler.backends.base import BackendSettings
from juggler.backends.ollama_store import ModelStore, StoredModel, models_folder
from juggler.routing.stand_in import Question, StandInAnswer
from juggler.survey.threads import in_thread
from juggler.units import SECONDS

LOOK_LIMIT_S = 3 * SECONDS
"""For one look at the store; those that come meanwhile wait for their turn no longer than this, either."""

_ZERO = re.compile(r"[+-]?(?:0|(?:(?:0+\.?0*|\.0+)(?:ns|us|µs|μs|ms|s|m|h))+)")
"""Go's ``time.ParseDuration``: no time at all."""

_CLOUD = re.compile(r"[:-]cloud\Z", re.IGNORECASE)
"""Names of models that run at ollama's makers."""

_READING = (b"GET", b"HEAD")
_LISTS = frozenset((b"/api/tags", b"/v1/models"))
_UNLOADING = {b"/api/generate": "prompt", b"/api/chat": "messages"}
"""Routes that take an order to unload, and what such an order is without."""


def orders_unload(body: bytes) -> bool:
    """Whether a request to generate is the order to unload a model: nothing to answer, and no time to keep it.

    ``server/routes.go``: GenerateHandler, ChatHandler; ``api/types.go``: Duration.
    """
    document = _object(body)
    if any(document.get(work) for work in _UNLOADING.values()) or "keep_alive" not in document:
        return False
    kept = document["keep_alive"]
    if isinstance(kept, str):
        return _ZERO.fullmatch(kept) is not None
    return isinstance(kept, (int, float)) and not isinstance(kept, bool) and kept == 0


class OllamaAway:
    """Answers for one server that is, or would be, started here; see the module.

    Args:
        settings: Of the instance.
    """

    def __init__(self, settings: BackendSettings) -> None:
        folder = models_folder({**os.environ, **settings.env}, settings.cwd)
        self._store = ModelStore(folder) if folder is not None else None
        self._holds_nothing = settings.attach_to is None
        self._turn = asyncio.Lock()
        self._hangs = False
        """A look did not come back yet: the disk is gone, and a further one would hang as well."""

    def knows(self, method: bytes, path: bytes) -> bool:
        if path == b"/api/ps" or path in _UNLOADING:
            return self._holds_nothing and method in ((b"POST",) if path in _UNLOADING else _READING)
        return path in _LISTS if method in _READING else (method, path) == (b"POST", b"/api/show")

    async def answer(self, question: Question) -> StandInAnswer | None:
        if question.path == b"/api/ps":
            return StandInAnswer(b'{"models":[]}', "placeholder")
        if self._store is None:
            return None
        if question.path == b"/api/tags":
            return await self._looked(self._tags, self._store)
        if question.path == b"/v1/models":
            return await self._looked(self._cards, self._store)
        asked = _object(question.body)
        name = asked.get("model") or asked.get("name")
        if not isinstance(name, str) or _CLOUD.search(name):
            return None
        if question.path == b"/api/show":
            system = asked.get("system")
            if asked.get("verbose"):
                return None  # whole vocabularies
            return await self._looked(self._show, self._store, name, system if isinstance(system, str) else "")
        return await self._looked(self._unloaded, self._store, name, question.path == b"/api/chat")

    async def _looked(self, look: Callable[..., StandInAnswer | None], *args: object) -> StandInAnswer | None:
        """What one look at the store finds, in a thread; None where it cannot be read, or not in time."""

        def work() -> StandInAnswer | None:
            try:
                return look(*args)
            except OSError:
                return None
            finally:
                self._hangs = False

        try:
            async with asyncio.timeout(2 * LOOK_LIMIT_S), self._turn:
                if self._hangs:
                    return None
                self._hangs = True
                return await in_thread(LOOK_LIMIT_S, work)
        except TimeoutError:
            return None

    # -- looks; blocking -----------------------------------------------------------------------------------------------

    @staticmethod
    def _tags(store: ModelStore) -> StandInAnswer:
        return _from_files({"models": [_entry(model) for model in store.models()]})

    @staticmethod
    def _cards(store: ModelStore) -> StandInAnswer:
        """OpenAI's list of the same (``openai/openai.go``)."""
        cards = [
            {"id": one.name, "object": "model", "created": one.modified_ns // 10**9, "owned_by": one.parts[1]}
            for one in store.models()
        ]
        return _from_files({"object": "list", "data": cards})

    @staticmethod
    def _show(store: ModelStore, name: str, system: str) -> StandInAnswer | None:
        model = store.find(name)
        if model is None:
            return _unknown(name)
        document = None if model.remote else store.show(model, system)
        return _from_files(document) if document is not None else None

    @staticmethod
    def _unloaded(store: ModelStore, name: str, chat: bool) -> StandInAnswer | None:
        """It was not loaded, so now it is not."""
        if store.find(name) is None:
            return _unknown(name)
        nothing = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%f}Z"
        answer = {"model": name, "created_at": now, **nothing, "done": True, "done_reason": "unload"}
        return StandInAnswer(json.dumps(answer).encode(), "placeholder")


def _entry(model: StoredModel) -> dict[str, object]:
    """One of ``/api/tags``."""
    remote = {key: model.config[key] for key in ("remote_model", "remote_host") if model.config.get(key)}
    return {
        "name": model.name,
        "model": model.name,
        **remote,
        "modified_at": model.modified_at,
        "size": model.size_bytes,
        "digest": model.digest,
        "details": model.details(),
    }


def _from_files(document: object) -> StandInAnswer:
    return StandInAnswer(json.dumps(document).encode(), "files")


def _unknown(name: str) -> StandInAnswer:
    """The store has no such model."""
    return StandInAnswer(json.dumps({"error": f"model '{name}' not found"}).encode(), "files", status=404)


def _object(body: bytes) -> dict[str, object]:
    """The JSON object that a body is; empty if it is anything else."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}
