"""Type ``vllm``: ``vllm serve MODEL``, put to sleep instead of stopped (backends.md section 7.1).

The routes that do this exist only with ``--enable-sleep-mode`` and ``VLLM_SERVER_DEV_MODE=1``: both are set for servers
that we start, unless ``model_unloading`` is false. They need no key and their neighbours can overwrite weights, so that
clients get none of them. Read in vLLM's source: ``vllm/entrypoints/serve/dev/*/api_router.py``,
``vllm/entrypoints/serve/instrumentator/{basic,health,metrics}.py``, ``docs/features/sleep_mode.md``.
"""

import asyncio
import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs

from juggler.backends.argparse_line import Option, has_option, without_options
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
from juggler.backends.command_line import find_executable, without_variables
from juggler.backends.hints import GENERAL, compiled, find_hint
from juggler.backends.vllm_memory import memory_estimate, model_files
from juggler.errors import BackendError
from juggler.memory.footprint import MemoryEstimate
from juggler.routing.traffic import TrafficClass, TrafficRule, TrafficTable
from juggler.units import SECONDS

DEFAULT_CONCURRENCY = 256
"""vLLM batches as many as its memory holds (``--max-num-seqs``, 256 or more by default) and queues the rest."""

SLEEP_LIMIT_S = 45 * SECONDS
"""Weights go to host memory at some GB/s; requests that others sent to an attached server end first."""

ASLEEP_LIMIT_S = 10 * SECONDS
"""Between the answer to ``/sleep`` and ``/is_sleeping`` saying so: nothing with a current engine."""

WAKE_CALL_LIMIT_S = 300 * SECONDS
"""One call of a wake; after level 2 the weights are read from disk again. The endpoint's own limit also holds."""

METRICS_LIMIT_BYTES = 16 * 1024 * 1024
_POLL_S = 0.2 * SECONDS

_STRIPPED = (
    Option("--host", shortest="--ho"),
    Option("--port", shortest="--po"),
    Option("--uds", shortest="--ud"),
    Option("--ssl-keyfile", shortest="--ssl-k"),
    Option("--ssl-certfile", shortest="--ssl-certf"),
    Option("--ssl-ca-certs", shortest="--ssl-ca"),
    Option("--ssl-cert-reqs", shortest="--ssl-cert-r"),
    Option("--enable-ssl-refresh", shortest="--enable-ssl", values=0),
    Option("--headless", values=0),
)
"""What would move the server away from where we look for it, or take its HTTP front away."""

_SLEEP_MODE = Option("--enable-sleep-mode", shortest="--enable-sl", values=0)
_DEV_MODE = "VLLM_SERVER_DEV_MODE"

_DEV_ROUTES = (
    "sleep", "wake_up", "collective_rpc", "reconfigure", "pause", "resume", "abort_requests",
    "init_weight_transfer_engine", "start_weight_update", "start_draft_weight_update", "update_weights",
    "finish_weight_update", "update_weight_version", "weight_checker", "reset_prefix_cache", "reset_mm_cache",
    "reset_encoder_cache", "scale_elastic_ep", "start_profile", "stop_profile",
)  # fmt: skip
"""POST routes of the dev mode and of profiling: they change the engine, or end what others asked for."""

_RUNNING = re.compile(r"^vllm:num_requests_(?:running|waiting)(?:\{[^}]*\})?\s+([0-9.eE+-]+)", re.MULTILINE)

HINTS = compiled(
    (
        r"sleep mode is not supported",
        "this machine's vLLM cannot sleep: set `model_unloading` of the backend to false, then it is stopped instead",
    ),
    (
        r"Free memory on device.*less than desired GPU memory utilization",
        "vLLM wants its share of the GPU (`--gpu-memory-utilization`) free at the start: lower it, or declare the "
        "endpoint's `memory` so that others make room",
    ),
    (r"Error in memory profiling", "another program freed or took GPU memory while vLLM measured it: start it again"),
    (
        r"No available memory for the cache blocks|KV cache is needed, which is larger than the available",
        "no memory is left for the KV cache: raise `--gpu-memory-utilization`, or lower `--max-model-len`",
    ),
    (
        r"max(?:imum)? (?:model len|seq(?:uence)? len).*larger than the maximum number of tokens",
        "the context does not fit into the KV cache: lower `--max-model-len`",
    ),
    (
        r"is not a local folder and is not a valid model identifier|Repo id must be|Can't load the configuration of",
        "the model is neither a folder on this machine nor a name that can be downloaded: correct it in `parameters`",
    ),
    (r"gated repo|401 Client Error", "the model must be asked for on its page, then set HF_TOKEN in `env`"),
    (r"unrecognized arguments: (.+)", "this version of vLLM does not know {1}: `vllm serve --help=all` lists them"),
    (r"bfloat16 is only supported on GPUs", "this GPU has no bfloat16: add `--dtype half`"),
)
"""From vLLM's own messages (vllm/v1/worker, vllm/v1/core, vllm/config) and huggingface_hub's."""

_LAST_HINTS = compiled(
    (r"Engine core initialization failed", "the engine died at its start: its own lines above say why"),
)

_log = logging.getLogger("juggler.backends.vllm")


class VllmBackend(Backend):
    """One vLLM server with one model."""

    type_name = "vllm"
    traffic = TrafficTable(
        [
            *(TrafficRule(f"POST */{route}", TrafficClass.BLOCKED) for route in _DEV_ROUTES),
            TrafficRule("* */server_info", TrafficClass.BLOCKED),
            TrafficRule("GET /v1/realtime", TrafficClass.WORK),
            TrafficRule("GET /metrics*", TrafficClass.LIGHT, volatile=True),
            TrafficRule("GET /load", TrafficClass.LIGHT, volatile=True),
            TrafficRule("GET /is_sleeping", TrafficClass.LIGHT, volatile=True),
            TrafficRule("GET /is_paused", TrafficClass.LIGHT, volatile=True),
            TrafficRule("GET /v1/responses/*", TrafficClass.LIGHT, volatile=True),
            TrafficRule("POST /ping", TrafficClass.LIGHT),
        ]
    )
    version_arguments = ("--version",)
    help_arguments = ("serve", "--help=all")

    def __init__(self, settings: BackendSettings) -> None:
        super().__init__(settings)
        self._sleep_path = _sleep_path(settings)
        self._level = parse_qs(self._sleep_path.partition("?")[2]).get("level", ["1"])[0]
        self._told_why = False
        self._sleeps = True

    @property
    def default_concurrency(self) -> int:
        return DEFAULT_CONCURRENCY

    @property
    def capabilities(self) -> Capabilities:
        sleeps = self.settings.model_unloading and self._sleeps
        return Capabilities(
            can_attach=True,
            unload="sync" if sleeps else "none",
            reload="explicit" if sleeps else "start",
            unload_needs_idle=True,
            work_outlives_request=True,
            answers_when_unloaded=sleeps,
            loads_alone=True,
        )

    def model_files(self) -> tuple[Path, ...]:
        return model_files(self.settings)

    def memory_estimate(self) -> MemoryEstimate | None:
        return memory_estimate(self.settings)

    # -- start -------------------------------------------------------------------------------------------------

    def plan(self, address: Address, environ: Mapping[str, str]) -> LaunchPlan:
        settings = self.settings
        env = without_variables({**environ, **settings.env}, {"VLLM_PORT"})
        binary = find_executable(
            settings.binary or "vllm", endpoint=settings.endpoint_name, cwd=settings.cwd, path=env.get("PATH")
        )
        words = without_options(_with_command(settings.parameters, binary), _STRIPPED)
        words += ["--host", address.host, "--port", str(address.port)]
        if settings.model_unloading:
            env[_DEV_MODE] = "1"
            if not has_option(words, _SLEEP_MODE):
                words.append("--enable-sleep-mode")
        return LaunchPlan(
            argv=(binary, *words),
            env=env,
            cwd=settings.cwd,
            stop_ladder=(StopStep(settings.stop_signal or "SIGTERM", settings.stop_timeout_s),),
        )

    async def probe(self, caller: Caller) -> ProbeResult:
        """``/health``: 200 with nothing in it; 503 when the engine is dead. It needs no key."""
        try:
            answer = await caller.call("GET", "/health")
        except (OSError, TimeoutError):
            return ProbeResult.NOT_YET
        if answer.status == 200:
            return ProbeResult.WRONG_SERVER if answer.body.strip() else ProbeResult.READY
        return ProbeResult.WRONG_SERVER if answer.status in (404, 405) else ProbeResult.NOT_YET

    async def identify(self, caller: Caller) -> str | None:
        """By ``/version``, and by ``/health`` being empty, which other servers with that route fill."""
        if await self.probe(caller) is ProbeResult.WRONG_SERVER:
            return None
        answer = await caller.call("GET", "/version")
        version = answer.json_object().get("version") if answer.status == 200 else None
        return f"vLLM {version}" if isinstance(version, str) else None

    async def examine(self, caller: Caller) -> None:
        """Whether this server has the routes to sleep, which one started by hand mostly lacks."""
        self._sleeps = await self._is_sleeping(caller) is not None

    async def after_start(self, caller: Caller) -> None:
        """An attached server may have been left asleep: requests to it would wait for ever."""
        if self.attached:
            await self.examine(caller)
            if not self._sleeps and self.settings.model_unloading:
                self._say_why()
        if self.attached and await self._is_sleeping(caller):
            _log.info("%s: the attached server sleeps; it is woken", self.settings.instance)
            await self.wake(caller)

    # -- sleep and wake ----------------------------------------------------------------------------------------

    async def unload(self, caller: Caller) -> bool:
        if not self.settings.model_unloading:
            return False
        try:
            answer = await caller.call("POST", self._sleep_path, timeout_s=SLEEP_LIMIT_S)
        except TimeoutError:
            # It may still fall asleep, behind our back: take the order back. A server of ours is stopped anyway.
            await caller.call("POST", "/wake_up", timeout_s=5 * SECONDS)
            raise
        if answer.status == 404:
            self._say_why()
            return False
        if answer.status != 200:
            _log.warning("%s: %s was answered with status %d", self.settings.instance, self._sleep_path, answer.status)
            return False
        return await self._within(ASLEEP_LIMIT_S, caller, asleep=True)

    async def wake(self, caller: Caller) -> None:
        """All of it, or after level 2 weights, their contents, and the KV cache, in this order.

        Raises:
            BackendError: A step was refused.
        """
        if self._level == "2":
            await self._step(caller, "/wake_up?tags=weights")
            await self._step(caller, "/collective_rpc", {"method": "reload_weights"})
            await self._step(caller, "/wake_up?tags=kv_cache")
        else:
            await self._step(caller, "/wake_up")
        if not await self._within(ASLEEP_LIMIT_S, caller, asleep=False):
            raise self._failed("it still sleeps after a wake_up that it accepted")

    async def busy(self, caller: Caller) -> bool:
        """Requests running or waiting in the engine: ours have ended, but others may use an attached server."""
        answer = await caller.call("GET", "/metrics", limit_bytes=METRICS_LIMIT_BYTES)
        if answer.status == 404:
            return False
        text = answer.body.decode("utf-8", "replace")
        return any(_number(value) > 0 for value in _RUNNING.findall(text))

    def hint_for(self, output: Sequence[str]) -> str | None:
        return find_hint(output, HINTS, GENERAL, _LAST_HINTS)

    async def _step(self, caller: Caller, path: str, body: Mapping[str, str] | None = None) -> None:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        data = json.dumps(body).encode() if body is not None else None
        answer = await caller.call("POST", path, headers=headers, body=data, timeout_s=WAKE_CALL_LIMIT_S)
        if answer.status != 200:
            raise self._failed(f"{path} was answered with status {answer.status}")

    async def _within(self, limit_s: float, caller: Caller, *, asleep: bool) -> bool:
        """Whether ``/is_sleeping`` says so within ``limit_s`` seconds."""
        loop = asyncio.get_running_loop()
        end = loop.time() + limit_s
        while await self._is_sleeping(caller) is not asleep:
            if loop.time() >= end:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _is_sleeping(self, caller: Caller) -> bool | None:
        """None where the server has no such route."""
        answer = await caller.call("GET", "/is_sleeping")
        value = answer.json_object().get("is_sleeping") if answer.status == 200 else None
        return value if isinstance(value, bool) else None

    def _say_why(self) -> None:
        if not self._told_why:
            self._told_why = True
            _log.warning(
                "%s: the server has no /sleep: it must be started with --enable-sleep-mode and %s=1",
                self.settings.instance,
                _DEV_MODE,
            )

    def _failed(self, why: str) -> BackendError:
        name = self.settings.endpoint_name
        return BackendError(f"{name}: vLLM could not be woken: {why}", endpoint=name, phase="starting")


def _sleep_path(settings: BackendSettings) -> str:
    """The operator's ``unload`` (for another level), else level 1; requests that run are let end.

    Versions without ``mode`` ignore it.
    """
    if settings.unload is not None and settings.unload.path.partition("?")[0] == "/sleep":
        query = settings.unload.path.partition("?")[2]
        return "/sleep?" + "&".join([*filter(None, [query]), *([] if "mode=" in query else ["mode=wait"])])
    return "/sleep?level=1&mode=wait"


def _with_command(parameters: Sequence[str], binary: str) -> list[str]:
    """``serve`` in front, wherever ``default_parameters`` pushed it; not where a Python runs a module."""
    words = list(parameters)
    if Path(binary).name.startswith("python"):
        return words
    if "serve" in words:
        words.remove("serve")
    return ["serve", *words]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
