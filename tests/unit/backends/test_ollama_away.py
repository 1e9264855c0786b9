"""What is known of an ollama server while it does not run."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from juggler.backends import ollama_away
from juggler.backends.ollama import OllamaBackend
from juggler.backends.ollama_away import OllamaAway, orders_unload
from juggler.backends.ollama_store import ModelStore
from juggler.routing.stand_in import Question, StandInAnswer
from tests.ollama_files import write_model
from tests.unit.backends.fake_caller import settings


def away(store: Path) -> OllamaAway:
    return OllamaAway(settings("ollama", env={"OLLAMA_MODELS": str(store)}))


async def ask(one: OllamaAway, line: str, **body: object) -> tuple[int, str, Any] | None:
    """Status, source and document of its answer to ``METHOD /path``."""
    method, path = line.encode().split()
    assert one.knows(method, path)
    answer = await one.answer(Question(method, path, json.dumps(body).encode() if method == b"POST" else b""))
    return (answer.status, answer.source, json.loads(answer.body)) if answer is not None else None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"model": "m", "keep_alive": 0}', True),
        ('{"model": "m", "keep_alive": 0.0, "prompt": ""}', True),
        ('{"model": "m", "keep_alive": "0", "messages": []}', True),
        ('{"model": "m", "keep_alive": "0s", "messages": null}', True),
        ('{"model": "m", "keep_alive": "0h0m0.00s"}', True),
        ('{"model": "m", "keep_alive": 0, "prompt": "x"}', False),
        ('{"model": "m", "keep_alive": 0, "messages": [{}]}', False),
        ('{"model": "m", "keep_alive": null}', False),
        ('{"model": "m", "keep_alive": false}', False),
        ('{"model": "m", "keep_alive": "5m"}', False),
        ('{"model": "m", "keep_alive": "00"}', False),
        ('{"model": "m", "keep_alive": ""}', False),
        ('{"model": "m", "keep_alive": -1}', False),
        ('{"model": "m"}', False),
        ("[]", False),
        ("no JSON", False),
        ("[" * 4000, False),
        ("", False),
    ],
)
def test_orders_to_unload(body: str, expected: bool) -> None:
    """No time to keep the model and nothing to answer; anything else may load it."""
    assert orders_unload(body.encode()) == expected


def test_only_the_routes_that_load_are_looked_into() -> None:
    """An embedding with ``keep_alive: 0`` is work."""
    decide = OllamaBackend.traffic.decide
    assert decide(b"POST", b"/api/generate").light_if is orders_unload
    assert decide(b"POST", b"/api/chat").light_if is orders_unload
    assert decide(b"POST", b"/api/embed").light_if is None
    assert decide(b"POST", b"/api/show").question


async def test_lists_come_from_the_disk(tmp_path: Path) -> None:
    """In ollama's shape and in OpenAI's; models that run elsewhere say where."""
    write_model(tmp_path, modified_ns=5 * 10**9)
    write_model(
        tmp_path, "far", namespace="me", gguf=None, config={"remote_host": "https://x", "remote_model": "y"},
        modified_ns=10**9,
    )  # fmt: skip
    one = away(tmp_path)
    tags = await ask(one, "GET /api/tags")
    assert tags is not None
    assert tags[:2] == (200, "files")
    small, far = tags[2]["models"]
    assert (small["name"], small["model"], far["name"]) == ("small:latest", "small:latest", "me/far:latest")
    assert set(small) == {"name", "model", "modified_at", "size", "digest", "details"}
    assert (far["remote_host"], far["remote_model"]) == ("https://x", "y")
    cards = await ask(one, "GET /v1/models")
    assert cards is not None
    assert cards[2] == {
        "object": "list",
        "data": [
            {"id": "small:latest", "object": "model", "created": 5, "owned_by": "library"},
            {"id": "me/far:latest", "object": "model", "created": 1, "owned_by": "me"},
        ],
    }


async def test_details_come_from_the_disk(tmp_path: Path) -> None:
    """By either name of the field; what only the program or somebody elsewhere can tell is left to them."""
    write_model(tmp_path)
    write_model(tmp_path, "far", config={"remote_host": "https://x"})
    one = away(tmp_path)
    for field in ("model", "name"):
        found = await ask(one, "POST /api/show", **{field: "small"})
        assert found is not None
        assert found[:2] == (200, "files")
        assert found[2]["model_info"]["llama.context_length"] == 131072
        assert "capabilities" not in found[2]
    missing = {"error": "model 'none' not found"}
    assert await ask(one, "POST /api/show", model="none") == (404, "files", missing)
    for body in ({"model": "far"}, {"model": "small", "verbose": True}, {"model": "small:cloud"}, {"model": 1}, {}):
        assert await ask(one, "POST /api/show", **body) is None


async def test_nothing_is_loaded(tmp_path: Path) -> None:
    """So the list of what is loaded is empty, and an order to unload is obeyed already; not for unknown models."""
    write_model(tmp_path)
    one = away(tmp_path)
    assert await ask(one, "GET /api/ps") == (200, "placeholder", {"models": []})
    for path, rest in (
        ("generate", {"response": ""}),
        ("chat", {"message": {"role": "assistant", "content": ""}}),
    ):
        told = await ask(one, f"POST /api/{path}", model="small", keep_alive=0)
        assert told is not None
        assert told[:2] == (200, "placeholder")
        assert told[2].pop("created_at").endswith("Z")
        assert told[2] == {"model": "small", **rest, "done": True, "done_reason": "unload"}
        unknown = await ask(one, f"POST /api/{path}", model="none", keep_alive=0)
        assert unknown is not None
        assert unknown[0] == 404


async def test_without_a_store_nothing_is_told(tmp_path: Path) -> None:
    """But that nothing is loaded."""
    one = away(tmp_path)
    assert await ask(one, "GET /api/tags") is None
    assert await ask(one, "POST /api/show", model="small") is None
    assert await ask(one, "POST /api/generate", model="small", keep_alive=0) is None
    assert await ask(one, "GET /api/ps") is not None


@pytest.mark.parametrize("line", ["GET /", "GET /api/version", "POST /api/embed", "POST /api/pull", "DELETE /api/ps"])
def test_nothing_else_is_answered(tmp_path: Path, line: str) -> None:
    """What it does not know, and what changes something."""
    method, path = line.encode().split()
    assert not away(tmp_path).knows(method, path)


def test_an_attached_server_is_not_known() -> None:
    """Its models are wherever its own user keeps them, and it may hold one while it is out of reach.

    Where another would be started in its place, it is known what that one would find.
    """
    assert OllamaBackend(settings("ollama", attach_to="http://h:1")).stand_in() is None
    alone = OllamaBackend(settings("ollama", binary="/b")).stand_in()
    either = OllamaBackend(settings("ollama", binary="/b", attach_to="http://h:1")).stand_in()
    assert alone is not None
    assert either is not None
    for method, path in ((b"GET", b"/api/tags"), (b"HEAD", b"/v1/models"), (b"POST", b"/api/show")):
        assert alone.knows(method, path)
        assert either.knows(method, path)
    for method, path in ((b"GET", b"/api/ps"), (b"POST", b"/api/generate"), (b"POST", b"/api/chat")):
        assert alone.knows(method, path)
        assert not either.knows(method, path)


async def test_a_disk_that_hangs_holds_up_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for long, and no further thread is lost to it; once it is back it is looked at again."""
    write_model(tmp_path)
    one, begun, back, ended = away(tmp_path), threading.Event(), threading.Event(), threading.Event()
    looks = []
    look = ModelStore.models

    def hang(store: ModelStore) -> Any:
        looks.append(store)
        begun.set()
        back.wait(30)
        try:
            return look(store)
        finally:
            ended.set()

    monkeypatch.setattr(ModelStore, "models", hang)
    monkeypatch.setattr(ollama_away, "LOOK_LIMIT_S", 0.05)
    answers: list[StandInAnswer | None] = await asyncio.gather(
        *(one.answer(Question(b"GET", b"/api/tags")) for _ in range(20))
    )
    assert answers == [None] * 20
    assert begun.wait(20)
    assert len(looks) == 1
    back.set()
    monkeypatch.setattr(ollama_away, "LOOK_LIMIT_S", 20)
    assert await asyncio.to_thread(ended.wait, 30)
    async with asyncio.timeout(30):
        while one._hangs:
            await asyncio.sleep(0)
    assert await ask(one, "GET /api/tags") is not None
