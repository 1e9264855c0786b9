"""Who answers for a backend while it is not up, from what can be known without it. Plain types; no I/O here."""

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Question:
    """A light request that its backend cannot answer now."""

    method: bytes
    path: bytes
    """As the backend would see it, without the query."""
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class StandInAnswer:
    """What the backend would say, but for what only itself can know."""

    body: bytes
    source: Literal["files", "placeholder"]
    """Told in ``X-Juggler``: read from the program's own files, or true because nothing is loaded."""
    status: int = 200
    content_type: str = "application/json; charset=utf-8"


class StandIn(Protocol):
    """One instance's; it never starts anything, and invents nothing."""

    def knows(self, method: bytes, path: bytes) -> bool:
        """Whether it may have an answer on this route, if it is light. Pure and fast."""
        ...

    async def answer(self, question: Question) -> StandInAnswer | None:
        """The answer; None where it cannot be told. Bounds itself, and never raises for what files hold."""
        ...
