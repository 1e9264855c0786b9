"""Who listens on a port of this machine."""

import re
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"
"""State of a listening socket in ``/proc/net/tcp`` (kernel: ``include/net/tcp_states.h``, TCP_LISTEN)."""

_SOCKET = re.compile(r"socket:\[([0-9]+)\]\Z")


@dataclass(frozen=True, slots=True)
class Holder:
    """The process behind a listening socket."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


def holder_of(port: int, proc: Path = PROC) -> Holder | None:
    """Who listens on ``port`` on any address; None if nobody does, or it cannot be seen (others' processes)."""
    inodes = _listening_inodes(port, proc)
    if not inodes:
        return None
    for directory in proc.iterdir():
        if directory.name.isdecimal() and _holds(directory, inodes):
            return Holder(int(directory.name), _command(directory))
    return None


def _listening_inodes(port: int, proc: Path) -> set[str]:
    """Inodes of listening sockets (``proc_pid_net(5)``: local address, state and inode are columns 2, 4 and 10)."""
    inodes = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (proc / "net" / name).read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines[1:]:
            columns = line.split()
            if len(columns) > 9 and columns[3] == _LISTEN and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(columns[9])
    return inodes


def _holds(directory: Path, inodes: set[str]) -> bool:
    try:
        for link in (directory / "fd").iterdir():
            match = _SOCKET.match(str(link.readlink()))
            if match and match.group(1) in inodes:
                return True
    except OSError:  # not ours to see, or gone
        pass
    return False


def _command(directory: Path) -> str:
    """The program and its first words, printable and short."""
    try:
        words = (directory / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    except OSError:
        return "a process"
    shown = " ".join([Path(words[0]).name, *words[1:4]]).strip()
    clean = "".join(character if character.isprintable() else "?" for character in shown)
    return clean if len(clean) <= 60 else clean[:56] + " ..."
