"""A quick look into the configuration, for commands that only want to find the juggler that runs it.

Nothing is checked: what cannot be read is as if it were not written. ``juggler check`` tells what is wrong.
"""

from dataclasses import dataclass
from pathlib import Path

from juggler.config.problems import Source
from juggler.config.reader import read_json
from juggler.config.tree import FILE_BYTES_MAX, plain

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8020

_CONNECTABLE = {"localhost": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
"""Where one reaches what listens on these."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What is written."""

    url: str | None
    """Where ``control`` listens; None: nothing is known, or it is switched off."""
    key: str | None
    """``control.key``."""
    endpoints: tuple[str, ...]
    """Full names, ``server/endpoint``."""
    readable: bool = True
    """False: there is a file, and nothing could be made of it."""


NOTHING = Glance(None, None, ())
UNREADABLE = Glance(None, None, (), readable=False)


def glance(path: Path) -> Glance:
    """What the file says; ``NOTHING`` if it is not there, ``UNREADABLE`` if nothing can be made of it."""
    try:
        with path.open("rb") as file:
            text = file.read(FILE_BYTES_MAX).decode("utf-8-sig")
    except FileNotFoundError:
        return NOTHING
    except (OSError, ValueError):
        return UNREADABLE
    source = Source(str(path), text)
    if path.suffix.lower() in (".yaml", ".yml"):
        from juggler.config.yaml_reader import read_yaml

        root = read_yaml(source).root
    else:
        root = read_json(source).root
    document = plain(root) if root is not None else None
    if not isinstance(document, dict):
        return UNREADABLE
    control = document.get("control", {})
    if not isinstance(control, dict):
        return Glance(None, None, _endpoints(document))
    key = control.get("key")
    return Glance(
        _url(control), key if isinstance(key, str) and key and key.isprintable() else None, _endpoints(document)
    )


def _url(control: dict[object, object]) -> str | None:
    host, port = control.get("host", DEFAULT_HOST), control.get("port", DEFAULT_PORT)
    if not isinstance(host, str) or not isinstance(port, int):
        return None
    host = _CONNECTABLE.get(host.lower(), host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _endpoints(document: dict[object, object]) -> tuple[str, ...]:
    names = []
    servers = document.get("servers")
    for server in servers if isinstance(servers, list) else ():
        endpoints = server.get("endpoints") if isinstance(server, dict) else None
        for endpoint in endpoints if isinstance(endpoints, list) else ():
            if isinstance(endpoint, dict):
                names.append(f"{server.get('name')}/{endpoint.get('name')}")
    return tuple(names)
