"""Any HTTP server as a backend (type ``command``): the operator says how to start, probe, unload and ask it.

``{host}`` and ``{port}`` in parameters and environment values are replaced by the address we chose. Nothing else in
them is touched, so JSON in a parameter is safe.
"""

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from juggler.backends.base import (
    Address,
    Backend,
    BackendSettings,
    Caller,
    Capabilities,
    HttpCall,
    LaunchPlan,
    ProbeResult,
    Response,
    StopStep,
)
from juggler.backends.command_line import find_executable
from juggler.backends.hints import GENERAL, find_hint
from juggler.backends.json_condition import parse_condition
from juggler.errors import BackendError, StartFailed
from juggler.routing.traffic import TrafficTable
from juggler.units import SECONDS

_HOOK_TIMEOUT_S = 50 * SECONDS
"""For the operator's unload call, which may move many gigabytes; the supervisor has its own limit."""

_log = logging.getLogger("juggler.backends.command")


class CommandBackend(Backend):
    """A server program of which we know what the configuration says.

    Raises:
        ValueError: ``busy_when`` is not a condition.
    """

    type_name: ClassVar[str] = "command"
    traffic: ClassVar[TrafficTable] = TrafficTable()
    """Only the general rule: GET and HEAD are light. The operator's ``traffic`` refines it."""

    def __init__(self, settings: BackendSettings) -> None:
        super().__init__(settings)
        condition = settings.busy.busy_when if settings.busy else None
        self._busy_when = parse_condition(condition) if condition else None

    @cached_property
    def capabilities(self) -> Capabilities:
        unloads = self.settings.unload is not None and self.settings.model_unloading
        return Capabilities(
            can_start=self.settings.attach_to is None,
            can_attach=True,
            unload="sync" if unloads else "none",
            reload=("explicit" if self.settings.wake else "lazy") if unloads else "start",
            work_outlives_request=self.settings.busy is not None,
            answers_when_unloaded=unloads,
        )

    def plan(self, address: Address, environ: Mapping[str, str]) -> LaunchPlan:
        settings = self.settings
        if settings.binary is None:
            raise StartFailed(
                f"{settings.endpoint_name}: no program is configured",
                hint="set `binary` of the backend to the program to run",
                endpoint=settings.endpoint_name,
                phase="starting",
            )
        env = {**environ, **{name: _placed(value, address) for name, value in settings.env.items()}}
        program = find_executable(
            settings.binary, endpoint=settings.endpoint_name, cwd=settings.cwd, path=env.get("PATH")
        )
        return LaunchPlan(
            argv=(program, *(_placed(word, address) for word in settings.parameters)),
            env=env,
            cwd=settings.cwd,
            stop_ladder=(StopStep(settings.stop_signal or "SIGTERM", settings.stop_timeout_s),),
        )

    async def probe(self, caller: Caller) -> ProbeResult:
        """With ``ready_path`` a 2xx on it, without one any answer below 500 on ``/``."""
        try:
            answer = await caller.call("GET", self.settings.ready_path or "/")
        except (OSError, TimeoutError):
            return ProbeResult.NOT_YET
        ready = 200 <= answer.status < (300 if self.settings.ready_path else 500)
        return ProbeResult.READY if ready else ProbeResult.NOT_YET

    async def unload(self, caller: Caller) -> bool:
        if self.settings.unload is None or not self.settings.model_unloading:
            return False
        answer = await _make(caller, self.settings.unload)
        if not _accepted(self.settings.unload, answer):
            _log.warning("%s: unload was answered with status %d", self.settings.instance, answer.status)
            return False
        return True

    async def wake(self, caller: Caller) -> None:
        if self.settings.wake is None:
            return
        answer = await _make(caller, self.settings.wake, timeout_s=self.settings.start_timeout_s)
        if not _accepted(self.settings.wake, answer):
            raise BackendError(
                f"{self.settings.endpoint_name}: wake was answered with status {answer.status}",
                endpoint=self.settings.endpoint_name,
                phase="starting",
            )

    async def busy(self, caller: Caller) -> bool:
        """Without ``busy_when`` an accepted status means busy; with it, the condition on the JSON body."""
        if self.settings.busy is None:
            return False
        answer = await _make(caller, self.settings.busy, timeout_s=3 * SECONDS)
        if not _accepted(self.settings.busy, answer):
            return False
        if self._busy_when is None:
            return True
        try:
            return self._busy_when.holds(answer.json())
        except ValueError:
            return False

    def hint_for(self, output: Sequence[str]) -> str | None:
        return find_hint(output, GENERAL)


def _placed(text: str, address: Address) -> str:
    return text.replace("{host}", address.host).replace("{port}", str(address.port))


async def _make(caller: Caller, call: HttpCall, timeout_s: float = _HOOK_TIMEOUT_S) -> Response:
    headers = {}
    if call.body is not None:
        is_json = call.body.lstrip()[:1] in ("{", "[")
        headers["Content-Type"] = "application/json" if is_json else "text/plain; charset=utf-8"
    body = call.body.encode() if call.body is not None else None
    return await caller.call(call.method, call.path, headers=headers, body=body, timeout_s=timeout_s)


def _accepted(call: HttpCall, answer: Response) -> bool:
    return answer.status in call.expect if call.expect else 200 <= answer.status < 300
