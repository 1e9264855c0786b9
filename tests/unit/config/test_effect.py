"""What is read and not acted on yet is said, and only that."""

import json
from pathlib import Path
from typing import Any

import pytest

from juggler.config.load import load_config, load_text
from juggler.config.validate import not_in_effect

SEED = Path(__file__).parent / "data" / "seed.json"


def notes(backend: dict[str, Any] | None = None, endpoint: dict[str, Any] | None = None, **top: Any) -> list[str]:
    document = {
        "backends": {"b": {"type": "demo", **(backend or {})}},
        "servers": [{"name": "S", "port": 9000, "endpoints": [{"name": "E", "backend": "b", **(endpoint or {})}]}],
        **top,
    }
    found = not_in_effect(load_text(json.dumps(document)))
    assert all((note.severity, note.code) == ("note", "not-in-effect") for note in found)
    return [note.key for note in found]


def test_the_seed_file() -> None:
    """Everything the seed says is acted upon."""
    assert not_in_effect(load_config(SEED)) == []


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        ({"memory": {"pools": "auto"}}, []),
        ({"memory": {"pools": {"gpu0": 1}}}, []),
        ({"scheduler": {"dial": "fair"}}, []),
        ({"scheduler": {"kappa": 1, "kappa_class": 2}}, []),
        ({"scheduler": {"beta": 1, "hard": 2, "max_wait": 3, "queue_limit": 4, "deadline_batch": 5, "_dial": 6}}, []),
        ({"scheduler": {"dial": None}}, []),
        ({"backend": {"type": "command", "binary": "/x", "attach_to": "http://x", "model_unloading": False}}, []),
        ({"backend": {"host": "0.0.0.0"}}, ["backends.b.host"]),
        ({"backend": {"host": "localhost"}}, []),
        ({"endpoint": {"share": True}}, []),
        (
            {"endpoint": {"idle_unload": 1, "pinned": True, "priority": "batch", "max_wait": 1, "concurrency": 1,
                          "queue_limit": 1, "traffic": [], "env": {"A": "1"}, "kv_cache_saving": True}},
            [],
        ),
    ],
)  # fmt: skip
def test_keys(arguments: dict[str, Any], keys: list[str]) -> None:
    """Exactly the written keys that do nothing yet."""
    assert notes(**arguments) == keys
