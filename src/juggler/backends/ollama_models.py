"""What an ollama server holds in memory, and getting it out of there (backends.md section 6.3; ollama v0.33.0).

Facts this module rests on, all from ollama's own source (``server/sched.go``, ``server/routes.go``):

* The order to unload is answered at once. A model's requests run to their end first; then its runner process is
  killed and reaped, and only then the model leaves ``/api/ps``. So an empty list means that no runner lives.
* It does not mean that the memory is back: drivers report it with a lag (comment of ``waitForVRAMRecovery``), which
  ollama itself watches after each unload, for 0.5 to 1.5 s typically. No route tells how far it is.
* While it watches, the next model's unload waits. After several models only the last one's lag is left to us.
* A model that is still loading is not listed before it is loaded (``Scheduler.load``; older versions list it). A load
  whose client has gone is given up within half a second (``llm/llama_server.go``: ``WaitUntilRunning`` looks every
  450 ms at most).
"""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from juggler.backends.base import Caller, Response
from juggler.ids import InstanceId
from juggler.units import SECONDS

SETTLE_S = 1.5 * SECONDS
"""From the last sight of a model with GPU memory until that memory counts as free: the upper end of what ollama calls
typical. It is a guess, not a measurement; a program's module has no view of the device."""

QUIET_S = 0.5 * SECONDS
"""The same where no GPU memory was seen: a load that nobody waits for any more may be about to end."""

POLL_S = 0.1 * SECONDS
LIST_LIMIT_S = 5 * SECONDS
"""For one ``/api/ps``: it waits while a runner is killed and the devices are asked."""

ORDER_LIMIT_S = 5 * SECONDS
"""For one order. It may wait for a model that is being loaded; it takes effect even if nobody waits for the answer."""

ORDER_AGAIN_S = 3 * SECONDS
"""A model that is still listed is ordered out again: a request with a ``keep_alive`` of its own takes an order back."""

REFUSALS_LIMIT = 2
"""Once every model that is left was refused this often in a row, waiting on is in vain."""

MODELS_LIMIT = 64
"""Models ordered out at a time; ollama holds three per GPU unless told otherwise."""

_log = logging.getLogger("juggler.backends.ollama")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One entry of ``/api/ps``."""

    name: str
    size_bytes: int
    vram_bytes: int
    """The part of ``size_bytes`` that is on GPUs; 0 on a machine without."""

    @property
    def spilled(self) -> bool:
        """Part of it is in system memory, which ollama does without an error where GPU memory is short."""
        return self.vram_bytes < self.size_bytes


async def loaded_models(caller: Caller, *, timeout_s: float = LIST_LIMIT_S) -> list[LoadedModel]:
    """What the server says it holds.

    Raises:
        OSError: Nobody answers, or with something else than ollama's list.
        TimeoutError: No complete answer within ``timeout_s``.
    """
    answer = await caller.call("GET", "/api/ps", timeout_s=timeout_s)
    if answer.status != 200:
        raise ConnectionError(f"/api/ps was answered with status {answer.status}")
    try:
        document = answer.json()
    except ValueError as error:
        raise ConnectionError("/api/ps was not answered with JSON") from error
    if not isinstance(document, dict) or not isinstance(entries := document.get("models", ""), list | None):
        raise ConnectionError("/api/ps was not answered with a list of models")
    return [_model(entry) for entry in entries or ()]


def _model(entry: object) -> LoadedModel:
    """One entry.

    Raises:
        ConnectionError: It has no name; memory that cannot be named cannot be freed.
    """
    fields = entry if isinstance(entry, dict) else {}
    name = fields.get("model") or fields.get("name")
    if not isinstance(name, str):
        raise ConnectionError("/api/ps names no model in one of its entries")
    return LoadedModel(name, _number(fields.get("size")), _number(fields.get("size_vram")))


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


async def unload_all(caller: Caller, instance: InstanceId, *, limit_s: float) -> bool:
    """Order every model out and wait until none is listed and its memory should be back.

    Args:
        instance: For log lines.
        limit_s: For everything together.

    Returns:
        Whether nothing is left; the reasons otherwise are logged.

    Raises:
        OSError: The server is gone, or answers nonsense.
    """
    unloading = _Unloading(caller)
    try:
        async with asyncio.timeout(limit_s):
            if await unloading.run():
                return True
    except TimeoutError:
        pass
    names = ", ".join(model.name for model in unloading.left) or "an unknown number of models"
    why = "; ".join(unloading.problems.values()) or "requests of others may be running"
    _log.warning("%s: ollama still holds %s: %s", instance, names, why)
    return False


class _Unloading:
    """One unload of everything."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._ordered_at: dict[str, float] = {}
        self._refusals: Counter[str] = Counter()
        self.left: Sequence[LoadedModel] = ()
        """As last listed."""
        self.problems: dict[str, str] = {}
        """Of models whose last order failed: half a sentence each."""

    async def run(self) -> bool:
        """Until no model was listed for long enough; models that appear meanwhile are ordered out as well.

        False as soon as there is no hope for those that are left.
        """
        loop = asyncio.get_running_loop()
        last_seen, needed_s = loop.time(), QUIET_S
        while True:
            try:
                self.left = await loaded_models(self._caller)
            except TimeoutError:
                last_seen = loop.time()  # it could be doing anything: an unload, or a load for somebody else
            else:
                if not self.left and loop.time() - last_seen >= needed_s:
                    return True
                if self.left:
                    await self._order_out(self.left, loop.time())
                    last_seen = loop.time()
                    needed_s = SETTLE_S if any(model.vram_bytes for model in self.left) else needed_s
                    if all(self._refusals[model.name] >= REFUSALS_LIMIT for model in self.left):
                        return False
            await asyncio.sleep(POLL_S)

    async def _order_out(self, models: Sequence[LoadedModel], now: float) -> None:
        """Give the orders that are due, all at once: one that waits or fails holds up none of the others."""
        due = [m.name for m in models if now - self._ordered_at.get(m.name, -ORDER_AGAIN_S) >= ORDER_AGAIN_S]
        due = due[:MODELS_LIMIT]
        self._ordered_at.update(dict.fromkeys(due, now))
        for name, problem in zip(due, await asyncio.gather(*map(self._order, due)), strict=True):
            if problem:
                self.problems[name] = problem
                self._refusals[name] += 1
            else:
                self.problems.pop(name, None)
                del self._refusals[name]

    async def _order(self, name: str) -> str:
        """One order; what went wrong, or nothing. Whether the model goes is for the list to say."""
        body = json.dumps({"model": name, "keep_alive": 0}).encode()
        headers = {"Content-Type": "application/json"}
        try:
            answer = await self._caller.call(
                "POST", "/api/generate", headers=headers, body=body, timeout_s=ORDER_LIMIT_S
            )
        except TimeoutError:
            return ""  # it waits for a load to end, and takes effect then
        except OSError as error:
            return f"the order for {name} failed: {error}"
        if answer.status == 200:
            return ""
        if answer.status == 404:  # gone by now, which is as good; or its runner outlived its files
            return f"{name} is not among its models any more"
        return f"the order for {name} was answered with status {answer.status}{_reason(answer)}"


def _reason(answer: Response) -> str:
    """``error`` of ollama's error answers, shortened."""
    error = answer.json_object().get("error")
    return f" ({error[:200]})" if isinstance(error, str) else ""
