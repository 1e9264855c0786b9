"""What a simulated machine, its models and its clients are. Plain data; sizes in bytes, times in seconds."""

from dataclasses import dataclass, field, replace

GB = 10**9


@dataclass(frozen=True, slots=True)
class SoftUnload:
    """How a model's process frees its memory and stays."""

    unload_s: float
    wake_s: float
    residue_bytes: int
    """Card memory that stays taken."""
    ram_bytes: int
    """Host memory taken meanwhile."""


@dataclass(frozen=True, slots=True)
class Model:
    """One endpoint: a process, its file and its memory."""

    name: str
    file_bytes: int
    memory_bytes: int
    """Card memory from the start of a load until the process is gone."""
    start_s: float = 2.0
    """Of a load, beside the reading of the file."""
    stop_s: float = 0.8
    slots: int = 4
    """Requests that the backend works on at the same time; others wait in it."""
    soft: SoftUnload | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """The memory pools and how fast files come in."""

    memory_bytes: int = 24 * GB
    cache_bytes: int = 48 * GB
    """Host memory that the page cache may take: three quarters of 64 GB."""
    ram_bytes: int = 32 * GB
    """Host memory for processes that were soft-unloaded."""
    disk_bps: float = 2e9
    cache_bps: float = 9e9
    load_noise: float = 0.1
    """Each load takes up to this part more or less."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request as its client will make it."""

    model: str
    think_s: float
    """After the last answer; of an open client: after its last request."""
    first_s: float
    """Until the first byte, once a backend works on it and has the client's prompt cached."""
    service_s: float
    """From the first byte to the last."""
    lost_s: float = 0.0
    """More seconds until the first byte where the prompt is not cached."""


@dataclass(frozen=True, slots=True)
class Client:
    """One client: closed (thinks after each answer) or open (sends whatever came of its last request)."""

    name: str
    turns: tuple[Turn, ...]
    open: bool = False
    batch: bool = False
    """Its work may wait: the worse of the two classes."""


@dataclass(frozen=True, slots=True)
class Workload:
    """One drawn workload: equal for every policy."""

    name: str
    models: tuple[Model, ...]
    clients: tuple[Client, ...]
    machine: Machine = field(default_factory=Machine)
    warm_files: bool = False
    """All files are in the page cache at the start."""

    def soft(self, soft: SoftUnload) -> "Workload":
        """The same where every model can be unloaded softly; the residues are as given, host memory by its file."""
        models = tuple(replace(one, soft=replace(soft, ram_bytes=one.file_bytes)) for one in self.models)
        return replace(self, models=models)


@dataclass(slots=True, eq=False)
class Request:
    """One request of a run, and what became of it."""

    id: int
    """Counts up from 1 in order of arrival."""
    client: Client
    turn: Turn
    arrived_at: float
    first_byte_at: float | None = None
    ended_at: float | None = None
    refused: bool = False
    """Turned away, or cut off."""

    @property
    def model(self) -> str:
        return self.turn.model
