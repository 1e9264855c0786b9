"""The call lists of ``calls.yaml`` as objects."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

Library = Literal["aiohttp", "requests", "fetch", "openai", "openai-npm", "ollama"]
NODE: frozenset[str] = frozenset(("fetch", "openai-npm"))
"""Libraries that need Node."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a list; see the head of ``calls.yaml``."""

    method: str
    path: str
    traffic: str
    library: Library
    body: dict[str, Any] | None = None
    file_bytes: int = 0
    stream: Literal["", "events", "lines", "socket"] = ""
    must_answer: bool = False
    moment: bool = False
    question: bool = False
    learn: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        how = f" {self.stream}" if self.stream else ""
        return f"{self.method} {self.path}{how}"

    @property
    def remembered(self) -> bool:
        """An earlier answer is given while the backend is away."""
        return (self.method == "GET" or self.question) and self.traffic == "light" and not self.moment

    @property
    def wakes(self) -> bool:
        return self.traffic in ("work", "start")


@dataclass(frozen=True, slots=True)
class CallList:
    """All calls of one client."""

    client: str
    backend: str
    prefix: str
    within_s: float
    traffic: list[dict[str, str]]
    calls: tuple[Call, ...]

    @property
    def slug(self) -> str:
        """Name of its server, of its endpoint, and in the names of tests."""
        return re.sub(r"\W+", "-", self.client).strip("-")

    @property
    def libraries(self) -> frozenset[str]:
        return frozenset(call.library for call in self.calls)


def _call(document: dict[str, Any], library: Library) -> Call:
    method, _, path = document.pop("call").partition(" ")
    return Call(
        method,
        path,
        document.pop("class"),
        document.pop("library", library),
        file_bytes=document.pop("file", 0),
        must_answer=document.pop("must", "") == "answer",
        **document,  # a key that nobody knows is an error here
    )


def _list(document: dict[str, Any]) -> CallList:
    return CallList(
        document["client"],
        document["backend"],
        document["prefix"],
        document.get("within_s", 20.0),
        document.get("traffic", []),
        tuple(_call(dict(one), document["library"]) for one in document["calls"]),
    )


LISTS = [_list(one) for one in yaml.safe_load(Path(__file__).with_name("calls.yaml").read_text(encoding="utf-8"))]
