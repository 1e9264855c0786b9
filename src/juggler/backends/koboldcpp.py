"""Type ``koboldcpp``: started here or attached to (backends.md section 4; koboldcpp 1.116.1).

It may hold text, image and audio models at once; to the scheduler they are one. In administration mode (``--admin``)
its manager can end the worker that holds them and start another one, which is its soft unload. In between the port is
closed, and without a model it tells clients that there is none: so while it is unloaded nothing is forwarded to it
(``answers_when_unloaded`` is false). Polls get its earlier answers, as those of a stopped server do, and work wakes it.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

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
from juggler.backends.hints import GENERAL, compiled, find_hint
from juggler.backends.koboldcpp_admin import Administration, Version, as_version, model_name, version_of
from juggler.backends.koboldcpp_launch import Known, command, known, with_script, without_screens
from juggler.backends.koboldcpp_memory import memory_estimate, model_files
from juggler.backends.koboldcpp_options import last_value, split
from juggler.errors import BackendError
from juggler.memory.footprint import MemoryEstimate
from juggler.routing.traffic import TrafficClass, TrafficRule, TrafficTable
from juggler.units import SECONDS

DEFAULT_CONCURRENCY = 4
"""It queues by itself, up to ten, and refuses more (``--multiuser``). A few keep its queue filled; the rest waits
here, where it can be seen and ordered."""

POLITE_S = 3 * SECONDS
"""For SIGINT, which Python cannot handle while native code loads or generates, and then for SIGTERM, which ends that
at once but leaves a manager no time to clean up (backends.md 4.3)."""

UNLOAD_LIMIT_S = 40 * SECONDS
"""The manager waits up to 10 s for the old worker, then 3 s, and the new one starts an interpreter and its GPU
library."""

_NOT_ITS_OWN_WORD = frozenset({401, 403, 407, 408, 429})
"""Said by something in front of an attached server: koboldcpp asks nobody who wants its version (4.4)."""

_NEEDS_A_MODEL = (
    "no model is named: add `--model FILE` (or `--sdmodel`, `--whispermodel` …) to `parameters`, or a settings file "
    "with `--config`"
)
_TOO_OLD = "this koboldcpp is too old for the model, or the file is damaged: update koboldcpp, or download it again"
HINTS = compiled(
    (r"Cannot find text model file: (.+)", "{1} does not exist: correct `--model`, or set `cwd`"),
    (r"Cannot find (.+?) files?: (.+)", "its {1} does not exist ({2}): correct the path in `parameters`, or set `cwd`"),
    (r"Cannot find (.+ model) files?!", "a file of its {1} does not exist: correct the paths, or set `cwd`"),
    (r"unknown model architecture|unknown (?:GGUF )?file format|not a GGUF file|invalid magic", _TOO_OLD),
    (
        r"Could not load (.+?) model",
        "the {1} model could not be loaded: it is damaged, newer than this koboldcpp, or larger than the memory that "
        "is free (then declare the endpoint's `memory`, or lower `--gpulayers` or `--contextsize`)",
    ),
    (r"Specified kcpp config file invalid or not found", "the settings file could not be read by koboldcpp itself"),
    (r"GUI failed to start|File selection GUI unsupported|No gguf model or kcpps file was selected", _NEEDS_A_MODEL),
    (
        r"couldn't locate any backends to use",
        "koboldcpp.py finds no compiled library beside it: run `make` in its folder, or use the one-file program",
    ),
    (r"ERROR: Both IPv4 and IPv6 cannot bind", "another program has taken the port meanwhile; try again"),
    (
        r"unrecognized arguments: (.+)",
        "this koboldcpp does not know {1}; its `--help` lists the options of the installed version",
    ),
    (
        r"argument port_param: not allowed with argument --port|argument --port: not allowed with argument port_param",
        "a port stands behind the model, where it was not recognised: take it out of `parameters`",
    ),
    (
        r"argument model_param: not allowed with argument --model|argument --model\S*: not allowed with argument",
        "`parameters` name two models, or hold a word that belongs to no option",
    ),
    (r"error: (ambiguous option: .+|argument .+)", "correct `parameters`: {1}"),
    (
        r"AF_UNIX path too long",
        "with `--admin` it makes a socket below TMPDIR, whose path has room for 108 bytes: let TMPDIR in `env` name a "
        "folder with a shorter path",
    ),
    (r"can't open file '([^']*\.py)'", "{1} does not exist: set `cwd` to the folder of koboldcpp"),
    (
        r"Could not create temporary directory|Failed to extract .+|failed to map segment from shared object"
        r"|No space left on device",
        "the one-file program unpacks itself before it runs, about a gigabyte: let TMPDIR in `env` name a folder with "
        "room on a disk from which programs may be run",
    ),
)
"""From koboldcpp.py (exit_with_error and its callers, main, RunServerMultiThreaded), llama.cpp's loader, argparse, and
PyInstaller's boot loader."""

_log = logging.getLogger("juggler.backends.koboldcpp")


def _rules() -> list[TrafficRule]:
    """Section 8 of backends.md. GET routes are matched by their end, wherever a client puts them (4.6)."""
    start, light, work = TrafficClass.START, TrafficClass.LIGHT, TrafficClass.WORK
    rules = [
        TrafficRule("POST */api/admin/*", TrafficClass.BLOCKED),
        TrafficRule("POST */api/extra/shutdown", TrafficClass.BLOCKED),
    ]
    rules += [TrafficRule(f"GET {page}", start) for page in ("/", "/lcpp", "/lcpp/", "/sdui*", "/musicui*")]
    # Generations by GET: the page without scripts, and VITS speech.
    rules += [TrafficRule(f"GET {path}", work) for path in ("/noscript", "/noscript/", "/voice/vits", "/voice/vits/")]
    moments = ["*/api/extra/perf", "*/api/extra/generate/check", "*/api/extra/last_logprobs", "/ws"]
    moments += ["*/history", "*/history/*", "*/view", "*/view.png", "/view_image*"]
    rules += [TrafficRule(f"GET|HEAD {path}", light, volatile=True) for path in moments]
    posts = ["/api/extra/generate/check", "/api/extra/abort", "/api/extra/last_logprobs", "/api/extra/multiplayer/*"]
    posts += ["/set_tts_settings", "/sdapi/v1/interrupt", "/sdapi/v1/skip", "/interrupt"]
    rules.append(TrafficRule("POST */api/show", light, question=True))
    return rules + [TrafficRule(f"POST *{path}", light) for path in posts]


class KoboldCppBackend(Backend):
    """One koboldcpp with the models of its command line."""

    type_name = "koboldcpp"
    has_ui = True
    version_arguments: ClassVar[tuple[str, ...] | None] = ("--version",)
    help_arguments: ClassVar[tuple[str, ...] | None] = ("--help",)
    traffic = TrafficTable(_rules(), no_store_everywhere=True)

    def __init__(self, settings: BackendSettings) -> None:
        super().__init__(settings)
        wrapper, parameters = with_script(settings.parameters)
        if wrapper:
            # An interpreter tells its own version; this way it tells the script's.
            self.version_arguments = (*wrapper, "--version")  # type: ignore[misc]
            self.help_arguments = (*wrapper, "--help")  # type: ignore[misc]
        self._groups = split(parameters)
        self._known = Known(admin=last_value(self._groups, "--admin") is not None)
        self._swaps = self._known.admin
        """Whether models can be taken away and back. A guess until the server was asked."""
        self._model = ""
        """What an attached server held before its unload."""

    @property
    def capabilities(self) -> Capabilities:
        unloads = self._swaps and self.settings.model_unloading
        return Capabilities(
            can_start=self.settings.attach_to is None or self.settings.binary is not None,
            can_attach=True,
            unload="async" if unloads else "none",
            reload="explicit" if unloads else "start",
            unload_needs_idle=True,
            # Only streams end with their client; other generations go on, and its Horde workers have none (4.6).
            work_outlives_request=True,
        )

    @property
    def default_concurrency(self) -> int:
        """What it takes without a refusal, as far as the command line says."""
        users = _number(last_value(self._groups, "--multiuser"), default=1)
        at_once = max(
            _number(last_value(self._groups, option), default=1) for option in ("--parallelrequests", *_BATCH)
        )
        wanted = max(DEFAULT_CONCURRENCY, at_once)
        if users <= 0 and at_once <= 1:
            return 1  # it refuses the second
        return min(wanted, users) if users > 1 else wanted

    @property
    def secrets(self) -> tuple[str, ...]:
        """Words that its output shows in clear and that nobody should see, longest first; known once it was planned."""
        words = {*self._known.secrets, *super().secrets}
        return tuple(sorted(words, key=len, reverse=True))

    # -- start -------------------------------------------------------------------------------------------------

    def model_files(self) -> tuple[Path, ...]:
        return model_files(self.settings)

    def memory_estimate(self) -> MemoryEstimate | None:
        return memory_estimate(self.settings)

    def plan(self, address: Address, environ: Mapping[str, str]) -> LaunchPlan:
        settings = self.settings
        # Its output goes to a pipe; what it says before a crash must not stay in a buffer.
        env = {"PYTHONUNBUFFERED": "1", **without_screens(environ), **settings.env}
        chosen = command(settings, address, env)
        self._known = chosen.known
        self._swaps = chosen.known.admin
        polite_s = min(POLITE_S, settings.stop_timeout_s / 2)
        return LaunchPlan(
            argv=chosen.argv,
            env=env,
            cwd=settings.cwd,
            stop_ladder=(StopStep(settings.stop_signal or "SIGINT", polite_s), StopStep("SIGTERM", polite_s)),
            temp_files=chosen.temp_files,
        )

    # -- probes ------------------------------------------------------------------------------------------------

    async def probe(self, caller: Caller) -> ProbeResult:
        """``/api/extra/version``: the port opens when the models are loaded. With or without them: see ``wake``."""
        try:
            answer = await caller.call("GET", "/api/extra/version")
        except (OSError, TimeoutError):
            return ProbeResult.NOT_YET
        if as_version(answer) is not None:
            return ProbeResult.READY
        certain = answer.status < 500 and answer.status not in _NOT_ITS_OWN_WORD
        return ProbeResult.WRONG_SERVER if certain else ProbeResult.NOT_YET

    async def identify(self, caller: Caller) -> str | None:
        version = await version_of(caller)
        return f"KoboldCpp {version.version}".rstrip() if version is not None else None

    async def busy(self, caller: Caller) -> bool:
        """Whether it generates, or requests wait for it to.

        Raises:
            OSError: Nobody answers, or not in time.
            BackendError: An answer that is not koboldcpp's.
        """
        try:
            answer = await caller.call("GET", "/api/extra/perf")
        except TimeoutError:
            if self.attached:
                return True  # each of its 24 threads serves one connection to the end: others have taken them all
            raise
        perf = answer.json_object()
        if answer.status != 200 or "idle" not in perf:
            raise self._error(f"does not say whether it works (status {answer.status})")
        return not perf["idle"] or bool(perf.get("queue"))

    # -- memory ------------------------------------------------------------------------------------------------

    async def examine(self, caller: Caller) -> None:
        """Whether this server can be unloaded."""
        await self._look(caller)

    async def after_start(self, caller: Caller) -> None:
        version = await self._look(caller)
        if self.attached and version is not None and not version.loaded:
            _log.warning("%s: the attached server has no model loaded", self.settings.instance)

    async def unload(self, caller: Caller) -> bool:
        if not self.settings.model_unloading:
            return False
        version = await self._look(caller)
        if version is None or not self._swaps:
            return False
        if not version.loaded:
            return True
        self._model = await model_name(caller) if self.attached else ""
        return await self._administration().unload(caller, limit_s=UNLOAD_LIMIT_S)

    async def wake(self, caller: Caller) -> None:
        version = await version_of(caller)
        if version is not None and version.loaded:
            return
        if not await self._administration().reload(caller, limit_s=self.settings.start_timeout_s):
            raise self._error("did not load its model again")
        if self._model and (now := await model_name(caller)) != self._model:
            _log.warning(
                "%s: the attached server held %s before its unload and now holds %s, with which it was started",
                self.settings.instance,
                self._model,
                now or "another model",
            )

    async def _look(self, caller: Caller) -> Version | None:
        """What the server says now; notes whether it can be unloaded.

        Raises:
            OSError: Nobody answers.
            TimeoutError: No complete answer.
        """
        version = await version_of(caller)
        if version is None or not version.admin or not self.settings.model_unloading:
            self._swaps = False
            return version
        if self.attached:
            self._known = await asyncio.to_thread(known, self.settings)
        problem = await self._administration().problem(caller)
        if problem is not None:
            _log.warning("%s: cannot be unloaded: %s", self.settings.instance, problem)
        self._swaps = problem is None
        return version

    def _administration(self) -> Administration:
        return Administration(self.settings.instance, self._known.admin_password)

    def _error(self, what: str) -> BackendError:
        name = self.settings.endpoint_name
        return BackendError(f"{name}: its koboldcpp server {what}", endpoint=name, phase="starting")

    def hint_for(self, output: Sequence[str]) -> str | None:
        return find_hint(output, HINTS, GENERAL)


_BATCH = ("--continuous-batching", "--contbatch")
"""Other names of ``--parallelrequests``."""


def _number(text: str | None, *, default: int) -> int:
    """The number an option was given; ``default`` without one."""
    try:
        return int(text) if text else default
    except ValueError:
        return default
