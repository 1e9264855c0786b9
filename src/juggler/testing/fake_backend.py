"""A backend module whose hooks do what a test wrote down."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from juggler.backends.base import (
    Address,
    Backend,
    BackendSettings,
    Caller,
    Capabilities,
    LaunchPlan,
    ProbeResult,
    StopStep,
)
from juggler.ids import InstanceId
from juggler.routing.traffic import TrafficTable
from juggler.testing.scripted import Act, Script

READY = Act(ProbeResult.READY)
NOT_YET = Act(ProbeResult.NOT_YET)
WRONG_SERVER = Act(ProbeResult.WRONG_SERVER)
_DEFAULTS: Mapping[str, Act] = {"probe": READY, "unload": Act(True), "busy": Act(False)}


class FakeBackend(Backend):
    """By default everything succeeds at once.

    Args:
        settings: Default: instance ``"chat"`` with the timeouts of ``BackendSettings``.
        script: Acts per hook (``probe``, ``after_start``, ``before_stop``, ``unload``, ``wake``, ``busy``); the
            last of each repeats.
        plan_error: Raised by ``plan``.
        temp_files: Of the plan.
        hints: Text found in the output to hint.
    """

    type_name = "fake"
    traffic = TrafficTable()

    def __init__(
        self,
        settings: BackendSettings | None = None,
        *,
        script: Mapping[str, Iterable[Act]] | None = None,
        plan_error: Exception | None = None,
        temp_files: Sequence[Path] = (),
        hints: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(settings or BackendSettings(InstanceId("chat"), endpoint_name="chat", type="fake"))
        self.calls: list[str] = []
        """Names of the hooks in the order of their calls."""
        self._scripts = {name: Script(acts) for name, acts in (script or {}).items()}
        self._plan_error = plan_error
        self._temp_files = tuple(map(str, temp_files))
        self._hints = dict(hints or {})

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(unload="sync", reload="explicit", keeps_kv=True)

    def plan(self, address: Address, environ: Mapping[str, str]) -> LaunchPlan:
        self.calls.append("plan")
        if self._plan_error is not None:
            raise self._plan_error
        argv = ("fake-server", "--port", str(address.port), "--api-key", "geheim")
        ladder = (StopStep("SIGTERM", 2.0), StopStep("SIGTERM", 1.0))
        return LaunchPlan(argv, dict(environ), None, ladder, temp_files=self._temp_files)

    async def probe(self, caller: Caller) -> ProbeResult:
        result = await self._play("probe")
        assert isinstance(result, ProbeResult)
        return result

    async def after_start(self, caller: Caller) -> None:
        await self._play("after_start")

    async def before_stop(self, caller: Caller) -> None:
        await self._play("before_stop")

    async def unload(self, caller: Caller) -> bool:
        return bool(await self._play("unload"))

    async def wake(self, caller: Caller) -> None:
        await self._play("wake")

    async def busy(self, caller: Caller) -> bool:
        return bool(await self._play("busy"))

    def hint_for(self, output: Sequence[str]) -> str | None:
        return next((hint for text, hint in self._hints.items() if any(text in line for line in output)), None)

    def ready_after(self, seconds: float) -> None:
        """From now on its servers answer so long after they are probed first."""
        self._scripts["probe"] = Script([Act(ProbeResult.READY, after_s=seconds)])

    async def _play(self, name: str) -> object:
        self.calls.append(name)
        act = self._scripts[name].next() if name in self._scripts else _DEFAULTS.get(name, Act())
        return await act.play()
