"""Every key of the configuration: type, default, unit and help text.

The descriptions are Markdown and single-sourced: editors show them (``schema.json``), and the tables of
``docs/configuration.md`` repeat them under the eye of a test. Sizes are ``int`` bytes and durations ``float``
seconds after validation; the default that people read is the ``default`` of the JSON Schema (``"10m"``).
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from juggler.config.tree import is_ignored_key
from juggler.config.types import (
    BackendType,
    Body,
    BusyCondition,
    CallForms,
    Duration,
    EnvName,
    Footprint,
    Host,
    Name,
    PathText,
    Pools,
    Port,
    PositiveDuration,
    PositiveSize,
    Priority,
    RequestTarget,
    Size,
    SplitCall,
    Text,
    TrafficMatch,
)
from juggler.units import GIB, KIB, MIB, MINUTES, SECONDS


class Model(BaseModel):
    """An object of the configuration: unknown keys are errors, nothing is converted silently.

    A key whose value is ``null`` counts as left out (YAML writes ``env:`` with nothing behind it).
    """

    # Built when first used: the nested models are never used on their own, and the start is that much sooner.
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None and not is_ignored_key(key)}


def _shown(text: str) -> dict[str, Any]:
    """The default as the operator would write it."""
    return {"default": text}


class MemoryModel(Model):
    """What the machine has."""

    pools: Pools = Field(
        default="auto",
        description="Memory that models share, in bytes per pool: `gpu0`, `gpu1`, `ram` or names of your own. `auto` "
        "asks the machine; where it tells nothing, and with `exclusive`, one endpoint is loaded at a time.",
    )


class SchedulerModel(Model):
    """Who is served when, once models compete for memory."""

    max_wait: PositiveDuration = Field(
        default=60 * SECONDS,
        description="Seconds after which a waiting interactive request is due: others then make room for it.",
        json_schema_extra=_shown("60s"),
    )
    deadline_batch: PositiveDuration = Field(
        default=300 * SECONDS,
        description="Seconds after which a waiting batch request is due.",
        json_schema_extra=_shown("300s"),
    )
    queue_limit: int = Field(
        default=512, ge=1, le=100_000, description="Requests that may wait per endpoint; one more is answered 429."
    )
    queue_timeout: PositiveDuration = Field(
        default=30 * MINUTES,
        description="Seconds after which a request that still waits is answered 503.",
        json_schema_extra=_shown("30m"),
    )
    dial: Literal["fair", "balanced", "throughput"] = Field(
        default="balanced",
        description="How long a model is held for a client that may return: `fair` swaps soonest, `throughput` least.",
    )
    kappa: float | None = Field(
        default=None,
        ge=0,
        le=20,
        description="The dial as a number: waiting that ends a hold, in swap round trips. `fair` is 0.5, `balanced` "
        "1.75, `throughput` 3.",
    )
    beta: float = Field(
        default=3.0, ge=0, le=100, description="Least time a busy endpoint keeps its place, in swap round trips."
    )
    kappa_class: float = Field(
        default=1.0,
        ge=0,
        le=100,
        description="Waiting that lets a more urgent class interrupt a less urgent one, in swap round trips; the "
        "least time of `beta` is kept first.",
    )
    hard: float = Field(
        default=12.0,
        ge=0,
        le=1000,
        description="Longest time an endpoint that must yield still serves its older requests, in swap round trips.",
    )
    abandoned_loads: Literal["stop", "keep"] = Field(
        default="stop",
        description="What becomes of a model that is still loading when the last client that waited for it has left: "
        "`stop` gives up after five seconds, `keep` carries on.",
    )
    read_ahead: bool = Field(
        default=True,
        description="Read the files of a model that must wait into the page cache meanwhile, as far as memory is free.",
    )


class WaitingModel(Model):
    """What a client sees while its request waits for a model."""

    comments_every: Duration = Field(
        default=10 * SECONDS,
        description="Seconds between the comments that keep a waiting event stream alive; `0` sends none.",
        json_schema_extra=_shown("10s"),
    )
    processing: bool = Field(
        default=False,
        description="Send `102 Processing` to the other HTTP/1.1 requests that wait, as often as `comments_every` "
        "says (every ten seconds if that is `0`). Many clients do not expect it.",
    )
    page_after: Duration = Field(
        default=1.5 * SECONDS,
        description="Seconds after which a browser that opens a page of a model that has to load is shown one that "
        "says so, until the model's own is there; `0` shows none.",
        json_schema_extra=_shown("1500ms"),
    )
    half_close: Literal["leave", "answer"] = Field(
        default="leave",
        description="A client that ends its half of the connection behind its request: `leave` takes it for one that "
        "has left, `answer` sends it its answer.",
    )


class ControlModel(Model):
    """Where the juggler itself answers: dashboard, API and metrics."""

    host: Host = Field(
        default="127.0.0.1", description="Address to listen on; one that other machines reach needs a `key`."
    )
    port: Port = Field(default=8020, description="TCP port to listen on.")
    key: Annotated[str, Field(min_length=12, max_length=500, pattern=r"^[\x21-\x7e]+$")] | None = Field(
        default=None,
        description="Admin key, 12 visible ASCII characters or more: everything but the login page then needs it.",
    )
    names: list[Name] = Field(
        default=[],
        description="Names, besides addresses and `localhost`, under which browsers reach it; others are refused.",
    )


class HistoryModel(Model):
    """What is kept of requests and swaps for the dashboard, in one file below `state_dir`. No bodies."""

    rows: int = Field(
        default=100_000,
        ge=100,
        le=10_000_000,
        description="Requests that are kept, and half as many entries of the timeline; the oldest go first.",
    )
    bytes: PositiveSize = Field(
        default=64 * MIB,
        description="Bytes on disk, 5 MiB at least; the oldest go first.",
        json_schema_extra=_shown("64MiB"),
    )


class KvCacheModel(Model):
    """Conversation state that is saved before a stop and restored after a start."""

    quota: Size = Field(
        default=10 * GIB,
        description="Bytes on disk for all saved state below `state_dir`; the oldest goes first.",
        json_schema_extra=_shown("10GiB"),
    )


class HttpCallModel(Model):
    """One HTTP call to a backend; `"POST /path"` is short for method and path alone."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = Field(default="POST", description="HTTP method.")
    path: RequestTarget = Field(description="Path with query, as the backend sees it; begins with `/`.")
    body: Body | None = Field(
        default=None, description="Body: text as it is, or an object or list that is sent as JSON."
    )
    expect: list[Annotated[int, Field(ge=100, le=599)]] = Field(
        default=[], description="Statuses that mean success; empty: any 2xx."
    )

    @property
    def body_text(self) -> str | None:
        """What is sent; None without a body."""
        if self.body is None or isinstance(self.body, str):
            return self.body
        return json.dumps(self.body, ensure_ascii=False)


class BusyCallModel(HttpCallModel):
    """As above, and how its answer is read."""

    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = Field(default="GET", description="HTTP method.")
    busy_when: BusyCondition | None = Field(
        default=None,
        description="Condition on the JSON answer that means the backend still works: `queue.running > 0`, "
        '`state.job != ""` or `busy`; without it a successful answer does.',
    )


HttpCallValue = Annotated[HttpCallModel, SplitCall, CallForms()]
BusyCallValue = Annotated[BusyCallModel, SplitCall, CallForms()]


class BackendTlsModel(Model):
    """How the certificate of an attached server behind `https://` is looked at."""

    ca: PathText | None = Field(
        default=None,
        description="PEM file with the authorities to believe, or with the server's own certificate, in place of those "
        "that the system trusts. `~` is expanded.",
    )
    verify: bool = Field(
        default=True,
        description="Refuse a server whose certificate does not prove that it is the one in the URL; `false` talks to "
        "whoever answers there.",
    )


class BackendModel(Model):
    """A model server program."""

    type: BackendType | None = Field(
        default=None,
        description="Kind of program, when the backend's name is not the kind itself; so two builds of one program can "
        "coexist.",
    )
    binary: PathText | None = Field(
        default=None,
        description="Program to start: a path, or a name found in `PATH`. `~` is expanded. For `comfyui` its Python.",
    )
    attach_to: Text | None = Field(
        default=None,
        description="URL of a server that already runs: `http://localhost:7860`. It is used when it answers; "
        "if not, `binary` is started.",
    )
    tls: BackendTlsModel | None = Field(default=None, description="For `attach_to` with `https://`.")
    default_parameters: list[Text] = Field(
        default=[], description="Command-line arguments for every endpoint, before the endpoint's own."
    )
    host: Host | None = Field(
        default=None, description="Address a started backend listens on; only `localhost` takes effect."
    )
    model_unloading: bool = Field(
        default=True,
        description="Free the model and keep the process, where the program can; `false` stops it instead.",
    )
    env: dict[EnvName, Text] = Field(default={}, description="Environment variables added to the juggler's own.")
    cwd: PathText | None = Field(default=None, description="Working directory of the program. `~` is expanded.")
    start_timeout: PositiveDuration = Field(
        default=10 * MINUTES,
        description="Seconds until a started program must be ready.",
        json_schema_extra=_shown("10m"),
    )
    stop_timeout: Duration = Field(
        default=10 * SECONDS,
        description="Seconds a program has to end by itself before it is killed.",
        json_schema_extra=_shown("10s"),
    )
    stop_signal: Literal["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL"] | None = Field(
        default=None, description="Signal that asks the program to end; without it what suits the type."
    )
    ready_path: RequestTarget | None = Field(
        default=None, description="For `command`: path that answers 2xx once the program is ready."
    )
    unload: HttpCallValue | None = Field(
        default=None,
        description="For `command`: call that frees the model's memory. For `vllm`: `POST /sleep?level=2`, which drops "
        "the weights instead of keeping them in RAM.",
    )
    wake: HttpCallValue | None = Field(default=None, description="For `command`: call that loads the model again.")
    busy: BusyCallValue | None = Field(default=None, description="For `command`: call that tells whether work is left.")


class TrafficModel(Model):
    """How requests of one form are treated."""

    match: TrafficMatch = Field(
        description="`METHOD PATH`; methods are joined by `|`; `*` is any method, or any characters in a path."
    )
    traffic_class: Literal["work", "start", "light", "held-open", "blocked"] = Field(
        alias="class",
        description="`work` loads the model and keeps it; `start` loads it and is light from then on; `light` is "
        "forwarded only while it is loaded; `held-open` is light and never counts as use; `blocked` is refused with "
        "403.",
    )
    volatile: bool = Field(
        default=False,
        description="Of light GETs: the answer is about this very moment (progress, queues). It is never given from an "
        "earlier reply while the model is not loaded.",
    )


class EndpointModel(Model):
    """A route of a server to one backend with one set of parameters."""

    name: Name = Field(description="Name in logs, status and `warmup`; unique within its server.")
    path_prefix: Text = Field(
        default="",
        description="Requests whose path is this or lies below it come here; empty: all. The first endpoint that "
        "matches wins.",
    )
    strip_prefix: bool = Field(default=False, description="Take the prefix off before the backend sees the path.")
    backend: Name = Field(description="Name of an entry in `backends`.")
    parameters: list[Text] = Field(default=[], description="Command-line arguments, after the backend's.")
    kv_cache_saving: bool = Field(
        default=True, description="Save conversation state before a stop and restore it after, where the program can."
    )
    memory: Footprint | None = Field(
        default=None,
        description="Bytes needed while loaded: on whichever GPU pool suits, or per pool. Without it they are learned, "
        "or estimated from the model's files; while nothing is known, all GPU pools are assumed.",
    )
    pool: Name | None = Field(
        default=None,
        description="The GPU pool to place it on; without it whichever suits, by the program's environment.",
    )
    memory_unloaded: Footprint | None = Field(
        default=None, description="Bytes still held after the model was unloaded and the process kept; same form."
    )
    priority: Priority = Field(
        default="interactive",
        description="`interactive` (0), `batch` (-10) or a number from -100 to 100; larger goes first.",
    )
    max_priority: Priority | None = Field(
        default=None,
        description="The most urgent priority that a request may ask for by the header `X-Juggler-Priority`; without "
        "it the endpoint's own `priority`. Any request may ask for less.",
    )
    max_wait: PositiveDuration | None = Field(
        default=None, description="Seconds after which a waiting request is due; without it the scheduler's."
    )
    concurrency: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Requests the backend gets at once; without it no bound."
    )
    queue_limit: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Requests that may wait; without it the scheduler's."
    )
    idle_unload: PositiveDuration | None = Field(
        default=None, description="Seconds without a request after which the model is unloaded; without it never."
    )
    pinned: bool = Field(default=False, description="Never unload this one to make room for another.")
    traffic: list[TrafficModel] = Field(
        default=[], description="Rules that come before the backend type's own, first match wins."
    )
    env: dict[EnvName, Text] = Field(default={}, description="Environment variables; they override the backend's.")
    share: bool = Field(
        default=False,
        description="Share one process with endpoints of the same backend, parameters and `env` that say so too. "
        "Endpoints that attach to one server always share it.",
    )


class LimitsModel(Model):
    """What clients may take of a server."""

    connections: int = Field(
        default=4096,
        ge=1,
        le=1_000_000,
        description="Connections open at once. One more takes the place of one that is idle; where none is, it is "
        "answered 503 and closed.",
    )
    connections_per_client: int = Field(
        default=1024,
        ge=0,
        le=1_000_000,
        description="Of these from one address, of IPv6 from one /64 network; one more is answered 429 and closed. "
        "Connections from this machine do not count; `0` is no bound.",
    )
    request_line_bytes: PositiveSize = Field(
        default=16 * KIB,
        description="Bytes of a request line, with its path and query; a longer one is answered 414.",
        json_schema_extra=_shown("16KiB"),
    )
    head_bytes: PositiveSize = Field(
        default=64 * KIB,
        description="Bytes of a request line with all its fields; more is answered 431.",
        json_schema_extra=_shown("64KiB"),
    )
    head_timeout: PositiveDuration = Field(
        default=30 * SECONDS,
        description="Seconds from the first byte of a request to the end of its fields; then it is answered 408.",
        json_schema_extra=_shown("30s"),
    )
    idle_timeout: PositiveDuration = Field(
        default=2 * MINUTES,
        description="Seconds without a request after which a connection is closed.",
        json_schema_extra=_shown("2m"),
    )
    body_timeout: PositiveDuration = Field(
        default=2 * MINUTES,
        description="Seconds between two pieces of a request's body that its backend waits for; then it is answered "
        "408.",
        json_schema_extra=_shown("2m"),
    )
    response_timeout: Duration = Field(
        default=0.0,
        description="Seconds between two pieces of an answer, also before its first; then it is answered 504, or cut. "
        "`0` is no bound: a model may think for hours.",
    )


class ServerTlsModel(Model):
    """What a server proves itself with."""

    cert: PathText = Field(
        description="PEM file with the certificate, followed by those between it and its root. `~` is expanded."
    )
    key: PathText = Field(
        description="PEM file with its private key, without pass phrase; may be the same file. `~` is expanded."
    )


class ServerModel(Model):
    """An address that clients use."""

    name: Name = Field(description="Name in logs, status and `warmup`; unique.")
    host: Host = Field(default="127.0.0.1", description="Address to listen on; `localhost` is 127.0.0.1 and ::1.")
    port: Port = Field(description="TCP port to listen on.")
    tls: ServerTlsModel | None = Field(default=None, description="Speak HTTPS, not HTTP, with this certificate.")
    limits: LimitsModel | None = Field(
        default=None, description="What its clients may take; what is left out is as in the `limits` at the top."
    )
    endpoints: list[EndpointModel] = Field(description="Where requests go, tried from top to bottom.")


class WarmupModel(Model):
    """An endpoint to load before anyone asks."""

    server: Name = Field(description="Name of the server.")
    endpoint: Name = Field(description="Name of the endpoint on that server.")


_switch_form = Discriminator(lambda value: "<switch>" if isinstance(value, bool) else "<object>")


class Config(Model):
    """The configuration of Model Juggler."""

    temp_dir: PathText | None = Field(
        default=None,
        description="Directory for private files of a run, made when missing; without it `juggler-<user>` in the "
        "system's directory for temporary files. `~` is expanded.",
    )
    state_dir: PathText | None = Field(
        default=None,
        description="Directory for what outlives a run, made when missing; without it the platform's state directory. "
        "`~` is expanded.",
    )
    memory: MemoryModel = Field(default_factory=MemoryModel, description="What the machine has.")
    scheduler: SchedulerModel = Field(
        default_factory=SchedulerModel, description="Who is served when, once models compete for memory."
    )
    control: Annotated[
        Annotated[Literal[False], Tag("<switch>")] | Annotated[ControlModel, Tag("<object>")], _switch_form
    ] = Field(default_factory=ControlModel, description="Where the juggler itself answers; `false` switches it off.")
    waiting: WaitingModel = Field(
        default_factory=WaitingModel, description="What a client sees while its request waits."
    )
    limits: LimitsModel = Field(default_factory=LimitsModel, description="What clients may take of each server.")
    kv_cache: KvCacheModel = Field(default_factory=KvCacheModel, description="Saved conversation state.")
    history: Annotated[
        Annotated[Literal[False], Tag("<switch>")] | Annotated[HistoryModel, Tag("<object>")], _switch_form
    ] = Field(
        default_factory=HistoryModel,
        description="What is kept of requests and swaps; with `false` it is forgotten when the juggler ends.",
    )
    backends: dict[Name, BackendModel] = Field(description="The programs, by name; the name is the type if it is one.")
    servers: Annotated[list[ServerModel], Field(min_length=1)] = Field(description="The addresses that clients use.")
    warmup: list[WarmupModel] = Field(default=[], description="Endpoints to load at the start, in this order.")
    reload: Literal["manual", "watch"] = Field(
        default="manual",
        description="`watch`: a change of this file is taken up by itself; else by `juggler reload` or SIGHUP.",
    )

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: object) -> object:
        """Drop remarks among the backends; a backend without settings (``demo:`` in YAML) is an empty object."""
        if not isinstance(data, dict) or not isinstance(data.get("backends"), dict):
            return data
        backends = {k: {} if v is None else v for k, v in data["backends"].items() if not is_ignored_key(k)}
        return {**data, "backends": backends}


def backend_type(name: str, backend: BackendModel) -> str:
    """The type of a backend: what it says, else its name."""
    return backend.type or name


MODELS: dict[tuple[str, ...], type[Model]] = {
    (): Config,
    ("memory",): MemoryModel,
    ("scheduler",): SchedulerModel,
    ("control",): ControlModel,
    ("waiting",): WaitingModel,
    ("limits",): LimitsModel,
    ("kv_cache",): KvCacheModel,
    ("history",): HistoryModel,
    ("backends", "*"): BackendModel,
    ("backends", "*", "tls"): BackendTlsModel,
    ("backends", "*", "unload"): HttpCallModel,
    ("backends", "*", "wake"): HttpCallModel,
    ("backends", "*", "busy"): BusyCallModel,
    ("servers", "*"): ServerModel,
    ("servers", "*", "tls"): ServerTlsModel,
    ("servers", "*", "limits"): LimitsModel,
    ("servers", "*", "endpoints", "*"): EndpointModel,
    ("servers", "*", "endpoints", "*", "traffic", "*"): TrafficModel,
    ("warmup", "*"): WarmupModel,
}
"""Which object stands where; ``*`` is any name or index."""


def keys_of(model: type[Model]) -> list[str]:
    """The keys of an object as the operator writes them, in the order of the documentation."""
    return [field.alias or name for name, field in model.model_fields.items()]
