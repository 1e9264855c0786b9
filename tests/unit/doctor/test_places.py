"""Directories, ports, and who can reach them."""

import asyncio
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from juggler import __version__
from juggler.config.load import load_text
from juggler.config.machine import machine_problems
from juggler.config.problems import Problem
from juggler.config.resolve import ResolvedConfig, resolve
from juggler.doctor import places
from juggler.doctor.findings import Finding, Grade
from juggler.doctor.places import container_findings, directories, ports
from juggler.survey import running
from juggler.survey.containers import Containers
from juggler.survey.listeners import Holder, holder_of
from juggler.units import GIB
from tests.ports import free_port
from tests.unit.doctor.tools import answering


def config(tmp_path: Path, host: str = "127.0.0.1", port: int | None = None, **top: Any) -> dict[str, Any]:
    return {
        "temp_dir": str(tmp_path / "t"),
        "state_dir": str(tmp_path / "s"),
        "control": False,
        "backends": {"demo": {}},
        "servers": [
            {"name": "S", "host": host, "port": port or free_port(), "endpoints": [{"name": "E", "backend": "demo"}]}
        ],
        **top,
    }


def checked(document: dict[str, Any]) -> tuple[ResolvedConfig, list[Problem]]:
    loaded = load_text(json.dumps(document))
    return resolve(loaded), machine_problems(loaded)


def look_at_directories(document: dict[str, Any], quota_bytes: int = 0) -> list[Finding]:
    resolved, problems = checked(document)
    return list(asyncio.run(directories(resolved, quota_bytes, problems)).findings)


def test_directories_that_can_be_used(tmp_path: Path) -> None:
    """What is free there; one that does not exist yet is not made."""
    (tmp_path / "t").mkdir()
    there, later = look_at_directories(config(tmp_path))
    assert there.grade is later.grade is Grade.OK
    assert "will be made" not in there.message
    assert "will be made" in later.message
    assert not (tmp_path / "s").exists()


def test_full_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little for anything, or less than saved conversations may take."""
    free = {"bytes": GIB // 2}
    usage = type("Usage", (), {"free": property(lambda self: free["bytes"])})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage())
    assert [one.grade for one in look_at_directories(config(tmp_path))] == [Grade.WARNING, Grade.WARNING]
    free["bytes"] = 5 * GIB
    temp, state = look_at_directories(config(tmp_path), quota_bytes=10 * GIB)
    assert temp.grade is Grade.OK
    assert state.grade is Grade.WARNING
    assert "kv_cache.quota" in (state.hint or "")


def test_directories_that_check_refused(tmp_path: Path) -> None:
    """Told once, where the place in the file is shown."""
    (tmp_path / "file").write_text("")
    temp, _ = look_at_directories(config(tmp_path, temp_dir=str(tmp_path / "file" / "t")))
    assert temp.grade is Grade.NOTE


def test_directories_that_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead mount costs its limit; a disk that fails is told."""
    monkeypatch.setattr(places, "DISK_LIMIT_S", 0.05)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: __import__("time").sleep(1))
    assert [one.grade for one in look_at_directories(config(tmp_path))] == [Grade.PROBLEM, Grade.PROBLEM]

    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(shutil, "disk_usage", fail)
    assert "Input/output error" in look_at_directories(config(tmp_path))[0].message


def look_at_ports(document: dict[str, Any]) -> list[Finding]:
    resolved, problems = checked(document)
    return list(asyncio.run(ports(resolved, problems)).findings)


def test_free_ports(tmp_path: Path) -> None:
    """Servers and the control listener."""
    found = look_at_ports(config(tmp_path, control={"port": free_port()}))
    assert [one.grade for one in found] == [Grade.OK, Grade.OK]
    assert all(one.message.endswith("is free") for one in found)


def test_ports_taken_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has it, where that can be seen: a problem for a server, a warning for the control listener."""
    monkeypatch.setattr(running, "STATUS_LIMIT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.create_server(("127.0.0.1", 0)) as other:
        document = config(tmp_path, port=taken.getsockname()[1], control={"port": other.getsockname()[1]})
        server, control = look_at_ports(document)
        assert (server.grade, control.grade) == (Grade.PROBLEM, Grade.WARNING)
        assert f"(pid {os.getpid()})" in server.message


def test_addresses_that_are_not_ours(tmp_path: Path) -> None:
    """What cannot be listened on for another reason is told with that reason (192.0.2.0/24: RFC 5737)."""
    (server,) = look_at_ports(config(tmp_path, host="192.0.2.1"))
    assert server.grade is Grade.PROBLEM
    assert "is not an address of this machine" in server.message


def test_ports_of_a_running_juggler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ports are no problem; that it serves something else, or is another version, is worth a note."""
    monkeypatch.setattr(running, "STATUS_LIMIT_S", 20.0)

    async def body(status: dict[str, Any]) -> list[Finding]:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            async with answering({"/api/v1/status": json.dumps(status)}) as control:
                document = config(tmp_path, port=taken.getsockname()[1], control={"port": control})
                resolved, problems = checked(document)
                return list((await ports(resolved, problems)).findings)

    same = asyncio.run(body({"version": __version__, "endpoints": [{"endpoint": "S/E"}]}))
    assert [one.grade for one in same] == [Grade.OK, Grade.OK]
    assert all("held by the running juggler" in one.message for one in same)
    other = asyncio.run(body({"version": "0.0.1", "endpoints": [{"endpoint": "S/F"}]}))
    assert [one.grade for one in other] == [Grade.OK, Grade.OK, Grade.NOTE, Grade.NOTE]
    silent = asyncio.run(body({"error": {"code": "key_needed"}}))
    assert [one.grade for one in silent] == [Grade.OK, Grade.OK, Grade.NOTE]


def test_a_port_of_somebody_else_beside_a_running_juggler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The juggler answers, but the server's port belongs to another process: a problem."""

    async def body() -> list[Finding]:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            stranger = Holder(4_000_000, "stranger")
            monkeypatch.setattr(places, "holder_of", lambda one: stranger if one == port else holder_of(one))
            async with answering({"/api/v1/status": '{"version": "1", "endpoints": []}'}) as control:
                resolved, problems = checked(config(tmp_path, port=port, control={"port": control}))
                return list((await ports(resolved, problems)).findings)

    assert (found := asyncio.run(body()))[0].grade is Grade.PROBLEM
    assert "stranger (pid 4000000)" in found[0].message


def servers(tmp_path: Path, host: str) -> Any:
    return checked(config(tmp_path, host=host))[0].servers


DOCKER = Containers(programs=("docker",), bridges=(("docker0", "172.17.0.1"),))


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_containers_cannot_reach_loopback(tmp_path: Path, host: str) -> None:
    """A warning with the address to write and the name that containers use."""
    (finding,) = container_findings(servers(tmp_path, host), DOCKER)
    assert finding.grade is Grade.WARNING
    assert '"host": "172.17.0.1"' in (finding.hint or "")
    assert "host.docker.internal" in (finding.hint or "")


def test_containers_without_a_known_bridge(tmp_path: Path) -> None:
    """Podman without root has none: every address, then. Inside a container published ports need it too."""
    (finding,) = container_findings(servers(tmp_path, "localhost"), Containers(programs=("podman",)))
    assert '"host": "0.0.0.0"' in (finding.hint or "")
    (finding,) = container_findings(servers(tmp_path, "localhost"), Containers(inside=True))
    assert "published ports" in finding.message


def test_no_word_about_containers_without_a_sign(tmp_path: Path) -> None:
    """No container seen, or an address they can reach."""
    assert container_findings(servers(tmp_path, "localhost"), Containers()) == []
    assert container_findings(servers(tmp_path, "0.0.0.0"), DOCKER) == []
