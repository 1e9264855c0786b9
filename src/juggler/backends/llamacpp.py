"""Type ``llamacpp``: llama.cpp's ``llama-server`` with one model (backends.md section 2; llama.cpp b11434).

There is no soft unload: stopping the process is the unload. What makes a stop cheap is that the KV cache of every
slot is saved before it and restored after the next start (``kvcache``).
"""

import asyncio
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from juggler.backends.base import (
    Address,
    Backend,
    BackendSettings,
    Caller,
    Capabilities,
    LaunchPlan,
    ProbeResult,
    Response,
    StopStep,
)
from juggler.backends.command_line import (
    find_executable,
    has_option,
    option_value,
    option_values,
    without_options,
    without_variables,
)
from juggler.backends.gguf_model import estimate_files, existing
from juggler.backends.hints import GENERAL, compiled, find_hint
from juggler.backends.kvcache import KvCache
from juggler.backends.kvsignature import identity, signature_of
from juggler.backends.llamacpp_away import LlamaCppAway, certain_alias
from juggler.memory.footprint import MemoryEstimate
from juggler.memory.gguf_estimate import CACHE_BYTES, GgufOptions
from juggler.routing.stand_in import StandIn
from juggler.routing.traffic import TrafficClass, TrafficRule, TrafficTable

_log = logging.getLogger("juggler.backends.llamacpp")

_ADDRESS_OPTIONS = frozenset({"--host", "--port", "--slot-save-path"})
_ADDRESS_FLAGS = frozenset({"--reuse-port"})
_ADDRESS_VARIABLES = frozenset(
    {
        "LLAMA_ARG_HOST",
        "LLAMA_ARG_PORT",
        "LLAMA_SERVER_ROUTER_PORT",
        "LLAMA_SERVER_CHILD_MODE",
        "AIP_MODE",
        "AIP_HTTP_PORT",
    }
)
"""They would change the address or the mode of the process (backends.md 2.1)."""

_MODEL_OPTIONS = frozenset({"-m", "--model"})
_PROJECTOR_OPTIONS = frozenset({"-mm", "--mmproj"})
_DRAFT_OPTIONS = frozenset({"-md", "--model-draft"})
_PLACED_BY_HAND = frozenset({"-ot", "--override-tensor", "-ts", "--tensor-split", "-mg", "--main-gpu", "--rpc"})
"""With them only the program itself knows what goes where."""
_DEVICE_OPTIONS = frozenset({"-dev", "--device"})

_PLACEMENT_VARIABLES = frozenset(
    {"CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES", "NODEVICE_SELECT"}
)
"""With what a program is placed on one of several GPUs: with ``--device CUDA1`` it would not find its GPU there."""

DEFAULT_SLOTS = 4
"""``--parallel -1``, the default, gives four slots with one KV buffer (backends.md 2.4)."""

POLITE_S = 2.0
"""An idle llama-server ends within 0.02 s; a second SIGTERM ends a busy one at once (backends.md 2.1)."""

_GONE = "current llama.cpp has no {0}: write `--load-mode {1}` instead (or use an older build)"
HINTS = compiled(
    (r"unknown value for --flash-attn|handling argument \"-fa\"|handling argument \"--flash-attn\"", "write `-fa on`"),
    (r"invalid argument: --no-mmap", _GONE.format("--no-mmap", "none")),
    (r"invalid argument: --mmap", _GONE.format("--mmap", "mmap")),
    (r"invalid argument: --mlock", _GONE.format("--mlock", "mlock")),
    (r"invalid argument: (-dio|--direct-io)", _GONE.format("-dio", "dio")),
    (r"invalid argument: --(port|host)=", "llama.cpp wants the value as a word of its own: `--port 8081`"),
    (
        r"invalid argument",
        "this build of llama.cpp does not know the option; `llama-server --help` lists those it knows",
    ),
    (r"failed to open gguf file|model file not found|failed to load model.*no such file", "the model file is missing"),
    (r"unknown model architecture", "this build of llama.cpp is too old for the model: update it"),
    (r"invalid magic characters|not a gguf file", "the model file is no GGUF file, or is damaged: download it again"),
    (r"--slot-save-path", "the directory for saved slots cannot be used: check `state_dir`"),
)


class LlamaCppBackend(Backend):
    """One ``llama-server``; the user's options are kept as they are, except for address and slot directory."""

    type_name = "llamacpp"
    traffic = TrafficTable(
        [
            TrafficRule("POST */slots/*", TrafficClass.BLOCKED),
            TrafficRule("POST */models/load", TrafficClass.BLOCKED),
            TrafficRule("POST */models/unload", TrafficClass.BLOCKED),
            TrafficRule("GET */v1/stream", TrafficClass.HELD_OPEN),
            TrafficRule("GET */models/sse", TrafficClass.HELD_OPEN),
            TrafficRule("DELETE */v1/stream", TrafficClass.LIGHT),
            # Ollama's, in builds that have it (server.cpp: get_api_show; b11549 has not): it asks, and loads nothing.
            TrafficRule("POST */api/show", TrafficClass.LIGHT, question=True),
            TrafficRule("GET */slots", TrafficClass.LIGHT, volatile=True),
            TrafficRule("GET */metrics", TrafficClass.LIGHT, volatile=True),
            TrafficRule("GET */", TrafficClass.START),
        ]
    )
    has_ui = True
    version_arguments = ("--version",)
    help_arguments = ("--help",)

    def __init__(self, settings: BackendSettings) -> None:
        super().__init__(settings)
        parameters = settings.parameters
        self._prefix = (
            option_value(parameters, {"--api-prefix"}) or settings.env.get("LLAMA_ARG_API_PREFIX", "")
        ).rstrip("/")
        self._sleeps = has_option(parameters, {"--sleep-idle-seconds"})
        self._slots_route = not has_option(parameters, {"--no-slots"})
        self._metrics_route = has_option(parameters, {"--metrics"})
        self._kv: KvCache | None = None
        self._key: str | None = None

    def stand_in(self) -> StandIn | None:
        """For a server whose model has a name of the operator's (``llamacpp_away``)."""
        alias = certain_alias(self.settings)
        return LlamaCppAway(alias, self._prefix) if alias is not None else None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(work_outlives_request=True, keeps_kv=self._keeps_kv, loads_alone=self._fits_itself)

    @property
    def _fits_itself(self) -> bool:
        """Whether it chooses its context or its layers by what is free at its start (``--fit``, on by default)."""
        chosen = self._option({"-c", "--ctx-size"}, "LLAMA_ARG_CTX_SIZE").strip("0") and (
            self._option({"-ngl", "--gpu-layers", "--n-gpu-layers"}, "LLAMA_ARG_N_GPU_LAYERS").isdecimal()
        )
        return not chosen and self._option({"-fit", "--fit"}, "LLAMA_ARG_FIT") != "off"

    @property
    def default_concurrency(self) -> int:
        value = option_value(self.settings.parameters, {"-np", "--parallel"}) or ""
        return int(value) if value.isdecimal() and int(value) > 0 else DEFAULT_SLOTS

    @property
    def _keeps_kv(self) -> bool:
        return self.settings.kv_cache_saving and self._slots_route

    # -- memory ------------------------------------------------------------------------------------------------

    def model_files(self) -> tuple[Path, ...]:
        parameters = self.settings.parameters
        named = [*self._named(_MODEL_OPTIONS, "LLAMA_ARG_MODEL"), *self._named(_PROJECTOR_OPTIONS, "LLAMA_ARG_MMPROJ")]
        named += self._named(_DRAFT_OPTIONS, "LLAMA_ARG_MODEL_DRAFT")
        for values in option_values(parameters, {"--lora", "--control-vector"}):
            named += [self._path(name) for name in values[0].split(",")]
        return existing(named)

    def memory_estimate(self) -> MemoryEstimate | None:
        """None where the model is not a local file, or the operator says what goes where."""
        model = self._named(_MODEL_OPTIONS, "LLAMA_ARG_MODEL")
        if not model or self._placed_by_hand:
            return None
        projector = self._named(_PROJECTOR_OPTIONS, "LLAMA_ARG_MMPROJ")
        draft = self._named(_DRAFT_OPTIONS, "LLAMA_ARG_MODEL_DRAFT")
        return estimate_files(
            model[0],
            self._memory_options(),
            projector=projector[0] if projector else None,
            draft=draft[0] if draft else None,
        )

    @property
    def _placed_by_hand(self) -> bool:
        """Whether the operator says which GPUs it uses, by their numbers or names among all of them."""
        device = self._option(_DEVICE_OPTIONS, "LLAMA_ARG_DEVICE")
        return device not in ("", "none") or has_option(self.settings.parameters, _PLACED_BY_HAND)

    def _memory_options(self) -> GgufOptions:
        parameters = self.settings.parameters
        layers = self._option({"-ngl", "--gpu-layers", "--n-gpu-layers"}, "LLAMA_ARG_N_GPU_LAYERS")
        device = self._option(_DEVICE_OPTIONS, "LLAMA_ARG_DEVICE")
        experts = self._option({"-ncmoe", "--n-cpu-moe"}, "LLAMA_ARG_N_CPU_MOE")
        cpu_experts = 10**6 if has_option(parameters, {"-cmoe", "--cpu-moe"}) else _whole(experts, 0)
        return GgufOptions(
            context=_whole(self._option({"-c", "--ctx-size"}, "LLAMA_ARG_CTX_SIZE"), 0),
            gpu_layers=0 if device == "none" else int(layers) if layers.isdecimal() else None,
            cpu_expert_layers=cpu_experts,
            key_bytes=CACHE_BYTES.get(self._option({"-ctk", "--cache-type-k"}, "LLAMA_ARG_CACHE_TYPE_K"), 2.0),
            value_bytes=CACHE_BYTES.get(self._option({"-ctv", "--cache-type-v"}, "LLAMA_ARG_CACHE_TYPE_V"), 2.0),
            slots=self.default_concurrency,
            batch=_whole(self._option({"-b", "--batch-size"}, "LLAMA_ARG_BATCH"), 2048),
            micro_batch=_whole(self._option({"-ub", "--ubatch-size"}, "LLAMA_ARG_UBATCH"), 512),
            flash_attention=self._option({"-fa", "--flash-attn"}, "LLAMA_ARG_FLASH_ATTN") not in ("off", "0", "false"),
            kv_on_gpu=not has_option(parameters, {"-nkvo", "--no-kv-offload"}),
            projector_on_gpu=not has_option(parameters, {"--no-mmproj-offload"}),
        )

    def _option(self, names: Collection[str], variable: str) -> str:
        return option_value(self.settings.parameters, names) or self.settings.env.get(variable, "")

    def _named(self, names: Collection[str], variable: str) -> list[Path]:
        name = self._option(names, variable)
        return [self._path(name)] if name else []

    def _path(self, name: str) -> Path:
        return Path(self.settings.cwd or ".") / name

    # -- start -------------------------------------------------------------------------------------------------

    def plan(self, address: Address, environ: Mapping[str, str]) -> LaunchPlan:
        settings = self.settings
        if self._placed_by_hand:
            ours = {name: value for name, value in os.environ.items() if name in _PLACEMENT_VARIABLES}
            environ = {**without_variables(environ, _PLACEMENT_VARIABLES), **ours}
        env = without_variables({**environ, **settings.env}, _ADDRESS_VARIABLES)
        binary = find_executable(
            settings.binary or "llama-server", endpoint=settings.endpoint_name, cwd=settings.cwd, path=env.get("PATH")
        )
        self._prefix = self._prefix or env.get("LLAMA_ARG_API_PREFIX", "").rstrip("/")
        self._key = self._find_key(env)
        parameters = without_options(settings.parameters, with_value=_ADDRESS_OPTIONS, flags=_ADDRESS_FLAGS)
        own = ["--host", address.host, "--port", str(address.port)]
        if self._keeps_kv:
            own += self._slot_save_path(signature_of(binary, parameters, settings.cwd, env, settings.instance))
        signal = settings.stop_signal or "SIGTERM"
        polite_s = min(POLITE_S, settings.stop_timeout_s / 2)
        return LaunchPlan(
            argv=(binary, *parameters, *own),
            env=env,
            cwd=settings.cwd,
            stop_ladder=(StopStep(signal, polite_s), StopStep(signal, polite_s)),
        )

    def _slot_save_path(self, signature: str) -> list[str]:
        """The option that lets the server save its slots; none, with a log line, where the disk does not play along."""
        kv = KvCache(self.settings.state_dir / "kv", signature, self.settings.kv_cache_quota_bytes)
        try:
            directory = kv.prepare()
        except OSError as error:
            _log.warning("%s: slots are not saved: %s", self.settings.instance, error)
            self._kv = None
            return []
        self._kv = kv
        return ["--slot-save-path", str(directory)]

    def _find_key(self, env: Mapping[str, str]) -> str | None:
        """The first API key the server accepts, from its options or its environment."""
        parameters = self.settings.parameters
        given = option_value(parameters, {"--api-key"})
        if given:
            return given.split(",")[0].strip()
        file = option_value(parameters, {"--api-key-file"})
        if file:
            try:
                lines = (Path(self.settings.cwd or ".") / file).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError):
                return None  # the server will say so itself
            return next((line.strip() for line in lines if line.strip()), None)
        return env.get("LLAMA_API_KEY") or None

    # -- probes ------------------------------------------------------------------------------------------------

    async def call(
        self, caller: Caller, method: str, path: str, body: bytes | None = None, timeout_s: float = 3.0
    ) -> Response:
        """One call with the server's prefix and key."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        return await caller.call(method, self._prefix + path, headers=headers, body=body, timeout_s=timeout_s)

    async def probe(self, caller: Caller) -> ProbeResult:
        """``/health``: 503 while loading, 200 when ready; 401 means loaded, for the key is checked after that."""
        try:
            answer = await self.call(caller, "GET", "/health")
        except (OSError, TimeoutError):
            return ProbeResult.NOT_YET
        if answer.status == 401:
            return ProbeResult.READY
        document = answer.json_object()
        if answer.status == 200 and document.get("status") == "ok":
            return ProbeResult.READY
        if answer.status == 503 and "error" in document:
            return ProbeResult.NOT_YET
        return ProbeResult.WRONG_SERVER if answer.status < 500 else ProbeResult.NOT_YET

    async def identify(self, caller: Caller) -> str | None:
        """By ``build_info`` of ``/props``, which koboldcpp's imitation of that route lacks."""
        answer = await self.call(caller, "GET", "/props")
        if answer.status == 401:
            return "llama.cpp (it wants an API key)" if "Invalid API Key" in answer.body.decode("latin-1") else None
        document = answer.json_object()
        if answer.status == 503 and "Loading model" in str(document.get("error")):
            return "llama.cpp (it loads its model)"
        build = document.get("build_info")
        return f"llama.cpp {build}" if build else None

    async def busy(self, caller: Caller) -> bool:
        """Whether a slot works: with ``X-Conversation-Id`` a generation outlives its request (backends.md 2.5).

        Not to be asked more than about once in 1.5 s for long: the server looks for clients that hung up only when
        none of its tasks finished for a second, and each look at its slots is a task (seen with build 11549).
        """
        if await self._asleep(caller):
            return False
        if self._slots_route:
            slots = await self.slots(caller)
            return any(bool(slot.get("is_processing")) for slot in slots)
        if self._metrics_route:
            text = (await self.call(caller, "GET", "/metrics")).body.decode("utf-8", "replace")
            lines = [line.split() for line in text.splitlines() if line.startswith("llamacpp:requests_processing")]
            return any(len(words) > 1 and float(words[1]) > 0 for words in lines)
        return False

    async def _asleep(self, caller: Caller) -> bool:
        """Whether the server sleeps. Looking at its slots would wake it (backends.md 2.3)."""
        if not self._sleeps:
            return False
        return bool((await self.call(caller, "GET", "/props")).json_object().get("is_sleeping"))

    async def slots(self, caller: Caller) -> list[dict[str, object]]:
        """``GET /slots``; empty if the server has the route switched off, or answers with anything else."""
        answer = await self.call(caller, "GET", "/slots")
        try:
            document = answer.json() if answer.status == 200 else []
        except ValueError:
            return []
        return [slot for slot in document if isinstance(slot, dict)] if isinstance(document, list) else []

    async def build(self, caller: Caller) -> str:
        """What the server says of its build and its model file; files of another are not restored.

        The digest of the command line knows the model only where it is named there: one that comes by ``-hf`` or
        from llama.cpp's own config file is seen here.
        """
        properties = (await self.call(caller, "GET", "/props")).json_object()
        if not properties:
            return ""
        path = Path(self.settings.cwd or ".") / str(properties.get("model_path", ""))
        return f"{properties.get('build_info', '')} {await asyncio.to_thread(identity, path)}"

    # -- KV ----------------------------------------------------------------------------------------------------

    async def after_start(self, caller: Caller) -> None:
        if self._kv is not None:
            await self._kv.restore(self, caller)

    async def before_stop(self, caller: Caller) -> None:
        if self._kv is not None and not await self._asleep(caller):
            await self._kv.save(self, caller)

    def hint_for(self, output: Sequence[str]) -> str | None:
        return find_hint(output, HINTS, GENERAL)


def _whole(text: str, default: int) -> int:
    return int(text) if text.isdecimal() and len(text) < 10 else default
