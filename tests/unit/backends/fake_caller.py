"""A caller with canned answers, for testing backend modules without a server."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from juggler.backends.base import BackendSettings, HttpCall, Response
from juggler.ids import InstanceId

Answer = Response | BaseException | Callable[[bytes | None], Response]


@dataclass
class FakeCaller:
    """Answers by ``"METHOD path"`` (query included); anything else is refused as by a closed port."""

    answers: dict[str, Answer]
    calls: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes | None] = field(default_factory=list)
    timeouts_s: list[float] = field(default_factory=list)

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
        self.calls.append(f"{method} {path}")
        self.headers.append(dict(headers or {}))
        self.bodies.append(body)
        self.timeouts_s.append(timeout_s)
        answer = self.answers.get(f"{method} {path}", ConnectionRefusedError("nobody there"))
        if isinstance(answer, BaseException):
            raise answer
        return answer(body) if callable(answer) else answer


def answer(status: int, document: object = None, *, text: str | None = None) -> Response:
    """An answer with a JSON document, or with plain text."""
    body = text.encode() if text is not None else json.dumps(document).encode()
    return Response(status, {}, body)


def settings(
    type_name: str,
    *parameters: str,
    binary: str | None = None,
    attach_to: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    model_unloading: bool = True,
    kv_cache_saving: bool = True,
    ready_path: str | None = None,
    unload: HttpCall | None = None,
    wake: HttpCall | None = None,
    busy: HttpCall | None = None,
    stop_signal: str | None = None,
    stop_timeout_s: float = 10.0,
    state_dir: Path = Path(),
) -> BackendSettings:
    """Settings of one instance called ``srv/end``."""
    return BackendSettings(
        instance=InstanceId("srv/end"),
        endpoint_name="end",
        type=type_name,
        binary=binary,
        attach_to=attach_to,
        parameters=parameters,
        env=env or {},
        cwd=cwd,
        model_unloading=model_unloading,
        kv_cache_saving=kv_cache_saving,
        ready_path=ready_path,
        unload=unload,
        wake=wake,
        busy=busy,
        stop_signal=stop_signal,
        stop_timeout_s=stop_timeout_s,
        state_dir=state_dir,
    )
