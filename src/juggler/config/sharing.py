"""Which endpoints share one process or one attached server, and what can be wrong with that."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from juggler.config.load import LoadedConfig
from juggler.config.problems import PathParts, Problem
from juggler.config.schema import BackendTlsModel, Config, EndpointModel, backend_type
from juggler.config.tree import quoted

_HERE = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0", "::"})
"""Who connects to one of these, an address to listen on everywhere included, reaches this machine."""


def attach_key(url: str) -> tuple[str, int]:
    """What all URLs of one server have in common, as (host, port); every name of this machine itself is 127.0.0.1."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    return ("127.0.0.1" if host in _HERE else host, parts.port or (443 if parts.scheme == "https" else 80))


def instance_key(config: Config, endpoint: EndpointModel) -> object:
    """Equal for endpoints that share one process; None for one that shares with nobody.

    Endpoints that attach to one server share it; others where ``share`` says so and their command is the same.
    """
    backend = config.backends[endpoint.backend]
    if backend.attach_to is not None:
        return (backend_type(endpoint.backend, backend), attach_key(backend.attach_to))
    if endpoint.share:
        return (endpoint.backend, tuple(endpoint.parameters), tuple(sorted(endpoint.env.items())))
    return None


def sharing_problems(loaded: LoadedConfig) -> Iterator[Problem]:
    """Everything that does not fit together; the URLs themselves and the backends' names have been checked before."""
    yield from _targets(loaded)
    yield from _first_counts(loaded)


def _targets(loaded: LoadedConfig) -> Iterator[Problem]:
    """Two types on one server, the juggler itself as target, and memory that nobody can ever have."""
    claimed: dict[tuple[str, int], tuple[str, str]] = {}
    spoken: dict[tuple[str, int], tuple[str, BackendTlsModel]] = {}
    for name, backend in loaded.config.backends.items():
        if backend.attach_to is None or not _readable(backend.attach_to):
            continue
        path: PathParts = ("backends", name, "attach_to")
        kind, key = backend_type(name, backend), attach_key(backend.attach_to)
        other, other_kind = claimed.setdefault(key, (name, kind))
        if other_kind != kind:
            message = f"{quoted(other)} already attaches to this server, as {other_kind}: it cannot be {kind} as well"
            yield loaded.problem("error", path, message, code="attach-twice")
        how = (urlsplit(backend.attach_to).scheme, backend.tls or BackendTlsModel())
        if spoken.setdefault(key, how) != how:
            message = f'{quoted(other)} attaches to this server in another way: one "https://" and one "tls" for both'
            yield loaded.problem("error", path, message, code="attach-twice")
        own = [(f"server {quoted(server.name)}", server.host, server.port) for server in loaded.config.servers]
        if control := loaded.config.control:
            own.append(("control address", control.host, control.port))
        for what, host, port in own:
            here = key[0] == "127.0.0.1" and host.lower() in _HERE
            if port == key[1] and (here or host.lower() == key[0]):
                message = f"this is the juggler's own {what}: its requests would come back to it"
                hint = "move the server here to another port, and let its clients use that one"
                yield loaded.problem("error", path, message, hint=hint, code="attach-to-self")
        unloads = backend.model_unloading and (kind != "command" or backend.unload is not None)
        if not unloads and backend.binary is None:
            message = "an attached server is never stopped, so without unloading its memory is never freed for others"
            if backend.model_unloading:
                hint = "if the program has a call that frees it, set `unload`"
                yield loaded.problem("warning", path, message, hint=hint, code="never-unloaded", at_key=True)
            else:
                path = ("backends", name, "model_unloading")
                yield loaded.problem("warning", path, message, code="never-unloaded", at_key=True)


def _first_counts(loaded: LoadedConfig) -> Iterator[Problem]:
    """Endpoints of one instance that would start it differently."""
    config = loaded.config
    first: dict[object, tuple[str, EndpointModel]] = {}
    for index, server in enumerate(config.servers):
        for position, endpoint in enumerate(server.endpoints):
            backend = config.backends.get(endpoint.backend)
            if backend is None or backend.attach_to is None or not _readable(backend.attach_to):
                continue
            name, other = first.setdefault(instance_key(config, endpoint), (endpoint.name, endpoint))
            starts = backend.binary is not None or config.backends[other.backend].binary is not None
            same = (endpoint.backend, endpoint.parameters, endpoint.env) == (
                other.backend,
                other.parameters,
                other.env,
            )
            if starts and not same:
                path = ("servers", index, "endpoints", position, "backend")
                message = f"shares one server with {quoted(name)}: if it has to be started, that one's settings count"
                yield loaded.problem("warning", path, message, code="shared-server")


def _readable(url: str) -> bool:
    try:
        attach_key(url)
    except ValueError:
        return False
    return True
