"""Type ``llamacpp``: plan, probes, busy, hints and traffic, without a server."""

from pathlib import Path

import pytest

from juggler.backends.base import Address, ProbeResult, StopStep
from juggler.backends.llamacpp import LlamaCppBackend
from juggler.errors import StartFailed
from juggler.routing.traffic import TrafficClass
from tests.unit.backends.fake_caller import Answer, FakeCaller, answer, settings

ADDRESS = Address("127.0.0.1", 9000)
LOADING = {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
NO_KEY = {"error": {"message": "Invalid API Key", "type": "authentication_error", "code": 401}}


@pytest.fixture
def binary(tmp_path: Path) -> str:
    file = tmp_path / "llama-server"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return str(file)


def backend_for(*parameters: str, env: dict[str, str] | None = None, saving: bool = False) -> LlamaCppBackend:
    return LlamaCppBackend(settings("llamacpp", *parameters, env=env, kv_cache_saving=saving))


def planned(binary: str, tmp_path: Path, *parameters: str, saving: bool = False, **environ: str) -> list[str]:
    backend = LlamaCppBackend(
        settings("llamacpp", *parameters, binary=binary, kv_cache_saving=saving, state_dir=tmp_path)
    )
    return list(backend.plan(ADDRESS, environ).argv)[1:]


def test_addresses_are_replaced_and_nothing_else(binary: str, tmp_path: Path) -> None:
    """The user's address options go, ours come last; even options that cannot work are left as they are."""
    given = ("-m", "m.gguf", "--host", "0.0.0.0", "--port", "1", "--reuse-port", "-p", "x", "--no-mmap", "-fa")
    assert planned(binary, tmp_path, *given) == [
        *("-m", "m.gguf", "-p", "x", "--no-mmap", "-fa"),
        *("--host", "127.0.0.1", "--port", "9000"),
    ]


def test_slot_directory_replaces_the_users_while_saving(binary: str, tmp_path: Path) -> None:
    """With saving on the directory is ours, private and there before the start; with saving off no flag is passed."""
    words = planned(binary, tmp_path, "--slot-save-path", "/user", saving=True)
    assert words.count("--slot-save-path") == 1
    directory = Path(words[words.index("--slot-save-path") + 1])
    assert directory.parent == tmp_path / "kv"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert "--slot-save-path" not in planned(binary, tmp_path)


def test_unusable_state_directory_costs_only_the_saving(
    binary: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A start never fails because state cannot be kept."""
    (tmp_path / "kv").write_text("a file where the directory should be")
    assert "--slot-save-path" not in planned(binary, tmp_path, saving=True)
    assert "slots are not saved" in caplog.text


def test_environment_cannot_move_the_server(binary: str, tmp_path: Path) -> None:
    """Variables that change address or mode are removed, all others pass."""
    bad = ("LLAMA_ARG_HOST", "LLAMA_ARG_PORT", "LLAMA_SERVER_ROUTER_PORT", "LLAMA_SERVER_CHILD_MODE", "AIP_MODE")
    backend = LlamaCppBackend(settings("llamacpp", binary=binary, env={"AIP_HTTP_PORT": "1"}, state_dir=tmp_path))
    plan = backend.plan(ADDRESS, {**dict.fromkeys(bad, "1"), "CUDA_VISIBLE_DEVICES": "0", "LLAMA_ARG_THREADS": "2"})
    assert plan.env == {"CUDA_VISIBLE_DEVICES": "0", "LLAMA_ARG_THREADS": "2"}


def test_stop_ladder_has_two_polite_steps(binary: str, tmp_path: Path) -> None:
    """SIGTERM twice, 2 s each, never longer than ``stop_timeout`` together."""
    for timeout_s, grace_s in ((10.0, 2.0), (1.0, 0.5)):
        backend = LlamaCppBackend(settings("llamacpp", binary=binary, stop_timeout_s=timeout_s, state_dir=tmp_path))
        assert backend.plan(ADDRESS, {}).stop_ladder == (StopStep("SIGTERM", grace_s), StopStep("SIGTERM", grace_s))


def test_missing_program(tmp_path: Path) -> None:
    """The default program is looked up on PATH, and its absence is explained."""
    with pytest.raises(StartFailed, match="llama-server"):
        LlamaCppBackend(settings("llamacpp", state_dir=tmp_path)).plan(ADDRESS, {"PATH": str(tmp_path / "none")})


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (answer(200, {"status": "ok"}), ProbeResult.READY),
        (answer(503, LOADING), ProbeResult.NOT_YET),
        (answer(401, NO_KEY), ProbeResult.READY),
        (answer(500, text="oops"), ProbeResult.NOT_YET),
        (answer(404, text="nothing here"), ProbeResult.WRONG_SERVER),
        (answer(200, text="<html>"), ProbeResult.WRONG_SERVER),
        (answer(200, {"hello": 1}), ProbeResult.WRONG_SERVER),
        (ConnectionRefusedError(), ProbeResult.NOT_YET),
        (TimeoutError(), ProbeResult.NOT_YET),
    ],
)
async def test_probe(response: Answer, expected: ProbeResult) -> None:
    """Readiness is llama.cpp's own answer; a stranger on the port is recognised."""
    assert await backend_for().probe(FakeCaller({"GET /health": response})) is expected


@pytest.mark.parametrize(
    ("parameters", "environ", "header"),
    [
        (("--api-key", "one,two"), {}, "Bearer one"),
        (("--api-key-file", "keys"), {}, "Bearer three"),
        ((), {"LLAMA_API_KEY": "env"}, "Bearer env"),
        ((), {}, None),
    ],
)
async def test_probes_carry_prefix_and_key(
    binary: str, tmp_path: Path, parameters: tuple[str, ...], environ: dict[str, str], header: str | None
) -> None:
    """Every call goes below the API prefix and with a key that opens it."""
    (tmp_path / "keys").write_text("\n three \nfour\n")
    backend = LlamaCppBackend(
        settings("llamacpp", *parameters, binary=binary, cwd=str(tmp_path), kv_cache_saving=False)
    )
    backend.plan(ADDRESS, {**environ, "LLAMA_ARG_API_PREFIX": "/pre"})
    caller = FakeCaller({"GET /pre/health": answer(200, {"status": "ok"})})
    assert await backend.probe(caller) is ProbeResult.READY
    assert caller.headers[0].get("Authorization") == header


async def test_busy_by_slots() -> None:
    """Any slot that works makes the server busy."""
    slots = [{"id": 0, "is_processing": False}, {"id": 1, "is_processing": True}]
    assert await backend_for().busy(FakeCaller({"GET /slots": answer(200, slots)}))
    assert not await backend_for().busy(FakeCaller({"GET /slots": answer(200, slots[:1])}))


async def test_busy_without_slots_route() -> None:
    """With --no-slots the metrics tell, and without those nothing is asked."""
    caller = FakeCaller({"GET /metrics": answer(200, text="# TYPE x\nllamacpp:requests_processing 1\n")})
    assert await backend_for("--no-slots", "--metrics").busy(caller)
    nobody = FakeCaller({})
    assert not await backend_for("--no-slots").busy(nobody)
    assert nobody.calls == []


async def test_sleeping_server_is_not_woken() -> None:
    """A look at the slots would load the model: a sleeper is only asked for its properties."""
    caller = FakeCaller({"GET /props": answer(200, {"is_sleeping": True})})
    assert not await backend_for("--sleep-idle-seconds", "9").busy(caller)
    assert caller.calls == ["GET /props"]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ('error while handling argument "-fa": expected value for argument', "-fa on"),
        ("error: unknown value for --flash-attn: '--port'", "-fa on"),
        ("error: invalid argument: --no-mmap", "--load-mode none"),
        ("error: invalid argument: --mlock", "--load-mode mlock"),
        ("error: invalid argument: --port=80", "word of its own"),
        ("error: invalid argument: --frobnicate", "--help"),
        ("gguf_init_from_file: failed to open GGUF file '/m.gguf' (No such file or directory)", "model file"),
        ("error loading model architecture: unknown model architecture: 'new'", "too old"),
        ("srv init: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 1", "port"),
        ("ggml_cuda: cudaMalloc failed: out of memory", "memory"),
        ("llama-server: error while loading shared libraries: libggml.so: cannot open", "LD_LIBRARY_PATH"),
        ('error while handling argument "--slot-save-path": not a directory: /x', "state_dir"),
    ],
)
def test_hints(line: str, part: str) -> None:
    """Known refusals of llama.cpp b11434 each get a sentence that says what to write instead."""
    assert part in (backend_for().hint_for(["build: 1", line, "to show complete usage, run with -h"]) or "")


def test_no_hint_for_ordinary_lines() -> None:
    """A clean log gives none."""
    assert backend_for().hint_for(["main: model loaded", "listening on http://127.0.0.1:1"]) is None


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        (b"POST", b"/v1/chat/completions", TrafficClass.WORK),
        (b"POST", b"/tokenize", TrafficClass.WORK),
        (b"GET", b"/slots", TrafficClass.LIGHT),
        (b"GET", b"/v1/models", TrafficClass.LIGHT),
        (b"GET", b"/v1/stream", TrafficClass.HELD_OPEN),
        (b"POST", b"/slots/0", TrafficClass.BLOCKED),
        (b"POST", b"/pre/slots/0", TrafficClass.BLOCKED),
        (b"POST", b"/models/load", TrafficClass.BLOCKED),
        (b"POST", b"/models/unload", TrafficClass.BLOCKED),
    ],
)
def test_traffic(method: bytes, path: bytes, expected: TrafficClass) -> None:
    """Control routes are blocked, polls wake nothing."""
    assert LlamaCppBackend.traffic.classify(method, path) is expected


def test_capabilities_follow_the_settings() -> None:
    """KV is kept only if wanted and if the slots can be seen; slots bound the default concurrency."""
    assert backend_for(saving=True).capabilities.keeps_kv
    assert not backend_for(saving=False).capabilities.keeps_kv
    assert not backend_for("--no-slots", saving=True).capabilities.keeps_kv
    assert backend_for().capabilities.work_outlives_request
    assert [backend_for(*words).default_concurrency for words in ((), ("-np", "2"), ("-np", "-1"))] == [4, 2, 4]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (answer(200, {"build_info": "b11434-abc"}), "llama.cpp b11434-abc"),
        (answer(200, {"chat_template": "koboldcpp has no build"}), None),
        (answer(503, {"error": {"message": "Loading model", "code": 503}}), "llama.cpp (it loads its model)"),
        (answer(401, {"error": {"message": "Invalid API Key"}}), "llama.cpp (it wants an API key)"),
        (answer(404, text="not JSON"), None),
    ],
)
async def test_identify(response: Answer, expected: str | None) -> None:
    """By what only llama.cpp says of itself."""
    assert await backend_for().identify(FakeCaller({"GET /props": response})) == expected
