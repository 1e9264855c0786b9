"""Runs the real program in a process of its own, and asks it things over real sockets."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.ports import free_port

PROGRAMS = Path(__file__).parents[1] / "programs"
LIMIT_S = 20.0
START_LIMIT_S = 45.0
"""For the program itself, whose imports take seconds where everybody starts something."""


def eventually(condition: Callable[[], object], what: str, limit_s: float = LIMIT_S) -> Any:
    """Poll until it is true; returns its value."""
    end = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {limit_s} s: {what}"
        time.sleep(0.01)


def processes_marked(marker: str) -> list[str]:
    """Command lines of all processes whose environment carries the marker; zombies have none."""
    found = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal():
            with contextlib.suppress(OSError):
                if marker.encode() in (directory / "environ").read_bytes():
                    found.append((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


class Answer:
    """A whole HTTP answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def json(self) -> Any:
        return json.loads(self.body)


class Ended(Exception):
    """The juggler ended before it listened; the text is its log."""


class Juggler:
    """One ``juggler serve`` in a process of its own."""

    def __init__(self, tmp_path: Path, config: dict[str, Any], *, marker: str) -> None:
        self.port = free_port()
        self.control_port = free_port()
        self.marker = marker
        self.log = tmp_path / "juggler.log"
        self.temp_dir = tmp_path / "temp"
        config = {
            "temp_dir": str(self.temp_dir),
            "state_dir": str(tmp_path / "state"),
            "memory": {"pools": "exclusive"},
            **config,
            "control": {"port": self.control_port, **config.get("control", {})},
        }
        config["control"].setdefault("port", self.control_port)
        for server in config["servers"]:
            server.setdefault("port", self.port)
        self.config = config
        self.config_path = tmp_path / "config.json"
        self.config_path.write_text(json.dumps(config, indent=4))
        self.stream = self.log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "juggler.cli.main", "serve", "--config", str(self.config_path)],
            stdout=self.stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "JUGGLER_TEST_MARKER": marker},
        )
        try:
            eventually(self._listening, "listening", START_LIMIT_S)
        except BaseException:
            self.process.kill()
            self.process.wait()
            self.stream.close()
            raise

    def _listening(self) -> bool:
        if self.process.poll() is not None:
            raise Ended(self.text())
        if "no dashboard and no API" in self.text():  # somebody took its control port, and answers there
            raise Ended(self.text())
        ports = {server["port"] for server in self.config["servers"]} | {self.control_port}
        return all(self._accepts(port) for port in ports)

    def _accepts(self, port: int) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as peer:
            return bool(peer.getsockname() != peer.getpeername())  # a port nobody listens on may connect to itself
        return False

    def text(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        port: int | None = None,
        timeout_s: float = LIMIT_S,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout_s)
        try:
            data = json.dumps(body).encode() if body is not None else None
            own = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, data, {**own, **(headers or {})})
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def status(self) -> Any:
        return self.ask("GET", "/api/v1/status", port=self.control_port).json()

    def instance(self, name: str) -> Any:
        return next(one for one in self.status()["instances"] if one["instance"] == name)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it politely; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(LIMIT_S)
        finally:
            self.stream.close()

    def left_behind(self) -> list[str]:
        return [line for line in processes_marked(self.marker) if "pytest" not in line]


def _started(tmp_path: Path, config: dict[str, Any]) -> Juggler:
    """Started, once more on other ports if somebody took ours between the choice and the bind."""
    for attempt in range(3):
        fresh = json.loads(json.dumps(config))
        try:
            return Juggler(tmp_path, fresh, marker=f"{tmp_path.name}-{time.monotonic_ns()}")
        except Ended as ended:
            if attempt == 2 or "in use" not in str(ended):
                raise
            (tmp_path / "juggler.log").unlink()
    raise AssertionError("unreachable")


@contextlib.contextmanager
def running(tmp_path: Path, config: dict[str, Any]) -> Iterator[Juggler]:
    """A juggler that is stopped at the end, and that must leave nothing."""
    juggler = _started(tmp_path, config)
    try:
        yield juggler
    finally:
        try:
            juggler.stop()
        finally:
            juggler.process.kill()
            juggler.process.wait()
    eventually(lambda: not juggler.left_behind(), "no process is left")


def web(*flags: str, **endpoint: Any) -> dict[str, Any]:
    """One endpoint's backend entry on the stand-in web server."""
    return {
        "type": "command",
        "binary": sys.executable,
        "default_parameters": [str(PROGRAMS / "web.py"), "--port", "{port}", *flags],
        **endpoint,
    }


def behind(gate: Path, server: dict[str, Any]) -> dict[str, Any]:
    """The backend entry again, but its load begins when there is such a file: it takes as long as the test wants."""
    waits = 'until [ -e "$0" ]; do sleep 0.05; done; exec "$@"'
    words = ["-c", waits, str(gate), server["binary"], *server["default_parameters"]]
    return {**server, "binary": "/bin/sh", "default_parameters": words}


def exclusive(**backends: dict[str, Any]) -> dict[str, Any]:
    """A configuration with one endpoint per backend, ``/<name>``, of which one at a time may be loaded."""
    return {
        "backends": backends,
        "servers": [
            {
                "name": "S",
                "endpoints": [
                    {"name": name, "path_prefix": f"/{name}", "strip_prefix": True, "backend": name}
                    for name in backends
                ],
            }
        ],
    }
