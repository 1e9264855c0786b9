"""The main job on real input: two real llama.cpp servers that may not be loaded together, juggled by requests."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from juggler.demo.models import write_model
from juggler.demo.run import engine_command
from tests.e2e.support import Juggler, processes_marked, running

pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="no llama.cpp wheel is installed"),
]


def two_llamas(tmp_path: Path, **endpoint: Any) -> dict[str, Any]:
    """Two models of the same shape and different weights, on the exclusive pool."""
    for name, seed in (("a", 1), ("b", 2)):
        write_model(tmp_path / f"{name}.gguf", seed=seed, size_bytes=2_000_000)
    return {
        "backends": {"llamacpp": {"binary": engine_command()}},
        "servers": [
            {
                "name": "S",
                "endpoints": [
                    {
                        "name": name,
                        "path_prefix": f"/{name}",
                        "strip_prefix": True,
                        "backend": "llamacpp",
                        "parameters": ["-m", str(tmp_path / f"{name}.gguf"), "-c", "4096"],
                        **endpoint,
                    }
                    for name in ("a", "b")
                ],
            }
        ],
    }


def servers_alive(juggler: Juggler) -> int:
    """llama.cpp servers of this juggler that exist right now, their guardians not counted."""
    lines = processes_marked(juggler.marker)
    return sum("llama-server" in line and "guardian" not in line for line in lines)


def test_ten_alternating_chats_with_one_server_at_a_time(tmp_path: Path) -> None:
    """Every answer is 200, and exactly one server is alive after each."""
    with running(tmp_path, two_llamas(tmp_path)) as juggler:
        for number in range(10):
            body = {"messages": [{"role": "user", "content": f"Hello {number}"}], "max_tokens": 8}
            answer = juggler.ask("POST", f"/{'ab'[number % 2]}/v1/chat/completions", body)
            assert answer.status == 200, answer.body
            assert answer.json()["choices"][0]["message"]["role"] == "assistant"
            assert servers_alive(juggler) == 1
        assert juggler.instance("S/a")["starts"] == 5


def prompt_of(juggler: Juggler, endpoint: str, tokens: int) -> list[int]:
    """A prompt of exactly so many tokens."""
    text = " ".join(f"word{number}" for number in range(tokens))
    found = juggler.ask("POST", f"/{endpoint}/tokenize", {"content": text}).json()["tokens"]
    assert len(found) >= tokens
    return [int(token) for token in found[:tokens]]


def test_a_long_prompt_comes_from_the_cache_after_a_swap(tmp_path: Path) -> None:
    """2000 tokens asked again after a swap: at least 95 % of them from the cache; also after a new juggler."""
    config = two_llamas(tmp_path)
    with running(tmp_path, config) as juggler:
        body = {"prompt": prompt_of(juggler, "a", 2000), "n_predict": 4, "cache_prompt": True}
        first = juggler.ask("POST", "/a/completion", body).json()["timings"]
        assert first["prompt_n"] >= 2000
        assert juggler.ask("POST", "/b/completion", {"prompt": "x", "n_predict": 2}).status == 200
        again = juggler.ask("POST", "/a/completion", body).json()["timings"]
        assert again["prompt_n"] <= 100, again
        assert again["cache_n"] >= 1900, again
    saved = list((tmp_path / "state" / "kv").rglob("*.bin"))
    assert saved
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in saved)
    with running(tmp_path, config) as juggler:
        after = juggler.ask("POST", "/a/completion", body).json()["timings"]
        assert after["cache_n"] >= 1900, after
        other = juggler.ask("POST", "/b/completion", body).json()["timings"]
        assert other["cache_n"] <= 1, "the other weights must not be served from this cache"


def test_kv_cache_saving_can_be_switched_off(tmp_path: Path) -> None:
    """``kv_cache_saving: false`` writes nothing."""
    with running(tmp_path, two_llamas(tmp_path, kv_cache_saving=False)) as juggler:
        assert juggler.ask("POST", "/a/completion", {"prompt": "hello", "n_predict": 2}).status == 200
        assert juggler.ask("POST", "/b/completion", {"prompt": "hello", "n_predict": 2}).status == 200
    assert not list((tmp_path / "state").rglob("*.bin"))


def test_old_option_forms_give_the_hint(tmp_path: Path) -> None:
    """The seed's own example options are refused by a current llama.cpp; the error says what to write."""
    config = two_llamas(tmp_path)
    config["backends"]["llamacpp"]["default_parameters"] = ["--no-mmap"]
    with running(tmp_path, config) as juggler:
        answer = juggler.ask("POST", "/a/completion", {"prompt": "x"})
        assert answer.status == 503
        assert "--load-mode none" in answer.json()["juggler"]["hint"], answer.json()


def test_slot_actions_are_not_open_to_clients(tmp_path: Path) -> None:
    """They would change state behind the juggler's back."""
    with running(tmp_path, two_llamas(tmp_path)) as juggler:
        answer = juggler.ask("POST", "/a/slots/0?action=erase", {})
        assert answer.status == 403
        assert answer.json()["error"]["code"] == "route_blocked"
