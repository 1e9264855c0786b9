"""Asking ComfyUI what it works on and what it holds, and having it let go (backends.md sections 5.3 and 5.4).

``POST /free`` only sets flags: 200 says nothing. The thread that runs the prompts sees them when it is next awake,
after the running prompt at the earliest. It looks at them and then waits for work, so a flag that is set in between
(while it collects garbage) stays unseen for minutes: the order is repeated until an effect shows, and no longer,
because a flag set while it frees stays for after the next prompt and costs another load (main.py prompt_worker,
execution.py PromptQueue.get and set_flag; v0.3.64 and 2026 alike).

The effect shows in ``/system_stats``, in two numbers. ``torch_vram_total`` is what PyTorch's allocator holds. Where
ComfyUI manages weights by itself ("dynamic VRAM", the default on NVIDIA in 2026), they are not in it, and only the
free memory of the whole device tells.
"""

import asyncio
import logging
from dataclasses import dataclass

from juggler.backends.base import Caller, Response
from juggler.errors import BackendError
from juggler.ids import InstanceId
from juggler.units import GIB, MIB, SECONDS

UNLOAD_LIMIT_S = 15 * SECONDS
"""Freeing takes about a second; more means that a prompt runs after all, or that something is kept."""

ORDER_EVERY_S = 1 * SECONDS
"""As long as nothing changes. Garbage collections, during which an order stays unseen, are shorter."""

NOTHING_TO_FREE_S = 2 * SECONDS
"""Two orders without any effect: there was nothing to free. Also where no number can tell."""

LOOK_EVERY_S = 0.1 * SECONDS
CALL_LIMIT_S = 4 * SECONDS
"""The event loop answers late while a loader holds Python's lock."""

RESIDUE_BYTES = 1 * GIB
"""What may stay in PyTorch's hands: work buffers, and the small models of custom nodes."""

RESIDUE_SHARE = 8
"""Or this part of what was held before: on large cards the rest grows with the models."""

NOTICEABLE_BYTES = 64 * MIB
"""Smaller changes may be anybody's: a desktop shares the card."""

_NOT_MEASURED = frozenset({"cpu", "mps"})
"""Devices whose numbers are the machine's RAM (comfy/model_management.py get_total_memory)."""

_DIRECTML = "privateuseone"
"""PyTorch's name for it; its numbers are constants ("TODO" in the same function)."""

_log = logging.getLogger("juggler.backends.comfyui")


@dataclass(frozen=True, slots=True)
class Memory:
    """All measured devices together, in bytes."""

    torch_bytes: int
    """Held by PyTorch's allocator, which gives it back at the end only."""
    active_bytes: int
    """Of that in use: falls from the beginning."""
    free_bytes: int
    """Free on the devices, whoever holds the rest."""


def as_system(answer: Response) -> dict[str, object] | None:
    """The ``system`` part of an answer to ``/system_stats``; None if it is not ComfyUI's.

    koboldcpp imitates the route with itself as the device (backends.md 4.6).
    """
    document = _document(answer)
    system, devices = document.get("system"), document.get("devices")
    if not isinstance(system, dict) or not isinstance(devices, list):
        return None
    if not {"comfyui_version", "python_version"}.intersection(system):  # the former since v0.3
        return None
    imitated = any(isinstance(device, dict) and device.get("name") == "koboldcpp" for device in devices)
    return None if imitated else system


def as_memory(answer: Response) -> Memory | None:
    """What ``/system_stats`` says of the devices; None where no device is measured.

    Raises:
        BackendError: It is not an answer of ComfyUI.
    """
    devices = _document(answer).get("devices")
    if not isinstance(devices, list):
        raise BackendError(f"GET /system_stats was answered with status {answer.status} and no devices")
    torch_bytes = active_bytes = free_bytes = measured = 0
    for device in devices:
        if not isinstance(device, dict) or device.get("type") in _NOT_MEASURED or device.get("type") == _DIRECTML:
            continue
        # vram_free counts what the allocator holds and does not use as free (backends.md 5.4).
        numbers = [device.get(name) for name in ("torch_vram_total", "vram_free", "torch_vram_free")]
        held, free, idle = (int(number) if isinstance(number, (int, float)) else 0 for number in numbers)
        torch_bytes, active_bytes = torch_bytes + held, active_bytes + held - idle
        free_bytes, measured = free_bytes + free - idle, measured + 1
    return Memory(torch_bytes, active_bytes, free_bytes) if measured else None


async def queue_remaining(caller: Caller, *, timeout_s: float = CALL_LIMIT_S) -> int:
    """Prompts that run or wait.

    Raises:
        BackendError: An answer that is not ComfyUI's.
        OSError: Nobody answers.
        TimeoutError: No complete answer within ``timeout_s`` seconds.
    """
    answer = await caller.call("GET", "/prompt", timeout_s=timeout_s)
    info = _document(answer).get("exec_info")
    remaining = info.get("queue_remaining") if isinstance(info, dict) else None
    if not isinstance(remaining, int):
        raise BackendError(f"GET /prompt was answered with status {answer.status} and no length of the queue")
    return remaining


async def free(caller: Caller, instance: InstanceId) -> bool:
    """Have all models and cached results dropped; True once that shows, False after ``UNLOAD_LIMIT_S`` or a refusal.

    Both flags: ``unload_models`` alone leaves cached results on the device (bug 18 of the prototype), and with
    ``--highvram`` or ``--gpu-only`` the models too, for there they are moved nowhere.

    Raises:
        OSError: Nobody answers.
    """
    clock = asyncio.get_running_loop()
    give_up_at = clock.time() + UNLOAD_LIMIT_S
    watch: _Watch | None = None
    order_at, accepted = 0.0, False
    while clock.time() < give_up_at:
        try:
            if watch is None:
                watch = _Watch(await _look(caller), clock.time())
            elif watch.is_empty(await _look(caller), clock.time()) and accepted and not await queue_remaining(caller):
                return True
            if clock.time() >= order_at and not (accepted and watch.sees_effect):
                order_at = clock.time() + ORDER_EVERY_S
                await _order(caller)
                accepted = True
        except TimeoutError as error:
            _log.debug("%s: %s", instance, error)
        except BackendError as error:
            _log.warning("%s was not unloaded: %s", instance, error)
            return False
        await asyncio.sleep(LOOK_EVERY_S)
    _log.warning("%s did not free its memory within %.0f s%s", instance, UNLOAD_LIMIT_S, watch.story() if watch else "")
    return False


async def _order(caller: Caller) -> None:
    body = b'{"unload_models": true, "free_memory": true}'
    headers = {"Content-Type": "application/json"}
    answer = await caller.call("POST", "/free", headers=headers, body=body, timeout_s=CALL_LIMIT_S)
    if answer.status != 200:
        raise BackendError(f"POST /free was answered with status {answer.status}")


async def _look(caller: Caller) -> Memory | None:
    return as_memory(await caller.call("GET", "/system_stats", timeout_s=CALL_LIMIT_S))


class _Watch:
    """Decides from one look to the next whether the memory has been let go.

    Args:
        before: The memory before the first order; None where it is not measured.
        now: When that was, in the seconds of the running loop.
    """

    def __init__(self, before: Memory | None, now: float) -> None:
        self._before = self._last = before
        self._began = now

    def is_empty(self, memory: Memory | None, now: float) -> bool:
        """Whether little enough is left and it grows no less.

        Without any change since the first order there was nothing to let go, but only after a while: the thread that
        should have acted may not have seen the order.
        """
        waited_s = now - self._began
        before, last, self._last = self._before, self._last, memory
        if memory is None or before is None or last is None:
            return waited_s >= NOTHING_TO_FREE_S
        if memory.torch_bytes > max(RESIDUE_BYTES, before.torch_bytes // RESIDUE_SHARE):
            return False
        if _released(before, memory) < NOTICEABLE_BYTES:
            return waited_s >= NOTHING_TO_FREE_S
        return _released(last, memory) < NOTICEABLE_BYTES

    @property
    def sees_effect(self) -> bool:
        """Whether the thread has begun to free."""
        before, last = self._before, self._last
        if before is None or last is None:
            return False
        return max(_released(before, last), before.active_bytes - last.active_bytes) >= NOTICEABLE_BYTES

    def story(self) -> str:
        """What was seen, for the log."""
        if self._before is None or self._last is None:
            return ": prompts ran all the time"
        before, last = self._before.torch_bytes / GIB, self._last.torch_bytes / GIB
        return f": PyTorch held {before:.1f} GiB before and {last:.1f} GiB at last"


def _released(earlier: Memory, later: Memory) -> int:
    """Bytes that came free between two looks, by either measure."""
    return max(earlier.torch_bytes - later.torch_bytes, later.free_bytes - earlier.free_bytes)


def _document(answer: Response) -> dict[str, object]:
    """The answer's JSON object; empty if it is none or the status is not 200."""
    return answer.json_object() if answer.status == 200 else {}
