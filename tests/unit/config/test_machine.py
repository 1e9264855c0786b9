"""What this machine lacks for a configuration."""

import datetime
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.certificates import make_pair
from tests.ports import free_port

from juggler.config.load import load_text
from juggler.config.machine import directory_trouble, machine_problems


@pytest.fixture
def port() -> int:
    """A port that is free on the loopback addresses while the test runs (not held: SO_REUSEADDR would hide it)."""
    return free_port()


def found(
    tmp_path: Path,
    port: int,
    backend: dict[str, Any] | None = None,
    *,
    host: str = "127.0.0.1",
    used: bool = True,
    **top: Any,
) -> list[tuple[str, str, str, str]]:
    document = {
        "temp_dir": str(tmp_path / "t"),
        "state_dir": str(tmp_path / "s"),
        "control": False,
        "backends": {"demo": {}, "b": {"type": "command", "binary": sys.executable, **(backend or {})}},
        "servers": [
            {"name": "S", "host": host, "port": port, "endpoints": [{"name": "E", "backend": "b" if used else "demo"}]}
        ],
        **top,
    }
    problems = machine_problems(load_text(json.dumps(document)))
    return [(problem.severity, problem.code, problem.key, problem.message) for problem in problems]


def test_nothing_is_missing(tmp_path: Path, port: int) -> None:
    """A program, two directories that can be made and a free port; looking leaves nothing behind."""
    assert found(tmp_path, port) == []
    assert list(tmp_path.iterdir()) == []


def test_programs(tmp_path: Path, port: int) -> None:
    """Missing, not executable, a directory: each said as what it is."""
    plain = tmp_path / "plain"
    plain.write_text("x")
    cases = {
        str(tmp_path / "none"): ("missing-binary", "does not exist"),
        str(plain): ("bad-binary", "is not executable"),
        str(tmp_path): ("bad-binary", "is a directory"),
        "no-such-program-anywhere": ("missing-binary", "is not found in PATH"),
    }
    for binary, (code, words) in cases.items():
        ((severity, found_code, key, message),) = found(tmp_path, port, {"binary": binary})
        assert (severity, found_code, key) == ("error", code, "backends.b.binary")
        assert words in message


def test_bare_names_are_looked_up_in_the_path_of_the_backend(tmp_path: Path, port: int) -> None:
    """``env`` may extend PATH; the check looks where the start will."""
    program = tmp_path / "my-program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert [code for _, code, _, _ in found(tmp_path, port, {"binary": "my-program"})] == ["missing-binary"]
    assert found(tmp_path, port, {"binary": "my-program", "env": {"PATH": str(tmp_path)}}) == []


def test_home_directories_are_expanded(tmp_path: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``~`` works for programs and directories."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "program").symlink_to(sys.executable)
    assert found(tmp_path, port, {"binary": "~/program", "cwd": "~"}) == []


def test_a_program_that_nothing_starts_is_a_warning(tmp_path: Path, port: int) -> None:
    """Unused backends, and those that attach first, may lack their program."""
    missing = {"binary": "/none/x"}
    assert [severity for severity, *_ in found(tmp_path, port, missing, used=False)] == ["warning"]
    assert [severity for severity, *_ in found(tmp_path, port, {**missing, "attach_to": "http://x"})] == ["warning"]
    assert [severity for severity, *_ in found(tmp_path, port, missing)] == ["error"]


def test_working_directories(tmp_path: Path, port: int) -> None:
    """Missing or a file."""
    (tmp_path / "file").write_text("")
    for cwd, words in ((tmp_path / "none", "does not exist"), (tmp_path / "file", "is not a directory")):
        ((severity, code, key, message),) = found(tmp_path, port, {"cwd": str(cwd)})
        assert (severity, code, key) == ("error", "missing-directory", "backends.b.cwd")
        assert words in message


@pytest.mark.parametrize("key", ["temp_dir", "state_dir"])
def test_directories_of_ours(tmp_path: Path, port: int, key: str) -> None:
    """What cannot be made is an error now rather than at the start."""
    (tmp_path / "file").write_text("")
    top: dict[str, Any] = {key: str(tmp_path / "file" / "deep" / "er")}
    ((severity, code, where, message),) = found(tmp_path, port, None, **top)
    assert (severity, code, where) == ("error", "bad-directory", key)
    assert f"{tmp_path / 'file'} is not a directory" in message


def test_a_file_where_a_directory_of_ours_should_be(tmp_path: Path) -> None:
    """One plain sentence."""
    (tmp_path / "file").write_text("")
    assert directory_trouble(tmp_path / "file") == f"{tmp_path / 'file'} is not a directory"
    assert directory_trouble(tmp_path / "new") is None


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_directories_without_the_right_to_write(tmp_path: Path, port: int) -> None:
    """The nearest directory that exists decides."""
    (tmp_path / "locked").mkdir(mode=0o500)
    ((_, code, _, message),) = found(tmp_path, port, temp_dir=str(tmp_path / "locked" / "t"))
    assert code == "bad-directory"
    assert "no right to write" in message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_ports_in_use(tmp_path: Path, host: str) -> None:
    """A listening socket on the address, or on one it covers, is a warning: it may be gone by the start."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        ((severity, code, key, message),) = found(tmp_path, number, host=host)
        assert (severity, code, key) == ("warning", "port-unavailable", "servers[0].port")
        assert message == f"port {number} on {host} is in use right now (by a running juggler?)"


def test_the_control_port_is_looked_at(tmp_path: Path, port: int) -> None:
    """Like a server's."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        control = {"port": taken.getsockname()[1]}
        assert [key for _, _, key, _ in found(tmp_path, port, control=control)] == ["control.port"]


@pytest.mark.parametrize(
    ("host", "words"),
    [("192.0.2.1", "is not an address of this machine"), ("a..b", "is not known here")],
)
def test_addresses_of_others(tmp_path: Path, port: int, host: str, words: str) -> None:
    """Addresses of other machines (192.0.2.0/24 is for documentation, RFC 5737) and what is no host name."""
    ((severity, _, _, message),) = found(tmp_path, port, host=host)
    assert severity == "warning"
    assert words in message


def certified(tmp_path: Path, port: int, cert: Path, key: Path) -> list[tuple[str, str, str, str]]:
    tls = {"cert": str(cert), "key": str(key)}
    server = {"name": "S", "port": port, "tls": tls, "endpoints": [{"name": "E", "backend": "b"}]}
    return found(tmp_path, port, servers=[server])


def test_certificates(tmp_path: Path, port: int) -> None:
    """Missing, of another key, out of date: told at the file to blame."""
    pair, other = make_pair(tmp_path), make_pair(tmp_path, name="other")
    assert certified(tmp_path, port, *pair) == []
    ((*found_at, message),) = certified(tmp_path, port, pair.cert, other.key)
    assert found_at == ["error", "bad-certificate", "servers[0].tls.key"]
    assert "does not belong" in message
    ((*found_at, _),) = certified(tmp_path, port, tmp_path / "none", pair.key)
    assert found_at == ["error", "bad-certificate", "servers[0].tls.cert"]
    old = make_pair(tmp_path, not_after=datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1))
    ((*found_at, message),) = certified(tmp_path, port, *old)
    assert found_at == ["warning", "bad-certificate", "servers[0].tls.cert"]
    assert "has expired" in message


def test_authorities(tmp_path: Path, port: int) -> None:
    """The file that shall be believed instead of the system must hold something."""
    pair = make_pair(tmp_path)
    for ca, problems in ((pair.cert, 0), (pair.key, 1), (tmp_path / "none", 1)):
        backend = {"attach_to": "https://box", "tls": {"ca": str(ca)}}
        where = [(severity, code, key) for severity, code, key, _ in found(tmp_path, port, backend)]
        assert where == [("error", "bad-certificate", "backends.b.tls.ca")] * problems
