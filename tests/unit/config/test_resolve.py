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
from juggler.config.resolve import ControlAddress, ResolvedConfig, ResolvedEndpoint, expand, resolve
from juggler.ids import EndpointId, InstanceId
from juggler.routing.traffic import TrafficClass, TrafficRule
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


def test_defaults() -> None:
    """What nobody wrote, as documented."""
    config = resolved()
    assert config.temp_dir.parent == Path(tempfile.gettempdir())
    assert config.temp_dir.name.startswith("juggler-")
    assert config.state_dir == platformdirs.user_state_path("juggler")
    assert config.pools is None
    assert (config.queue_limit, config.max_wait_s, config.batch_deadline_s) == (512, 60.0, 300.0)
    assert (config.queue_timeout_s, config.beta, config.hard) == (1800.0, 3.0, 12.0)
    assert config.control == ControlAddress("127.0.0.1", 8020)
    assert config.warmup == ()
    server = config.servers[0]
    assert (server.name, server.host, server.port) == ("S", "127.0.0.1", 9000)
    endpoint = only(config)
    assert endpoint == ResolvedEndpoint(
        id=EndpointId("S/E"), name="E", server_name="S", prefix="", strip_prefix=False,
        settings=endpoint.settings, supported=True,
        memory=None, memory_unloaded={}, priority=0, max_wait_s=60.0, concurrency=None, queue_limit=512,
        idle_unload_s=None, pinned=False, traffic_rules=(),
    )  # fmt: skip
    assert endpoint.settings == BackendSettings(
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
    assert (config.queue_timeout_s, config.beta, config.hard, config.warmup) == (500.0, 1.0, 2.0, ("S/E",))
    endpoint = only(config)
    assert (endpoint.prefix, endpoint.strip_prefix, endpoint.priority, endpoint.max_wait_s) == ("/v", True, -10, 50.0)
    assert (endpoint.memory, endpoint.memory_unloaded) == ({"gpu0": 2 * GIB}, {"ram": GIB})
    assert (endpoint.concurrency, endpoint.queue_limit, endpoint.idle_unload_s, endpoint.pinned) == (4, 7, 300.0, True)
    assert endpoint.traffic_rules == (TrafficRule("GET /x", TrafficClass.HELD_OPEN),)
    assert not endpoint.supported, "attaching comes later; starting the program instead would be a second copy"
    assert endpoint.settings == BackendSettings(
        instance=endpoint.settings.instance, endpoint_name="E", type="command", binary="/bin/x", attach_to="http://x:1",
        parameters=("a", "b", "c"), env={"A": "2", "B": "1", "C": "3"}, cwd="/w", model_unloading=False,
        kv_cache_saving=False, ready_path="/h", unload=HttpCall("POST", "/u"),
        wake=HttpCall("POST", "/w", '{"level": 1}', (200, 204)), busy=HttpCall("GET", "/q", None, (), "n > 0"),
        stop_signal="SIGINT", start_timeout_s=60.0, stop_timeout_s=3.0, temp_dir=Path("/t"), state_dir=Path("/s"),
        kv_cache_quota_bytes=GIB,
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
    for top in ({}, {"memory": {"pools": "auto"}}):
        config = resolved({"memory": {"gpu0": 5}, "memory_unloaded": 1}, **top)
        assert (config.pools, only(config).memory, only(config).memory_unloaded) == (None, None, {})


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
        assert only(resolved(backend={"binary": written})).settings.binary == expected


def test_the_seed_file() -> None:
    """Two servers, six endpoints in order; four on types that cannot be run yet; the warm-up order is kept."""
    config = resolve(load_config(SEED))
    endpoints = [endpoint for server in config.servers for endpoint in server.endpoints]
    assert [(endpoint.id, endpoint.prefix, endpoint.supported) for endpoint in endpoints] == [
        ("LLM/Vision LLM", "/vision", True),
        ("LLM/Qwen 3 MoE", "/qwen3", False),
        ("LLM/Ollama", "/ollama", False),
        ("LLM/Default LLM", "", True),
        ("Image generation/Stable Diffusion", "/sdapi", False),
        ("Image generation/ComfyUI", "", False),
    ]
    assert config.warmup == ("Image generation/Stable Diffusion", "LLM/Vision LLM")
    assert config.temp_dir == Path("/tmp/ai-model-juggler")
    assert endpoints[0].settings.parameters[:4] == ("-ngl", "99", "--no-mmap", "-fa")
    assert endpoints[0].settings.parameters[-2:] == ("--ctx-size", "16384")


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="user ids are POSIX")
def test_users_do_not_share_a_temporary_directory() -> None:
    """The default holds the user's id."""
    assert resolved().temp_dir.name == f"juggler-{os.getuid()}"
