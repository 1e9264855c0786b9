"""How the values of a configuration fit together; everything that can be judged from the file alone."""

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

from juggler.config.effect import not_in_effect as not_in_effect
from juggler.config.explain import closest, listing
from juggler.config.load import LoadedConfig
from juggler.config.problems import PathParts, Problem, Severity
from juggler.config.schema import BackendModel, BackendTlsModel, ControlModel, EndpointModel, backend_type
from juggler.config.sharing import sharing_problems
from juggler.config.tree import quoted
from juggler.config.types import BACKEND_TYPES
from juggler.units import format_duration, format_size


class TypeRule(NamedTuple):
    """Which of ``binary`` and ``attach_to`` a backend type takes."""

    binary: bool
    attach_to: bool
    required: tuple[str, ...]
    """At least one of these keys must be there."""


_EITHER = TypeRule(binary=True, attach_to=True, required=("binary", "attach_to"))

TYPE_RULES = {
    "llamacpp": TypeRule(binary=True, attach_to=False, required=("binary",)),
    "koboldcpp": _EITHER,
    "sdwebui": _EITHER,
    "comfyui": _EITHER,
    "ollama": _EITHER,
    "vllm": _EITHER,
    "command": _EITHER,
    "demo": TypeRule(binary=False, attach_to=False, required=()),
}

PRIORITIES = {"interactive": 0, "batch": -10}
"""What the words stand for; larger is more urgent."""

_COMMAND_ONLY = ("ready_path", "unload", "wake", "busy")
_ANY_V4, _ANY_V6 = "0.0.0.0", "::"


def validate(loaded: LoadedConfig) -> list[Problem]:
    """Every error and warning about how the values fit together, in no particular order."""
    return _Checks(loaded).run()


def normal_prefix(prefix: str) -> str:
    """The form that routing compares: no slash at the end, empty for everything."""
    return prefix.rstrip("/")


def catches(prefix: str, other: str) -> bool:
    """Whether every path under ``other`` is also under ``prefix`` (both normal), on segment boundaries."""
    return not prefix or other == prefix or other.startswith(prefix + "/")


def first_gpu_pool(pools: Sequence[str]) -> str:
    """The pool that a bare footprint goes on: the first named ``gpu...``, else the first."""
    return next((name for name in pools if name.startswith("gpu")), pools[0])


def priority_of(word: str | int) -> int:
    """The number that a priority stands for."""
    return PRIORITIES[word] if isinstance(word, str) else word


def listen_addresses(host: str) -> frozenset[str]:
    """The addresses that listening on ``host`` takes, in a form that compares; ``localhost`` takes both loopbacks."""
    if host.lower() == "localhost":
        return frozenset({"127.0.0.1", "::1"})
    try:
        return frozenset({str(ipaddress.ip_address(host))})
    except ValueError:
        return frozenset({host.lower()})


def is_local(host: str) -> bool:
    """Whether only this machine reaches what listens on ``host``. Of a name nobody can tell here, except localhost."""
    addresses = listen_addresses(host)
    return all(_is_loopback(address) for address in addresses)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _overlap(one: frozenset[str], other: frozenset[str]) -> bool:
    def family(address: str) -> str:
        return "v6" if ":" in address else "v4" if address.replace(".", "").isdigit() else "name"

    for left in one:
        for right in other:
            # A wildcard takes its own family only: asyncio sets IPV6_V6ONLY on the sockets it makes. A host name
            # may stand for anything, so it is only compared as written.
            if left == right or (family(left) == family(right) and {left, right} & {_ANY_V4, _ANY_V6}):
                return True
    return False


class _Checks:
    """One run over one configuration."""

    def __init__(self, loaded: LoadedConfig) -> None:
        self.loaded = loaded
        self.config = loaded.config
        self.problems: list[Problem] = []

    def run(self) -> list[Problem]:
        for name, backend in self.config.backends.items():
            self._backend(name, backend)
        self._names()
        self._addresses()
        for index, server in enumerate(self.config.servers):
            if not server.endpoints:
                self._warn(("servers", index, "endpoints"), "this server has no endpoints", code="no-endpoints")
            for position, endpoint in enumerate(server.endpoints):
                self._endpoint(("servers", index, "endpoints", position), endpoint)
            self._shadows(index)
        self._warmup()
        self._pinned()
        self.problems += sharing_problems(self.loaded)
        scheduler = self.config.scheduler
        if scheduler.max_wait > scheduler.queue_timeout:
            path = ("scheduler", "max_wait")
            self._warn(path, self._never_due(scheduler.max_wait), code="never-due")
        return self.problems

    # --- backends ----------------------------------------------------------------------------------------------

    def _backend(self, name: str, backend: BackendModel) -> None:
        path: PathParts = ("backends", name)
        kind = backend_type(name, backend)
        rule = TYPE_RULES.get(kind)
        if rule is None:
            near = closest(name, BACKEND_TYPES)
            hint = f'add "type": one of {listing(BACKEND_TYPES)}' + (f"; did you mean {quoted(near)}?" if near else "")
            message = f'{quoted(name)} is no backend type, and the backend has no "type"'
            self._error(path, message, hint=hint, code="unknown-type", at_key=True)
            return
        if kind == "llamacpp" and backend.attach_to is not None:
            message = "llama.cpp servers are started, not attached to: their model is fixed at the start"
            hint = 'give "binary"; to front a server that runs already, use type "command"'
            self._error((*path, "attach_to"), message, hint=hint, code="attach-refused", at_key=True)
        elif backend.attach_to is not None and not rule.attach_to:
            severity: Severity = "warning" if kind == "demo" else "error"
            message = f'backends of type {kind} do not take "attach_to"'
            self._add(severity, (*path, "attach_to"), message, code="attach-refused", at_key=True)
        elif backend.attach_to is not None:
            self._attach_url((*path, "attach_to"), backend.attach_to)
        if backend.tls is not None:
            self._attach_tls((*path, "tls"), backend, backend.tls)
        if backend.binary is not None and not rule.binary:
            message = f'"binary" has no effect for type {kind}'
            self._warn((*path, "binary"), message, code="no-effect", at_key=True)
        if rule.required and all(getattr(backend, key) is None for key in rule.required):
            message = f"the backend {quoted(name)} of type {kind} needs {listing(rule.required)}"
            self._error(path, message, code="missing-key", at_key=True)
        if kind == "llamacpp" and self.loaded.is_written(*path, "model_unloading"):
            message = '"model_unloading" has no effect for type llamacpp: llama.cpp can only be stopped'
            self._warn((*path, "model_unloading"), message, code="no-effect", at_key=True)
        for key in _COMMAND_ONLY:
            if kind == "vllm" and key == "unload" and backend.unload is not None:
                if backend.unload.path.partition("?")[0] != "/sleep":
                    message = 'for vllm "unload" chooses how deep it sleeps: "POST /sleep?level=2"'
                    self._error((*path, key), message, code="bad-unload")
            elif kind != "command" and getattr(backend, key) is not None:
                message = f"{quoted(key)} has no effect for type {kind}: only type command reads it"
                self._warn((*path, key), message, code="no-effect", at_key=True)

    def _attach_url(self, path: PathParts, url: str) -> None:
        try:
            parts = urlsplit(url)
            fits = bool(parts.hostname) and "@" not in parts.netloc and parts.port != 0
            fits = fits and parts.scheme in ("http", "https")
        except ValueError:
            fits = False
        if not fits or any(not "!" <= character <= "~" for character in url):
            self._error(path, '"attach_to" must be a URL such as "http://localhost:7860"', code="bad-url")
        elif parts.path not in ("", "/") or parts.query or parts.fragment:
            message = '"attach_to" must end after host and port: the path comes from the request'
            self._error(path, message, hint=f'write "{parts.scheme}://{parts.netloc}"', code="bad-url")

    def _attach_tls(self, path: PathParts, backend: BackendModel, tls: BackendTlsModel) -> None:
        if not (backend.attach_to or "").lower().startswith("https:"):
            message = '"tls" has no effect without an "attach_to" that begins with "https://"'
            self._warn(path, message, code="no-effect", at_key=True)
        elif not tls.verify:
            message = "nothing proves that the server there is the right one: whoever sits in between can read along"
            hint = 'name its certificate, or that of its authority, as "ca" instead'
            self._warn((*path, "verify"), message, hint=hint, code="not-verified", at_key=True)
            if tls.ca is not None:
                self._warn((*path, "ca"), '"ca" has no effect with "verify": false', code="no-effect", at_key=True)

    # --- names and addresses -----------------------------------------------------------------------------------

    def _names(self) -> None:
        servers: dict[str, int] = {}
        ids: dict[str, PathParts] = {}
        for index, server in enumerate(self.config.servers):
            if server.name in servers:
                self._duplicate(("servers", index, "name"), "server", server.name, ("servers", servers[server.name]))
                continue
            servers[server.name] = index
            for position, endpoint in enumerate(server.endpoints):
                path: PathParts = ("servers", index, "endpoints", position)
                endpoint_id = f"{server.name}/{endpoint.name}"
                if endpoint_id in ids:
                    self._duplicate((*path, "name"), "endpoint", endpoint.name, ids[endpoint_id])
                ids.setdefault(endpoint_id, path)

    def _duplicate(self, path: PathParts, what: str, name: str, first: PathParts) -> None:
        line = self.loaded.location(*first, "name").line
        self._error(path, f"the {what} name {quoted(name)} is already taken at line {line}", code="duplicate-name")

    def _addresses(self) -> None:
        taken: list[tuple[int, frozenset[str], str]] = []
        for index, server in enumerate(self.config.servers):
            path: PathParts = ("servers", index, "port")
            self._address(path, server.port, server.host, f"the server {quoted(server.name)}", taken)
        if isinstance(self.config.control, ControlModel):
            control = self.config.control
            path = ("control", "port")
            if not self.loaded.is_written("control"):
                # The default port of something nobody asked for: blame the server that took it.
                path = next((("servers", i, "port") for i, s in enumerate(self.config.servers) if s.port == 8020), path)
            self._address(path, control.port, control.host, "the control address", taken)
            if control.key is None and not is_local(control.host):
                message = f"the control address {quoted(control.host)} is reached from other machines and has no key"
                hint = 'add "key", or listen on 127.0.0.1 and come through ssh or a proxy with a login'
                self._error(("control", "host"), message, hint=hint, code="open-control")

    def _address(
        self, path: PathParts, port: int, host: str, name: str, taken: list[tuple[int, frozenset[str], str]]
    ) -> None:
        addresses = listen_addresses(host)
        for other_port, other_addresses, other_name in taken:
            if port == other_port and _overlap(addresses, other_addresses):
                message = f"port {port} on {host} is taken twice: {name} and {other_name} cannot both listen there"
                hint = 'move it with "control": {"port": ...}, or switch it off with "control": false'
                self._error(path, message, hint=hint if "control" in name else None, code="duplicate-address")
                break
        taken.append((port, addresses, name))

    # --- endpoints ---------------------------------------------------------------------------------------------

    def _endpoint(self, path: PathParts, endpoint: EndpointModel) -> None:
        if endpoint.backend not in self.config.backends:
            near = closest(endpoint.backend, self.config.backends)
            hint = f"did you mean {quoted(near)}?" if near else None
            if hint is None and self.config.backends:
                hint = f"there is {listing(self.config.backends)}"
            message = f"there is no backend {quoted(endpoint.backend)}"
            self._error((*path, "backend"), message, hint=hint, code="unknown-backend")
        self._prefix((*path, "path_prefix"), endpoint.path_prefix)
        if endpoint.strip_prefix and not normal_prefix(endpoint.path_prefix):
            message = '"strip_prefix" has no effect without a "path_prefix"'
            self._warn((*path, "strip_prefix"), message, code="no-effect", at_key=True)
        timeout_s = self.config.scheduler.queue_timeout
        if endpoint.max_wait is not None and endpoint.max_wait > timeout_s:
            self._warn((*path, "max_wait"), self._never_due(endpoint.max_wait), code="never-due")
        if endpoint.max_priority is not None and priority_of(endpoint.max_priority) < priority_of(endpoint.priority):
            message = (
                '"max_priority" is below "priority": naming a priority, even that one, makes a request less urgent'
            )
            self._warn((*path, "max_priority"), message, code="max-priority-low")
        self._memory(path, endpoint)

    def _never_due(self, max_wait_s: float) -> str:
        timeout = format_duration(self.config.scheduler.queue_timeout)
        return f"a request is refused after {timeout} (queue_timeout), before {format_duration(max_wait_s)} have passed"

    def _prefix(self, path: PathParts, prefix: str) -> None:
        if not prefix:
            return
        message, hint = None, None
        if not prefix.startswith("/"):
            message, hint = (
                f'"path_prefix" must begin with "/", not {quoted(prefix[0])}',
                f"write {quoted('/' + prefix)}",
            )
        elif "?" in prefix or "#" in prefix:
            message = '"path_prefix" is a path alone, without "?" or "#"'
        elif any(not "!" <= character <= "~" for character in prefix):
            message = '"path_prefix" holds a character that no request path can hold'
            hint = "write it percent-encoded, as clients send it: %20 for a space"
        elif {".", ".."} & set(prefix.split("/")):
            message = '"path_prefix" must not hold "." or ".." segments: clients resolve them before they ask'
        if message:
            self._error(path, message, hint=hint, code="bad-prefix")
        elif prefix != "/" and prefix.endswith("/"):
            normal = normal_prefix(prefix)
            message = f"the slash at the end is ignored: {quoted(prefix)} matches as {quoted(normal)}"
            self._warn(path, message, hint=f"write {quoted(normal)}", code="trailing-slash")

    def _shadows(self, index: int) -> None:
        endpoints = self.config.servers[index].endpoints
        for position, endpoint in enumerate(endpoints):
            own = normal_prefix(endpoint.path_prefix)
            shadow = next((e for e in endpoints[:position] if catches(normal_prefix(e.path_prefix), own)), None)
            if shadow is None:
                continue
            caught = quoted(normal_prefix(shadow.path_prefix)) if normal_prefix(shadow.path_prefix) else "every path"
            message = f"{quoted(endpoint.name)} can never match: {quoted(shadow.name)} above it catches {caught}"
            path: PathParts = ("servers", index, "endpoints", position)
            where = (*path, "path_prefix") if self.loaded.is_written(*path, "path_prefix") else (*path, "name")
            self._warn(where, message, hint="move it up: the first endpoint that matches wins", code="unreachable")

    def _memory(self, path: PathParts, endpoint: EndpointModel) -> None:
        pools = self.config.memory.pools
        keys = [key for key in ("memory", "memory_unloaded") if getattr(endpoint, key) is not None]
        if not isinstance(pools, dict):
            for key in keys if pools == "exclusive" else ():
                message = f"{quoted(key)} has no effect with one exclusive pool"
                self._warn((*path, key), message, code="no-effect", at_key=True)
            return
        if endpoint.pool is not None and endpoint.pool not in pools:
            near = closest(endpoint.pool, pools)
            hint = f"did you mean {quoted(near)}?" if near else f"there is {listing(pools)}"
            message = f"there is no pool {quoted(endpoint.pool)}"
            self._error((*path, "pool"), message, hint=hint, code="unknown-pool")
        for key in keys:
            for pool, size_bytes, where in self._footprint((*path, key), getattr(endpoint, key), pools):
                if pool not in pools:
                    near = closest(pool, pools)
                    hint = f"did you mean {quoted(near)}?" if near else f"there is {listing(pools)}"
                    self._error(where, f"there is no pool {quoted(pool)}", hint=hint, code="unknown-pool", at_key=True)
                elif size_bytes > pools[pool]:
                    message = f"{format_size(size_bytes)} can never fit: the pool {quoted(pool)} has "
                    self._error(where, message + format_size(pools[pool]), code="does-not-fit")
        if len(keys) == 2:
            loaded = {p: s for p, s, _ in self._footprint(path, endpoint.memory, pools)}
            for pool, size_bytes, where in self._footprint((*path, "memory_unloaded"), endpoint.memory_unloaded, pools):
                if pool in loaded and size_bytes > loaded[pool]:
                    message = f"more memory on {quoted(pool)} unloaded than loaded"
                    self._warn(where, message, code="unloaded-larger")

    @staticmethod
    def _footprint(
        path: PathParts, value: dict[str, int] | int | None, pools: Mapping[str, int]
    ) -> Iterator[tuple[str, int, PathParts]]:
        """Pool, bytes and place of each part of a footprint; of several GPU pools the largest stands for all."""
        if isinstance(value, dict):
            yield from ((pool, size_bytes, (*path, pool)) for pool, size_bytes in value.items())
        elif value is not None:
            gpus = [pool for pool in pools if pool.startswith("gpu")]
            yield max(gpus, key=lambda pool: pools[pool], default=first_gpu_pool(list(pools))), value, path

    def _pinned(self) -> None:
        pools = self.config.memory.pools
        if not isinstance(pools, dict):
            return
        pinned_bytes = dict.fromkeys(pools, 0)
        for index, server in enumerate(self.config.servers):
            for position, endpoint in enumerate(server.endpoints):
                path: PathParts = ("servers", index, "endpoints", position)
                for pool, size_bytes, _ in self._footprint(path, endpoint.memory, pools) if endpoint.pinned else ():
                    before = pinned_bytes.get(pool, 0)
                    pinned_bytes[pool] = before + size_bytes
                    if before <= pools.get(pool, 0) < pinned_bytes[pool] and before:
                        message = f"the pinned endpoints up to here need more than the pool {quoted(pool)} has"
                        self._warn((*path, "pinned"), message, code="pinned-too-large", at_key=True)

    # --- warm-up -----------------------------------------------------------------------------------------------

    def _warmup(self) -> None:
        servers = {server.name: server for server in self.config.servers}
        seen: set[tuple[str, str]] = set()
        for index, entry in enumerate(self.config.warmup):
            path: PathParts = ("warmup", index)
            server = servers.get(entry.server)
            if server is None:
                self._names_nothing((*path, "server"), "server", entry.server, list(servers))
                continue
            names = [endpoint.name for endpoint in server.endpoints]
            if entry.endpoint not in names:
                what = f"endpoint on the server {quoted(server.name)} named"
                self._names_nothing((*path, "endpoint"), what, entry.endpoint, names)
            elif (entry.server, entry.endpoint) in seen:
                self._warn(path, "this endpoint is already in the warm-up list", code="duplicate-warmup")
            seen.add((entry.server, entry.endpoint))

    def _names_nothing(self, path: PathParts, what: str, name: str, known: Sequence[str]) -> None:
        near = closest(name, known)
        hint = f"did you mean {quoted(near)}?" if near else f"there is {listing(known)}" if known else None
        self._error(path, f"there is no {what} {quoted(name)}", hint=hint, code="unknown-warmup")

    # --- small parts -------------------------------------------------------------------------------------------

    def _error(
        self, path: PathParts, message: str, *, hint: str | None = None, code: str, at_key: bool = False
    ) -> None:
        self._add("error", path, message, hint=hint, code=code, at_key=at_key)

    def _warn(self, path: PathParts, message: str, *, hint: str | None = None, code: str, at_key: bool = False) -> None:
        self._add("warning", path, message, hint=hint, code=code, at_key=at_key)

    def _add(
        self,
        severity: Severity,
        path: PathParts,
        message: str,
        *,
        hint: str | None = None,
        code: str,
        at_key: bool = False,
    ) -> None:
        self.problems.append(self.loaded.problem(severity, path, message, hint=hint, code=code, at_key=at_key))
