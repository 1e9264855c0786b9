"""``juggler doctor`` as a user runs it: a process of its own, real files, programs, ports and signals."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import LIMIT_S, eventually, exclusive, processes_marked, running, web
from tests.ports import free_port
from tests.unit.doctor.tools import install

from juggler.demo.models import write_model

pytestmark = pytest.mark.slow


class Doctor:
    """Runs it in a home of its own; ``PATH`` holds the system's basic programs and what the test adds."""

    def __init__(self, tmp_path: Path) -> None:
        self.tmp_path = tmp_path
        self.marker = f"doctor-{tmp_path.name}-{time.monotonic_ns()}"
        self.path = tmp_path / "config.json"
        self.env = {
            "HOME": str(tmp_path / "home"),
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "JUGGLER_TEST_MARKER": self.marker,
        }
        (tmp_path / "home").mkdir()

    def write(self, backends: dict[str, Any], *endpoints: dict[str, Any], **top: Any) -> None:
        server = {"name": "S", "port": free_port(), "endpoints": list(endpoints)}
        document = {
            "temp_dir": str(self.tmp_path / "temp"),
            "state_dir": str(self.tmp_path / "state"),
            "control": {"port": free_port()},
            "backends": backends,
            "servers": [server],
            **top,
        }
        self.path.write_text(json.dumps(document, indent=4))

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "juggler.cli.main", "doctor", *words]

    def run(self, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        before = self.files()
        done = subprocess.run(
            self.command(*words),
            cwd=self.tmp_path,
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        # A keeper has told that nothing is left before it ends itself.
        eventually(lambda: processes_marked(self.marker) == [], "no process is left")
        assert self.files() == before, "nothing is changed"
        return done

    def files(self) -> set[str]:
        # The interpreter writes byte code where it can; that is not ours.
        return {str(path) for path in self.tmp_path.rglob("*") if "__pycache__" not in path.parts}

    def report(self, *words: str, **env: str) -> tuple[int, dict[str, list[tuple[str, str, str]]]]:
        """Exit status, and the findings of each section as grade, message and hint."""
        done = self.run("--json", *words, **env)
        document = json.loads(done.stdout)
        assert document["ok"] == (done.returncode == 0)
        sections = {}
        for section in document["sections"]:
            rows = [(one["grade"], one["message"], one["hint"] or "") for one in section["findings"]]
            sections[section["title"].partition(" /")[0].partition(" config")[0]] = rows
        return done.returncode, sections


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    return Doctor(tmp_path)


def test_without_a_configuration(doctor: Doctor) -> None:
    """It says so, looks at the machine, and is content; the hint names the command that works."""
    done = doctor.run()
    assert "there is none here: only the machine is looked at" in done.stdout
    assert "juggler init" in done.stdout
    assert re.search(r"ok +main memory: [0-9.]+ GiB", done.stdout)
    assert done.returncode in (0, 1)  # 1 on a machine whose GPU driver is broken


def test_a_named_file_that_is_missing_is_a_problem(doctor: Doctor) -> None:
    """By option or by variable: whoever names a file means it."""
    for done in (doctor.run("--config", "none.json"), doctor.run(JUGGLER_CONFIG="none.json")):
        assert done.returncode == 1
        assert "none.json: there is no such file" in done.stdout


def test_a_healthy_setup(doctor: Doctor) -> None:
    """The real llama.cpp of the wheel where it is installed, a real model: versions, options, files; status 0."""
    pytest.importorskip("xllamacpp")
    binary = Path(sys.executable).with_name("juggler-llama-server")
    if not binary.exists():
        pytest.skip("juggler-llama-server is not installed beside this interpreter")
    model = write_model(doctor.tmp_path / "m.gguf", size_bytes=1_000_000)
    endpoint = {"name": "A", "backend": "llamacpp", "parameters": ["-m", str(model), "-c", "4096", "-ngl", "99"]}
    doctor.write({"llamacpp": {"binary": str(binary)}}, endpoint)
    _, sections = doctor.report()
    rows = sections['Backend "llamacpp"']
    assert [grade for grade, _, _ in rows] == ["ok", "ok", "ok"], rows
    assert "version: " in rows[0][1]
    assert rows[1][1] == "its help lists every option that is used"
    assert rows[2][1].startswith("A: 1 file readable")
    assert sections["Configuration"] == [("ok", "no mistakes found", "")]


def test_the_seeds_own_mistakes(doctor: Doctor) -> None:
    """Options that current builds refuse, and paths that do not exist: each is told with what to do."""
    binary = install(doctor.tmp_path / "bin" / "llama-server")
    parameters = ["-m", "/path/to/google_gemma-3-27b-it-Q5_K_M.gguf", "-c", "32768"]
    doctor.write(
        {"llamacpp": {"binary": str(binary), "default_parameters": ["-ngl", "99", "--no-mmap"]}},
        {"name": "Default LLM", "backend": "llamacpp", "parameters": parameters},
    )
    done = doctor.run()
    assert done.returncode == 1
    assert "problem  --no-mmap is no option of this build (Default LLM)" in done.stdout
    assert "--load-mode none" in done.stdout
    assert "problem  -m: /path/to/google_gemma-3-27b-it-Q5_K_M.gguf does not exist" in done.stdout
    assert re.match("[2-9] problems", done.stdout.rstrip().splitlines()[-1])


def test_problems_of_the_file_as_check_shows_them(doctor: Doctor) -> None:
    """Place, excerpt and hint; the backends of a file that cannot be read are not guessed at."""
    doctor.path.write_text('{\n    "backends": {"demo": {}},\n    "servers": [{"name": "S", "prot": 8021}]\n}\n')
    done = doctor.run()
    checked = subprocess.run(
        [sys.executable, "-m", "juggler.cli.main", "check", "config.json"],
        cwd=doctor.tmp_path,
        env=doctor.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    first = checked.stderr.splitlines()[0]
    assert first.startswith("config.json:3:")
    assert first in done.stdout
    assert "Backend" not in done.stdout


def test_a_program_that_leaves_a_child_and_one_that_dies(doctor: Doctor) -> None:
    """Nothing is left of either, and no server has been started."""
    served = doctor.tmp_path / "served"
    for habit in ("child", "dies"):
        install(doctor.tmp_path / "bin" / f"llama-{habit}")
    doctor.write(
        {
            habit: {
                "type": "llamacpp",
                "binary": f"llama-{habit}",
                "env": {"FAKE_HABIT": habit, "FAKE_SERVED": str(served)},
            }
            for habit in ("child", "dies")
        },
        *({"name": habit, "path_prefix": f"/{habit}", "backend": habit} for habit in ("child", "dies")),
    )
    status, sections = doctor.report()
    assert status == 1
    assert sections['Backend "child" (llamacpp)'][0][0] == "ok"
    assert sections['Backend "dies" (llamacpp)'][0][0] == "problem"
    assert not served.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_everything_it_runs(doctor: Doctor, number: signal.Signals) -> None:
    """In the middle of a program that hangs."""
    install(doctor.tmp_path / "bin" / "llama-server")
    backend = {"binary": "llama-server", "env": {"FAKE_HABIT": "hang"}}
    doctor.write({"llamacpp": backend}, {"name": "A", "backend": "llamacpp", "parameters": ["-c", "1"]})
    process = subprocess.Popen(
        doctor.command(), cwd=doctor.tmp_path, env=doctor.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        eventually(
            lambda: any("fake_version_tool" in line for line in processes_marked(doctor.marker)), "the program runs"
        )
        process.send_signal(number)
        output, _ = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 128 + number
    assert b"Traceback" not in output
    eventually(lambda: not processes_marked(doctor.marker), "nothing is left")


def test_killed_without_a_word_it_leaves_nothing_either(doctor: Doctor) -> None:
    """SIGKILL: the guardian of the program ends it."""
    install(doctor.tmp_path / "bin" / "llama-server")
    doctor.write(
        {"llamacpp": {"binary": "llama-server", "env": {"FAKE_HABIT": "hang"}}}, {"name": "A", "backend": "llamacpp"}
    )
    with subprocess.Popen(
        doctor.command(), cwd=doctor.tmp_path, env=doctor.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        eventually(
            lambda: any("fake_version_tool" in line for line in processes_marked(doctor.marker)), "the program runs"
        )
        process.kill()
    eventually(lambda: not processes_marked(doctor.marker), "nothing is left")


def test_ports_and_a_running_juggler(doctor: Doctor, tmp_path: Path) -> None:
    """Beside a running juggler its ports are its own; a stranger on another one is named."""
    with running(tmp_path, exclusive(a=web("--name", "a"))) as juggler, socket.create_server(("127.0.0.1", 0)) as taken:
        config = json.loads(juggler.config_path.read_text())
        stranger = {"name": "T", "host": "127.0.0.1", "port": taken.getsockname()[1], "endpoints": []}
        config["servers"].append(stranger)
        doctor.path = tmp_path / "two.json"
        doctor.path.write_text(json.dumps(config))
        done = subprocess.run(
            doctor.command("--config", str(doctor.path), "--json"),
            env=doctor.env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 1
        sections = {one["title"]: one["findings"] for one in json.loads(done.stdout)["sections"]}
        rows = [(one["grade"], one["message"]) for one in sections["Ports"]]
        assert rows[0] == ("ok", f"S: 127.0.0.1:{juggler.port} is held by the running juggler")
        assert rows[1][0] == "problem"
        assert f"(pid {os.getpid()})" in rows[1][1]
        assert rows[2] == ("ok", f"dashboard and API: 127.0.0.1:{juggler.control_port} is held by the running juggler")
        assert juggler.instance("S/a")["starts"] == 0, "looking starts nothing"


def test_containers_are_only_spoken_of_where_there_are_any(doctor: Doctor) -> None:
    """With docker in PATH localhost is warned about, with what to write; a wildcard address is not."""
    install(doctor.tmp_path / "bin" / "docker")
    endpoint = {"name": "A", "backend": "demo"}
    doctor.write({"demo": {}}, endpoint)
    _, sections = doctor.report()
    warned = [hint for grade, message, hint in sections["Ports"] if grade == "warning" and "S (" in message]
    assert len(warned) == 1
    assert '"host": "' in warned[0]
    server = {"name": "S", "host": "0.0.0.0", "port": free_port(), "endpoints": [endpoint]}
    doctor.write({"demo": {}}, servers=[server])
    _, sections = doctor.report()
    assert not [message for grade, message, _ in sections["Ports"] if "S (" in message]


def test_no_colours_in_a_pipe(doctor: Doctor) -> None:
    """Text that goes into a file or a bug report stays text."""
    assert "\x1b" not in doctor.run().stdout
