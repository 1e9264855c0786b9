"""Everything that was found on this machine. Plain data."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from juggler.setup.models import ModelSearch
from juggler.setup.programs import Program
from juggler.setup.servers import Seen
from juggler.survey.containers import Containers
from juggler.survey.gpus import Gpus
from juggler.survey.memory import MainMemory

CONTROL_PORT = 8020
FIRST_PORT = 8021
PORTS_WANTED = 16
"""More than a plan can use: language models, and three installations each of four kinds."""


@dataclass(frozen=True)
class Facts:
    """What a plan is made from."""

    programs: Sequence[Program] = ()
    search: ModelSearch = field(default_factory=ModelSearch)
    servers: Sequence[Seen] = ()
    gpus: Gpus = field(default_factory=Gpus)
    memory: MainMemory | None = None
    containers: Containers = field(default_factory=Containers)
    ports: Sequence[int] = tuple(range(FIRST_PORT, FIRST_PORT + PORTS_WANTED))
    """Free ones, ``PORTS_WANTED`` of them."""
    control_port: int = CONTROL_PORT

    def program(self, kind: str) -> Program | None:
        """The best installation of a type."""
        return next((one for one in self.programs if one.type == kind), None)

    def server(self, kind: str) -> Seen | None:
        """The first running server of a type."""
        return next((one for one in self.servers if one.identity is not None and one.identity.type == kind), None)
