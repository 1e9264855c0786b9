"""The real program under a stand-in for systemd."""

import json
import signal
import socket
import time
from pathlib import Path

import pytest
from tests.e2e.support import eventually, exclusive, running, web

pytestmark = pytest.mark.slow


def test_start_reload_and_stop_are_told_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """READY once requests are taken, RELOADING and READY around a reload, STOPPING; backends hear nothing."""
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)

        def listen() -> list[str]:
            while True:
                try:
                    message = manager.recv(4096).decode()
                except BlockingIOError:
                    return heard
                if not message.startswith(("STATUS=", "WATCHDOG=")):
                    heard.append(message.partition("\n")[0])

        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000000")
        with running(tmp_path, exclusive(a=web())) as juggler:
            eventually(lambda: listen() == ["READY=1"], "it is ready")
            answer = juggler.ask("POST", "/a/env", {})
            assert answer.status == 200
            pid = answer.json()["pid"]
            environment = Path(f"/proc/{pid}/environ").read_bytes()
            assert b"NOTIFY_SOCKET" not in environment
            assert b"WATCHDOG" not in environment
            config = json.loads(juggler.config_path.read_text())
            config["servers"][0]["endpoints"][0]["max_wait"] = "30s"
            juggler.config_path.write_text(json.dumps(config))
            juggler.process.send_signal(signal.SIGHUP)
            eventually(lambda: listen() == ["READY=1", "RELOADING=1", "READY=1"], "it has reloaded")
            began = time.monotonic()
            assert juggler.stop() == 0
            assert time.monotonic() - began < 20
            assert listen()[3:] == ["STOPPING=1"]
