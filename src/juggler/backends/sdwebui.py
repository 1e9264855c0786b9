"""Type ``sdwebui``: Stable Diffusion web UIs, that is A1111 and Forge (backends.md section 3).

Both have the same command line and nearly the same API. What differs is what an unload leaves: Forge brings its models
back by itself, A1111 fails at the next generation unless it was told to reload (3.3); told so, both are right.
"""

import asyncio
import logging
import math
import re
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
from juggler.backends.hints import GENERAL, find_hint
from juggler.backends.sdwebui_api import Api, Memory, Progress, problem
from juggler.backends.sdwebui_hints import HINTS
from juggler.backends.sdwebui_launch import api_credentials, command, environment, skips_load, words_of
from juggler.errors import BackendError, StartFailed
from juggler.routing import apis
from juggler.routing.traffic import TrafficClass, TrafficRule, TrafficTable
from juggler.units import GIB, MIB, MINUTES, SECONDS

DEFAULT_CONCURRENCY = 4
"""It works on one job at a time; a few that wait there keep it from idling between two, more would be out of sight."""

EMPTY_BYTES = 512 * MIB
"""What a web UI without models may still hold on the GPU, its CUDA context not counted (backends.md 3.4)."""

LEFT_SHARE = 0.25
"""Of what it held: extensions keep models of their own, which no call takes from them."""

UNLOAD_S = 35 * SECONDS
"""Gigabytes into RAM; behind a load that is still under way it waits for that one. The supervisor has 60 s for all."""

FREED_S = 3 * SECONDS
RELOAD_S = 12 * SECONDS
"""For a reload that makes good for something, as against a wake, which has the start's own limit."""

IDLE_S = 0.4 * SECONDS
"""How long a web UI must be idle to count as such. A click in its page becomes a job by and by: the page opens a socket
(or posts), is asked for the job, sends it, and meanwhile nothing is to be seen of it (gradio 3.41.2, routes.py)."""

BUSY_S = 4.5 * SECONDS
"""For all of its answers together; after 5 s the supervisor would take it for idle."""

SILENCE_LIMIT_S = 2 * MINUTES
"""How long silence is taken for work: loading and merging can hold Python's lock for a while. Longer, and it hangs."""

SILENCE_GAP_S = 30 * SECONDS
"""Between two questions that belong together; the scheduler asks every few seconds while it waits."""

_POLL_S = 0.2 * SECONDS

_VERSION = re.compile(rb"version: <a href=\\?\"https://github\.com/[^/\"]+/([\w.-]+)/commit/[^>]*>([\w.+-]{1,60})</a>")
"""In the footer of the page, which its configuration carries (modules/ui.py, versions_html)."""
_CONFIG_BYTES_MAX = 16 * MIB

_log = logging.getLogger("juggler.backends.sdwebui")


def _rules() -> list[TrafficRule]:
    """Section 8 of backends.md, and the routes of gradio 3.41.2 and 4.40.0 (routes.py)."""
    blocked = ("unload-checkpoint", "reload-checkpoint", "server-kill", "server-restart", "server-stop")
    rules = [TrafficRule(f"POST /sdapi/v1/{name}", TrafficClass.BLOCKED) for name in blocked]
    rules.append(TrafficRule("GET /", TrafficClass.START))
    # gradio 3: a WebSocket for each job, which ends with it. gradio 4 posts there, which is work as all posting is.
    rules.append(TrafficRule("GET /queue/join", TrafficClass.WORK))
    held = ["/queue/data", "/heartbeat/*", "/call/*", "/upload_progress", "/dev/reload"]
    rules += [TrafficRule(f"GET {path}", TrafficClass.HELD_OPEN) for path in held]
    moment = ["/sdapi/v1/progress", "/sdapi/v1/memory", "/queue/status", "/internal/ping", "/internal/pending-tasks"]
    moment += ["/internal/sysinfo*", "/startup-events", "/user", "/user/", "/token", "/token/", "/login_check*"]
    rules += [TrafficRule(f"GET|HEAD {path}", TrafficClass.LIGHT, volatile=True) for path in moment]
    # None of these needs the model; extensions' own posts may, and are work.
    calls = ["interrupt", "skip", "png-info", "refresh-checkpoints", "refresh-vae", "refresh-loras"]
    light = [f"/sdapi/v1/{name}" for name in calls]
    light += ["/internal/*", "/upload", "/cancel", "/reset", "/reset/", "/login", "/login/", "/component_server*"]
    return rules + [TrafficRule(f"POST {path}", TrafficClass.LIGHT) for path in light]


class SdWebuiBackend(Backend):
    """One A1111 or Forge, with its UI or (``--nowebui``) without."""

    type_name = "sdwebui"
    api = apis.Api.A1111
    has_ui = True
    knows_its_prefix = True
    traffic = TrafficTable(_rules())

    def __init__(self, settings: BackendSettings) -> None:
        super().__init__(settings)
        try:
            words = words_of(settings.parameters, settings.env)
        except ValueError:
            words = list(settings.parameters)  # ``plan`` complains about it
        self._words = words
        self._unloaded = False
        """Whether this process was told to unload since it was told to reload last."""
        self._is_forge: bool | None = None
        self._has_ui: bool | None = None
        self._told_of_missing_api = False
        self._silent_since = self._silent_until = -math.inf
        """The first and the last time that it was asked whether it works and did not answer, in seconds of the loop."""

    @property
    def default_concurrency(self) -> int:
        return DEFAULT_CONCURRENCY

    @property
    def capabilities(self) -> Capabilities:
        unloads = self.settings.model_unloading
        return Capabilities(
            can_start=self.settings.attach_to is None or self.settings.binary is not None,
            can_attach=True,
            unload="sync" if unloads else "none",
            reload="explicit" if unloads else "start",
            unload_needs_idle=True,
            work_outlives_request=True,
            answers_when_unloaded=unloads,
        )

    # -- start -------------------------------------------------------------------------------------------------

    def plan(self, address: Address, environ: Mapping[str, str]) -> LaunchPlan:
        settings = self.settings
        try:
            self._words = words_of(settings.parameters, {**environ, **settings.env})
        except ValueError as error:
            raise StartFailed(
                f"{settings.endpoint_name!r} cannot be started: COMMANDLINE_ARGS cannot be read ({error})",
                hint="close the quotes in the variable COMMANDLINE_ARGS, or use `parameters` instead",
                endpoint=settings.endpoint_name,
                phase="starting",
            ) from None
        env = environment(environ, settings.env)
        chosen = command(settings, address, self._words, env.get("PATH"))
        grace_s = settings.stop_timeout_s / 2
        return LaunchPlan(
            argv=chosen.argv,
            env=env,
            cwd=chosen.cwd,
            # SIGTERM ends most of them at once. A1111 without UI finishes what it works on, until a SIGINT tells
            # its uvicorn, for the second time, to leave (backends.md 3.1; uvicorn/server.py, handle_exit).
            stop_ladder=(StopStep(settings.stop_signal or "SIGTERM", grace_s), StopStep("SIGINT", grace_s)),
        )

    async def after_start(self, caller: Caller) -> None:
        """A new process: what was known of the last one is forgotten, and what was done to this one is found out."""
        self._unloaded = False
        self._is_forge = self._has_ui = None
        if self.attached and self.settings.model_unloading:
            await self._make_whole(self._api(caller))

    async def _make_whole(self, api: Api) -> None:
        """Reload an A1111 that holds nothing although it should: a juggler before us may have unloaded it, and
        without a reload all its generations would fail (backends.md 3.3)."""
        if await self._forge(api) is not False:
            return
        memory, progress = await api.memory(), await api.progress()
        if memory is None or (memory.reserved_bytes or 0) > EMPTY_BYTES or await self._never_loaded(api, progress):
            return
        answer = await api.call("POST", "/sdapi/v1/reload-checkpoint", timeout_s=RELOAD_S)
        if answer.status != 200:
            _log.warning("%s: reload was answered with %s", self.settings.instance, problem(answer))

    # -- probes ------------------------------------------------------------------------------------------------

    def _api(self, caller: Caller) -> Api:
        return Api(caller, api_credentials(self._words))

    async def probe(self, caller: Caller) -> ProbeResult:
        """``/sdapi/v1/memory``; another shape of answer is another program's. Ready does not mean loaded."""
        api = self._api(caller)
        try:
            result = await api.probe()
            if result is ProbeResult.NOT_YET and self.attached and not self._told_of_missing_api and await api.has_ui():
                self._told_of_missing_api = True
                _log.warning(
                    "%s: the web UI at %s answers, but its API does not: it must run with --api",
                    self.settings.instance,
                    self.settings.attach_to,
                )
        except (OSError, TimeoutError):
            return ProbeResult.NOT_YET
        return result

    async def identify(self, caller: Caller) -> str | None:
        api = self._api(caller)
        if await api.probe() is not ProbeResult.READY or await api.is_koboldcpp():
            return None
        is_forge = await api.is_forge()
        name = "A1111 or Forge" if is_forge is None else "Forge" if is_forge else "A1111"
        try:
            page = await caller.call("GET", "/config", limit_bytes=_CONFIG_BYTES_MAX)
        except (OSError, TimeoutError):
            return name
        found = _VERSION.search(page.body)
        return f"{name} {found[2].decode()}" if found else name

    async def busy(self, caller: Caller) -> bool:
        """Whether a job runs or waits; a client that hung up does not end its job (backends.md 3.4). One that does not
        answer in time works, for ``SILENCE_LIMIT_S`` at most.

        Raises:
            OSError: Nobody answers, or not for too long.
            BackendError: It does not let us ask.
        """
        try:
            async with asyncio.timeout(BUSY_S):
                busy = await self._is_busy(self._api(caller))
        except TimeoutError:
            now = asyncio.get_running_loop().time()
            if now - self._silent_until > SILENCE_GAP_S:
                self._silent_since = now
            self._silent_until = now
            if now - self._silent_since < SILENCE_LIMIT_S:
                return True
            raise
        self._silent_until = -math.inf
        return busy

    async def _is_busy(self, api: Api) -> bool:
        if await self._works(api):
            return True
        if self._has_ui is None:
            self._has_ui = await api.has_ui()
        if not self._has_ui:
            return False
        if await api.waiting():
            return True
        await asyncio.sleep(IDLE_S)
        return await self._works(api) or await api.waiting() > 0

    async def _works(self, api: Api) -> bool:
        progress = await api.progress()
        if progress is None:
            raise BackendError(
                f"{self.settings.endpoint_name}: the web UI does not tell whether it works",
                hint="if it has an API password, repeat `--api-auth user:password` in `parameters`",
                endpoint=self.settings.endpoint_name,
                phase="draining",
            )
        return progress.working

    # -- memory ------------------------------------------------------------------------------------------------

    async def unload(self, caller: Caller) -> bool:
        """Weights to RAM, checked by what the allocator still holds; on a machine without CUDA its word counts."""
        if not self.settings.model_unloading:
            return False
        api = self._api(caller)
        before = await api.memory()
        if await self._forge(api) is not True and await self._is_untouched(api, before):
            return True  # told to unload, A1111 would load its checkpoint first (backends.md 3.3)
        self._unloaded = True
        if await self._send_away(api, before):
            return True
        if self.attached:
            # It goes on as loaded, and will not be woken: bring back what did leave.
            await api.call("POST", "/sdapi/v1/reload-checkpoint", timeout_s=RELOAD_S)
            self._unloaded = False
        return False

    async def _send_away(self, api: Api, before: Memory | None) -> bool:
        try:
            answer = await api.call("POST", "/sdapi/v1/unload-checkpoint", timeout_s=UNLOAD_S)
        except TimeoutError as error:
            _log.warning("%s: %s", self.settings.instance, error)
            return False
        if answer.status != 200:
            _log.warning("%s: unload was answered with %s", self.settings.instance, problem(answer))
            return False
        return await self._is_freed(api, before)

    async def _is_freed(self, api: Api, before: Memory | None) -> bool:
        """Whether the allocator let go of what it held; looked at for some seconds."""
        held_bytes = before.reserved_bytes if before is not None else None
        limit_bytes = max(EMPTY_BYTES, int((held_bytes or 0) * LEFT_SHARE))
        deadline = asyncio.get_running_loop().time() + FREED_S
        while True:
            memory = await api.memory()
            if memory is None:
                return False
            if memory.reserved_bytes is None:
                return True
            left_bytes = memory.reserved_bytes
            if left_bytes <= limit_bytes or asyncio.get_running_loop().time() >= deadline:
                break
            await asyncio.sleep(_POLL_S)
        if left_bytes > EMPTY_BYTES:
            _log.warning(
                "%s: %.1f GiB are left on the GPU after the unload: of extensions, or of further checkpoints (setting "
                '"Maximum number of checkpoints loaded at the same time")',
                self.settings.instance,
                left_bytes / GIB,
            )
        return left_bytes <= limit_bytes

    async def _is_untouched(self, api: Api, memory: Memory | None) -> bool:
        """Whether this A1111 has nothing loaded, for sure."""
        if memory is None or (memory.reserved_bytes or 0) > EMPTY_BYTES:
            return False
        return await self._never_loaded(api, await api.progress())

    async def _never_loaded(self, api: Api, progress: Progress | None) -> bool:
        """Whether it was told not to load at its start, and no job has begun since. Otherwise it loads beside its
        start (modules/initialize.py), unseen until the weights reach the GPU."""
        if progress is None or progress.ever_worked or progress.working:
            return False
        skips = await api.flag("skip_load_model_at_start")
        return skips_load(self._words) if skips is None else skips

    async def _forge(self, api: Api) -> bool | None:
        """Which of the two it is, asked once; None if it does not let us ask."""
        if self._is_forge is None:
            self._is_forge = await api.is_forge()
        return self._is_forge

    async def wake(self, caller: Caller) -> None:
        if not self._unloaded:
            return
        name, limit_s = self.settings.endpoint_name, self.settings.start_timeout_s
        try:
            answer = await self._api(caller).call("POST", "/sdapi/v1/reload-checkpoint", timeout_s=limit_s)
        except (OSError, TimeoutError) as error:
            raise BackendError(
                f"{name}: the web UI did not reload its checkpoint: {error}", endpoint=name, phase="starting"
            ) from error
        if answer.status != 200:
            why = problem(answer)
            raise BackendError(
                f"{name}: the web UI did not reload its checkpoint: {why}",
                hint=self.hint_for([why]),
                endpoint=name,
                phase="starting",
            )
        self._unloaded = False

    def hint_for(self, output: Sequence[str]) -> str | None:
        return find_hint(output, HINTS, GENERAL)
