"""A1111 and Forge through the whole program: soft unload and wake, jobs and pages that outlive requests, bad ends."""

import contextlib
import http.client
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.gradio_page import Click
from tests.e2e.support import LIMIT_S, PROGRAMS, Answer, Juggler, eventually, exclusive, processes_marked, running, web

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]

FORGE = {"FAKE_VARIANT": "forge"}
both_variants = pytest.mark.parametrize("variant", [{}, FORGE], ids=["a1111", "forge"])


def images(tmp_path: Path, *parameters: str, env: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    """A backend as an operator writes it: the start script of a web UI's folder, and options of a former life."""
    folder = tmp_path / "webui"
    folder.mkdir()
    (folder / "webui.sh").symlink_to(PROGRAMS / "fake_webui.sh")
    (folder / "launch.py").symlink_to(PROGRAMS / "fake_sdwebui.py")
    (folder / "webui-user.sh").write_text('export COMMANDLINE_ARGS="--listen --port 7860 --medvram"\n')
    if "--nowebui" not in parameters:
        (folder / "webui-user.sh").write_text('export COMMANDLINE_ARGS="--listen --port 7860"\n')
    return {
        "type": "sdwebui",
        "binary": str(folder / "webui.sh"),
        "default_parameters": ["--listen", "--port=7860", *parameters],
        "env": {"FAKE_RECORD": str(tmp_path / "record"), "FAKE_PYTHON": sys.executable, **(env or {})},
        **more,
    }


def happened(tmp_path: Path) -> list[str]:
    """What the stand-in noted, without pids."""
    path = tmp_path / "record"
    return [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []


def starts(tmp_path: Path) -> int:
    return len([line for line in happened(tmp_path) if line.startswith("starts ")])


def pid_of(tmp_path: Path) -> int:
    """Of the Python below bash."""
    lines = (tmp_path / "record").read_text().splitlines()
    return int([line for line in lines if " bash " not in line][-1].partition(" ")[0])


def paint(juggler: Juggler, steps: int = 1, **more: object) -> Answer:
    return juggler.ask("POST", "/a/sdapi/v1/txt2img", {"prompt": "a cat", "steps": steps, **more})


def other(juggler: Juggler) -> None:
    """A request for the other backend, which needs all the memory."""
    assert juggler.ask("POST", "/b/x", {}).status == 200


def residency(juggler: Juggler) -> str:
    return str(juggler.instance("S/a")["residency"])


@contextlib.contextmanager
def painting(juggler: Juggler, steps: int) -> Iterator[list[Answer]]:
    """A picture that is painted meanwhile; its answer is there at the end."""
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(paint(juggler, steps)))
    thread.start()
    try:
        yield answers
    finally:
        thread.join(LIMIT_S)


@both_variants
@pytest.mark.parametrize("mode", [(), ("--nowebui",)], ids=["ui", "api"])
def test_it_takes_turns_with_another_backend(tmp_path: Path, variant: dict[str, str], mode: tuple[str, ...]) -> None:
    """1. It paints. 2. The other is wanted: it gives its memory and stays. 3. Its next picture wakes it first."""
    config = exclusive(a=images(tmp_path, *mode, env=variant), b=web(stop_timeout="5s"))
    with running(tmp_path, config) as juggler:
        for turn in (1, 2, 3):
            answer = paint(juggler)
            assert answer.status == 200, answer.body
            assert answer.json()["images"]
            other(juggler)
            assert residency(juggler) == "unloaded"
            assert happened(tmp_path).count("unloaded") == turn
            held = juggler.ask("GET", "/a/sdapi/v1/memory").json()["cuda"]["reserved"]["current"]
            assert held == 0
        assert happened(tmp_path).count("reloaded") == 2
        assert starts(tmp_path) == 1


def test_the_seed_shape_without_stripping(tmp_path: Path) -> None:
    """``/sdapi`` at the root of a port, prefix kept: what image clients that replace the whole path need."""
    config = exclusive(a=images(tmp_path))
    config["servers"][0]["endpoints"][0] |= {"path_prefix": "/sdapi", "strip_prefix": False}
    with running(tmp_path, config) as juggler:
        assert juggler.ask("GET", "/sdapi/v1/options").status == 503
        assert starts(tmp_path) == 0
        assert juggler.ask("POST", "/sdapi/v1/txt2img", {"steps": 1}).status == 200
        assert juggler.ask("GET", "/sdapi/v1/options").json()["samples_format"] == "png"
        assert juggler.ask("POST", "/sdapi/v1/unload-checkpoint").status == 403
        assert juggler.ask("POST", "/sdapi/v1//reload%2Dcheckpoint").status == 403
        assert "unloaded" not in happened(tmp_path)


def test_polls_wake_nothing_and_the_page_does(tmp_path: Path) -> None:
    """Bug 12 and the rule for pages: lists of a stopped one are 503; opening the page starts it, under its prefix."""
    with running(tmp_path, exclusive(a=images(tmp_path), b=web())) as juggler:
        for path in ("sdapi/v1/progress", "sdapi/v1/sd-models", "config", "internal/ping", "heartbeat/x"):
            assert juggler.ask("GET", f"/a/{path}").status == 503
        assert juggler.ask("POST", "/a/internal/progress", {"id_task": "x"}).status == 503
        assert starts(tmp_path) == 0
        page = juggler.ask("GET", "/a/")
        assert page.status == 200
        assert b'"root": "/a"' in page.body
        assert juggler.ask("GET", "/a/sdapi/v1/sd-models").json()[0]["model_name"] == "model"
        other(juggler)
        for path in ("sdapi/v1/sd-models", "internal/ping"):  # answered by the process, whose weights are gone
            assert juggler.ask("GET", f"/a/{path}").status == 200
        assert residency(juggler) == "unloaded"


def test_a_job_whose_client_hung_up_is_finished_first(tmp_path: Path) -> None:
    """An unload in the middle would break it: the other waits until the web UI says that it is idle."""
    with running(tmp_path, exclusive(a=images(tmp_path), b=web())) as juggler:
        assert paint(juggler).status == 200
        connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=LIMIT_S)
        connection.request("POST", "/a/sdapi/v1/txt2img", json.dumps({"steps": 60}), {"Content-Type": "text/json"})
        eventually(lambda: happened(tmp_path).count("job begins") == 2, "it paints")
        connection.close()
        other(juggler)
        assert happened(tmp_path)[-2:] == ["job ends", "unloaded"]


@pytest.mark.parametrize("gives_data", [True, False], ids=["job", "lost click"])
def test_a_click_in_the_page_of_gradio_3(tmp_path: Path, gives_data: bool) -> None:
    """Its socket is no work of its own, its job is; what the click became is seen before memory is taken away."""
    with running(tmp_path, exclusive(a=images(tmp_path), b=web())) as juggler:
        with Click(juggler.port, "/a/queue/join", steps=20, gives_data=gives_data) as click:
            click.until("send_hash")
            if not gives_data:
                click.until("send_data")
            other(juggler)
            if gives_data:
                assert click.result() == "image"
                assert happened(tmp_path)[-2:] == ["job ends", "unloaded"]
        with Click(juggler.port, "/a/queue/join", steps=1) as click:  # wakes it, although it is a GET
            assert click.result() == "image"
        assert starts(tmp_path) == 1


def test_a_page_of_gradio_4(tmp_path: Path) -> None:
    """Its heartbeat lives through an unload and keeps nobody waiting; a posted job is finished before an unload."""
    with running(tmp_path, exclusive(a=images(tmp_path, env=FORGE), b=web())) as juggler:
        assert juggler.ask("GET", "/a/").status == 200
        page = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=LIMIT_S)
        with contextlib.closing(page):
            page.request("GET", "/a/heartbeat/abc")
            stream = page.getresponse()
            assert stream.readline() == b"data: ALIVE\n"
            click = {"data": ["task(x)", "a cat", 20], "fn_index": 1, "session_hash": "abc"}
            assert juggler.ask("POST", "/a/queue/join", click).status == 200
            other(juggler)
            assert [line for line in happened(tmp_path) if line in ("job ends", "unloaded")] == ["job ends", "unloaded"]
            assert residency(juggler) == "unloaded"
            assert "page closes" not in happened(tmp_path)
            events = juggler.ask("GET", "/a/queue/data?session_hash=abc").body
            assert b"process_completed" in events
            stream.close()
        eventually(lambda: "page closes" in happened(tmp_path), "the end of the page reaches it")


def test_a_kill_in_the_middle_is_told_and_the_next_request_is_served(tmp_path: Path) -> None:
    """The Python below bash dies: 502 for who waited, a fresh process for the next one."""
    with running(tmp_path, exclusive(a=images(tmp_path))) as juggler:
        with painting(juggler, steps=10_000) as answers:
            eventually(lambda: "job begins" in happened(tmp_path), "it paints")
            os.kill(pid_of(tmp_path), signal.SIGKILL)
        assert answers[0].status == 502
        assert answers[0].json()["juggler"]["endpoint"] == "a"
        eventually(lambda: juggler.instance("S/a")["error"], "bash has ended as well")
        assert paint(juggler).status == 200
        assert starts(tmp_path) == 2


@pytest.mark.parametrize("env", [{"FAKE_UNLOAD": "error"}, {"FAKE_RELOAD": "error"}], ids=["unload", "reload"])
def test_what_cannot_be_unloaded_or_woken_is_started_anew(tmp_path: Path, env: dict[str, str]) -> None:
    """Bug 8: memory that is not given back is taken by a stop; a reload that fails costs one request at most."""
    with running(tmp_path, exclusive(a=images(tmp_path, env=env), b=web())) as juggler:
        assert paint(juggler).status == 200
        other(juggler)
        assert residency(juggler) == ("stopped" if "FAKE_UNLOAD" in env else "unloaded")
        first = paint(juggler)
        if "FAKE_RELOAD" in env:
            assert first.status == 503
            assert "CUDA out of memory" in first.json()["detail"]
            eventually(lambda: paint(juggler).status == 200, "a fresh process")
        else:
            assert first.status == 200
        assert starts(tmp_path) == 2


def test_one_that_hangs_is_killed(tmp_path: Path) -> None:
    """Neither a swap nor the end of the program waits for a web UI that hears no signal."""
    hangs = images(tmp_path, env={"FAKE_STOP": "ignore"}, stop_timeout="300ms", model_unloading=False)
    with running(tmp_path, exclusive(a=hangs, b=web())) as juggler:
        assert paint(juggler).status == 200
        other(juggler)
        assert residency(juggler) == "stopped"
        assert not [line for line in processes_marked(juggler.marker) if "launch.py" in line or "webui.sh" in line]
        assert paint(juggler).status == 200


def test_a_start_that_fails_says_what_to_do(tmp_path: Path) -> None:
    """The web UI's last words and our hint reach the client."""
    with running(tmp_path, exclusive(a=images(tmp_path, "--frobnicate"))) as juggler:
        answer = paint(juggler)
        assert answer.status == 503
        problem = answer.json()
        assert "unrecognized arguments: --frobnicate" in problem["detail"]
        assert "does not know --frobnicate" in json.dumps(problem)
        assert problem["juggler"]["exit_status"] == 2
