"""Type name to backend module: an explicit table, so that a new type is one file and one line."""

from juggler.backends.base import Backend, BackendSettings
from juggler.backends.comfyui import ComfyUiBackend
from juggler.backends.command import CommandBackend
from juggler.backends.demo import DemoBackend
from juggler.backends.llamacpp import LlamaCppBackend
from juggler.backends.ollama import OllamaBackend
from juggler.errors import NotSupportedYet
from juggler.routing.traffic import TrafficTable

BACKENDS: dict[str, type[Backend]] = {
    "llamacpp": LlamaCppBackend,
    "ollama": OllamaBackend,
    "comfyui": ComfyUiBackend,
    "command": CommandBackend,
    "demo": DemoBackend,
}

LATER: frozenset[str] = frozenset({"sdwebui", "koboldcpp", "vllm"})
"""Types a configuration may name although this version cannot run them."""


def create(settings: BackendSettings) -> Backend:
    """The backend of one instance.

    Raises:
        NotSupportedYet: A type that this version can read but not run.
        ValueError: A type nobody knows, or a setting its module cannot read.
    """
    return _class_of(settings.type, settings.endpoint_name)(settings)


def traffic_for(type_name: str) -> TrafficTable:
    """The traffic classes of a type; the general rule alone for types that come later.

    Raises:
        ValueError: A type nobody knows.
    """
    return TrafficTable() if type_name in LATER else _class_of(type_name, None).traffic


def _class_of(type_name: str, endpoint: str | None) -> type[Backend]:
    try:
        return BACKENDS[type_name]
    except KeyError:
        if type_name not in LATER:
            raise ValueError(f"{type_name!r} is not a backend type") from None
    raise NotSupportedYet(
        f"{endpoint}: backends of type {type_name} are not supported yet",
        hint="use type `command`, which runs any HTTP server",
        endpoint=endpoint,
        phase="starting",
    )
