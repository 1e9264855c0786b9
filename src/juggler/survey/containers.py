"""Signs that clients of this machine may live in containers, and the address at which those reach the host.

A container has a loopback interface of its own: what listens on the host's 127.0.0.1 does not exist for it (Docker
documentation, "Networking overview"; clients.md sections 6.2 and 7).
"""

import ipaddress
import re
import shutil
import socket
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

INTERFACES = Path("/sys/class/net")
ROOT = Path("/")

_BRIDGE = re.compile(r"(docker[0-9]+|podman[0-9]+|cni-podman[0-9]+|br-[0-9a-f]{12})\Z")
"""Docker's default bridge and its networks' (``br-`` and twelve digits of the id); Podman's."""

_PROGRAMS = ("docker", "podman")
_INSIDE = (".dockerenv", "run/.containerenv")
"""Docker and Podman put one of these into every container."""

_SIOCGIFADDR = 0x8915
"""``netdevice(7)``: the IPv4 address of an interface."""


@dataclass(frozen=True, slots=True)
class Containers:
    """What was seen."""

    inside: bool = False
    """This process itself runs in a container."""
    programs: tuple[str, ...] = ()
    """``docker``, ``podman``: those in PATH."""
    bridges: tuple[tuple[str, str | None], ...] = ()
    """Interfaces between host and containers, each with its IPv4 address where that is known."""

    @property
    def likely(self) -> bool:
        return self.inside or bool(self.programs) or bool(self.bridges)

    @property
    def host_address(self) -> str | None:
        """Where containers reach the host, and nobody else does; None if it is not known."""
        return next((address for _, address in self.bridges if address), None)

    def __str__(self) -> str:
        seen = [f"{name} ({address})" if address else name for name, address in self.bridges]
        seen += [f"the program {name}" for name in self.programs]
        return "this is a container" if self.inside else ", ".join(seen)


def find_containers(environ: Mapping[str, str], interfaces: Path = INTERFACES, root: Path = ROOT) -> Containers:
    """Look at files, interfaces and PATH."""
    try:
        names = sorted(entry.name for entry in interfaces.iterdir() if _BRIDGE.match(entry.name))
    except OSError:
        names = []
    names.sort(key=lambda name: name.startswith("br-"))  # the default network first
    return Containers(
        inside=any((root / name).exists() for name in _INSIDE),
        programs=tuple(name for name in _PROGRAMS if shutil.which(name, path=environ.get("PATH"))),
        bridges=tuple((name, _address(name)) for name in names[:8]),
    )


def is_loopback(host: str) -> bool:
    """Whether listening on ``host`` is listening to this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(interface: str) -> str | None:
    if not sys.platform.startswith("linux"):
        return None
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
