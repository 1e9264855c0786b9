"""Type ``ollama``: ``ollama serve`` with all its models, started here or attached to (backends.md section 6).

One instance is one server, which loads and keeps several models as requests name them. To the scheduler they are one:
when the memory is wanted, every model is unloaded through the API; the next request loads its own again.

What a client says about ``keep_alive`` moves ollama's own timers only. An order to unload overrides them, so nobody
pins memory against the scheduler, whatever the requests carried.
"""

import logging
import os
from collections.abc import Mapping, Sequence

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
from juggler.backends.command_line import find_executable
from juggler.backends.hints import GENERAL, compiled, find_hint
from juggler.backends.ollama_away import OllamaAway, orders_unload
from juggler.backends.ollama_models import LoadedModel, loaded_models, unload_all
from juggler.routing.apis import Api
from juggler.routing.stand_in import StandIn
from juggler.routing.traffic import Placeholder, TrafficClass, TrafficRule, TrafficTable
from juggler.units import GIB, SECONDS

DEFAULT_CONCURRENCY = 4
"""Where OLLAMA_NUM_PARALLEL says nothing. It counts per model, and one server may hold several."""

OWN_UNLOAD_LIMIT_S = 25 * SECONDS
"""Ollama watches the memory for up to 5 s after each model (``server/sched.go``); a stop is the alternative, and
takes a second."""

ATTACHED_UNLOAD_LIMIT_S = 50 * SECONDS
"""Others may use that server, and their requests run to the end; there is no alternative."""

_DEFAULTS = {
    "OLLAMA_KEEP_ALIVE": "-1",  # only the juggler unloads
    "OLLAMA_NOPRUNE": "1",  # a start would delete what another ollama downloads into the same store just now
}

_ROOT = Placeholder(b"Ollama is running", "text/plain; charset=utf-8")
"""server/routes.go; n8n tests its credentials by it (clients.md 4.1)."""

_ASSUMED_VERSION = Placeholder(b'{"version":"0.33.0"}', "application/json; charset=utf-8")
"""Clients ask for it before they use a server at all, and some refuse an old one. The version whose routes are known
here (backends.md); once the server was asked, its own answer takes this one's place."""

_SERVE_WORDS = frozenset({"serve", "start"})
"""The command and its alias (``cmd/cmd.go``)."""

_KOBOLDCPP_IMITATION = "0.7.0"
"""What koboldcpp answers as ollama's version (koboldcpp.py 1.116.1, backends.md 4.6)."""

_NOT_ITS_OWN_WORD = frozenset({401, 403, 407, 408, 429})
"""Said by something in front of an attached server, or by ollama about our ``Host``; it may well be ollama."""

HINTS = compiled(
    (
        r"\$HOME is not defined",
        "set HOME in `env`: ollama keeps its key and, without OLLAMA_MODELS, its models below it",
    ),
    (
        r"unknown (?:shorthand )?flag: (\S+)",
        "`ollama serve` takes no options ({1}): its settings are variables such as OLLAMA_CONTEXT_LENGTH, for `env`",
    ),
    (
        r"unknown command \"([^\"]+)\" for|accepts 0 arg\(s\), received",
        "leave `parameters` empty: `ollama serve` takes none, requests name the models, and settings belong in `env`",
    ),
    (
        r"llama-server binary not found",
        "the installation is incomplete: the folder lib/ollama with its runners must stand beside the program's bin",
    ),
    (
        r"(?:mkdir|open|chmod|stat|readlink) (\S+): permission denied",
        "ollama may not use {1}: correct its owner, or set OLLAMA_MODELS (or HOME) in `env` to a folder of this user",
    ),
    (r"no space left on device", "the disk with the models is full: remove some with `ollama rm`, or move them"),
)
"""From cmd/cmd.go, llm/llama_server.go, envconfig/config.go, cobra and Go's standard library."""

_log = logging.getLogger("juggler.backends.ollama")


class OllamaBackend(Backend):
    """One ollama server; what it holds is known only to itself, so it is asked."""

    type_name = "ollama"
    api = Api.OLLAMA
    version_arguments = ("--version",)
    help_arguments = ("serve", "--help")
    traffic = TrafficTable(
        [
            # Go's profiles and variables, where a build has them: they share ollama's port (server/routes.go, Serve).
            TrafficRule("* /debug/*", TrafficClass.BLOCKED),
            TrafficRule("GET|HEAD /api/ps", TrafficClass.LIGHT, volatile=True),
            TrafficRule("POST /api/show", TrafficClass.LIGHT, question=True),
            TrafficRule("POST /api/generate", TrafficClass.WORK, light_if=orders_unload),
            TrafficRule("POST /api/chat", TrafficClass.WORK, light_if=orders_unload),
            TrafficRule("POST /api/pull", TrafficClass.LIGHT),
            TrafficRule("POST /api/push", TrafficClass.LIGHT),
            TrafficRule("POST /api/create", TrafficClass.LIGHT, changes=True),
            TrafficRule("POST /api/copy", TrafficClass.LIGHT, changes=True),
            TrafficRule("POST /api/blobs/*", TrafficClass.LIGHT),
            TrafficRule("POST /api/me", TrafficClass.LIGHT),
            TrafficRule("POST /api/signout", TrafficClass.LIGHT),
            TrafficRule("POST /api/experimental/*", TrafficClass.LIGHT),
            TrafficRule("DELETE *", TrafficClass.LIGHT, changes=True),
        ],
        placeholders={b"/": _ROOT, b"/api/version": _ASSUMED_VERSION},
    )
    """Nothing but inference needs GPU memory (backends.md 6.4 and 8; the experimental routes ask ollama.com)."""

    def __init__(self, settings: BackendSettings) -> None:
        super().__init__(settings)
        self._on_gpu = False
        """Whether any model was seen there: then one that is not deserves a warning."""
        self._told: set[str] = set()

    @property
    def capabilities(self) -> Capabilities:
        unloads = self.settings.model_unloading
        return Capabilities(
            can_start=self.settings.attach_to is None or self.settings.binary is not None,
            can_attach=True,
            unload="async" if unloads else "none",
            reload="lazy" if unloads else "start",
            answers_when_unloaded=unloads,
        )

    @property
    def default_concurrency(self) -> int:
        """OLLAMA_NUM_PARALLEL; of the juggler's own environment only where the server inherits it."""
        inherited = os.environ if self.settings.attach_to is None else {}
        value = {**inherited, **self.settings.env}.get("OLLAMA_NUM_PARALLEL", "")
        value = value.strip().strip("\"'")  # as envconfig.Var reads it
        return int(value) if value.isdecimal() and int(value) > 0 else DEFAULT_CONCURRENCY

    def stand_in(self) -> StandIn | None:
        """For a server that a request would start (``ollama_away``)."""
        starts = self.settings.attach_to is None or self.settings.binary is not None
        return OllamaAway(self.settings) if starts else None

    # -- start -------------------------------------------------------------------------------------------------

    def plan(self, address: Address, environ: Mapping[str, str]) -> LaunchPlan:
        settings = self.settings
        env = {**_DEFAULTS, **environ, **settings.env, "OLLAMA_HOST": str(address)}
        binary = find_executable(
            settings.binary or "ollama", endpoint=settings.endpoint_name, cwd=settings.cwd, path=env.get("PATH")
        )
        parameters = settings.parameters
        if _SERVE_WORDS.isdisjoint(parameters):
            parameters = ("serve", *parameters)
        return LaunchPlan(
            argv=(binary, *parameters),
            env=env,
            cwd=settings.cwd,
            # It ends its runners and itself within a second; a second signal would change nothing.
            stop_ladder=(StopStep(settings.stop_signal or "SIGTERM", settings.stop_timeout_s),),
        )

    # -- probes ------------------------------------------------------------------------------------------------

    async def probe(self, caller: Caller) -> ProbeResult:
        """``/api/version``: the port is bound seconds before anything answers (backends.md 6.2)."""
        try:
            answer = await caller.call("GET", "/api/version")
            version = _version(answer)
            if version is None:
                certain = answer.status < 500 and answer.status not in _NOT_ITS_OWN_WORD
                return ProbeResult.WRONG_SERVER if certain else ProbeResult.NOT_YET
            another = await _is_koboldcpp(caller, version)
        except (OSError, TimeoutError):
            return ProbeResult.NOT_YET
        return ProbeResult.WRONG_SERVER if another else ProbeResult.READY

    async def identify(self, caller: Caller) -> str | None:
        version = _version(await caller.call("GET", "/api/version"))
        if version is None or await _is_koboldcpp(caller, version):
            return None
        return f"ollama {version}"

    # -- memory ------------------------------------------------------------------------------------------------

    async def before_stop(self, caller: Caller) -> None:
        """The last look at what ran here: a model beside the GPU is slow, and nothing else would say so."""
        try:
            models = await loaded_models(caller, timeout_s=3 * SECONDS)
        except (OSError, TimeoutError) as error:
            _log.debug("%s: could not be asked for its models: %s", self.settings.instance, error)
            return
        self._on_gpu = self._on_gpu or any(model.vram_bytes for model in models)
        for model in models:
            if model.spilled and model.name not in self._told:
                self._told.add(model.name)
                self._tell(model)

    def _tell(self, model: LoadedModel) -> None:
        # Without any model on a GPU so far there may be none: then this is how it should be.
        _log.log(
            logging.WARNING if self._on_gpu else logging.INFO,
            "%s: %s ran with %.1f of its %.1f GiB on the GPU, the rest on the CPU: most likely too little GPU memory "
            "was free when it was loaded, or its context is too long (OLLAMA_CONTEXT_LENGTH)",
            self.settings.instance,
            model.name,
            model.vram_bytes / GIB,
            model.size_bytes / GIB,
        )

    async def unload(self, caller: Caller) -> bool:
        """Every model, whoever loaded it and for however long (``ollama_models``)."""
        if not self.settings.model_unloading:
            return False
        limit_s = ATTACHED_UNLOAD_LIMIT_S if self.attached else OWN_UNLOAD_LIMIT_S
        return await unload_all(caller, self.settings.instance, limit_s=limit_s)

    def hint_for(self, output: Sequence[str]) -> str | None:
        return find_hint(output, HINTS, GENERAL)


def _version(answer: Response) -> str | None:
    """What ``/api/version`` says; None if it is not ollama's answer."""
    version = answer.json_object().get("version") if answer.status == 200 else None
    return version if isinstance(version, str) else None


async def _is_koboldcpp(caller: Caller, version: str) -> bool:
    """Whether it is koboldcpp's imitation; a real ollama 0.7.0 answers 404 to the question.

    Raises:
        OSError: Nobody answers.
        TimeoutError: No complete answer.
    """
    if version != _KOBOLDCPP_IMITATION:
        return False
    return (await caller.call("GET", "/api/extra/version")).json_object().get("result") == "KoboldCpp"
