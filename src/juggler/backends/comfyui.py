"""Type ``comfyui``: ComfyUI, started here or attached to (backends.md section 5; ComfyUI v0.3.64 and 2026).

A job outlives its request: ``POST /prompt`` answers at once and works later, so the backend itself is asked whether it
is busy. Its socket stays open for as long as a page does, through unloads too, and means nothing. Results are fetched
after the job, when the models may be gone already: that needs the process only.
"""

import asyncio
from collections.abc import Mapping, Sequence

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
from juggler.backends.comfyui_launch import command
from juggler.backends.comfyui_memory import as_system, free, queue_remaining
from juggler.backends.hints import GENERAL, compiled, find_hint
from juggler.routing.apis import Api
from juggler.routing.traffic import TrafficClass, TrafficRule, TrafficTable
from juggler.units import MINUTES, SECONDS

POLITE_S = 3 * SECONDS
"""For SIGINT, which also clears the folder of temporary files; SIGTERM ends it on the spot (backends.md 5.1)."""

SILENCE_LIMIT_S = 2 * MINUTES
"""How long silence is taken for work: a loader that reads from a slow disk can hold Python's lock, and with it the
event loop, for a minute. Longer than that the process hangs."""

SILENCE_GAP_S = 30 * SECONDS
"""Between two questions that belong together; the scheduler asks every few seconds while it waits."""

_REQUIREMENTS = "run `pip install -r requirements.txt` in ComfyUI's folder, with the Python that `binary` names"
HINTS = compiled(
    (
        r"ASSETS_STARTUP_FAILED: (?:in_use|locked)|Could not acquire lock on database",
        "another ComfyUI uses the same database: add `--disable-assets` to `parameters`, or give this one its own "
        "with `--database-url sqlite:///…`",
    ),
    (r"ASSETS_STARTUP_FAILED: missing_packages", f"ComfyUI's environment lacks packages: {_REQUIREMENTS}"),
    (
        r"ASSETS_STARTUP_FAILED: (\w+)",
        "ComfyUI cannot use its asset database ({1}, see its log): repair that, or add `--disable-assets`",
    ),
    (r"Port \d+ is already in use on address", "another program has taken the port meanwhile; try again"),
    (
        r"(?:ModuleNotFoundError|ImportError): No module named 'torch'",
        "this Python has no PyTorch, so it is not ComfyUI's: set `binary` to the Python of ComfyUI's own environment",
    ),
    (
        r"Torch not compiled with CUDA enabled|Found no NVIDIA driver on your system|No HIP GPUs are available"
        r"|No CUDA GPUs are available",
        "PyTorch sees no GPU: check the driver and CUDA_VISIBLE_DEVICES, install the PyTorch build for this GPU, or "
        "add `--cpu`",
    ),
    (
        r"no kernel image is available for execution",
        "this build of PyTorch does not support this GPU: install one that does",
    ),
    (
        r"this card most likely does not support cuda-malloc",
        "add `--disable-cuda-malloc` to `parameters`: the card most likely does not support it",
    ),
    (
        r"unrecognized arguments: (.+)",
        "this ComfyUI does not know {1}; `main.py --help` lists the options of the installed version",
    ),
    (r"\.py: error: (ambiguous option: .+|argument .+)", "correct `parameters`: {1}"),
    (
        r"can't open file '([^']*main\.py)'",
        "{1} does not exist: set `cwd` to the folder of ComfyUI",
    ),
    (
        r"No such option: --(?:listen|port)",
        "the launcher does not pass options on: with comfy-cli let `parameters` end with `launch`, `--`",
    ),
    (r"comfyui-[\w-]+ is not installed", f"ComfyUI was updated without its packages: {_REQUIREMENTS}"),
    (
        r"Cannot import (\S+) module for custom nodes: (.+)",
        "the custom node {1} cannot be imported ({2}); if the start fails because of it, install what it needs, or "
        "start with `--disable-all-custom-nodes`",
    ),
)
"""From main.py, server.py, nodes.py, app/frontend_management.py, comfy/model_management.py, argparse and PyTorch."""


def _rules() -> list[TrafficRule]:
    """Every route with and without ``/api`` (server.py add_routes)."""
    light, moment = TrafficClass.LIGHT, True
    table: list[tuple[str, str, TrafficClass, bool]] = [
        ("POST", "/free", TrafficClass.BLOCKED, False),
        ("POST", "/prompt", TrafficClass.WORK, False),
        ("GET", "/ws", TrafficClass.HELD_OPEN, False),
        # The first step of a job that works on a picture: refused, there would be no job.
        ("POST", "/upload/*", TrafficClass.START, False),
        ("POST", "/assets", TrafficClass.START, False),
        # Jobs, and what became of them.
        ("GET|HEAD", "/prompt", light, moment),
        ("GET|HEAD", "/queue", light, moment),
        ("GET|HEAD", "/history", light, moment),
        ("GET|HEAD", "/history/*", light, moment),
        ("GET|HEAD", "/jobs", light, moment),
        ("GET|HEAD", "/jobs/*", light, moment),
        ("GET|HEAD", "/internal/logs*", light, moment),
        ("POST", "/queue", light, False),
        ("POST", "/interrupt", light, False),
        ("POST", "/history", light, False),
        ("POST", "/jobs/*", light, False),
        # What an open page writes by itself.
        ("*", "/users", light, False),
        ("*", "/userdata/*", light, False),
        ("*", "/settings", light, False),
        ("*", "/settings/*", light, False),
        ("*", "/internal/*", light, False),
        ("*", "/assets/*", light, False),
    ]
    rules = [TrafficRule("GET /", TrafficClass.START)]
    for methods, path, traffic, volatile in table:
        rules += [TrafficRule(f"{methods} {prefix}{path}", traffic, volatile) for prefix in ("", "/api")]
    return rules


class ComfyUiBackend(Backend):
    """One ComfyUI; its models are loaded by the prompts that name them."""

    type_name = "comfyui"
    api = Api.COMFYUI
    has_ui = True
    traffic = TrafficTable(_rules())
    """Section 8 of backends.md, except for uploads. A client that opens the socket before it sends its first prompt
    (Open WebUI) needs ``{"match": "GET /ws", "class": "start"}`` at its endpoint; as a rule for all, a forgotten page
    would load the backend every time it reconnects."""

    def __init__(self, settings: BackendSettings) -> None:
        super().__init__(settings)
        self._silent_since = 0.0
        self._silent_until: float | None = None
        """When it was last asked and did not answer, in seconds of the running loop; None if it answered."""

    @property
    def capabilities(self) -> Capabilities:
        unloads = self.settings.model_unloading
        return Capabilities(
            can_start=self.settings.attach_to is None or self.settings.binary is not None,
            can_attach=True,
            unload="async" if unloads else "none",
            reload="lazy" if unloads else "start",
            work_outlives_request=True,
            answers_when_unloaded=unloads,
        )

    def plan(self, address: Address, environ: Mapping[str, str]) -> LaunchPlan:
        settings = self.settings
        # Its output goes to a pipe; what custom nodes print must not stay in a buffer until the end.
        env = {"PYTHONUNBUFFERED": "1", **environ, **settings.env}
        chosen = command(settings, address, env)
        polite_s = min(POLITE_S, settings.stop_timeout_s / 2)
        return LaunchPlan(
            argv=chosen.argv,
            env=env,
            cwd=chosen.cwd,
            stop_ladder=(
                StopStep(settings.stop_signal or "SIGINT", polite_s),
                StopStep("SIGTERM", settings.stop_timeout_s - polite_s),
            ),
        )

    # -- probes ------------------------------------------------------------------------------------------------

    async def probe(self, caller: Caller) -> ProbeResult:
        """``/system_stats``: the port opens when everything is there, so any other answer is another program's."""
        self._silent_until = None
        try:
            answer = await caller.call("GET", "/system_stats")
            if answer.status == 200:
                ours = as_system(answer) is not None and not await _is_koboldcpp(caller)
                return ProbeResult.READY if ours else ProbeResult.WRONG_SERVER
        except (OSError, TimeoutError):
            return ProbeResult.NOT_YET
        return ProbeResult.WRONG_SERVER if answer.status in (404, 405) else ProbeResult.NOT_YET

    async def identify(self, caller: Caller) -> str | None:
        system = as_system(await caller.call("GET", "/system_stats"))
        if system is None or await _is_koboldcpp(caller):
            return None
        version = system.get("comfyui_version")
        return f"ComfyUI {version.removeprefix('v')}" if isinstance(version, str) else "ComfyUI"

    async def busy(self, caller: Caller) -> bool:
        """Whether prompts run or wait. One that does not answer in time works, for ``SILENCE_LIMIT_S`` at most.

        Raises:
            OSError: Nobody answers, or not for too long.
            BackendError: An answer that is not ComfyUI's.
        """
        try:
            remaining = await queue_remaining(caller)
        except TimeoutError:
            now = asyncio.get_running_loop().time()
            if self._silent_until is None or now - self._silent_until > SILENCE_GAP_S:
                self._silent_since = now
            self._silent_until = now
            if now - self._silent_since < SILENCE_LIMIT_S:
                return True
            raise
        self._silent_until = None
        return remaining > 0

    async def unload(self, caller: Caller) -> bool:
        if not self.settings.model_unloading:
            return False
        return await free(caller, self.settings.instance)

    def hint_for(self, output: Sequence[str]) -> str | None:
        return find_hint(output, HINTS, GENERAL)


async def _is_koboldcpp(caller: Caller) -> bool:
    """Whether it is koboldcpp's imitation (backends.md 4.6); ComfyUI has no such route.

    Raises:
        OSError: Nobody answers.
        TimeoutError: No complete answer.
    """
    answer = await caller.call("GET", "/api/extra/version", timeout_s=1 * SECONDS)
    return answer.status == 200 and answer.json_object().get("result") == "KoboldCpp"
