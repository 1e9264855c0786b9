"""Who listens on a port."""

import os
import socket
import sys
from pathlib import Path

import pytest

from juggler.survey.listeners import holder_of
from tests.ports import free_port

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_our_own_listener() -> None:
    """A listening socket of this process is found with its pid; a port that nobody has is nobody's."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        holder = holder_of(port)
        assert holder is not None
        assert holder.pid == os.getpid()
        assert f"(pid {os.getpid()})" in str(holder)
    assert holder_of(port) is None


def fake_proc(tmp_path: Path, state: str, link: str, cmdline: bytes) -> Path:
    (tmp_path / "net").mkdir()
    row = f"   0: 0100007F:1F90 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000  0 4242 1 0\n"
    (tmp_path / "net" / "tcp").write_text(HEAD + row + "short line\n")
    (tmp_path / "77" / "fd").mkdir(parents=True)
    (tmp_path / "77" / "fd" / "3").symlink_to(link)
    (tmp_path / "77" / "cmdline").write_bytes(cmdline)
    (tmp_path / "self").mkdir()
    return tmp_path


def test_the_command_is_shown_short_and_clean(tmp_path: Path) -> None:
    """Program without its folder, a few words, nothing that steers a terminal."""
    words = b"/usr/bin/server\0--model\0\x1b[2J" + b"m" * 100 + b"\0more\0words\0"
    holder = holder_of(8080, fake_proc(tmp_path, "0A", "socket:[4242]", words))
    assert holder is not None
    assert holder.pid == 77
    assert holder.command.startswith("server --model ?[2Jmm")
    assert len(holder.command) <= 60


@pytest.mark.parametrize(("state", "link"), [("01", "socket:[4242]"), ("0A", "socket:[1]"), ("0A", "/dev/null")])
def test_other_sockets(tmp_path: Path, state: str, link: str) -> None:
    """A connection on that port is no listener; a listener of a process that we may not see has no holder."""
    assert holder_of(8080, fake_proc(tmp_path, state, link, b"x")) is None


def test_without_proc(tmp_path: Path) -> None:
    """Not known, which is no error."""
    assert holder_of(8080, tmp_path / "none") is None
