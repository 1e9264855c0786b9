"""The simulated image backend (type ``demo``): our own stand-alone program, run by our own Python.

It is a real process with a port, a load time and signals; only its memory and its pictures are pretended. Its HTTP
routes are those of A1111's API (``juggler.demo.image_server``), and it is unloaded and woken as A1111 is.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

from juggler.backends.base import Address, Backend, Caller, Capabilities, LaunchPlan, ProbeResult, Response, StopStep
from juggler.backends.command_line import without_options
from juggler.backends.hints import GENERAL, find_hint
from juggler.errors import BackendError
from juggler.routing.traffic import TrafficClass, TrafficRule, TrafficTable
from juggler.units import SECONDS

_MODULE = "juggler.demo.image_server"
_UNLOAD_TIMEOUT_S = 15 * SECONDS
_WAKE_TIMEOUT_S = 55 * SECONDS
"""A reload takes as long as the pretended load; the supervisor has its own limit."""


class DemoBackend(Backend):
    """Supports soft unload (unless ``model_unloading`` is false), explicit wake, and a busy probe."""

    type_name: ClassVar[str] = "demo"
    traffic: ClassVar[TrafficTable] = TrafficTable(
        [
            TrafficRule("GET /", TrafficClass.WORK),
            TrafficRule("POST /sdapi/v1/unload-checkpoint", TrafficClass.BLOCKED),
            TrafficRule("POST /sdapi/v1/reload-checkpoint", TrafficClass.BLOCKED),
        ]
    )
    """The page itself starts the backend, or it could never be opened (backends.md section 8, note 1)."""

    @property
    def default_concurrency(self) -> int:
        """It paints one picture at a time, as A1111 does; the rest waits where it can be seen."""
        return 1

    @cached_property
    def capabilities(self) -> Capabilities:
        unloads = self.settings.model_unloading
        return Capabilities(
            unload="sync" if unloads else "none",
            reload="explicit" if unloads else "start",
            work_outlives_request=True,
            answers_when_unloaded=unloads,
        )

    def plan(self, address: Address, environ: Mapping[str, str]) -> LaunchPlan:
        parameters = without_options(self.settings.parameters, with_value={"--host", "--port"})
        return LaunchPlan(
            argv=(
                sys.executable,
                "-m",
                _MODULE,
                *parameters,
                *("--host", address.host, "--port", str(address.port)),
            ),
            env={**environ, "PYTHONUNBUFFERED": "1", **self.settings.env},
            cwd=self.settings.cwd,
            stop_ladder=(StopStep(self.settings.stop_signal or "SIGTERM", self.settings.stop_timeout_s),),
        )

    async def probe(self, caller: Caller) -> ProbeResult:
        try:
            answer = await caller.call("GET", "/health")
            if answer.status == 503:
                return ProbeResult.NOT_YET
        except (OSError, TimeoutError):
            return ProbeResult.NOT_YET
        loaded = _loaded(answer)
        return ProbeResult.WRONG_SERVER if loaded is None else ProbeResult.READY

    async def unload(self, caller: Caller) -> bool:
        if not self.settings.model_unloading:
            return False
        answer = await caller.call("POST", "/sdapi/v1/unload-checkpoint", body=b"{}", timeout_s=_UNLOAD_TIMEOUT_S)
        return answer.status == 200 and _loaded(await caller.call("GET", "/health")) is False

    async def wake(self, caller: Caller) -> None:
        answer = await caller.call("POST", "/sdapi/v1/reload-checkpoint", body=b"{}", timeout_s=_WAKE_TIMEOUT_S)
        if answer.status != 200:
            raise BackendError(
                f"{self.settings.endpoint_name}: reload was answered with status {answer.status}",
                endpoint=self.settings.endpoint_name,
                phase="starting",
            )

    async def busy(self, caller: Caller) -> bool:
        answer = await caller.call("GET", "/sdapi/v1/progress")
        state = answer.json_object().get("state")
        return isinstance(state, dict) and bool(state.get("job_count"))

    def hint_for(self, output: Sequence[str]) -> str | None:
        return find_hint(output, GENERAL)


def _loaded(answer: Response) -> bool | None:
    """What ``/health`` says; None if it is not our program that answers."""
    loaded = answer.json_object().get("loaded")
    return loaded if answer.status == 200 and isinstance(loaded, bool) else None
