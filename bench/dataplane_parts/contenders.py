"""Who takes part: how each proxy is configured and started in front of one backend."""

import http.client
import importlib.util
import json
import shutil
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.dataplane_parts.processes import CannotRun, Process, build_go_proxy

DIRECT = "direct"
UVLOOP = "uvloop"
ASYNCIO = "asyncio"
GO = "go"
NGINX = "nginx"
MANY = "500 endpoints"
"""The juggler on the better loop there is, with 500 endpoints instead of 5."""

FEW_ENDPOINTS = 5
MANY_ENDPOINTS = 500
_START_LIMIT_S = 20.0

# The program itself takes uvloop where it finds one: for the other loop it must find none.
_SERVE = "import sys; {hide}; {before}; from juggler.cli.main import main; main()"
_HIDE = {UVLOOP: "pass", ASYNCIO: "sys.modules['uvloop'] = None"}

_NGINX = """
daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr error; {user}
worker_rlimit_nofile 10000;
events {{ worker_connections 4096; }}
http {{
    access_log off; default_type application/octet-stream;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy; fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    client_max_body_size 0; keepalive_requests 100000000; tcp_nodelay on;
    map $http_upgrade $connection_field {{ default upgrade; '' ''; }}
    upstream backend {{ server 127.0.0.1:{backend}; keepalive 1000; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://backend; proxy_http_version 1.1;
            proxy_set_header Connection $connection_field; proxy_set_header Upgrade $http_upgrade;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_buffering off; proxy_request_buffering off;
        }}
    }}
}}
"""


class Listening(Protocol):
    """A backend, of whatever kind."""

    port: int


@dataclass(frozen=True)
class Contender:
    """One way from the load to the backend."""

    name: str
    port: int
    process: Process | None
    """None: no proxy at all."""


def start_all(stack: ExitStack, backend: Listening, directory: Path, kept: Path) -> tuple[list[Contender], list[str]]:
    """Start whoever can take part; the stack ends them.

    Args:
        stack: Gets what must be undone.
        backend: What stands behind all of them.
        directory: For files of this run.
        kept: Where programs that take long to build may lie already.

    Returns:
        The contenders, and a sentence about each that is missing.
    """
    missing = []
    contenders = [Contender(DIRECT, backend.port, None)]

    def add(name: str, process: Process) -> None:
        stack.callback(process.stop)
        contenders.append(Contender(name, process.port, process))
        _wait_for_answer(process)

    loops = [UVLOOP, ASYNCIO]
    if importlib.util.find_spec("uvloop") is None:
        missing.append("uvloop is not installed: its columns and gates are left out (pip install uvloop)")
        loops.remove(UVLOOP)
    for loop in loops:
        add(loop, _juggler(loop, FEW_ENDPOINTS, backend, directory / loop)[0])
    add(MANY, _juggler(loops[0], MANY_ENDPOINTS, backend, directory / "many")[0])
    try:
        add(GO, Process([build_go_proxy(kept), str(backend.port)], directory / "go.log"))
    except CannotRun as reason:
        missing.append(f"Go is left out, and with it all gates that compare with it: {reason}")
    if shutil.which("nginx") is None:
        missing.append("nginx is left out: none on PATH (Debian: apt install nginx-light)")
    else:
        add(NGINX, _nginx(backend, directory / "nginx"))
    return contenders, missing


def start_juggler(
    loop: str, endpoints: int, backend: Listening, directory: Path, before: str = "pass"
) -> tuple[Process, int]:
    """A juggler whose endpoint ``/bench`` answers, and the port of its control plane.

    Args:
        before: Python statements, on one line, that its process runs first.

    Raises:
        CannotRun: It does not come up.
    """
    process, control_port = _juggler(loop, endpoints, backend, directory, before)
    try:
        _wait_for_answer(process)
    except BaseException:
        process.stop()
        raise
    return process, control_port


def _juggler(
    loop: str, endpoints: int, backend: Listening, directory: Path, before: str = "pass"
) -> tuple[Process, int]:
    directory.mkdir()
    port, control_port = _free_port(), _free_port()
    others = [
        {"name": f"other-{number}", "path_prefix": f"/other-{number}", "backend": "other", "parameters": [str(number)]}
        for number in range(endpoints - 1)
    ]
    # No limit of the operator's: what is measured here is the relay.
    bench = {"name": "bench", "path_prefix": "/bench", "backend": "bench", "concurrency": 10_000}
    config = {
        "temp_dir": str(directory / "temp"),
        "state_dir": str(directory / "state"),
        "control": {"port": control_port},
        "memory": {"pools": "exclusive"},
        "backends": {
            "bench": {"type": "command", "attach_to": f"http://127.0.0.1:{backend.port}"},
            "other": {"type": "command", "binary": "sleep"},
        },
        "servers": [{"name": "S", "port": port, "endpoints": [*others, bench]}],
    }
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    program = [sys.executable, "-c", _SERVE.format(hide=_HIDE[loop], before=before)]
    return Process([*program, "serve", "--config", path], directory / "log", port=port), control_port


def _nginx(backend: Listening, directory: Path) -> Process:
    directory.mkdir()
    port = _free_port()
    path = directory / "nginx.conf"
    # Started by root it would give its files to another user.
    user = "user root;" if Path("/proc/self").stat().st_uid == 0 else ""
    path.write_text(_NGINX.format(directory=directory, backend=backend.port, port=port, user=user))
    return Process(["nginx", "-c", path, "-e", "stderr", "-p", directory], directory / "log", port=port)


def _free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _wait_for_answer(process: Process) -> None:
    """Until the backend answers through it; for the juggler that is when it has been attached to."""
    end = time.monotonic() + _START_LIMIT_S
    said = "nothing listens"
    while process.runs and time.monotonic() < end:
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=_START_LIMIT_S)
        try:
            connection.request("POST", "/bench/v1/completions", b"{}", {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = f"{answer.status} {answer.read()[:500]!r}"
            if answer.status == 200:
                return
        except OSError:
            time.sleep(0.02)
        finally:
            connection.close()
    raise CannotRun(f"no answer through a proxy ({said}): {process.said()}")
