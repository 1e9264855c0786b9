"""The parts of a planned configuration. Plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from juggler.setup.document import Scalar
from juggler.setup.facts import CONTROL_PORT
from juggler.setup.programs import Program

BackendValues = dict[str, Scalar | tuple[Scalar, ...]]


@dataclass(frozen=True)
class PlannedBackend:
    """An entry of ``backends``."""

    name: str
    values: BackendValues
    comments: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedEndpoint:
    """An endpoint."""

    name: str
    backend: str
    prefix: str = ""
    """With its slash; empty: everything that no endpoint above takes."""
    parameters: tuple[str, ...] = ()
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes per pool; empty: not declared."""
    env: Mapping[str, str] = field(default_factory=dict)
    comments: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedServer:
    """A server with its endpoints."""

    name: str
    port: int
    endpoints: tuple[PlannedEndpoint, ...]
    comments: tuple[str, ...] = ()


@dataclass
class Plan:
    """The whole configuration."""

    pools: dict[str, int] = field(default_factory=dict)
    pool_comments: list[str] = field(default_factory=list)
    control_port: int = CONTROL_PORT
    backends: list[PlannedBackend] = field(default_factory=list)
    servers: list[PlannedServer] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    """What the operator should know and no key can say."""


def program_values(program: Program, *parameters: str) -> BackendValues:
    """How a program is started."""
    values: BackendValues = {"binary": program.path}
    if program.parameters or parameters:
        values["default_parameters"] = (*program.parameters, *parameters)
    if program.folder is not None and program.type == "comfyui":
        values["cwd"] = str(program.folder)
    return values


def program_comment(program: Program) -> str:
    """Where a program was found, and its version."""
    version = f": {program.version}" if program.version else ""
    return f"Found {program.where}{version}."
