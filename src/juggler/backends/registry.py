"""Type name to backend module: an explicit table, so that a new type is one file and one line.

A module is imported when its type is first asked for: all together take a tenth of the time until the juggler listens.
"""

import importlib
from collections.abc import Iterator, Mapping

from juggler.backends.base import Backend, BackendSettings
from juggler.routing.apis import Api
from juggler.routing.stand_in import StandIn
from juggler.routing.traffic import TrafficTable

_CLASSES = {
    "llamacpp": "LlamaCppBackend",
    "sdwebui": "SdWebuiBackend",
    "koboldcpp": "KoboldCppBackend",
    "comfyui": "ComfyUiBackend",
    "ollama": "OllamaBackend",
    "vllm": "VllmBackend",
    "command": "CommandBackend",
    "demo": "DemoBackend",
}
"""Each in the module of its type's name."""


class _Backends(Mapping[str, type[Backend]]):
    def __getitem__(self, type_name: str) -> type[Backend]:
        name = _CLASSES[type_name]
        kind: type[Backend] = getattr(importlib.import_module(f"juggler.backends.{type_name}"), name)
        return kind

    def __iter__(self) -> Iterator[str]:
        return iter(_CLASSES)

    def __len__(self) -> int:
        return len(_CLASSES)


BACKENDS: Mapping[str, type[Backend]] = _Backends()


def create(settings: BackendSettings) -> Backend:
    """The backend of one instance.

    Raises:
        ValueError: A type nobody knows, or a setting its module cannot read.
    """
    return _class_of(settings.type)(settings)


def stand_in_for(settings: BackendSettings) -> StandIn | None:
    """Who answers for an instance while it is not up; None: nobody can.

    Raises:
        ValueError: As ``create``.
    """
    return create(settings).stand_in()


def traffic_for(type_name: str) -> TrafficTable:
    """The traffic classes of a type.

    Raises:
        ValueError: A type nobody knows.
    """
    return _class_of(type_name).traffic


def knows_its_prefix(type_name: str) -> bool:
    """Whether programs of a type are started with the prefix that is stripped.

    Raises:
        ValueError: A type nobody knows.
    """
    return _class_of(type_name).knows_its_prefix


def api_for(type_name: str) -> Api | None:
    """In whose shape errors of a type's endpoints are told; None: the path of a request tells.

    Raises:
        ValueError: A type nobody knows.
    """
    return _class_of(type_name).api


def _class_of(type_name: str) -> type[Backend]:
    try:
        return BACKENDS[type_name]
    except KeyError:
        raise ValueError(f"{type_name!r} is not a backend type") from None
