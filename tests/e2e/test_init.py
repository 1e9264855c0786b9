"""``juggler init`` as a user runs it: HOME and PATH made for the test, and what it writes is checked and served."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.e2e.support import LIMIT_S, START_LIMIT_S, eventually, processes_marked
from tests.ports import free_port
from tests.unit.doctor.tools import install
from tests.unit.survey.gguf_files import write_gguf

from juggler.config.load import LoadedConfig, load_config
from juggler.demo.models import write_model
from juggler.setup.models import find_models
from juggler.setup.places import Surroundings
from juggler.setup.programs import find_programs

pytestmark = pytest.mark.slow


class User:
    """Somebody with an own HOME and PATH, in an own working directory."""

    def __init__(self, tmp_path: Path) -> None:
        self.home = tmp_path / "home"
        self.bin = tmp_path / "bin"
        self.cwd = tmp_path / "work"
        for folder in (self.home, self.bin, self.cwd):
            folder.mkdir()
        self.marker = f"init-{tmp_path.name}-{time.monotonic_ns()}"
        self.env = {
            "HOME": str(self.home),
            "PATH": f"{self.bin}:/usr/bin:/bin",
            "JUGGLER_TEST_MARKER": self.marker,
        }
        self.config = self.cwd / "config.json"

    def run(self, *words: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """One command of the juggler, which must end with this status and leave no process."""
        done = subprocess.run(
            [sys.executable, "-m", "juggler.cli.main", *words],
            cwd=self.cwd,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == status, (done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, done.stderr
        # A keeper has told that nothing is left before it ends itself.
        eventually(lambda: processes_marked(self.marker) == [], "no process is left")
        return done

    def init(self, *words: str, status: int = 0, ports: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
        """``init``, which looks for servers on ``ports`` only, so that those of this machine do not matter."""
        named = [word for port in ports or (free_port(),) for word in ("--port", str(port))]
        return self.run("init", *named, *words, status=status)

    def written(self) -> LoadedConfig:
        """What was written, once ``check`` has found nothing wrong with it."""
        assert "fine" in self.run("check", str(self.config)).stdout
        return load_config(self.config)


@pytest.fixture
def user(tmp_path: Path) -> User:
    return User(tmp_path)


def bare() -> bool:
    """Whether nothing outside the home directory would be found here."""
    around = Surroundings({"PATH": "/usr/bin:/bin"}, Path("/nonexistent"))
    return (
        not [one for one in find_programs(around) if not one.cpu_only]
        and not find_models(around.all_model_folders()).models
    )


class Answers(BaseHTTPRequestHandler):
    """Answers as the server's table says; anything else is 404."""

    table: dict[str, str]

    def do_GET(self) -> None:
        body = self.table.get(self.path)
        data = (body or "").encode()
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *words: object) -> None:
        pass


@contextlib.contextmanager
def serving(table: dict[str, str]) -> Iterator[int]:
    """A server on a free port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Answers,), {"table": table}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def served(user: User) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """``juggler serve`` on the written file, moved to free ports; gives its first server's port."""
    port, control = free_port(), free_port()
    text = user.config.read_text()
    text, moved = re.subn(r'"port": 80\d\d', f'"port": {port}', text, count=1)
    assert moved == 1
    user.config.write_text(text.replace("{\n", f'{{\n    "control": {{"port": {control}}},\n', 1))
    with (user.cwd / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "juggler.cli.main", "serve"],
            cwd=user.cwd,
            env=user.env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            eventually(lambda: process.poll() is not None or can_connect(port), "listening", START_LIMIT_S)
            assert process.poll() is None, (user.cwd / "log").read_text()
            yield process, port
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(LIMIT_S)
            finally:
                process.kill()
                process.wait()
    eventually(lambda: processes_marked(user.marker) == [], "nothing is left")


def can_connect(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def post(port: int, path: str, body: object) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_an_empty_machine_has_something_to_serve(user: User) -> None:
    """The demo answers at once; the file is private; the next commands are named and work."""
    if not bare():
        pytest.skip("this machine has model servers outside the home directory")
    done = user.init()
    assert "Wrote config.json: 1 endpoint on 1 port." in done.stdout
    assert "juggler serve" in done.stdout
    assert stat.S_IMODE(user.config.stat().st_mode) == 0o600
    assert list(user.written().config.backends) == ["demo"]
    assert sorted(path.name for path in user.cwd.iterdir()) == ["config.json"]
    with served(user) as (_, port):
        status, body = post(port, "/sdapi/v1/txt2img", {"prompt": "a red fox"})
        assert status == 200
        assert json.loads(body)["images"]


def test_a_machine_with_a_real_model(user: User) -> None:
    """With the wheel's llama.cpp and a model in ~/models the written file generates text."""
    pytest.importorskip("xllamacpp")
    if not bare() or not Path(sys.executable).with_name("juggler-llama-server").exists():
        pytest.skip("not the llama.cpp of this test would be found")
    (user.home / "models").mkdir()
    write_model(user.home / "models" / "tiny-a.gguf", size_bytes=1_000_000)
    user.init()
    config = user.written().config
    assert [one.name for one in config.servers[0].endpoints] == ["tiny-a"]
    with served(user) as (_, port):
        status, body = post(port, "/completion", {"prompt": "hello", "n_predict": 4})
        assert status == 200, body
        assert "content" in json.loads(body)


def test_what_is_installed_is_found(user: User) -> None:
    """Fake programs in PATH and checkouts below home, models with a projector, and a file that is no model."""
    install(user.bin / "llama-server")
    install(user.bin / "ollama")
    webui = user.home / "stable-diffusion-webui-forge"
    (webui / "modules").mkdir(parents=True)
    (webui / "launch.py").write_text("")
    install(webui / "webui.sh")
    models = user.home / "models"
    write_gguf(models / "gemma-3-27b-it-Q5.gguf", size_bytes=50_000)
    write_gguf(models / "mmproj-gemma-3-27b-it-f16.gguf", {"general.architecture": "clip"})
    write_gguf(models / "Qwen3-8B.gguf", size_bytes=9_000)
    (models / "broken.gguf").write_text("<html>404</html>")
    done = user.init()
    config = user.written().config
    assert config.backends["llamacpp"].binary == str(user.bin / "llama-server")
    assert config.backends["ollama"].binary == str(user.bin / "ollama")
    assert config.backends["sdwebui"].binary == str(webui / "webui.sh")
    endpoints = {one.name: one for one in config.servers[0].endpoints}
    assert str(models / "mmproj-gemma-3-27b-it-f16.gguf") in endpoints["gemma-3-27b-it-Q5"].parameters
    assert "--mmproj" not in endpoints["Qwen3-8B"].parameters
    assert "broken.gguf: it does not begin as GGUF files do" in done.stdout
    assert "version: 7777 (abcdef0)" in user.config.read_text()


def test_gpus_become_pools(user: User) -> None:
    """As nvidia-smi reports them; each model gets a footprint."""
    install(user.bin / "llama-server")
    write_gguf(user.home / "models" / "m.gguf", size_bytes=1_000_000)
    smi = user.bin / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '0, NVIDIA GeForce RTX 3090, 24576, 300, 570.86'\n")
    smi.chmod(0o755)
    user.init()
    loaded = user.written()
    assert isinstance(loaded.config.memory.pools, dict)
    assert list(loaded.config.memory.pools) == ["gpu0"]
    assert loaded.config.backends["llamacpp"].default_parameters == ["-ngl", "99"]
    assert isinstance(loaded.config.servers[0].endpoints[-1].memory, dict)
    assert "NVIDIA GeForce RTX 3090, 24.0 GiB" in user.config.read_text()


def test_running_servers_and_strangers(user: User) -> None:
    """A genuine ollama is attached to; a stranger and a silent port are told and left alone; all within seconds."""
    genuine = {"/api/version": '{"version":"0.33.0"}', "/": "Ollama is running"}
    with (
        serving(genuine) as ollama,
        serving({"/": "<html>router</html>"}) as stranger,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        began = time.monotonic()
        done = user.init(ports=(ollama, stranger, silent.getsockname()[1]))
        assert time.monotonic() - began < 30
        assert user.written().config.backends["ollama"].attach_to == f"http://127.0.0.1:{ollama}"
        assert f"http://127.0.0.1:{ollama}" in done.stdout
        assert f"port {stranger} is taken" in done.stdout
        assert f"port {silent.getsockname()[1]} is taken" in done.stdout
        assert str(stranger) not in user.config.read_text()


def test_nothing_is_overwritten_unasked(user: User) -> None:
    """Without --force not even by an empty-looking file or a link; with it in one step, keeping the mode."""
    user.config.write_text("mine")
    user.config.chmod(0o640)
    done = user.init(status=1)
    assert "config.json is there already" in done.stderr
    assert "--force" in done.stderr
    assert user.config.read_text() == "mine"
    user.init("--force")
    assert user.config.read_text().startswith("// Written by `juggler init`")
    assert stat.S_IMODE(user.config.stat().st_mode) == 0o640
    assert sorted(path.name for path in user.cwd.iterdir()) == ["config.json"]


def test_other_files_and_forms(user: User) -> None:
    """YAML by its ending says the same as JSON; ``-`` prints the file and nothing else."""
    user.init()
    user.init("--output", "c.yaml")
    assert "fine" in user.run("check", "c.yaml").stdout
    first, second = load_config(user.config), load_config(user.cwd / "c.yaml")
    assert first.config == second.config
    printed = user.init("--output", "-")
    assert printed.stdout == user.config.read_text()
    assert printed.stderr.startswith("Found:")


def test_places_that_cannot_be_written(user: User) -> None:
    """A directory that is missing, a directory instead of a file, and a file system that refuses: one sentence each."""
    places = ["none/config.json", str(user.cwd)]
    if Path("/proc/self").exists():
        places.append("/proc/self/config.json")  # refuses root as well
    for place in places:
        done = user.init("--output", place, "--force", status=1)
        assert len(done.stderr.strip().splitlines()) == 2, done.stderr
        assert done.stderr.splitlines()[1].startswith("hint: ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everywhere")
def test_folders_that_are_not_ours(user: User) -> None:
    """A folder that may not be read is named; a working directory that may not be written is told."""
    (user.home / "models" / "closed").mkdir(parents=True, mode=0o700)
    (user.home / "models" / "closed").chmod(0)
    assert f"unreadable {user.home / 'models' / 'closed'}" in user.init().stdout
    user.config.unlink()
    user.cwd.chmod(0o500)
    assert "Permission denied" in user.init(status=1).stderr
    user.cwd.chmod(0o700)


def test_awkward_disks(user: User) -> None:
    """Loops of links, links to nowhere, strange names, a model folder that is a file: the search ends all the same."""
    models = user.home / "models"
    write_gguf(models / 'a "quoted" näme.gguf')
    write_gguf(models / "line\nend.gguf")
    write_gguf(Path(os.fsdecode(os.fsencode(models) + b"/bad\xff.gguf")))
    (models / "loop").symlink_to(models)
    (models / "self").symlink_to("self")
    (models / "gone.gguf").symlink_to("nowhere")
    (user.home / "Models").write_text("a file")
    install(user.bin / "llama-server")
    done = user.init("--models", str(models / "none"), "--models", "relative")
    names = [one.name for server in user.written().config.servers for one in server.endpoints]
    assert 'a "quoted" näme' in names
    assert done.stdout.count("characters in its name") == 2


def test_folders_of_the_operator(user: User, tmp_path: Path) -> None:
    """Named by --models, also relative to where one is."""
    install(user.bin / "llama-server")
    write_gguf(user.cwd / "gguf" / "mine.gguf")
    user.init("--models", "gguf")
    endpoint = user.written().config.servers[0].endpoints[-1]
    assert endpoint.parameters[1] == str(user.cwd / "gguf" / "mine.gguf")


def test_a_program_that_hangs_or_serves(user: User) -> None:
    """It is asked for its version alone, with a deadline; it is never started as a server, and nothing is left."""
    install(user.bin / "llama-server")
    user.env |= {"FAKE_HABIT": "child", "FAKE_SERVED": str(user.home / "served")}
    user.init()
    assert not (user.home / "served").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_writes_nothing(user: User, number: signal.Signals) -> None:
    """In the middle of a search."""
    install(user.bin / "llama-server")
    user.env["FAKE_HABIT"] = "hang"
    process = subprocess.Popen(
        [sys.executable, "-m", "juggler.cli.main", "init", "--port", str(free_port())],
        cwd=user.cwd,
        env=user.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        eventually(lambda: any("fake_version" in line for line in processes_marked(user.marker)), "the program runs")
        process.send_signal(number)
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number
    assert b"Traceback" not in output
    assert list(user.cwd.iterdir()) == []
    eventually(lambda: not processes_marked(user.marker), "nothing is left")


def test_the_overview_names_it(user: User) -> None:
    """Bare ``juggler`` in an empty directory says what to do; beside a configuration it names the doctor."""
    control = f"http://127.0.0.1:{free_port()}"
    if "No juggler runs" not in (first := user.run()).stdout:
        pytest.skip(f"a juggler runs on this machine ({control} would not be asked)")
    assert "juggler init" in first.stdout
    user.init()
    assert "juggler doctor" in user.run().stdout


def test_what_it_writes_passes_the_doctor(user: User) -> None:
    """The report on a fresh configuration names no problem of its own making."""
    install(user.bin / "llama-server")
    write_gguf(user.home / "models" / "m.gguf")
    user.init()
    user.written()
    done = subprocess.run(
        [sys.executable, "-m", "juggler.cli.main", "doctor", "--json"],
        cwd=user.cwd,
        env=user.env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    sections = json.loads(done.stdout)["sections"]
    problems = [
        one["message"]
        for section in sections
        if section["title"] not in ("Machine", "Ports")  # a broken GPU driver, a port taken since
        for one in section["findings"]
        if one["grade"] == "problem"
    ]
    assert problems == []
