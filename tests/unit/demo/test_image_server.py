"""The simulated image server: its API in this process, its misbehaviour as a program."""

import base64
import http.client
import json
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from tests.e2e.support import eventually

from juggler.demo import image_server
from juggler.demo.image_server import BODY_LIMIT_BYTES, Generator, ImageServer, paint
from juggler.units import GIB

WAIT_S = 20.0


def make_generator(generate_s: float = 0.0) -> Generator:
    return Generator(load_s=0.0, reload_s=0.0, unload_s=0.0, generate_s=generate_s, memory_bytes=10 * GIB)


@pytest.fixture
def generator() -> Generator:
    return make_generator()


@pytest.fixture
def server(generator: Generator) -> Iterator[ImageServer]:
    with ImageServer(("127.0.0.1", 0), generator, None) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join(WAIT_S)


def ask(port: int, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        data = answer.read()
        is_json = answer.headers["Content-Type"] == "application/json"
        return answer.status, json.loads(data) if is_json and data else data
    finally:
        connection.close()


def pixels(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and scanlines of a PNG, its checksums verified."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    position, data, size = 8, b"", (0, 0)
    while position < len(png):
        (length,) = struct.unpack_from(">I", png, position)
        kind, content = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        assert struct.unpack_from(">I", png, position + 8 + length)[0] == zlib.crc32(kind + content)
        if kind == b"IHDR":
            size = struct.unpack_from(">II", content)
        data += content if kind == b"IDAT" else b""
        position += 12 + length
    return size[0], size[1], zlib.decompress(data)


@pytest.mark.parametrize(("width", "height"), [(8, 8), (64, 48), (100, 33)])
def test_pictures_are_whole(width: int, height: int) -> None:
    """A PNG has the asked size and a full set of scanlines."""
    found = pixels(paint("a cat", width, height))
    assert found[:2] == (width, height)
    assert len(found[2]) == height * (1 + 3 * width)


def test_prompt_and_seed_decide_the_picture() -> None:
    """One prompt always gives one picture, another prompt or seed another."""
    assert paint("a", 16, 16) == paint("a", 16, 16)
    assert len({paint("a", 16, 16), paint("b", 16, 16), paint("a", 16, 16, seed=1)}) == 3


def test_health_follows_load_and_unload(server: ImageServer, generator: Generator) -> None:
    """503 while loading, then 200 with the state of the weights; memory shows the same."""
    port = server.server_address[1]
    assert ask(port, "GET", "/health")[0] == 503
    assert ask(port, "GET", "/sdapi/v1/options")[0] == 404
    generator.start()
    assert ask(port, "GET", "/health") == (200, {"status": "ok", "loaded": True})
    full = ask(port, "GET", "/sdapi/v1/memory")[1]["cuda"]["system"]["used"]
    assert full == 10 * GIB
    assert ask(port, "POST", "/sdapi/v1/unload-checkpoint")[0] == 200
    assert ask(port, "GET", "/health")[1]["loaded"] is False
    assert ask(port, "GET", "/sdapi/v1/memory")[1]["cuda"]["system"]["used"] < full / 10
    assert ask(port, "POST", "/sdapi/v1/txt2img", b'{"prompt":"x"}')[0] == 500
    assert ask(port, "POST", "/sdapi/v1/reload-checkpoint", b"{}")[0] == 200
    status, answer = ask(port, "POST", "/sdapi/v1/txt2img", b'{"prompt":"x","width":16,"height":8,"batch_size":2}')
    assert status == 200
    pictures = [base64.b64decode(picture) for picture in answer["images"]]
    assert [pixels(picture)[:2] for picture in pictures] == [(16, 8), (16, 8)]
    assert pictures[0] != pictures[1]


def test_bad_requests(server: ImageServer, generator: Generator) -> None:
    """Wrong JSON, wrong fields, unknown paths and oversized bodies each get their status."""
    generator.start()
    port = server.server_address[1]
    assert ask(port, "POST", "/sdapi/v1/txt2img", b"{")[0] == 422
    assert ask(port, "POST", "/sdapi/v1/txt2img", b"[]")[0] == 422
    assert ask(port, "POST", "/sdapi/v1/txt2img", b'{"width":"wide"}')[0] == 422
    assert ask(port, "POST", "/nothing", b"{}")[0] == 404
    assert ask(port, "GET", "/nothing")[0] == 404
    assert ask(port, "POST", "/sdapi/v1/txt2img", None, **{"Content-Length": str(BODY_LIMIT_BYTES + 1)})[0] == 413
    assert ask(port, "POST", "/sdapi/v1/txt2img", None, **{"Transfer-Encoding": "chunked"})[0] == 411


def test_page_and_options(server: ImageServer, generator: Generator) -> None:
    """The page is HTML with relative addresses, HEAD has no body, options can be set."""
    generator.start()
    port = server.server_address[1]
    status, page = ask(port, "GET", "/")
    assert status == 200
    assert b"10.0 GiB" in page
    assert b'fetch("sdapi/v1/txt2img"' in page
    assert ask(port, "HEAD", "/") == (200, b"")
    assert ask(port, "POST", "/sdapi/v1/options", b'{"sd_model_checkpoint":"other"}')[0] == 200
    assert ask(port, "GET", "/sdapi/v1/options")[1]["sd_model_checkpoint"] == "other"


def test_connections_are_kept(server: ImageServer, generator: Generator) -> None:
    """Several requests go over one connection."""
    generator.start()
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=WAIT_S)
    for _ in range(3):
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
        assert answer.version == 11
        assert not answer.will_close
    connection.close()


def test_progress_tells_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a picture is painted, a job is counted; afterwards none."""
    go_on = threading.Event()
    pretended = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: seconds and go_on.wait(WAIT_S))
    monkeypatch.setattr(image_server, "time", pretended)
    generator = make_generator(generate_s=10.0)
    generator.start()
    assert generator.progress()["state"] == {"job": "", "job_count": 0, "interrupted": False}
    painting = threading.Thread(target=generator.generate, args=({"prompt": "x"},))
    painting.start()
    try:
        eventually(lambda: generator.progress()["progress"], "it is at it")
        seen: Any = generator.progress()
        assert seen["progress"] > 0
        assert seen["state"]["job_count"] == 1
    finally:
        go_on.set()
        painting.join(WAIT_S)
    assert generator.progress()["state"] == {"job": "", "job_count": 0, "interrupted": False}


class Program:
    """The server as a program, with its output read line by line."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "juggler.demo.image_server", "--port", "0", "--load-seconds", "0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(WAIT_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def line_with(self, text: str) -> str:
        """The next line that holds ``text``; the suite's time-out bounds the wait."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if text in line:
                return line.strip()
        raise AssertionError(f"ended without {text!r}")

    def port(self) -> int:
        return int(self.line_with("listening on").rpartition(":")[2])


@pytest.mark.slow
def test_program_ends_at_once_on_sigterm() -> None:
    """Status 0 at once, even in the middle of a picture."""
    with Program("--generate-seconds", "60") as program:
        port = program.port()
        program.line_with("model loaded")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        connection.request("POST", "/sdapi/v1/txt2img", body=b"{}")
        while ask(port, "GET", "/sdapi/v1/progress")[1]["state"]["job_count"] == 0:
            time.sleep(0.01)
        program.process.send_signal(signal.SIGTERM)
        assert program.process.wait(5) == 0
        connection.close()


@pytest.mark.slow
def test_program_misbehaves_as_told() -> None:
    """Failing, hanging, ignoring signals and crashing are each at hand for tests."""
    with Program("--fail-start") as program:
        assert program.process.wait(WAIT_S) == 1
    with Program("--hang-start", "--ignore-sigterm") as program:
        port = program.port()
        program.process.send_signal(signal.SIGTERM)
        assert ask(port, "GET", "/health")[0] == 503
        assert program.process.poll() is None
    with Program("--die-after", "1", "--generate-seconds", "0") as program:
        port = program.port()
        program.line_with("model loaded")
        assert ask(port, "POST", "/sdapi/v1/txt2img", b"{}")[0] == 200
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(port, "POST", "/sdapi/v1/txt2img", b"{}")
        assert program.process.wait(WAIT_S) == 70
