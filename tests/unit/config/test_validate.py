"""How the values of a configuration fit together."""

import json
from typing import Any

import pytest

from juggler.config.load import load_text
from juggler.config.schema import BackendModel
from juggler.config.types import BACKEND_TYPES
from juggler.config.validate import TYPE_RULES, catches, first_gpu_pool, listen_addresses, normal_prefix
from juggler.errors import ConfigError


def found(document: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Severity, code and key of everything there is to say about a configuration, in the order of the file."""
    text = json.dumps(document, indent=1)
    try:
        problems = [problem.as_dict() for problem in load_text(text).warnings]
    except ConfigError as error:
        problems = error.details["problems"]  # type: ignore[assignment]
    for problem in problems:
        line, column = problem["line"], problem["column"]
        assert isinstance(line, int)
        assert isinstance(column, int)
        last = str(problem["key"]).rpartition(".")[2].partition("[")[0]
        assert last in text.splitlines()[line - 1] or text.splitlines()[line - 1][column - 1] in "{["
    return [(str(p["severity"]), str(p["code"]), str(p["key"])) for p in problems]


def endpoint(name: str = "E", **keys: Any) -> dict[str, Any]:
    return {"name": name, "backend": "demo", **keys}


def config(*endpoints: dict[str, Any], **top: Any) -> dict[str, Any]:
    servers = [{"name": "S", "port": 9000, "endpoints": list(endpoints) or [endpoint()]}]
    return {"backends": {"demo": {}}, "servers": servers, **top}


def backend(**keys: Any) -> dict[str, Any]:
    return {**config(), "backends": {"demo": {}, "b": keys}}


def test_a_plain_configuration_has_no_problems() -> None:
    """The base of the tests here is itself fine."""
    assert found(config()) == []


# --- backends ----------------------------------------------------------------------------------------------------


def test_every_type_has_its_rule() -> None:
    """The table of ``binary`` and ``attach_to`` covers the known types."""
    assert set(TYPE_RULES) == set(BACKEND_TYPES)


URL = "http://localhost:7860"


@pytest.mark.parametrize(
    ("kind", "neither", "binary", "attach", "both"),
    [
        ("llamacpp", "missing-key", "", "attach-refused missing-key", "attach-refused"),
        ("koboldcpp", "missing-key", "", "", ""),
        ("sdwebui", "missing-key", "", "", ""),
        ("comfyui", "missing-key", "", "", ""),
        ("ollama", "missing-key", "", "", ""),
        ("vllm", "missing-key", "", "", ""),
        ("command", "missing-key", "", "never-unloaded", ""),
        ("demo", "", "no-effect", "attach-refused", "attach-refused no-effect"),
    ],
)
def test_what_each_type_takes(kind: str, neither: str, binary: str, attach: str, both: str) -> None:
    """Which of ``binary`` and ``attach_to`` a type needs and accepts."""
    given: tuple[dict[str, str], ...] = ({}, {"binary": "/x"}, {"attach_to": URL}, {"binary": "/x", "attach_to": URL})
    for keys, expected in zip(given, (neither, binary, attach, both), strict=True):
        assert sorted(code for _, code, _ in found(backend(type=kind, **keys))) == expected.split()


def test_llamacpp_says_why_it_cannot_be_attached_to() -> None:
    """The refusal comes with what to do instead."""
    with pytest.raises(ConfigError, match=r"llama\.cpp servers are started, not attached to") as caught:
        load_text(json.dumps(backend(type="llamacpp", binary="/x", attach_to=URL)))
    assert 'use type "command"' in caught.value.message


def test_the_name_of_a_backend_is_its_type_when_it_is_one() -> None:
    """A free name needs ``type``; a near miss of a type is named."""
    document = backend(binary="/x")
    assert found(document) == [("error", "unknown-type", "backends.b")]
    document["backends"]["lama-cpp"] = document["backends"].pop("b")
    with pytest.raises(ConfigError, match='did you mean "llamacpp"'):
        load_text(json.dumps(document))


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("http://localhost:7860", True), ("http://10.0.0.1:1/", True), ("http://[::1]:8188", True), ("http://x", True),
        ("https://x:1", True), ("https://x", True), ("HTTPS://[::1]:1", True), ("ftp://x", False), ("https://", False),
        ("https://x:1/base", False), ("localhost:7860", False), ("http://", False), ("http://u:p@x:1", False),
        ("http://x:99999", False), ("http://x:0", False), ("http://x:1/base", False), ("http://x:1?q", False),
        ("http://a b:1", False), ("http://[::1", False),
    ],
)  # fmt: skip
def test_attach_urls(url: str, fits: bool) -> None:
    """HTTP or HTTPS, host and port, nothing behind."""
    expected = [] if fits else [("error", "bad-url", "backends.b.attach_to")]
    assert found(backend(type="ollama", attach_to=url)) == expected


@pytest.mark.parametrize(
    ("key", "value"), [("ready_path", "/h"), ("unload", "POST /u"), ("wake", "POST /w"), ("busy", "GET /b")]
)
def test_keys_of_type_command_elsewhere(key: str, value: str) -> None:
    """Only ``command`` reads the HTTP calls; elsewhere they are pointed out."""
    assert found(backend(type="ollama", binary="/x", **{key: value})) == [("warning", "no-effect", f"backends.b.{key}")]
    assert found(backend(type="command", binary="/x", **{key: value})) == []


# --- names and addresses -----------------------------------------------------------------------------------------


def test_duplicate_names() -> None:
    """Server names are unique, endpoint names within their server, and the ids made of both."""
    document = config(endpoint(path_prefix="/a"), endpoint(path_prefix="/b"))
    assert found(document) == [("error", "duplicate-name", "servers[0].endpoints[1].name")]
    document = config()
    document["servers"].append({"name": "S", "port": 9001, "endpoints": [endpoint()]})
    assert found(document) == [("error", "duplicate-name", "servers[1].name")]
    document["servers"][1]["name"] = "T"
    assert found(document) == []
    document["servers"][0]["endpoints"][0]["name"] = "b/c"
    document["servers"][1] |= {"name": "S/b", "endpoints": [endpoint("c")]}
    assert found(document) == [("error", "duplicate-name", "servers[1].endpoints[0].name")]


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("127.0.0.1", "127.0.0.1", True), ("localhost", "127.0.0.1", True), ("::1", "LOCALHOST", True),
        ("localhost", "localhost", True), ("0.0.0.0", "127.0.0.1", True), ("192.168.1.5", "0.0.0.0", True),
        ("0.0.0.0", "localhost", True), ("::", "::1", True), ("::", "0.0.0.0", False), ("127.0.0.1", "::1", False),
        ("127.0.0.1", "127.0.0.2", False), ("0:0:0:0:0:0:0:1", "::1", True), ("box", "BOX", True),
        ("box", "0.0.0.0", False),
    ],
)  # fmt: skip
def test_two_servers_on_one_address(one: str, other: str, clash: bool) -> None:
    """Names of one address and wildcards are seen through; other ports never clash."""
    document = config()
    document["servers"][0]["host"] = one
    document["servers"].append({"name": "T", "host": other, "port": 9000, "endpoints": [endpoint()]})
    assert found(document) == ([("error", "duplicate-address", "servers[1].port")] if clash else [])
    document["servers"][1]["port"] = 9001
    assert found(document) == []


def test_the_control_address_counts_too() -> None:
    """Written, it is to blame; by default, the server that took its port; switched off, nobody."""
    assert found(config(control={"port": 9000})) == [("error", "duplicate-address", "control.port")]
    document = config()
    document["servers"][0]["port"] = 8020
    assert found(document) == [("error", "duplicate-address", "servers[0].port")]
    assert found({**document, "control": False}) == []
    assert found({**document, "control": {"host": "::1"}}) == []


def test_listen_addresses() -> None:
    """What a host stands for, comparable."""
    assert listen_addresses("localhost") == {"127.0.0.1", "::1"}
    assert listen_addresses("0:0::1") == {"::1"}
    assert listen_addresses("Box.local") == {"box.local"}


# --- endpoints ---------------------------------------------------------------------------------------------------


def test_unknown_backends() -> None:
    """A near miss is offered; without one the list is."""
    document = config({"name": "E", "backend": "demmo"})
    with pytest.raises(ConfigError, match='did you mean "demo"'):
        load_text(json.dumps(document))
    document = config({"name": "E", "backend": "qqq"})
    with pytest.raises(ConfigError, match='there is "demo"'):
        load_text(json.dumps(document))


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", None), ("/", None), ("/a", None), ("/a/b%20c", None), ("/a/", ("warning", "trailing-slash")),
        ("a", ("error", "bad-prefix")), ("/a?b", ("error", "bad-prefix")), ("/a#b", ("error", "bad-prefix")),
        ("/a b", ("error", "bad-prefix")), ("/ä", ("error", "bad-prefix")), ("/a/../b", ("error", "bad-prefix")),
        ("/./", ("error", "bad-prefix")),
    ],
)  # fmt: skip
def test_prefixes(prefix: str, expected: tuple[str, str] | None) -> None:
    """A prefix is a path that a client can really send; a slash at its end is said to be ignored."""
    key = "servers[0].endpoints[0].path_prefix"
    assert found(config(endpoint(path_prefix=prefix))) == ([(*expected, key)] if expected else [])


@pytest.mark.parametrize(
    ("prefix", "other", "caught"),
    [
        ("/vision", "/vision", True), ("/vision", "/vision/x", True), ("/vision", "/vision2", False),
        ("/vision/x", "/vision", False), ("", "/x", True), ("/", "/x", True), ("/", "", True), ("/x", "", False),
        ("/x/", "/x", True),
    ],
)  # fmt: skip
def test_unreachable_endpoints(prefix: str, other: str, caught: bool) -> None:
    """What can never match is a warning that names its shadow; segments are whole."""
    assert catches(normal_prefix(prefix), normal_prefix(other)) is caught
    loaded = load_text(json.dumps(config(endpoint("A", path_prefix=prefix), endpoint("B", path_prefix=other))))
    warnings = [problem for problem in loaded.warnings if problem.code == "unreachable"]
    assert len(warnings) == caught
    if caught:
        assert warnings[0].message.startswith('"B" can never match: "A" above it catches ')


def test_an_endpoint_without_a_prefix_in_a_shadow_is_pointed_at_by_name() -> None:
    """The caret stands under something of the endpoint, not at the file's beginning."""
    assert found(config(endpoint("A"), endpoint("B"))) == [("warning", "unreachable", "servers[0].endpoints[1].name")]


def test_settings_without_effect() -> None:
    """Said once, at the key."""
    path = "servers[0].endpoints[0]"
    assert found(config(endpoint(strip_prefix=True))) == [("warning", "no-effect", f"{path}.strip_prefix")]
    assert found(config(endpoint(memory="1GiB"), memory={"pools": "exclusive"})) == [
        ("warning", "no-effect", f"{path}.memory")
    ]
    assert found(config(endpoint(max_wait="2h"))) == [("warning", "never-due", f"{path}.max_wait")]
    assert found(config(scheduler={"max_wait": "2h"})) == [("warning", "never-due", "scheduler.max_wait")]
    document = config()
    document["servers"][0]["endpoints"] = []
    assert found(document) == [("warning", "no-endpoints", "servers[0].endpoints")]


# --- memory ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"memory": "24GiB"}, []),
        ({"memory": "25GiB"}, [("error", "does-not-fit", "memory")]),
        ({"memory": {"gpu0": "24GiB", "ram": "64GiB"}}, []),
        ({"memory": {"gpu0": 1, "ram": "65GiB"}}, [("error", "does-not-fit", "memory.ram")]),
        ({"memory": {"gpu1": 1}}, [("error", "unknown-pool", "memory.gpu1")]),
        ({"pool": "gpu1"}, [("error", "unknown-pool", "pool")]),
        ({"pool": "gpu0"}, []),
        ({"memory_unloaded": {"rom": 1}}, [("error", "unknown-pool", "memory_unloaded.rom")]),
        ({"memory": "1GiB", "memory_unloaded": "2GiB"}, [("warning", "unloaded-larger", "memory_unloaded")]),
        ({"memory": {"gpu0": 5}, "memory_unloaded": {"ram": 9}}, []),
    ],
)
def test_footprints(keys: dict[str, Any], expected: list[tuple[str, str, str]]) -> None:
    """Pools exist, and one endpoint alone fits; a bare size is meant for the first GPU pool."""
    document = config(endpoint(**keys), memory={"pools": {"ram": "64GiB", "gpu0": "24GiB"}})
    assert found(document) == [(s, c, f"servers[0].endpoints[0].{key}") for s, c, key in expected]


def test_pools_from_the_machine_are_not_judged() -> None:
    """With ``auto`` the names and sizes are not known yet."""
    assert found(config(endpoint(memory={"gpu7": "900GiB"}), memory={"pools": "auto"})) == []


def test_pinned_endpoints_beyond_the_pool() -> None:
    """Pinned ones that cannot be loaded together would starve one another for ever."""
    two = [endpoint(n, path_prefix=f"/{n}", memory="13GiB", pinned=True) for n in "AB"]
    assert found(config(*two, memory={"pools": {"gpu0": "24GiB"}})) == [
        ("warning", "pinned-too-large", "servers[0].endpoints[1].pinned")
    ]
    assert found(config(*two, memory={"pools": {"gpu0": "26GiB"}})) == []


def test_first_gpu_pool() -> None:
    """The first that is called so, else the first."""
    assert first_gpu_pool(["ram", "gpu1", "gpu0"]) == "gpu1"
    assert first_gpu_pool(["card", "ram"]) == "card"


@pytest.mark.parametrize(
    ("keys", "low"),
    [
        ({"max_priority": "batch"}, True),
        ({"max_priority": 4, "priority": 5}, True),
        ({"max_priority": "interactive", "priority": "batch"}, False),
        ({"max_priority": 0}, False),
    ],
)
def test_a_bound_below_the_priority_itself(keys: dict[str, Any], low: bool) -> None:
    """Whoever asked for what the endpoint has anyway would get less."""
    expected = [("warning", "max-priority-low", "servers[0].endpoints[0].max_priority")]
    assert found(config(endpoint(**keys))) == (expected if low else [])


# --- warm-up -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([("S", "E")], []),
        ([("T", "E")], [("error", "unknown-warmup", "warmup[0].server")]),
        ([("S", "E"), ("S", "e2")], [("error", "unknown-warmup", "warmup[1].endpoint")]),
        ([("S", "E"), ("S", "E")], [("warning", "duplicate-warmup", "warmup[1]")]),
    ],
)
def test_warm_up(entries: list[tuple[str, str]], expected: list[tuple[str, str, str]]) -> None:
    """Every entry names an endpoint that exists, once."""
    document = config(warmup=[{"server": server, "endpoint": name} for server, name in entries])
    assert found(document) == expected


def test_models_are_frozen() -> None:
    """Nothing changes a configuration once it was checked."""
    with pytest.raises(ValueError, match="frozen"):
        BackendModel().binary = "x"


@pytest.mark.parametrize(
    ("url", "tls", "problems"),
    [
        ("https://x", {"ca": "/ca.pem"}, []),
        ("http://x", {"ca": "/ca.pem"}, [("warning", "no-effect", "backends.b.tls")]),
        ("https://x", {"verify": False}, [("warning", "not-verified", "backends.b.tls.verify")]),
        (
            "https://x",
            {"verify": False, "ca": "/ca.pem"},
            [("warning", "not-verified", "backends.b.tls.verify"), ("warning", "no-effect", "backends.b.tls.ca")],
        ),
    ],
)
def test_tls_of_backends(url: str, tls: dict[str, Any], problems: list[tuple[str, str, str]]) -> None:
    """Where it does nothing, and where it makes a connection worthless."""
    assert found(backend(type="ollama", attach_to=url, tls=tls)) == problems
