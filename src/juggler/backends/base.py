"""What a backend module says about one server program.

A module knows how to phrase things for its program (command line, environment, probes, unload, state files) and
does nothing on its own: the supervisor calls it, one call at a time, each under a deadline of the supervisor's.
Facts about a program carry their source in the module's docstrings.
"""

import abc
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from juggler.backends.secrets import secrets_of
from juggler.ids import InstanceId
from juggler.memory.footprint import MemoryEstimate
from juggler.routing.apis import Api
from juggler.routing.stand_in import StandIn
from juggler.routing.traffic import TrafficTable
from juggler.tls import ServerTls


@dataclass(frozen=True, slots=True)
class Address:
    """Where an instance listens, as its launcher reported it."""

    host: str
    port: int
    tls: ServerTls | None = None
    """For attached servers behind ``https://``."""

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def authority(self) -> str:
        """For the Host field."""
        return self.tls.authority if self.tls is not None else str(self)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What the scheduler and the supervisor may rely on (backends.md section 10)."""

    can_start: bool = True
    can_attach: bool = False
    unload: Literal["none", "sync", "async"] = "none"
    """Whether the weights can be freed while the process stays, and whether the answer means it is done."""

    reload: Literal["start", "lazy", "explicit"] = "start"
    """How the weights come back: only by a start, by the next request, or by an explicit call before it."""

    unload_needs_idle: bool = False
    """An unload breaks what runs at that moment; the others let it end first."""

    work_outlives_request: bool = False
    """A finished exchange may leave work behind: ask ``busy`` before the memory is taken away."""

    answers_when_unloaded: bool = False
    """Polls and lists are answered by the process although its weights are gone."""

    loads_alone: bool = False
    """Others must not change the memory of its GPU while it loads: it fits itself into what is free, or fails."""

    keeps_kv: bool = False
    """State of conversations can be saved before a stop and restored after a start."""


@dataclass(frozen=True, slots=True)
class HttpCall:
    """One configured HTTP call of a ``command`` backend (``unload``, ``wake``, ``busy``)."""

    method: str
    path: str
    body: str | None = None
    expect: tuple[int, ...] = ()
    """Accepted statuses; empty means any 2xx."""
    busy_when: str | None = None
    """For ``busy``: a condition on the JSON answer."""


@dataclass(frozen=True)
class BackendSettings:
    """What the operator wrote for one instance, defaults applied, paths not yet resolved."""

    instance: InstanceId
    endpoint_name: str
    type: str
    binary: str | None = None
    attach_to: str | None = None
    attach_tls: ServerTls | None = None
    """Where ``attach_to`` begins with ``https://``."""
    parameters: tuple[str, ...] = ()
    """``default_parameters`` of the backend followed by the endpoint's ``parameters``."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment added to ours: the backend's, overridden by the endpoint's."""
    cwd: str | None = None
    model_unloading: bool = True
    kv_cache_saving: bool = True
    ready_path: str | None = None
    unload: HttpCall | None = None
    wake: HttpCall | None = None
    busy: HttpCall | None = None
    stop_signal: str | None = None
    """Name such as ``"SIGINT"``; None: the type's own ladder."""
    start_timeout_s: float = 600.0
    stop_timeout_s: float = 10.0
    ui_prefix: str = ""
    """Prefix that is stripped before the program sees a path (``/sd``): pages with absolute links must be told."""
    temp_dir: Path = Path()
    """Exists; private files of this run go below it."""
    state_dir: Path = Path()
    """Exists; files that outlive a run (KV) go below it."""
    kv_cache_quota_bytes: int = 10 * 1024**3


@dataclass(frozen=True, slots=True)
class StopStep:
    """One rung of the stop ladder: send ``signal`` to the whole group, then wait up to ``grace_s`` seconds."""

    signal: str
    grace_s: float


@dataclass(frozen=True)
class LaunchPlan:
    """How to start the program on one address. Plain data: it may cross to another machine."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    """The complete environment of the process."""
    cwd: str | None
    stop_ladder: tuple[StopStep, ...]
    """Polite steps; SIGKILL to group and descendants always follows."""
    temp_files: tuple[str, ...] = ()
    """Private files or directories to remove when the process has ended."""


class ProbeResult(enum.Enum):
    """What one readiness probe found."""

    NOT_YET = "not yet"
    READY = "ready"
    WRONG_SERVER = "wrong server"
    """Somebody else answers on this address: the start has failed, another port may do."""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole, bounded answer to one of our own calls."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case; the last of repeated ones."""
    body: bytes

    def json(self) -> object:
        """The body as JSON.

        Raises:
            ValueError: It is not JSON, or nested deeper than anything sensible.
        """
        import json

        try:
            return json.loads(self.body)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error

    def json_object(self) -> dict[str, object]:
        """The JSON object that the body is, whatever the status; empty if it is anything else."""
        try:
            document = self.json()
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}


class Caller(Protocol):
    """Makes our own HTTP calls to one instance; every call has a deadline."""

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
        """One exchange on a fresh connection.

        Raises:
            OSError: Refused, reset, or not HTTP (``ConnectionError`` and friends).
            TimeoutError: No complete answer within ``timeout_s``.
        """
        ...


class Backend(abc.ABC):
    """One instance of one program, as the supervisor sees it.

    The defaults describe a program that can only be started and stopped.
    """

    type_name: ClassVar[str]
    traffic: ClassVar[TrafficTable]
    """Traffic classes of the program's routes; the same for every instance."""

    api: ClassVar[Api | None] = None
    """In whose shape the program tells errors on all of its routes; None: it depends on the route."""

    has_ui: ClassVar[bool] = False
    """People open its root in a browser: that starts it, as work would."""

    knows_its_prefix: ClassVar[bool] = False
    """It is started with the prefix that is stripped (``ui_prefix``), so another one takes another process."""

    version_arguments: ClassVar[tuple[str, ...] | None] = None
    """What makes ``binary`` print its version and end; None where nothing does so quickly."""

    help_arguments: ClassVar[tuple[str, ...] | None] = None
    """What makes ``binary`` list its options and end; None where nothing does so quickly."""

    def __init__(self, settings: BackendSettings) -> None:
        self.settings = settings
        self.attached = False
        """Whether the process is somebody else's. Set before the first call of a generation; ``capabilities`` may
        depend on it, and on what ``probe`` learned."""

    @property
    def default_concurrency(self) -> int:
        """Work requests handed over at a time where the endpoint sets no ``concurrency``; the rest waits here."""
        return 64

    @property
    def secrets(self) -> tuple[str, ...]:
        """Words that must not be seen in the program's output, longest first."""
        return secrets_of(self.settings.parameters, self.settings.env)

    @property
    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What this instance can do, given its settings."""

    @abc.abstractmethod
    def plan(self, address: Address, environ: Mapping[str, str]) -> LaunchPlan:
        """The command for one start on ``address``; ``environ`` is the juggler's own environment.

        May create private files below ``temp_dir`` or ``state_dir``; runs in a worker thread.

        Raises:
            StartFailed: The settings cannot work (binary missing or not executable), with a hint.
        """

    @abc.abstractmethod
    async def probe(self, caller: Caller) -> ProbeResult:
        """One look at whether the program may get traffic; failures of the call mean ``NOT_YET``."""

    def stand_in(self) -> StandIn | None:
        """Who answers some light requests for the instance while it is not up; None: nobody can."""
        return None

    async def identify(self, caller: Caller) -> str | None:
        """Program and version of whatever answers, by its own means (``"ComfyUI 0.3.64"``); None if it is another.

        Must not load, wake or change anything. For ``juggler doctor`` and for error texts.

        Raises:
            OSError: Nobody answers, or not with HTTP.
            TimeoutError: No complete answer.
        """
        return None

    async def examine(self, caller: Caller) -> None:
        """Learn what a server found running can do, and change nothing; ``capabilities`` say so from then on.

        Raises:
            OSError: Nobody answers.
            TimeoutError: No complete answer.
        """

    async def after_start(self, caller: Caller) -> None:
        """Called once the program is ready and before the first request is let in. Must bound itself."""

    async def before_stop(self, caller: Caller) -> None:
        """Called while the program is idle, before it is stopped or unloaded. Must bound itself."""

    async def unload(self, caller: Caller) -> bool:
        """Free the weights, keep the process. True when verified; False lets the ladder go on to a stop."""
        return False

    async def wake(self, caller: Caller) -> None:
        """Bring the weights back after an unload, where the program does not do it by itself.

        Raises:
            BackendError: It did not come back; the process is then stopped and started anew.
        """

    async def busy(self, caller: Caller) -> bool:
        """Whether the program still works on something although none of our exchanges is open."""
        return False

    def model_files(self) -> tuple[Path, ...]:
        """Every file that a start reads to load its models, in the order of reading; what is not there is left out.

        Blocking; called in a thread. Never raises for what the operator wrote.
        """
        return ()

    def memory_estimate(self) -> MemoryEstimate | None:
        """What the models will want, computed from their files and the options; None where that cannot be told.

        Blocking; called in a thread. Never raises for what a file holds.
        """
        return None

    def hint_for(self, output: Sequence[str]) -> str | None:
        """One sentence for a known failure text in the program's last lines, else None."""
        return None
