"""HTTPS through the whole program: a server of ours with a certificate, and servers of others behind it."""

import contextlib
import http.client
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.certificates import Pair, make_pair, stranger, trusting, write_authority
from tests.e2e.support import PROGRAMS, eventually, exclusive, running, web
from tests.ports import free_port


@contextlib.contextmanager
def theirs(pair: Pair) -> Iterator[int]:
    """Somebody else's server behind HTTPS; its port."""
    port = free_port()
    command = [sys.executable, str(PROGRAMS / "attached.py"), "--port", str(port), "--tls", *map(str, pair)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield port
        finally:
            process.kill()


def attached(url: str, **more: Any) -> dict[str, Any]:
    hooks = {"unload": "POST /unload", "wake": "POST /wake", "busy": {"path": "/jobs", "busy_when": "running > 0"}}
    return {"type": "command", "attach_to": url, **hooks, **more}


def test_an_attached_server_behind_https(tmp_path: Path) -> None:
    """Found, used, unloaded and woken, all over TLS and verified; our own clients speak plain HTTP."""
    with theirs(make_pair(tmp_path, "localhost")) as port:
        secure = attached(f"https://localhost:{port}", tls={"ca": write_authority(tmp_path)})
        with running(tmp_path, exclusive(a=secure, b=web("--name", "b"))) as juggler:
            eventually(lambda: juggler.instance("S/a")["residency"] == "ready", "found without a request")
            assert juggler.ask("POST", "/a/x").json()["name"] == "attached"
            assert juggler.ask("POST", "/b/x").json()["name"] == "b"
            assert juggler.instance("S/a")["residency"] == "unloaded"
            assert juggler.ask("POST", "/a/x").status == 200
            assert juggler.ask("GET", "/a/diary").json()["diary"] == ["work", "unload", "wake", "work"]


@pytest.mark.parametrize(
    ("names", "trusted", "why"),
    [
        (("localhost",), False, "authority that is not trusted here"),
        (("elsewhere.example",), True, "for another name than localhost"),
    ],
)
def test_one_that_proves_nothing(tmp_path: Path, names: tuple[str, ...], trusted: bool, why: str) -> None:
    """503 at once, with whose fault it is and what to do; with ``verify`` off it is used all the same."""
    pair = make_pair(tmp_path, *names) if trusted else make_pair(tmp_path, *names, by=stranger())
    with theirs(pair) as port:
        url = f"https://localhost:{port}"
        tls = {"ca": write_authority(tmp_path)} if trusted else None
        config = exclusive(a=attached(url, tls=tls), b=web("--name", "b"))
        with running(tmp_path, config) as juggler:
            answer = juggler.ask("POST", "/a/x")
            assert (answer.status, answer.json()["error"]["code"]) == (503, "backend_unreachable")
            assert why in answer.json()["error"]["message"]
            assert answer.json()["juggler"]["hint"]
        config = exclusive(a=attached(url, tls={"verify": False}), b=web("--name", "b"))
        with running(tmp_path, config) as juggler:
            assert juggler.ask("POST", "/a/x").json()["name"] == "attached"
            assert "nothing proves" in juggler.text()


def test_a_server_of_ours_with_https(tmp_path: Path) -> None:
    """Clients verify it; a new certificate is used for new connections, and plain HTTP there is told so."""
    pair = make_pair(tmp_path)
    config = exclusive(a=web("--name", "a"))
    config["servers"][0]["tls"] = {"cert": str(pair.cert), "key": str(pair.key)}
    with running(tmp_path, config) as juggler:

        def serial() -> str:
            connection = http.client.HTTPSConnection("localhost", juggler.port, timeout=10, context=trusting())
            try:
                connection.request("POST", "/a/x", b"")
                assert connection.getresponse().status == 200
                found = connection.sock.getpeercert()
                assert found is not None
                return str(found["serialNumber"])
            finally:
                connection.close()

        before = serial()
        plain = juggler.ask("GET", "/a/x")
        assert (plain.status, b"speaks HTTPS" in plain.body) == (400, True)
        make_pair(tmp_path)
        eventually(lambda: serial() != before, "the new certificate is used")
        assert "with HTTPS" in juggler.text()
        assert "Traceback" not in juggler.text()


def test_a_bad_pair_ends_the_start(tmp_path: Path) -> None:
    """Before anything listens, with the server's name and the reason."""
    pair, other = make_pair(tmp_path), make_pair(tmp_path, name="other")
    config = exclusive(a=web("--name", "a"))
    config["servers"][0]["tls"] = {"cert": str(pair.cert), "key": str(other.key)}
    with pytest.raises(Exception, match="does not belong to the certificate"), running(tmp_path, config):
        pass
