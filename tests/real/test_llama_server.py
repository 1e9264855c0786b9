"""``juggler-llama-server`` as a process: its command line, exit statuses, signals and the server behind it."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from juggler.backends.base import Address
from juggler.demo.models import write_model
from tests.e2e.support import eventually
from tests.real.engine_process import HAS_ENGINE, PROGRAM, needs_engine, running

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny.gguf", seed=1, size_bytes=600_000)


def run(*arguments: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    environ = {**os.environ, **(env or {})}
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=50, env=environ, check=False)


def get(address: Address, path: str, key: str | None = None) -> tuple[int, object]:
    return call(address, "GET", path, key=key)


def call(address: Address, method: str, path: str, body: object = None, key: str | None = None) -> tuple[int, object]:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=40)
    try:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def begin_generation(address: Address) -> socket.socket:
    """Send a request that would generate for minutes, and return once its slot works."""
    body = json.dumps({"prompt": "ka", "n_predict": 1_000_000, "ignore_eos": True, "temperature": 0}).encode()
    connection = socket.create_connection((address.host, address.port), timeout=10)
    head = f"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        slots = get(address, "/slots")[1]
        assert isinstance(slots, list)
        if any(slot["is_processing"] for slot in slots):
            return connection
        time.sleep(0.02)
    raise AssertionError("no slot began to work")


@needs_engine
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--port=80"], "error: invalid argument: --port=80"),
        (["--no-mmap"], "error: invalid argument: --no-mmap"),
        (["-fa"], 'error while handling argument "-fa": expected value for argument'),
        (["--slot-save-path", "/nowhere/at/all"], "not a directory: /nowhere/at/all"),
        ([], "error: --model is required"),
    ],
)
def test_refuses_with_status_1(arguments: list[str], text: str) -> None:
    """What llama-server refuses is refused with the same status and text."""
    done = run(*arguments)
    assert done.returncode == 1
    assert text in done.stderr


@needs_engine
def test_bad_model_ends_with_status_1(tmp_path: Path) -> None:
    """A model that is not there or damaged ends the program, and the engine's own reason is on stderr."""
    missing = run("-m", str(tmp_path / "no.gguf"), "--port", "0")
    assert missing.returncode == 1
    assert "failed to open GGUF file" in missing.stderr
    (tmp_path / "bad.gguf").write_bytes(b"no model at all")
    damaged = run("-m", str(tmp_path / "bad.gguf"), "--port", "0")
    assert damaged.returncode == 1


@needs_engine
def test_taken_port_ends_with_status_1(model: Path) -> None:
    """A port that somebody else has is an error, not a silent other port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("-m", str(model), "--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    # llama.cpp logs from a thread of its own, which the end of the process may overtake.
    assert "couldn't bind" in done.stderr or "Failed to init server" in done.stderr


@needs_engine
def test_version_names_the_wheel() -> None:
    """``--version`` ends with status 0 and tells which llama.cpp is inside."""
    done = run("--version")
    assert done.returncode == 0
    assert "xllamacpp 20" in done.stderr


def test_without_the_wheel_it_names_the_extra(tmp_path: Path) -> None:
    """Where the engine is not installed, status 3 and one sentence say how to get it."""
    program = "import sys; sys.modules['xllamacpp'] = None; from juggler.llama_server.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "-m", "x.gguf"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 3
    assert "pip install 'model-juggler[engine]'" in done.stderr


@needs_engine
def test_serves_text_and_ends_at_once_when_idle(model: Path, tmp_path: Path) -> None:
    """Port 0 picks one and prints it, chat works, and SIGTERM ends an idle server with status 0."""
    with running([PROGRAM, "-m", str(model), "--port", "0", "-np", "1", "-c", "4096"], tmp_path) as engine:
        address = engine.address()
        assert get(address, "/health") == (200, {"status": "ok"})
        body = {"messages": [{"role": "user", "content": "Hello there"}], "max_tokens": 8}
        status, answer = call(address, "POST", "/v1/chat/completions", body)
        assert status == 200
        assert isinstance(answer, dict)
        assert answer["usage"]["completion_tokens"] >= 1
        status, properties = get(address, "/props")
        assert isinstance(properties, dict)
        assert (properties["total_slots"], properties["default_generation_settings"]["n_ctx"]) == (1, 4096)
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(20) == 0


@needs_engine
def test_prefix_and_keys(model: Path, tmp_path: Path) -> None:
    """--api-prefix moves every route, and each of the keys opens them."""
    arguments = ["-m", str(model), "--port", "0", "--api-prefix", "/pre", "--api-key", "one,two"]
    with running([PROGRAM, *arguments], tmp_path) as engine:
        address = engine.address()
        assert get(address, "/health")[0] in (401, 404)
        assert get(address, "/pre/props")[0] == 401
        assert get(address, "/pre/props", key="two")[0] == 200


@needs_engine
def test_host_and_port_come_from_the_environment(model: Path, tmp_path: Path) -> None:
    """LLAMA_ARG_HOST, LLAMA_ARG_PORT and LLAMA_ARG_MODEL count, as they do for llama-server."""
    env = {**os.environ, "LLAMA_ARG_HOST": "127.0.0.1", "LLAMA_ARG_PORT": "0", "LLAMA_ARG_MODEL": str(model)}
    with running([PROGRAM], tmp_path, env) as engine:
        assert get(engine.address(), "/health")[0] == 200


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a signal that it has not taken yet; False where that cannot be seen."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    sets = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(pending & 1 << number - 1 for pending in sets)


@needs_engine
@pytest.mark.parametrize("extra", [[], ["--metrics"]])
def test_second_signal_ends_a_busy_server(model: Path, tmp_path: Path, extra: list[str]) -> None:
    """The first signal lets a generation go on, the second ends the process at once with status 1."""
    arguments = [PROGRAM, "-m", str(model), "--port", "0", *extra]
    with running(arguments, tmp_path) as engine, begin_generation(engine.address()):
        engine.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            engine.process.wait(0.5)
        eventually(lambda: not is_pending(engine.process.pid, signal.SIGTERM), "the first has arrived: two become one")
        engine.process.send_signal(signal.SIGTERM)
        assert engine.process.wait(20) == 1


@needs_engine
def test_signalled_server_ends_when_its_client_leaves(model: Path, tmp_path: Path) -> None:
    """After one signal the server ends by itself as soon as its last client has hung up."""
    with running([PROGRAM, "-m", str(model), "--port", "0"], tmp_path) as engine:
        connection = begin_generation(engine.address())
        engine.process.send_signal(signal.SIGINT)
        connection.close()
        assert engine.process.wait(20) == 0


def test_engine_presence_is_known() -> None:
    """The skips above cannot hide a broken wheel: if it is found, it can be imported."""
    if not HAS_ENGINE:
        pytest.skip("xllamacpp is not installed")
    done = subprocess.run([sys.executable, "-c", "import xllamacpp"], timeout=30, check=False)
    assert done.returncode == 0
