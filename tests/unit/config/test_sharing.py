"""Endpoints of one server, and targets that cannot work."""

import json
from typing import Any

import pytest

from juggler.config.load import load_text
from juggler.config.sharing import attach_key
from juggler.config.validate import validate
from juggler.errors import ConfigError

URL = "http://localhost:11434"


def codes(backends: dict[str, Any], *endpoints: dict[str, Any], port: int = 9000, host: str = "127.0.0.1") -> list[str]:
    listed = [{"name": f"E{number}", "path_prefix": f"/{number}", **one} for number, one in enumerate(endpoints)]
    document = {"backends": backends, "servers": [{"name": "S", "host": host, "port": port, "endpoints": listed}]}
    try:
        loaded = load_text(json.dumps(document))
    except ConfigError as error:
        return [str(error)]
    return [problem.code for problem in validate(loaded)]


@pytest.mark.parametrize(
    ("url", "key"),
    [
        (URL, ("127.0.0.1", 11434)),
        ("http://[::1]:5", ("127.0.0.1", 5)),
        ("http://0.0.0.0:5", ("127.0.0.1", 5)),
        ("http://GPUbox/", ("gpubox", 80)),
    ],
)
def test_keys(url: str, key: tuple[str, int]) -> None:
    assert attach_key(url) == key


def test_one_server_is_one_program() -> None:
    backends = {"a": {"type": "ollama", "attach_to": URL}, "b": {"type": "comfyui", "attach_to": "http://[::1]:11434"}}
    (text,) = codes(backends, {"backend": "a"})
    assert "already attaches to this server, as ollama" in text


@pytest.mark.parametrize(
    ("url", "host", "wrong"),
    [
        ("http://localhost:9000", "127.0.0.1", True),
        ("http://127.0.0.1:9000", "0.0.0.0", True),
        ("http://10.0.0.1:9000", "10.0.0.1", True),
        ("http://0.0.0.0:9000", "127.0.0.1", True),
        ("http://localhost:8020", "127.0.0.1", True),  # the control address
        ("http://10.0.0.2:9000", "10.0.0.1", False),
        ("http://localhost:9001", "127.0.0.1", False),
    ],
)
def test_the_juggler_does_not_attach_to_itself(url: str, host: str, wrong: bool) -> None:
    found = codes({"a": {"type": "ollama", "attach_to": url}}, {"backend": "a"}, host=host)
    assert any("the juggler's own" in text for text in found) is wrong


def test_memory_that_is_never_freed_is_told() -> None:
    backend = {"type": "comfyui", "attach_to": URL, "model_unloading": False}
    assert codes({"a": backend}, {"backend": "a"}) == ["never-unloaded"]
    assert codes({"a": {**backend, "binary": "/x"}}, {"backend": "a"}) == []
    plain = {"type": "command", "attach_to": URL}
    assert codes({"a": plain}, {"backend": "a"}) == ["never-unloaded"]
    assert codes({"a": {**plain, "unload": "POST /unload"}}, {"backend": "a"}) == []


def test_only_the_first_endpoints_settings_count_for_a_start() -> None:
    attached = {"type": "ollama", "attach_to": URL}
    first, other = {"backend": "a", "parameters": ["x"]}, {"backend": "a", "parameters": ["y"]}
    assert codes({"a": {**attached, "binary": "/x"}}, first, other, first) == ["shared-server"]
    assert codes({"a": attached}, first, other) == []


def test_https() -> None:
    """Its usual port, and one way to talk to one server."""
    assert attach_key("https://box") == ("box", 443)
    secure = {"type": "ollama", "attach_to": "https://box:5"}
    assert codes({"a": secure, "b": secure}, {"backend": "a"}, {"backend": "b"}) == []
    for other in ({"type": "ollama", "attach_to": "http://box:5"}, {**secure, "tls": {"verify": False}}):
        (text,) = codes({"a": secure, "b": other}, {"backend": "a"}, {"backend": "b"})
        assert "in another way" in text
