"""koboldcpp's models: whether they are loaded, and taking them away and back through its administration routes.

Both are a change of process: the manager ends its worker and starts another one with the same port (backends.md 4.5;
koboldcpp.py 1.116.1, ``main``). The order is answered at once and the old worker goes on answering for 0.7 s; then the
port is closed, for seconds without a model and for a whole load with one. So the answer of the order means nothing,
and neither does the first 200 after it: what the worker says of its models decides.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from juggler.backends.base import Caller, Response
from juggler.ids import InstanceId
from juggler.units import SECONDS

UNLOAD = "unload_model"
RELOAD = "initial_model"

CALL_LIMIT_S = 3 * SECONDS
POLL_S = 0.1 * SECONDS
POLL_GROWTH = 1.3
POLL_LIMIT_S = 0.5 * SECONDS
"""Each question is one line of work for it; the port is closed for seconds at least."""

_KINDS = ("llm", "txt2img", "transcribe", "tts", "embeddings", "music")
"""The kinds of models a server may hold, any of which holds memory (get_capabilities)."""

_log = logging.getLogger("juggler.backends.koboldcpp")


@dataclass(frozen=True, slots=True)
class Version:
    """What ``/api/extra/version`` says."""

    version: str
    loaded: bool
    """Whether a model of any kind is there."""
    admin: int
    """0: no administration routes; 1: open; 2: with a password."""


def as_version(answer: Response) -> Version | None:
    """The answer of koboldcpp to ``/api/extra/version``; None if it is another's."""
    document = answer.json_object()
    if answer.status != 200 or document.get("result") != "KoboldCpp":
        return None
    admin = document.get("admin")
    return Version(
        version=str(document.get("version", "")),
        loaded=any(bool(document.get(kind)) for kind in _KINDS),
        admin=admin if isinstance(admin, int) else 0,
    )


async def version_of(caller: Caller) -> Version | None:
    """What the server says of itself; None if the answer is no koboldcpp's.

    Raises:
        OSError: Nobody answers.
        TimeoutError: No complete answer.
    """
    return as_version(await caller.call("GET", "/api/extra/version", timeout_s=CALL_LIMIT_S))


async def model_name(caller: Caller) -> str:
    """The text model's name, ``inactive`` without one; empty if it is not told."""
    try:
        answer = await caller.call("GET", "/api/v1/model", timeout_s=CALL_LIMIT_S)
    except (OSError, TimeoutError):
        return ""
    name = answer.json_object().get("result")
    return name if isinstance(name, str) else ""


class Administration:
    """The administration routes of one server.

    Args:
        password: For the servers that want one; empty for none.
    """

    def __init__(self, instance: InstanceId, password: str) -> None:
        self._instance = instance
        self._headers: Mapping[str, str] = {"Authorization": f"Bearer {password}"} if password else {}

    async def problem(self, caller: Caller) -> str | None:
        """Why models cannot be taken away and back, half a sentence; None if they can.

        Without ``initial_model`` (before 1.110) an unloaded server could not be woken.

        Raises:
            OSError: Nobody answers.
            TimeoutError: No complete answer.
        """
        answer = await caller.call("GET", "/api/admin/list_options", headers=self._headers, timeout_s=CALL_LIMIT_S)
        try:
            options = answer.json() if answer.status == 200 else None
        except ValueError:
            options = None
        if not isinstance(options, list) or not options:
            return (
                "its administration routes refuse us: check `--adminpassword`, and that the `--admindir` folder exists"
            )
        if not {UNLOAD, RELOAD}.issubset(option for option in options if isinstance(option, str)):
            return "this version cannot load its model again after an unload: 1.110 or newer can"
        return None

    async def unload(self, caller: Caller, *, limit_s: float) -> bool:
        """Take the models away; True when a new worker has said that it has none.

        Raises:
            OSError: The order could not be given.
            TimeoutError: The order was not answered.
        """
        if not await self._order(caller, UNLOAD):
            return False
        change = await _until(caller, lambda version: not version.loaded, limit_s=limit_s)
        if change is None:
            _log.warning("%s: no worker without a model after %.0f s", self._instance, limit_s)
        elif not change:
            # The new worker died, and the manager started one like the first.
            _log.warning("%s: came back with its model after the unload", self._instance)
        return bool(change)

    async def reload(self, caller: Caller, *, limit_s: float) -> bool:
        """Bring the models back that the server was started with; True when a new worker has said that it has them.

        Raises:
            OSError: The order could not be given.
            TimeoutError: The order was not answered.
        """
        if not await self._order(caller, RELOAD):
            return False
        return bool(await _until(caller, lambda version: version.loaded, limit_s=limit_s))

    async def _order(self, caller: Caller, target: str) -> bool:
        """Whether the server says that it will; a refusal is a 200 as well."""
        answer = await caller.call(
            "POST",
            "/api/admin/reload_config",
            headers={**self._headers, "Content-Type": "application/json"},
            body=json.dumps({"filename": target}).encode(),
            timeout_s=CALL_LIMIT_S,
        )
        accepted = answer.status == 200 and answer.json_object().get("success") is True
        if not accepted:
            _log.warning("%s: refused to %s (status %d)", self._instance, target, answer.status)
        return accepted


async def _until(caller: Caller, holds: Callable[[Version], bool], *, limit_s: float) -> bool | None:
    """Whether the next worker is as wanted; None if there is no answer to that within ``limit_s``.

    The old worker is never as wanted, since nothing is ordered that is so already. That another one answers is known
    from the gap: nobody listens for a while, or a router in front says so (502).
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + limit_s
    gap = False
    pause_s = POLL_S
    while loop.time() < end:
        try:
            answer = await caller.call("GET", "/api/extra/version", timeout_s=CALL_LIMIT_S)
        except TimeoutError:
            pass  # a worker of either kind, and a busy one
        except OSError:
            gap = True
        else:
            version = as_version(answer)
            if version is not None and (holds(version) or gap):
                return holds(version)
            gap = gap or answer.status >= 500
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * POLL_GROWTH, POLL_LIMIT_S)
    return None
