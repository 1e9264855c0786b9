"""From the models to the data that the program uses."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from juggler.backends.base import BackendSettings, HttpCall
from juggler.config.load import load_config, load_text
from juggler.config.resolve import (
    ControlAddress,
    Pair,
    ResolvedConfig,
    ResolvedEndpoint,
    ResolvedInstance,
    expand,
    resolve,
)
from juggler.ids import ANY_GPU, EndpointId, InstanceId
from juggler.routing.traffic import TrafficClass, TrafficRule
from juggler.scheduler.policy import Policy
from juggler.tls import ServerTls
from juggler.units import GIB

SEED = Path(__file__).parent / "data" / "seed.json"


def resolved(
    endpoint: dict[str, Any] | None = None, backend: dict[str, Any] | None = None, **top: Any
) -> ResolvedConfig:
    document = {
        "backends": {"b": {"type": "command", "binary": "server", **(backend or {})}},
        "servers": [{"name": "S", "port": 9000, "endpoints": [{"name": "E", "backend": "b", **(endpoint or {})}]}],
        **top,
    }
    return resolve(load_text(json.dumps(document)))


def only(config: ResolvedConfig) -> ResolvedEndpoint:
    return config.servers[0].endpoints[0]


def instance(config: ResolvedConfig) -> ResolvedInstance:
    (found,) = config.instances
    return found


def test_defaults() -> None:
    """What nobody wrote, as documented."""
    config = resolved()
    assert config.temp_dir.parent == Path(tempfile.gettempdir())
    assert config.temp_dir.name.startswith("juggler-")
    assert config.state_dir == platformdirs.user_state_path("juggler")
    assert (config.pools, config.auto_pools) == (None, True)
    assert (config.queue_limit, config.max_wait_s, config.batch_deadline_s) == (512, 60.0, 300.0)
    assert (config.queue_timeout_s, config.policy) == (1800.0, Policy())
    assert (config.comments_every_s, config.processing) == (10.0, False)
    assert (config.page_after_s, config.answer_half_closed) == (1.5, False)
    assert config.control == ControlAddress("127.0.0.1", 8020)
    assert config.warmup == ()
    server = config.servers[0]
    assert (server.name, server.host, server.port) == ("S", "127.0.0.1", 9000)
    assert only(config) == ResolvedEndpoint(
        id=EndpointId("S/E"), name="E", server_name="S", prefix="", strip_prefix=False, instance=InstanceId("S/E"),
        type="command", priority=0, max_wait_s=60.0, traffic_rules=(),
    )  # fmt: skip
    assert instance(config) == ResolvedInstance(
        id=InstanceId("S/E"), name="E", settings=instance(config).settings, memory=None, memory_unloaded={},
        concurrency=None, queue_limit=512, idle_unload_s=None, pinned=False,
    )  # fmt: skip
    assert instance(config).settings == BackendSettings(
        instance=InstanceId("S/E"), endpoint_name="E", type="command", binary="server",
        temp_dir=config.temp_dir, state_dir=config.state_dir,
    )  # fmt: skip


def test_everything_written() -> None:
    """Every key arrives where the program reads it."""
    config = resolved(
        {
            "path_prefix": "/v/", "strip_prefix": True, "parameters": ["c"], "kv_cache_saving": False,
            "memory": "2GiB", "memory_unloaded": {"ram": "1GiB"}, "priority": "batch", "concurrency": 4,
            "queue_limit": 7, "idle_unload": "5m", "pinned": True, "env": {"A": "2", "C": "3"},
            "traffic": [{"match": "GET /x", "class": "held-open"}],
        },
        {
            "binary": "/opt/../bin/x", "attach_to": "http://x:1/", "default_parameters": ["a", "b"],
            "model_unloading": False, "env": {"A": "1", "B": "1"},
            "cwd": "/w", "start_timeout": "1m", "stop_timeout": 3, "stop_signal": "SIGINT",
            "ready_path": "/h", "unload": "POST /u", "wake": {"path": "/w", "body": {"level": 1}, "expect": [200, 204]},
            "busy": {"path": "/q", "busy_when": "n > 0"},
        },
        temp_dir="/t/", state_dir="/s", control=False, kv_cache={"quota": "1GiB"},
        memory={"pools": {"ram": "64GiB", "gpu0": "24GiB"}},
        scheduler={"max_wait": 5, "deadline_batch": 50, "queue_limit": 9, "queue_timeout": 500, "beta": 1, "hard": 2},
        warmup=[{"server": "S", "endpoint": "E"}, {"server": "S", "endpoint": "E"}],
    )  # fmt: skip
    assert (config.temp_dir, config.state_dir, config.control) == (Path("/t"), Path("/s"), None)
    assert list((config.pools or {}).items()) == [("ram", 64 * GIB), ("gpu0", 24 * GIB)]
    assert (config.max_wait_s, config.batch_deadline_s, config.queue_limit) == (5.0, 50.0, 9)
    assert (config.queue_timeout_s, config.policy.beta, config.policy.hard) == (500.0, 1.0, 2.0)
    assert config.warmup == ("S/E",)
    endpoint = only(config)
    assert (endpoint.prefix, endpoint.strip_prefix, endpoint.priority, endpoint.max_wait_s) == ("/v", True, -10, 50.0)
    one = instance(config)
    assert (one.memory, one.memory_unloaded) == ({"gpu0": 2 * GIB}, {"ram": GIB})
    assert (one.concurrency, one.queue_limit, one.idle_unload_s, one.pinned) == (4, 7, 300.0, True)
    assert endpoint.traffic_rules == (TrafficRule("GET /x", TrafficClass.HELD_OPEN),)
    assert one.settings == BackendSettings(
        instance=InstanceId("S/E"), endpoint_name="E", type="command", binary="/bin/x", attach_to="http://x:1",
        parameters=("a", "b", "c"), env={"A": "2", "B": "1", "C": "3"}, cwd="/w", model_unloading=False,
        kv_cache_saving=False, ready_path="/h", unload=HttpCall("POST", "/u"),
        wake=HttpCall("POST", "/w", '{"level": 1}', (200, 204)), busy=HttpCall("GET", "/q", None, (), "n > 0"),
        stop_signal="SIGINT", start_timeout_s=60.0, stop_timeout_s=3.0, temp_dir=Path("/t"), state_dir=Path("/s"),
        kv_cache_quota_bytes=GIB, ui_prefix="/v",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "priority", "max_wait_s"),
    [
        ({}, 0, 60.0),
        ({"priority": "interactive"}, 0, 60.0),
        ({"priority": "batch"}, -10, 300.0),
        ({"priority": 5}, 5, 60.0),
        ({"priority": -1}, -1, 300.0),
        ({"priority": "batch", "max_wait": "10s"}, -10, 10.0),
    ],
)
def test_priorities_and_due_times(keys: dict[str, Any], priority: int, max_wait_s: float) -> None:
    """Whatever is less urgent than interactive is due with the batch deadline, unless the endpoint says otherwise."""
    endpoint = only(resolved(keys))
    assert (endpoint.priority, endpoint.max_wait_s) == (priority, max_wait_s)


def test_memory_without_pools_is_not_used() -> None:
    """One exclusive pool: footprints mean nothing, and no name of a pool may slip through."""
    config = resolved({"memory": {"gpu0": 5}, "memory_unloaded": 1}, memory={"pools": "exclusive"})
    assert (config.pools, config.auto_pools) == (None, False)
    assert (instance(config).memory, instance(config).memory_unloaded) == (None, {})


def test_a_bare_size_goes_wherever_it_suits() -> None:
    """With one GPU pool on that; with several, or pools that are not known yet, on any; by ``pool`` on that one."""
    keys = {"memory": 7, "memory_unloaded": 1}
    one, two = {"pools": {"ram": 9, "gpu0": 9}}, {"pools": {"gpu0": 9, "gpu1": 9}}
    for memory, pool in ((one, "gpu0"), (two, ANY_GPU), ({"pools": "auto"}, ANY_GPU)):
        found = instance(resolved(keys, memory=memory))
        assert (found.memory, found.memory_unloaded, found.pool) == ({pool: 7}, {pool: 1}, None)
    found = instance(resolved({**keys, "pool": "gpu1"}, memory=two))
    assert (found.memory, found.memory_unloaded, found.pool) == ({"gpu1": 7}, {"gpu1": 1}, "gpu1")


def test_the_dial_is_a_word_or_a_number() -> None:
    assert [resolved(scheduler={"dial": word}).policy.kappa for word in ("fair", "throughput")] == [0.5, 3.0]
    assert resolved(scheduler={"dial": "fair", "kappa": 2}).policy.kappa == 2.0
    kept = resolved(scheduler={"abandoned_loads": "keep", "read_ahead": False, "kappa_class": 2}).policy
    assert (kept.abandon_after_s, kept.read_ahead, kept.kappa_class) == (None, False, 2.0)


def test_a_request_may_ask_for_what_its_endpoint_allows() -> None:
    assert only(resolved({"priority": "batch"})).max_priority == -10
    assert only(resolved({"priority": "batch", "max_priority": "interactive"})).max_priority == 0


def test_waiting_clients() -> None:
    config = resolved(waiting={"comments_every": 0, "processing": True})
    assert (config.comments_every_s, config.processing) == (None, True)
    config = resolved(waiting={"page_after": 0, "half_close": "answer"})
    assert (config.page_after_s, config.answer_half_closed) == (None, True)


def test_paths(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``~`` is expanded and nothing else; relative paths count from here; bare program names stay for PATH."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert expand("~/x") == tmp_path / "x"
    assert expand("$HOME/x") == tmp_path / "$HOME" / "x"
    assert expand("a/../b/") == tmp_path / "b"
    assert expand("~no-such-user-here/x") == tmp_path / "~no-such-user-here" / "x"
    binaries = {"server": "server", "./server": str(tmp_path / "server"), "~/s": str(tmp_path / "s"), "/x/y": "/x/y"}
    for written, expected in binaries.items():
        assert instance(resolved(backend={"binary": written})).settings.binary == expected


def test_the_seed_file() -> None:
    """Two servers, six endpoints in order, each with an instance of its own; the warm-up order is kept."""
    config = resolve(load_config(SEED))
    endpoints = [endpoint for server in config.servers for endpoint in server.endpoints]
    assert [(endpoint.id, endpoint.prefix, endpoint.type) for endpoint in endpoints] == [
        ("LLM/Vision LLM", "/vision", "llamacpp"),
        ("LLM/Qwen 3 MoE", "/qwen3", "koboldcpp"),
        ("LLM/Ollama", "/ollama", "ollama"),
        ("LLM/Default LLM", "", "llamacpp"),
        ("Image generation/Stable Diffusion", "/sdapi", "sdwebui"),
        ("Image generation/ComfyUI", "", "comfyui"),
    ]
    assert [endpoint.instance for endpoint in endpoints] == [one.id for one in config.instances]
    assert config.warmup == ("Image generation/Stable Diffusion", "LLM/Vision LLM")
    assert config.temp_dir == Path("/tmp/ai-model-juggler")
    first = config.instances[0]
    assert first.settings.parameters[:4] == ("-ngl", "99", "--no-mmap", "-fa")
    assert first.settings.parameters[-2:] == ("--ctx-size", "16384")


def several(backends: dict[str, Any], *endpoints: dict[str, Any]) -> ResolvedConfig:
    listed = [{"name": f"E{number}", "path_prefix": f"/{number}", **one} for number, one in enumerate(endpoints)]
    pools = {"memory": {"pools": {"gpu0": 100}}}
    document = {"backends": backends, "servers": [{"name": "S", "port": 9000, "endpoints": listed}], **pools}
    return resolve(load_text(json.dumps(document)))


def test_endpoints_attached_to_one_server_are_one_instance() -> None:
    """Also by other backends and other spellings of the address; it needs the most that any of them says."""
    backends = {
        "one": {"type": "ollama", "attach_to": "http://localhost:11434"},
        "two": {"type": "ollama", "attach_to": "http://127.0.0.1:11434/"},
        "far": {"type": "ollama", "attach_to": "http://gpubox:11434"},
    }
    config = several(
        backends,
        {"backend": "one", "memory": 10, "idle_unload": 60},
        {"backend": "far"},
        {"backend": "two", "memory": 20, "pinned": True, "concurrency": 3, "queue_limit": 7},
        {"backend": "one", "idle_unload": 30, "concurrency": 2},
    )
    assert [endpoint.instance for endpoint in config.servers[0].endpoints] == ["S/E0", "S/E1", "S/E0", "S/E0"]
    one, far = config.instances
    assert (one.id, far.id) == ("S/E0", "S/E1")
    assert (one.memory, one.idle_unload_s, one.pinned, one.concurrency) == ({"gpu0": 20}, 30.0, True, 3)
    assert (one.queue_limit, far.memory) == (512, None)


def test_endpoints_share_a_process_where_they_say_so() -> None:
    """Same backend, same parameters, same environment, and both willing."""
    backends = {"b": {"type": "command", "binary": "/x"}, "c": {"type": "command", "binary": "/x"}}
    willing: dict[str, Any] = {"backend": "b", "share": True, "parameters": ["-m", "a"]}
    config = several(
        backends, willing, willing, {**willing, "share": False}, {**willing, "parameters": ["-m", "b"]},
        {**willing, "env": {"A": "1"}}, {**willing, "backend": "c"},
    )  # fmt: skip
    assert [one.instance for one in config.servers[0].endpoints] == [
        "S/E0", "S/E0", "S/E2", "S/E3", "S/E4", "S/E5",
    ]  # fmt: skip


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="user ids are POSIX")
def test_users_do_not_share_a_temporary_directory() -> None:
    """The default holds the user's id."""
    assert resolved().temp_dir.name == f"juggler-{os.getuid()}"


@pytest.mark.parametrize(
    ("url", "tls", "expected"),
    [
        ("http://box:1", None, None),
        ("https://box", None, ServerTls("box", "box")),
        ("https://Box:443/", None, ServerTls("box", "box")),
        ("https://[::1]:8443", {"verify": False, "ca": "/x"}, ServerTls("::1", "[::1]:8443", None, verify=False)),
        ("https://box", {"ca": "/x/../ca.pem"}, ServerTls("box", "box", str(Path("/ca.pem").absolute()))),
    ],
)
def test_tls_of_attached_servers(url: str, tls: dict[str, Any] | None, expected: ServerTls | None) -> None:
    """The name that a certificate must hold, and Host without the port that https has anyway."""
    assert instance(resolved(backend={"attach_to": url, "tls": tls})).settings.attach_tls == expected


def test_tls_of_servers() -> None:
    server = {"name": "S", "port": 9000, "endpoints": [{"name": "E", "backend": "b"}]}
    assert resolved(servers=[server]).servers[0].tls is None
    files = {"cert": "~/c.pem", "key": "k.pem"}
    found = resolved(servers=[{**server, "tls": files}]).servers[0].tls
    assert found == Pair(Path.home() / "c.pem", Path.cwd() / "k.pem")
