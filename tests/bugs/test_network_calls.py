"""Bug 38 of the prototype (backends.md section 11): what a dead or lying server does to our own calls."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from juggler.backends.base import Backend, HttpCall, ProbeResult, Response
from juggler.backends.registry import BACKENDS
from juggler.errors import BackendError
from juggler.testing.virtual_time import run_virtual
from tests.unit.backends.fake_caller import answer, settings

BAD: dict[str, Any] = {
    "timeout": TimeoutError("slow"),
    "reset": ConnectionResetError("reset"),
    "refused": ConnectionRefusedError("refused"),
    "no HTTP": ConnectionError("it does not speak HTTP"),
    "empty": answer(200, text=""),
    "no JSON": answer(200, text="<html>hello</html>"),
    "half JSON": answer(200, text='{"models": ['),
    "a number": answer(200, 42),
    "a list": answer(200, [1, None, "x"]),
    "null": answer(200, None),
    "wrong shapes": answer(
        200,
        {"state": 5, "cuda": [], "models": {"a": 1}, "devices": "x", "exec_info": None, "result": 3, "idle": {}},
    ),
    "error": answer(500, text="Internal Server Error"),
}


class BadCaller:
    """Answers everything with the same bad thing."""

    def __init__(self, bad: Any) -> None:
        self.bad = bad

    async def call(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        timeout_s: float = 3.0,
        limit_bytes: int = 4 * 1024 * 1024,
    ) -> Response:
        await asyncio.sleep(0.01)
        if isinstance(self.bad, BaseException):
            raise self.bad
        assert isinstance(self.bad, Response)
        return self.bad


def backend_of(type_name: str, *, attached: bool) -> Backend:
    hook = HttpCall("POST", "/hook")
    hooks: dict[str, Any] = {"unload": hook, "wake": hook, "busy": hook} if type_name == "command" else {}
    parameters = ("--admin",) if type_name == "koboldcpp" else ()
    backend = BACKENDS[type_name](settings(type_name, *parameters, attach_to="http://x" if attached else None, **hooks))
    backend.attached = attached
    return backend


@pytest.mark.parametrize("bad", sorted(BAD))
@pytest.mark.parametrize("type_name", sorted(BACKENDS))
def test_bug_38_bad_answers_are_ordinary_failures(type_name: str, bad: str) -> None:
    """A probe says "not yet" or "somebody else"; the rest fails in ways the supervisor knows, within its limits."""

    async def scenario() -> None:
        for attached in (False, True):
            backend, caller = backend_of(type_name, attached=attached), BadCaller(BAD[bad])
            result = await backend.probe(caller)
            silent = isinstance(BAD[bad], BaseException)
            assert isinstance(result, ProbeResult)
            if silent:
                assert result is ProbeResult.NOT_YET
            for hook in (backend.identify, backend.busy, backend.unload, backend.wake, backend.after_start):
                try:
                    async with asyncio.timeout(600):
                        await hook(caller)
                except (OSError, TimeoutError, BackendError):
                    pass  # what the supervisor handles without calling it a mistake

    run_virtual(scenario())


def test_bug_38_nothing_is_unloaded_by_a_bad_answer() -> None:
    """A server that cannot be asked is never taken for one that has freed its memory."""
    for type_name in ("sdwebui", "ollama", "comfyui", "vllm", "koboldcpp"):
        for name in ("timeout", "reset", "error"):

            async def scenario(type_name: str = type_name, name: str = name) -> None:
                try:
                    assert not await backend_of(type_name, attached=False).unload(BadCaller(BAD[name]))
                except (OSError, TimeoutError, BackendError):
                    pass

            run_virtual(scenario())
