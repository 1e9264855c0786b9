"""Bugs 32 to 38 of the prototype (backends.md section 11): the proxy and the configuration."""

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from juggler.config.load import load_config, load_text
from juggler.config.validate import validate
from juggler.errors import ConfigError
from juggler.ids import EndpointId
from juggler.routing.table import Entry, RoutingTable
from juggler.routing.traffic import TrafficTable
from tests.e2e.support import exclusive, running, web
from tests.ports import free_port

SEED = Path(__file__).parents[1] / "unit" / "config" / "data" / "seed.json"


def test_bug_32_requests_are_proxied_not_redirected(tmp_path: Path) -> None:
    """A body that cannot be sent twice arrives, and the backend's address stays private."""
    with running(tmp_path, exclusive(a=web())) as juggler:
        connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=20)
        pieces = iter([b"once ", b"only"])
        connection.request("POST", "/a/x", pieces, {"Content-Length": "9"})
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["received"]) == (200, 9)
        assert answer.getheader("Location") is None
        private = juggler.instance("S/a")["address"].rpartition(":")[2]
        assert private not in str(answer.getheaders())
        connection.close()


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "PROPFIND"])
def test_bug_33_every_method_is_passed_on(tmp_path: Path, method: str) -> None:
    """Also those that the proxy itself has never heard of: the backend judges them."""
    with running(tmp_path, exclusive(a=web())) as juggler:
        answer = juggler.ask(method, "/a/x", {})
        assert answer.status == (200 if method == "PUT" else 501)  # 501: http.server knows no such method
        assert "juggler" not in (answer.body.decode() if answer.status == 501 else "")


def test_bug_33_prefixes_end_where_segments_end() -> None:
    """``/sdapi`` is not ``/sdapifoo``; and nothing is left of a prefix but a slash."""
    entries = [
        Entry(EndpointId("S/a"), "a", "/sdapi", True, TrafficTable()),
        Entry(EndpointId("S/b"), "b", "", False, TrafficTable()),
    ]
    table = RoutingTable("S", entries)
    assert table.match(b"GET", b"/sdapi/x").endpoint == "S/a"
    assert table.match(b"GET", b"/sdapi").target == b"/"
    assert table.match(b"GET", b"/sdapi?q").target == b"/?q"
    assert table.match(b"GET", b"/sdapifoo").endpoint == "S/b"


def test_bug_34_one_port_on_two_addresses(tmp_path: Path) -> None:
    """Two servers share a port number on different addresses of this machine."""
    port = free_port()
    config = exclusive(a=web("--name", "a"), b=web("--name", "b"))
    both = config["servers"][0]["endpoints"]
    config["servers"] = [
        {"name": "S", "host": "127.0.0.1", "port": port, "endpoints": both[:1]},
        {"name": "T", "host": "127.0.0.3", "port": port, "endpoints": both[1:]},
    ]
    with running(tmp_path, config) as juggler:
        assert juggler.ask("POST", "/a/x", port=port).json()["name"] == "a"
        connection = http.client.HTTPConnection("127.0.0.3", port, timeout=20)
        connection.request("POST", "/b/x")
        assert json.loads(connection.getresponse().read())["name"] == "b"
        connection.close()


def test_bug_35_a_failing_start_is_an_answer(tmp_path: Path) -> None:
    """503 with the reason, not a dropped connection; for a dying and for a missing program."""
    config = exclusive(dies=web("--fail", "out of luck"), missing=web(binary=str(tmp_path / "none")))
    with running(tmp_path, config) as juggler:
        for name, reason in (("dies", "out of luck"), ("missing", "does not exist")):
            answer = juggler.ask("POST", f"/{name}/x")
            assert answer.status == 503
            assert reason in answer.json()["error"]["message"]


def test_bug_36_the_documented_example_is_read() -> None:
    """With its trailing commas and its ``host`` key, and without a word of complaint about either."""
    loaded = load_config(SEED)
    assert loaded.config.backends["llamacpp"].host == "localhost"
    assert [server.port for server in loaded.config.servers] == [8021, 8022]
    assert [problem for problem in validate(loaded) if problem.severity == "error"] == []


def config(**backends: Any) -> str:
    endpoints = [{"name": name, "backend": name, "path_prefix": f"/{name}"} for name in backends]
    return json.dumps({"backends": backends, "servers": [{"name": "S", "port": 9000, "endpoints": endpoints}]})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (config(llamacpp={"binry": "/x"}), "binry"),
        (config(llamacpp={}), "needs"),
        (config(nonsense={"binary": "/x"}), "nonsense"),
        ('{"servers": []}', "backends"),
        ("[]", "object"),
    ],
)
def test_bug_37_mistakes_are_told_in_words(text: str, said: str) -> None:
    """Unknown keys, missing keys, unknown types: where, what, and how to correct it."""
    with pytest.raises(ConfigError) as caught:
        load_text(text)
    assert said in str(caught.value)
    assert "Error(" not in str(caught.value)


def test_bug_37_two_builds_of_one_program() -> None:
    """The type is no longer the only name a backend can have."""
    one = {"type": "llamacpp", "binary": "/old/llama-server"}
    loaded = load_text(config(old=one, new={**one, "binary": "/new/llama-server"}))
    assert list(loaded.config.backends) == ["old", "new"]
