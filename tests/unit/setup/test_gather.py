"""Looking at everything: ports, versions, and that nothing hangs."""

import asyncio
import os
import socket
from pathlib import Path

import pytest

from juggler.setup import gather
from juggler.setup.facts import PORTS_WANTED, Facts
from juggler.setup.gather import free_ports, gather_facts
from juggler.setup.places import Surroundings
from tests.unit.doctor.tools import install
from tests.unit.survey.gguf_files import write_gguf


def facts(tmp_path: Path, **environ: str) -> Facts:
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    around = Surroundings({"PATH": path, **environ}, tmp_path / "home", ports=(1,), system=False)
    return asyncio.run(asyncio.wait_for(gather_facts(around), 50))


def test_everything_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program with its version, a model, ports."""
    monkeypatch.setattr(gather, "VERSION_LIMIT_S", 60.0)
    binary = install(tmp_path / "bin" / "llama-server")
    write_gguf(tmp_path / "home" / "models" / "m.gguf")
    found = facts(tmp_path)
    program = found.program("llamacpp")
    assert program is not None
    assert (program.path, program.version) == (str(binary), "version: 7777 (abcdef0)")
    assert [model.name for model in found.search.models] == ["m"]
    assert found.servers == []
    assert len(found.ports) == len(set(found.ports)) == PORTS_WANTED
    assert found.control_port < min(found.ports)
    assert found.memory is not None


def test_programs_that_do_not_tell_their_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are taken without; one that cannot be executed as well, for ``check`` to complain about."""
    monkeypatch.setattr(gather, "VERSION_LIMIT_S", 0.3)
    install(tmp_path / "bin" / "llama-server")
    hanging = facts(tmp_path, FAKE_HABIT="hang").program("llamacpp")
    assert hanging is not None
    assert hanging.version is None
    (tmp_path / "bin" / "llama-server").write_text("#!/gone/interpreter\n")
    broken = facts(tmp_path).program("llamacpp")
    assert broken is not None
    assert broken.version is None


def test_folders_that_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead mount costs its limit, and the rest is found."""
    monkeypatch.setattr(gather, "LOOK_LIMIT_S", 0.1)
    monkeypatch.setattr(gather, "WALK_LIMIT_S", 0.0)
    for name in ("find_models", "find_programs", "find_containers"):
        monkeypatch.setattr(gather, name, lambda *_: __import__("time").sleep(2))
    monkeypatch.setattr(gather, "free_ports", lambda first, count, pid: list(range(first, first + count)))
    found = facts(tmp_path)
    assert found.search.cut_short is not None
    assert found.programs == []
    assert not found.containers.likely


def test_taken_ports_are_passed_over() -> None:
    """Unless it is our own running juggler that has them: its next configuration may."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert port not in free_ports(port, 2)
        own = free_ports(port, 1, own_pid=os.getpid())
        assert own == [port] or own == free_ports(port, 1)  # the latter where holders cannot be seen
        assert free_ports(port, 1, own_pid=1) != [port]


def test_no_free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says so, not a shorter list."""
    monkeypatch.setattr(gather, "is_free", lambda host, port: False)
    monkeypatch.setattr(gather, "PORTS_TRIED_MAX", 3)
    with pytest.raises(OSError, match="not enough free ports"):
        free_ports(8021, 1)


def test_machines_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """``localhost`` is then 127.0.0.1 alone."""

    def is_free(host: str, port: int) -> bool:
        if host == "::1":
            raise OSError(99, "Cannot assign requested address")
        return True

    monkeypatch.setattr(gather, "is_free", is_free)
    assert free_ports(8021, 2) == [8021, 8022]
