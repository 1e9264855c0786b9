"""Signs of containers."""

from pathlib import Path

import pytest

from juggler.survey import containers
from juggler.survey.containers import Containers, find_containers, is_loopback

NOWHERE = Path("/nonexistent")
NO_PROGRAMS = {"PATH": "/nonexistent"}


def test_no_sign(tmp_path: Path) -> None:
    """Ordinary interfaces, a bridge of another kind, and no program."""
    for name in ("lo", "eth0", "br0", "br-lan", "veth1234567"):
        (tmp_path / name).mkdir()
    found = find_containers(NO_PROGRAMS, tmp_path, tmp_path)
    assert found == Containers()
    assert not found.likely


def test_bridges_and_their_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's default bridge comes before those of its networks; the first address is the host's."""
    for name in ("br-0123456789ab", "docker0", "podman1"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(containers, "_address", {"docker0": "172.17.0.1"}.get)
    found = find_containers(NO_PROGRAMS, tmp_path, NOWHERE)
    assert [name for name, _ in found.bridges] == ["docker0", "podman1", "br-0123456789ab"]
    assert found.host_address == "172.17.0.1"
    assert found.likely
    assert str(found) == "docker0 (172.17.0.1), podman1, br-0123456789ab"


def test_programs(tmp_path: Path) -> None:
    """docker or podman in PATH."""
    (tmp_path / "podman").write_text("#!/bin/sh\n")
    (tmp_path / "podman").chmod(0o755)
    found = find_containers({"PATH": str(tmp_path)}, NOWHERE, NOWHERE)
    assert (found.programs, found.likely, str(found)) == (("podman",), True, "the program podman")


def test_inside(tmp_path: Path) -> None:
    """The file that Podman puts into every container."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".containerenv").write_text("")
    found = find_containers(NO_PROGRAMS, NOWHERE, tmp_path)
    assert found.inside
    assert str(found) == "this is a container"


def test_interfaces_without_an_address() -> None:
    """An interface that is not there has none, and the loopback interface has its own."""
    assert containers._address("no-such-if") is None
    assert containers._address("lo") in ("127.0.0.1", None)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("localhost", True), ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("0.0.0.0", False), ("box", False)],
)
def test_loopback(host: str, loopback: bool) -> None:
    """What only this machine can reach."""
    assert is_loopback(host) == loopback
