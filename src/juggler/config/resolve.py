"""From what the operator wrote to what the program runs: defaults applied, references followed, plain frozen data."""

import getpass
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import platformdirs

from juggler.backends.base import BackendSettings, HttpCall
from juggler.config.load import LoadedConfig
from juggler.config.schema import (
    BackendModel,
    BackendTlsModel,
    BusyCallModel,
    Config,
    ControlModel,
    EndpointModel,
    HistoryModel,
    HttpCallModel,
    LimitsModel,
    ServerModel,
    backend_type,
)
from juggler.config.sharing import instance_key
from juggler.config.validate import PRIORITIES as PRIORITIES
from juggler.config.validate import first_gpu_pool, normal_prefix, priority_of
from juggler.history.limits import HistoryLimits
from juggler.ids import ANY_GPU, EndpointId, InstanceId, PoolId
from juggler.proxy.limits import Limits
from juggler.routing.traffic import TrafficClass, TrafficRule
from juggler.scheduler.policy import ABANDON_AFTER_S, DIALS, Policy
from juggler.tls import ServerTls


@dataclass(frozen=True, slots=True)
class ControlAddress:
    """Where the juggler itself answers."""

    host: str
    port: int
    key: str | None = field(default=None, repr=False)
    """What everybody needs to know who looks or steers; None: nobody needs one."""
    names: tuple[str, ...] = ()
    """Host names under which clients reach it, besides addresses and ``localhost``."""


@dataclass(frozen=True, slots=True)
class ResolvedEndpoint:
    """One route to an instance."""

    id: EndpointId
    name: str
    server_name: str
    prefix: str
    """Begins with a slash and does not end with one; empty: every path."""
    strip_prefix: bool
    instance: InstanceId
    type: str
    """Of the backend."""
    priority: int
    """0 for interactive, -10 for batch; larger is more urgent."""
    max_wait_s: float
    """Seconds after which a waiting request is due."""
    max_priority: int = 0
    """The most that a request may ask for."""
    traffic_rules: tuple[TrafficRule, ...] = ()
    """The operator's, before the type's own."""


@dataclass(frozen=True, slots=True)
class ResolvedInstance:
    """One process, or one attached server, with everything that running it needs."""

    id: InstanceId
    """That of its first endpoint."""
    name: str
    """The name of its first endpoint."""
    settings: BackendSettings
    memory: Mapping[PoolId, int] | None
    """Bytes per pool while loaded, ``ANY_GPU`` where no pool is named; None: not declared, or of no effect."""
    memory_unloaded: Mapping[PoolId, int]
    """The same after a soft unload."""
    concurrency: int | None
    """Work requests at a time; None: what the backend type takes."""
    queue_limit: int
    idle_unload_s: float | None
    """None: never."""
    pinned: bool
    pool: PoolId | None = None
    """The GPU pool it is placed on; None: whichever suits."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class ResolvedServer:
    """One address that clients use."""

    name: str
    host: str
    port: int
    endpoints: tuple[ResolvedEndpoint, ...]
    """In the order in which they are tried."""
    tls: Pair | None = None
    """For HTTPS; files that need not exist."""
    limits: Limits = field(default_factory=Limits)
    """What its clients may take; what else is in there is not of this server alone."""


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """The whole configuration."""

    temp_dir: Path
    """Absolute; need not exist yet."""
    state_dir: Path
    """Absolute; need not exist yet."""
    pools: Mapping[PoolId, int] | None
    """Bytes per pool, in the operator's order; None: what the machine has, or one exclusive pool."""
    auto_pools: bool
    """The machine is asked for its pools."""
    queue_limit: int
    max_wait_s: float
    batch_deadline_s: float
    queue_timeout_s: float
    policy: Policy
    """The scheduler's parameters."""
    comments_every_s: float | None
    """Seconds between the comments in an event stream that waits; None: no comments."""
    processing: bool
    """Whether other requests that wait get ``102 Processing``."""
    page_after_s: float | None
    """Seconds after which a browser whose page has to wait is shown one of ours; None: never."""
    answer_half_closed: bool
    """Whether a client that ends its half of the connection behind its request gets its answer."""
    control: ControlAddress | None
    """None: switched off."""
    history: HistoryLimits | None
    """None: nothing of requests and swaps is written to the disk."""
    servers: tuple[ResolvedServer, ...]
    instances: tuple[ResolvedInstance, ...]
    """In the order of their first endpoints."""
    warmup: tuple[EndpointId, ...] = field(default=())
    watch: bool = False
    """A change of the file is taken up by itself."""


def resolve(loaded: LoadedConfig) -> ResolvedConfig:
    """The configuration as the program uses it. Pure apart from reading the user's name and home; never fails."""
    config = loaded.config
    temp_dir = expand(config.temp_dir) if config.temp_dir is not None else default_temp_dir()
    state_dir = expand(config.state_dir) if config.state_dir is not None else default_state_dir()
    written = config.memory.pools
    pools = {PoolId(name): size for name, size in written.items()} if isinstance(written, dict) else None
    scheduler = config.scheduler
    control, history = config.control, config.history
    shared, names = _shared(config), _pool_names(config)
    return ResolvedConfig(
        temp_dir=temp_dir,
        state_dir=state_dir,
        pools=pools,
        auto_pools=written == "auto",
        queue_limit=scheduler.queue_limit,
        max_wait_s=scheduler.max_wait,
        batch_deadline_s=scheduler.deadline_batch,
        queue_timeout_s=scheduler.queue_timeout,
        policy=Policy(
            kappa=DIALS[scheduler.dial] if scheduler.kappa is None else scheduler.kappa,
            beta=scheduler.beta,
            kappa_class=scheduler.kappa_class,
            hard=scheduler.hard,
            abandon_after_s=ABANDON_AFTER_S if scheduler.abandoned_loads == "stop" else None,
            read_ahead=scheduler.read_ahead,
        ),
        comments_every_s=config.waiting.comments_every or None,
        processing=config.waiting.processing,
        page_after_s=config.waiting.page_after or None,
        answer_half_closed=config.waiting.half_close == "answer",
        control=ControlAddress(control.host, control.port, control.key, tuple(control.names))
        if isinstance(control, ControlModel)
        else None,
        history=HistoryLimits(history.rows, history.bytes) if isinstance(history, HistoryModel) else None,
        servers=tuple(
            ResolvedServer(
                server.name,
                server.host,
                server.port,
                tuple(_endpoint(config, server, endpoint, shared) for endpoint in server.endpoints),
                None if server.tls is None else Pair(expand(server.tls.cert), expand(server.tls.key)),
                _limits(config.limits, server.limits),
            )
            for server in config.servers
        ),
        instances=tuple(_instance(config, members, temp_dir, state_dir, names) for members in _members(shared)),
        # Naming one endpoint twice is a warning, and loads it once.
        warmup=tuple(dict.fromkeys(endpoint_id(entry.server, entry.endpoint) for entry in config.warmup)),
        watch=config.reload == "watch",
    )


def _limits(general: LimitsModel, own: LimitsModel | None) -> Limits:
    """What a server's clients may take: what it says itself, else what is said at the top."""
    written = {} if own is None else {key: getattr(own, key) for key in own.model_fields_set}
    said = general.model_copy(update=written)
    return Limits(
        connections=said.connections,
        connections_per_client=said.connections_per_client,
        request_line_bytes=said.request_line_bytes,
        head_bytes=said.head_bytes,
        head_timeout_s=said.head_timeout,
        idle_timeout_s=said.idle_timeout,
        body_timeout_s=said.body_timeout,
        response_timeout_s=said.response_timeout or None,
    )


def endpoint_id(server: str, endpoint: str) -> EndpointId:
    """The id of an endpoint."""
    return EndpointId(f"{server}/{endpoint}")


def instances_of(servers: Iterable[ResolvedServer]) -> dict[EndpointId, InstanceId]:
    """Where the endpoints of servers lead."""
    return {one.id: one.instance for server in servers for one in server.endpoints}


def default_temp_dir() -> Path:
    """A directory of this user's in the system's directory for temporary files."""
    user = str(os.getuid()) if hasattr(os, "getuid") else getpass.getuser()
    return Path(tempfile.gettempdir()) / f"juggler-{user}"


def default_state_dir() -> Path:
    """The platform's place for state: ``~/.local/state/juggler`` on Linux."""
    return platformdirs.user_state_path("juggler")


def expand(path: str) -> Path:
    """``~`` replaced and made absolute, from the juggler's working directory as in the seed."""
    try:
        expanded = Path(path).expanduser()
    except RuntimeError:  # no such user, or no home: the path is then taken as written
        expanded = Path(path)
    return Path(os.path.abspath(expanded))  # noqa: PTH100  # Path.absolute() keeps "..", resolve() follows links


def _program(binary: str | None) -> str | None:
    """A path made absolute; a bare name stays one, to be found in ``PATH``.

    It must be absolute because the program starts in its own working directory, not in ours.
    """
    if binary is None or (Path(binary).name == binary and not binary.startswith("~")):
        return binary
    return str(expand(binary))


class _Member(NamedTuple):
    """An endpoint of an instance."""

    id: EndpointId
    endpoint: EndpointModel
    instance: InstanceId


def _shared(config: Config) -> dict[EndpointId, _Member]:
    """Every endpoint with its instance: its own, or the one of the first endpoint that uses the same process."""
    instances: dict[object, InstanceId] = {}
    members: dict[EndpointId, _Member] = {}
    for server in config.servers:
        for endpoint in server.endpoints:
            own_id = endpoint_id(server.name, endpoint.name)
            key = instance_key(config, endpoint)
            instance = InstanceId(own_id) if key is None else instances.setdefault(key, InstanceId(own_id))
            members[own_id] = _Member(own_id, endpoint, instance)
    return members


def _members(shared: Mapping[EndpointId, _Member]) -> list[list[_Member]]:
    groups: dict[InstanceId, list[_Member]] = {}
    for member in shared.values():
        groups.setdefault(member.instance, []).append(member)
    return list(groups.values())


def _endpoint(
    config: Config, server: ServerModel, endpoint: EndpointModel, shared: Mapping[EndpointId, _Member]
) -> ResolvedEndpoint:
    own_id = endpoint_id(server.name, endpoint.name)
    priority = priority_of(endpoint.priority)
    max_wait_s = endpoint.max_wait
    if max_wait_s is None:
        max_wait_s = config.scheduler.deadline_batch if priority < 0 else config.scheduler.max_wait
    return ResolvedEndpoint(
        id=own_id,
        name=endpoint.name,
        server_name=server.name,
        prefix=normal_prefix(endpoint.path_prefix),
        strip_prefix=endpoint.strip_prefix,
        instance=shared[own_id].instance,
        type=backend_type(endpoint.backend, config.backends[endpoint.backend]),
        priority=priority,
        max_wait_s=max_wait_s,
        max_priority=priority if endpoint.max_priority is None else priority_of(endpoint.max_priority),
        traffic_rules=tuple(
            TrafficRule(rule.match, TrafficClass(rule.traffic_class), rule.volatile) for rule in endpoint.traffic
        ),
    )


def _instance(
    config: Config, members: Sequence[_Member], temp_dir: Path, state_dir: Path, pools: Sequence[str] | None
) -> ResolvedInstance:
    """One instance with what its endpoints say of it: the largest needs, the strictest wishes."""
    first = members[0]
    endpoints = [member.endpoint for member in members]
    backend = config.backends[first.endpoint.backend]
    kind = backend_type(first.endpoint.backend, backend)
    limits = [one.concurrency for one in endpoints if one.concurrency is not None]
    idle = [one.idle_unload for one in endpoints if one.idle_unload is not None]
    declared = [one.memory for one in endpoints if one.memory is not None]
    place = next((one.pool for one in endpoints if one.pool is not None), None)
    return ResolvedInstance(
        id=first.instance,
        name=first.endpoint.name,
        settings=replace(
            _settings(config, first.id, first.endpoint, backend, kind, temp_dir, state_dir),
            ui_prefix=next((normal_prefix(one.path_prefix) for one in endpoints if one.strip_prefix), ""),
        ),
        memory=_largest(declared, pools, place) if declared and pools is not None else None,
        memory_unloaded=_largest([one.memory_unloaded for one in endpoints], pools, place),
        concurrency=max(limits, default=None),
        queue_limit=max(one.queue_limit or config.scheduler.queue_limit for one in endpoints),
        idle_unload_s=min(idle, default=None),
        pinned=any(one.pinned for one in endpoints),
        pool=PoolId(place) if place is not None else None,
    )


def _settings(
    config: Config,
    own_id: EndpointId,
    endpoint: EndpointModel,
    backend: BackendModel,
    kind: str,
    temp_dir: Path,
    state_dir: Path,
) -> BackendSettings:
    return BackendSettings(
        instance=InstanceId(own_id),
        endpoint_name=endpoint.name,
        type=kind,
        binary=_program(backend.binary),
        attach_to=backend.attach_to.rstrip("/") if backend.attach_to is not None else None,
        attach_tls=_attach_tls(backend),
        parameters=(*backend.default_parameters, *endpoint.parameters),
        env={**backend.env, **endpoint.env},
        cwd=str(expand(backend.cwd)) if backend.cwd is not None else None,
        model_unloading=backend.model_unloading,
        kv_cache_saving=endpoint.kv_cache_saving,
        ready_path=backend.ready_path,
        unload=_call(backend.unload),
        wake=_call(backend.wake),
        busy=_call(backend.busy),
        stop_signal=backend.stop_signal,
        start_timeout_s=backend.start_timeout,
        stop_timeout_s=backend.stop_timeout,
        temp_dir=temp_dir,
        state_dir=state_dir,
        kv_cache_quota_bytes=config.kv_cache.quota,
    )


def _attach_tls(backend: BackendModel) -> ServerTls | None:
    parts = urlsplit(backend.attach_to or "")
    if parts.scheme != "https":
        return None
    host, port = parts.hostname or "", parts.port or 443
    shown = f"[{host}]" if ":" in host else host
    tls = backend.tls or BackendTlsModel()
    ca = str(expand(tls.ca)) if tls.ca is not None and tls.verify else None
    return ServerTls(host, shown if port == 443 else f"{shown}:{port}", ca, tls.verify)


def _call(call: HttpCallModel | None) -> HttpCall | None:
    if call is None:
        return None
    busy_when = call.busy_when if isinstance(call, BusyCallModel) else None
    return HttpCall(call.method, call.path, call.body_text, tuple(call.expect), busy_when)


def _pool_names(config: Config) -> list[str] | None:
    """The pools that the operator named; empty: those of the machine, not known yet; None: one exclusive pool."""
    written = config.memory.pools
    return list(written) if isinstance(written, dict) else [] if written == "auto" else None


def _largest(
    values: Sequence[dict[str, int] | int | None], pools: Sequence[str] | None, place: str | None
) -> dict[PoolId, int]:
    """The largest of some footprints, pool by pool."""
    largest: dict[PoolId, int] = {}
    for value in values:
        if value is None or pools is None:
            continue
        sizes = value if isinstance(value, dict) else {place or _some_gpu(pools): value}
        for pool, size_bytes in sizes.items():
            largest[PoolId(pool)] = max(size_bytes, largest.get(PoolId(pool), 0))
    return largest


def _some_gpu(pools: Sequence[str]) -> str:
    """The pool of a size that names none: the only one there is, else whichever suits."""
    several = not pools or sum(name.startswith("gpu") for name in pools) > 1
    return ANY_GPU if several else first_gpu_pool(pools)
