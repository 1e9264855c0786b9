"""What this machine lacks for a configuration: programs, directories, ports. For ``juggler check``.

Looks, and changes nothing: directories are not created, and ports are bound for a moment only. May block on the
file system and on the resolver of host names; the other checks of a configuration touch neither.
"""

import errno
import os
import shutil
import socket
import ssl
from pathlib import Path

from juggler.config.load import LoadedConfig
from juggler.config.problems import PathParts, Problem, Severity, in_file_order
from juggler.config.resolve import default_state_dir, default_temp_dir, expand
from juggler.config.schema import BackendModel, ControlModel
from juggler.config.tree import quoted
from juggler.tls import BadPair, out_of_date, server_context, trusting_context


def machine_problems(loaded: LoadedConfig) -> list[Problem]:
    """Everything that would fail here and now, in the order of the file."""
    problems: list[Problem] = []
    used = {endpoint.backend for server in loaded.config.servers for endpoint in server.endpoints}
    for name, backend in loaded.config.backends.items():
        # A program that nothing starts, for now, is worth a word and no more.
        severity: Severity = "error" if name in used and backend.attach_to is None else "warning"
        problems += _backend(loaded, name, backend, severity)
    for key, default in (("temp_dir", default_temp_dir), ("state_dir", default_state_dir)):
        written = getattr(loaded.config, key)
        problems += _directory(loaded, key, expand(written) if written is not None else default())
    problems += _listeners(loaded)
    problems += _certificates(loaded)
    return in_file_order(problems)


def _backend(loaded: LoadedConfig, name: str, backend: BackendModel, severity: Severity) -> list[Problem]:
    problems = []
    path: PathParts = ("backends", name)
    if backend.cwd is not None and not Path(expand(backend.cwd)).is_dir():
        what = "is not a directory" if Path(expand(backend.cwd)).exists() else "does not exist"
        problems.append(loaded.problem(severity, (*path, "cwd"), f"{backend.cwd} {what}", code="missing-directory"))
    if backend.tls is not None and backend.tls.ca is not None and backend.tls.verify:
        problems += _authorities(loaded, (*path, "tls", "ca"), expand(backend.tls.ca))
    if backend.binary is not None:
        found = _program(backend.binary, backend.env.get("PATH"))
        if found is not None:
            message, hint, code = found
            problems.append(loaded.problem(severity, (*path, "binary"), message, hint=hint, code=code))
    return problems


def _authorities(loaded: LoadedConfig, path: PathParts, ca: Path) -> list[Problem]:
    try:
        trusting_context(str(ca))
    except ssl.SSLError:
        return [loaded.problem("error", path, f"{ca} holds no certificate in PEM form", code="bad-certificate")]
    except OSError as error:
        return [loaded.problem("error", path, f"{ca} cannot be read: {error.strerror}", code="bad-certificate")]
    return []


def _certificates(loaded: LoadedConfig) -> list[Problem]:
    problems = []
    for index, server in enumerate(loaded.config.servers):
        if server.tls is None:
            continue
        path: PathParts = ("servers", index, "tls")
        cert = expand(server.tls.cert)
        try:
            trouble = out_of_date(cert, server_context(cert, expand(server.tls.key)))
        except BadPair as error:
            problems.append(
                loaded.problem("error", (*path, error.part), error.message, hint=error.hint, code="bad-certificate")
            )
            continue
        if trouble is not None:
            message = f"the certificate {cert} {trouble}: clients will refuse it"
            problems.append(loaded.problem("warning", (*path, "cert"), message, code="bad-certificate"))
    return problems


_SCRIPTS = frozenset({".py", ".sh"})
"""Started through their interpreter where they are not executable themselves."""


def _program(binary: str, search_path: str | None) -> tuple[str, str | None, str] | None:
    """What is wrong with a program: message, hint and code; None if it can be executed."""
    if not _has_separator(binary) and not binary.startswith("~"):
        if shutil.which(binary, path=search_path) is None:
            return f"the program {quoted(binary)} is not found in PATH", "give its full path", "missing-binary"
        return None
    file = Path(expand(binary))
    try:
        if file.is_dir():
            return f"{binary} is a directory, not a program", None, "bad-binary"
        if not file.exists():
            return f"the program {binary} does not exist", None, "missing-binary"
    except OSError as error:
        return f"{binary} cannot be looked at: {error.strerror}", None, "bad-binary"
    if file.suffix not in _SCRIPTS and not os.access(file, os.X_OK):
        return f"{binary} is not executable", f"chmod +x {binary}", "bad-binary"
    return None


def _has_separator(text: str) -> bool:
    return os.sep in text or (os.altsep is not None and os.altsep in text)


def _directory(loaded: LoadedConfig, key: str, directory: Path) -> list[Problem]:
    trouble = directory_trouble(directory)
    return [] if trouble is None else [loaded.problem("error", (key,), f"{key}: {trouble}", code="bad-directory")]


def directory_trouble(directory: Path) -> str | None:
    """Why nothing can be written into a directory of ours, which need not exist yet; None if it can."""
    nearest = directory
    while not os.path.lexists(nearest) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"{directory} {'' if nearest == directory else f'cannot be made: {nearest} '}is not a directory"
    if not os.access(nearest, os.W_OK | os.X_OK):
        what = "cannot be written" if nearest == directory else f"cannot be made: no right to write in {nearest}"
        return f"{directory} {what}"
    return None


def _listeners(loaded: LoadedConfig) -> list[Problem]:
    problems = []
    listeners: list[tuple[PathParts, str, int]] = [
        (("servers", index, "port"), server.host, server.port) for index, server in enumerate(loaded.config.servers)
    ]
    if isinstance(loaded.config.control, ControlModel):
        listeners.append((("control", "port"), loaded.config.control.host, loaded.config.control.port))
    for path, host, port in listeners:
        reason = _cannot_listen(host, port)
        if reason is not None:
            problems.append(loaded.problem("warning", path, reason, code="port-unavailable"))
    return problems


def _cannot_listen(host: str, port: int) -> str | None:
    """Why an address cannot be listened on right now; None if it can."""
    hosts = ("127.0.0.1", "::1") if host.lower() == "localhost" else (host,)
    for one in hosts:
        try:
            infos = socket.getaddrinfo(one, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except (OSError, UnicodeError) as error:
            return f"the host {quoted(host)} is not known here: {error}"
        for family, kind, protocol, _, address in infos:
            reason = _cannot_bind(family, kind, protocol, address)
            # A machine without IPv6 is no fault of a "localhost".
            if reason is not None and not (host != one and one == "::1" and reason in _NO_FAMILY):
                return _explain(reason, host, port)
    return None


_NO_FAMILY = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def _cannot_bind(family: int, kind: int, protocol: int, address: tuple[object, ...]) -> int | None:
    """Bind for a moment; the errno, or None."""
    try:
        with socket.socket(family, kind, protocol) as probe:
            if os.name == "posix":
                # As asyncio's servers do: connections in TIME_WAIT do not count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
    except OSError as error:
        return error.errno or errno.EINVAL
    return None


def _explain(number: int, host: str, port: int) -> str:
    if number == errno.EADDRINUSE:
        return f"port {port} on {host} is in use right now (by a running juggler?)"
    if number == errno.EACCES:
        return f"no right to listen on port {port}: ports below 1024 often need it"
    if number in _NO_FAMILY:
        return f"{host} is not an address of this machine"
    return f"cannot listen on {host}:{port}: {os.strerror(number)}"
