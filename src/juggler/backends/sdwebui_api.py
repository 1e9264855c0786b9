"""What A1111 and Forge say of themselves over HTTP (backends.md sections 3.2 to 3.4).

Read-only calls and the two that move the weights, with the credentials of ``--api-auth`` where there are any.
"""

import base64
from dataclasses import dataclass

from juggler.backends.base import Caller, ProbeResult, Response
from juggler.units import SECONDS

_IMITATION = "KoboldCpp"
_CALL_S = 2 * SECONDS


@dataclass(frozen=True, slots=True)
class Progress:
    """What ``/sdapi/v1/progress`` says."""

    working: bool
    ever_worked: bool
    """Whether any job has begun since the start: the time stamp of the last one is "0" until then
    (modules/shared_state.py, State)."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What ``/sdapi/v1/memory`` says."""

    reserved_bytes: int | None
    """What the process's allocator holds on the GPU, without the CUDA context; None where there is no CUDA."""


@dataclass(frozen=True, slots=True)
class Api:
    """One server's API.

    Every method raises OSError if nobody answers (with HTTP), and TimeoutError if not in time.
    """

    caller: Caller
    credentials: str | None = None
    """``user:password``."""

    async def call(self, method: str, path: str, *, timeout_s: float = _CALL_S) -> Response:
        """One call; a POST has no body, as these routes want it."""
        headers = {}
        if self.credentials is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(self.credentials.encode()).decode()
        return await self.caller.call(method, path, headers=headers, timeout_s=timeout_s)

    async def probe(self) -> ProbeResult:
        """Whether the API is there.

        A web UI opens its port before it has its API, and answers 404 for a moment; one that was started without
        ``--api`` does so for ever. A 401 comes from a loaded program whose credentials we do not know.
        """
        answer = await self.call("GET", "/sdapi/v1/memory")
        document = answer.json_object()
        if answer.status == 200:
            return ProbeResult.READY if _is_memory(document) else ProbeResult.WRONG_SERVER
        if answer.status >= 500 or 300 <= answer.status < 400:
            return ProbeResult.NOT_YET
        if answer.status in (401, 403) and not document:
            return ProbeResult.NOT_YET  # somebody in between asks for a password
        if "detail" not in document:  # FastAPI's errors have it, with and without A1111's wrapping
            return ProbeResult.WRONG_SERVER
        return ProbeResult.READY if answer.status == 401 else ProbeResult.NOT_YET

    async def has_ui(self) -> bool:
        """Whether it is a web UI, and up, with or without API."""
        return (await self.call("GET", "/internal/ping")).status == 200

    async def is_forge(self) -> bool | None:
        """Forge lists text encoders, which A1111 does not know; None if it does not let us ask."""
        answer = await self.call("GET", "/sdapi/v1/sd-modules")
        if answer.status in (401, 403) or answer.status >= 500:
            return None
        return answer.status == 200

    async def is_koboldcpp(self) -> bool:
        """Whether it is koboldcpp, which imitates parts of this API (backends.md 4.6)."""
        return (await self.call("GET", "/api/extra/version")).json_object().get("result") == _IMITATION

    async def memory(self) -> Memory | None:
        """None if it does not say, or not to us."""
        answer = await self.call("GET", "/sdapi/v1/memory")
        document = answer.json_object()
        if answer.status != 200 or not _is_memory(document):
            return None
        cuda = document["cuda"]
        reserved = cuda.get("reserved") if isinstance(cuda, dict) else None
        current = reserved.get("current") if isinstance(reserved, dict) else None
        return Memory(int(current) if isinstance(current, (int, float)) else None)

    async def progress(self) -> Progress | None:
        """None if it does not say, or not to us. Without the parameter it would encode a preview for each call."""
        answer = await self.call("GET", "/sdapi/v1/progress?skip_current_image=true", timeout_s=_CALL_S)
        state = answer.json_object().get("state") if answer.status == 200 else None
        if not isinstance(state, dict):
            return None
        return Progress(
            # The job of a click in the UI may have no name, and its count is -1 until it is known (State.begin).
            working=bool(state.get("job")) or state.get("job_count") not in (0, None),
            ever_worked=state.get("job_timestamp") != "0",
        )

    async def waiting(self) -> int:
        """Jobs that wait for their turn, also those which the UI's own queue holds back; 0 without a UI."""
        pending = await self.call("GET", "/internal/pending-tasks")
        queued = await self.call("GET", "/queue/status")
        counts = (pending.json_object().get("size"), queued.json_object().get("queue_size"))
        return sum(int(count) for count in counts if isinstance(count, (int, float)))

    async def flag(self, name: str) -> bool | None:
        """An option the server runs with, however it came by it; None if it does not say."""
        value = (await self.call("GET", "/sdapi/v1/cmd-flags")).json_object().get(name)
        return value if isinstance(value, bool) else None


def problem(answer: Response) -> str:
    """What an answer complains about: ``500 (RuntimeError: no kernel image)``."""
    document = answer.json_object()
    words = [document.get(key) for key in ("error", "errors", "detail")]
    text = ": ".join(str(word)[:300] for word in words if word)
    return f"{answer.status} ({text})" if text else str(answer.status)


def _is_memory(document: dict[str, object]) -> bool:
    return isinstance(document.get("ram"), dict) and isinstance(document.get("cuda"), dict)
