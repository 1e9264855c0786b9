"""ComfyUI through the whole program: jobs that outlive their requests, pages that stay open, results after the swap."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.comfy_page import Page, Refused, browser_headers
from tests.e2e.support import LIMIT_S, PROGRAMS, Answer, Juggler, eventually, exclusive, running, web
from tests.ports import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc"),
]

JOB = {"1": {"class_type": "KSampler", "inputs": {}}}
NEW = {"FAKE_VERSION": "0.35.0"}


def sleep(seconds: float) -> dict[str, Any]:
    return {"1": {"class_type": "Sleep", "inputs": {"seconds": seconds}}}


def comfyui(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """A backend as an operator writes it: Python, script, folder, and options of a life before the juggler."""
    env = {"FAKE_RECORD": str(tmp_path / "record"), **more.pop("env", {})}
    return {
        "type": "comfyui",
        "binary": sys.executable,
        "default_parameters": ["main.py", "--listen", "--port", "8188"],
        "cwd": str(PROGRAMS / "comfyui"),
        "env": env,
        **more,
    }


def happened(tmp_path: Path) -> list[str]:
    """What the stand-in noted, without pids."""
    path = tmp_path / "record"
    return [line.partition(" ")[2] for line in path.read_text().splitlines()] if path.exists() else []


def pid_of(tmp_path: Path) -> int:
    return int((tmp_path / "record").read_text().splitlines()[-1].partition(" ")[0])


def residency(juggler: Juggler, name: str = "a") -> str:
    return str(juggler.instance(f"S/{name}")["residency"])


def queued(juggler: Juggler, prompt: dict[str, Any], **more: object) -> str:
    answer = juggler.ask("POST", "/a/prompt", {"prompt": prompt, **more})
    assert answer.status == 200, answer.body
    return str(answer.json()["prompt_id"])


def finished(juggler: Juggler, prompt_id: str) -> Any:
    """The history of a job once it is done, polled for as clients do."""
    return eventually(lambda: juggler.ask("GET", f"/a/history/{prompt_id}").json().get(prompt_id), "the job is done")


def ask_as(port: int, method: str, path: str, headers: dict[str, str], body: object = None) -> Answer:
    """A request with exactly these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
    with contextlib.closing(connection):
        data = json.dumps(body) if body is not None else None
        connection.request(method, path, data, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read())


def test_a_job_is_waited_for_and_its_results_come_after_the_swap(tmp_path: Path) -> None:
    """1. The job's request is answered at once. 2. B waits until the job is done, not just its request.
    3. ComfyUI is unloaded, not stopped. 4. History and picture are fetched from it, and B stays.
    5. The next job wakes the same process."""
    with running(tmp_path, exclusive(a=comfyui(tmp_path), b=web("--name", "b"))) as juggler:
        prompt_id = queued(juggler, sleep(1.0))
        pid = pid_of(tmp_path)
        assert juggler.ask("POST", "/b/x").json()["name"] == "b"
        order = happened(tmp_path)
        assert order.index(f"done {prompt_id}") < order.index("free free_memory+unload_models") < order.index("freed")
        assert residency(juggler) == "unloaded"

        history = juggler.ask("GET", f"/a/history/{prompt_id}").json()[prompt_id]
        name = history["outputs"]["9"]["images"][0]["filename"]
        picture = juggler.ask("GET", f"/a/api/view?filename={name}&subfolder=&type=output")
        assert picture.body.startswith(b"\x89PNG")
        assert juggler.ask("POST", "/a/history", {"delete": [prompt_id]}).status == 200
        assert (residency(juggler), residency(juggler, "b")) == ("unloaded", "ready")

        finished(juggler, queued(juggler, JOB))
        assert pid_of(tmp_path) == pid
        assert happened(tmp_path).count("load") == 2
        assert residency(juggler) == "ready"
        assert juggler.instance("S/a")["starts"] == 1
    start = json.loads(happened(tmp_path)[0].removeprefix("start "))
    assert start[:2] == ["--listen", "127.0.0.1"]
    assert start[2] == "--port"
    assert start[3] != "8188"
    assert start[4:] == ["--disable-auto-launch"]
    assert "stopped by SIGINT" in happened(tmp_path)


def test_an_open_page_survives_the_unload_and_holds_nothing_up(tmp_path: Path) -> None:
    """The socket delays no swap, hears of jobs afterwards, and does not bring ComfyUI back when it reconnects."""
    with running(tmp_path, exclusive(a=comfyui(tmp_path), b=web("--name", "b"))) as juggler:
        with pytest.raises(Refused, match="503"):
            Page(juggler.port, "/a/ws?clientId=tab")
        assert juggler.instance("S/a")["starts"] == 0
        assert juggler.ask("GET", "/a/").body.startswith(b"<!DOCTYPE html>")  # the page itself starts it
        with Page(juggler.port, "/a/ws?clientId=tab") as page:
            finished(
                juggler,
                queued(juggler, {"1": {"class_type": "Preview", "inputs": {"bytes": 500_000}}}, client_id="tab"),
            )
            page.until("executed")
            assert page.binary_bytes >= 10 * 500_000
            assert juggler.ask("POST", "/b/x").json()["name"] == "b"
            assert residency(juggler) == "unloaded"
            assert not page.closed.is_set()
            with Page(juggler.port, "/a/api/ws?clientId=second") as second:
                second.until("status")
                assert (residency(juggler), residency(juggler, "b")) == ("unloaded", "ready")
            finished(juggler, queued(juggler, JOB, client_id="tab"))
            page.until("executed", 2)
            assert not page.closed.is_set()
            assert juggler.ask("POST", "/api/v1/endpoints/a/stop?wait_s=60", port=juggler.control_port).status == 200
            eventually(page.closed.is_set, "the process has gone, and the page hears of it")


@pytest.mark.parametrize("env", [{}, NEW])
def test_pages_of_ours_pass_and_foreign_ones_do_not(tmp_path: Path, env: dict[str, str]) -> None:
    """The browser speaks of the juggler's address, ComfyUI of its own: both generations of its guard agree."""
    with running(tmp_path, exclusive(a=comfyui(tmp_path, env=env))) as juggler:
        own = f"http://127.0.0.1:{juggler.port}"
        answer = ask_as(juggler.port, "POST", "/a/api/prompt", browser_headers(own), {"prompt": JOB})
        assert answer.status == 200
        lan = {"Host": f"juggler.lan:{juggler.port}", **browser_headers(f"http://juggler.lan:{juggler.port}")}
        assert ask_as(juggler.port, "POST", "/a/interrupt", lan).status == 200
        with Page(juggler.port, "/a/ws", browser_headers(own, mode="websocket")) as page:
            page.until("status")
        with Page(juggler.port, "/a/ws", lan) as page:
            page.until("status")

        for headers in (browser_headers("http://evil.example", "cross-site"), browser_headers("http://127.0.0.1:1")):
            refused = ask_as(
                juggler.port, "POST", "/a/prompt", headers | {"Sec-Fetch-Site": "cross-site"}, {"prompt": JOB}
            )
            assert (refused.status, refused.body) == (403, b"")
            with pytest.raises(Refused, match="403"):
                Page(juggler.port, "/a/ws", headers | {"Sec-Fetch-Site": "cross-site"})
        # A link elsewhere that leads to the page is no attack; a picture from elsewhere is for ComfyUI to judge.
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
        assert ask_as(juggler.port, "GET", "/a/", link).status == 200
        embedded = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}
        assert ask_as(juggler.port, "GET", "/a/queue", embedded).status == (403 if env else 200)


def test_what_clients_may_and_may_not(tmp_path: Path) -> None:
    """Polls and settings of a forgotten page wake nothing; ``/free`` is ours; an upload comes before its job."""
    with running(tmp_path, exclusive(a=comfyui(tmp_path), b=web("--name", "b"))) as juggler:
        for method, path in (
            ("GET", "/prompt"),
            ("GET", "/api/queue"),
            ("POST", "/api/settings/x"),
            ("POST", "/queue"),
        ):
            assert juggler.ask(method, f"/a{path}").status == 503
        for path in ("/a/free", "/a/api/free"):
            assert juggler.ask("POST", path, {"unload_models": True}).status == 403
        assert juggler.instance("S/a")["starts"] == 0
        form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="in.png"\r\n\r\nPICTURE\r\n--x--\r\n'
        connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=LIMIT_S)
        with contextlib.closing(connection):
            connection.request("POST", "/a/upload/image", form, {"Content-Type": "multipart/form-data; boundary=x"})
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())["name"]) == (200, "in.png")
        assert juggler.ask("GET", "/a/view?filename=in.png&type=input").body == b"PICTURE"
        assert juggler.ask("POST", "/a/prompt", {}).status == 400
        assert juggler.ask("POST", "/b/x").json()["name"] == "b"
        assert residency(juggler) == "unloaded"
        # The process is there: an upload is taken without a swap.
        assert juggler.ask("POST", "/a/settings/x").status == 200
        assert residency(juggler, "b") == "ready"


def test_a_client_that_opens_the_socket_first(tmp_path: Path) -> None:
    """Open WebUI's order, with the one line its endpoint needs: socket, prompt, wait on the socket, history."""
    config = exclusive(a=comfyui(tmp_path), b=web("--name", "b"))
    config["servers"][0]["endpoints"][0]["traffic"] = [{"match": "GET /ws", "class": "start"}]
    with running(tmp_path, config) as juggler:
        assert juggler.ask("POST", "/b/x").json()["name"] == "b"
        with Page(juggler.port, "/a/ws?clientId=webui") as page:
            prompt_id = queued(juggler, JOB, client_id="webui")
            assert page.until("executing")["data"] == {"node": None, "prompt_id": prompt_id}
            assert finished(juggler, prompt_id)["status"]["completed"]
            assert juggler.ask("POST", "/b/x").json()["name"] == "b"
            assert residency(juggler) == "unloaded"


def test_killed_in_the_middle_of_a_request(tmp_path: Path) -> None:
    """The cut request gets a clear error, the next one a fresh process."""
    with running(tmp_path, exclusive(a=comfyui(tmp_path))) as juggler:
        answer = juggler.ask("POST", "/a/prompt", {"prompt": {"1": {"class_type": "DieAtOnce"}}})
        assert answer.status == 502
        assert answer.json()["error"]["type"] == "upstream_closed"
        first = pid_of(tmp_path)
        eventually(lambda: juggler.instance("S/a")["error"] is not None, "the exit is noticed")
        finished(juggler, queued(juggler, JOB))
        assert pid_of(tmp_path) != first


def test_killed_in_the_middle_of_a_job(tmp_path: Path) -> None:
    """No request is open then; another endpoint does not wait for a job that will never end."""
    with running(tmp_path, exclusive(a=comfyui(tmp_path), b=web("--name", "b"))) as juggler:
        prompt_id = queued(juggler, sleep(600))
        eventually(lambda: f"job {prompt_id}" in happened(tmp_path), "it works")
        waiting: list[str] = []
        other = threading.Thread(target=lambda: waiting.append(juggler.ask("POST", "/b/x").json()["name"]))
        other.start()
        eventually(lambda: residency(juggler) == "draining", "the other one waits")
        os.kill(pid_of(tmp_path), signal.SIGKILL)
        other.join(LIMIT_S)
        assert waiting == ["b"]
        finished(juggler, queued(juggler, JOB))


def test_one_that_does_not_let_go_is_stopped(tmp_path: Path) -> None:
    """A custom node keeps the memory: the swap goes on by stopping the process, by force where it hangs."""
    env = {"FAKE_FREE": "error", "FAKE_STOP": "ignore"}
    with running(
        tmp_path, exclusive(a=comfyui(tmp_path, env=env, stop_timeout="300ms"), b=web("--name", "b"))
    ) as juggler:
        finished(juggler, queued(juggler, JOB))
        pid = pid_of(tmp_path)
        assert juggler.ask("POST", "/b/x").json()["name"] == "b"
        assert residency(juggler) == "stopped"
        assert not Path(f"/proc/{pid}").exists()
        finished(juggler, queued(juggler, JOB))
        assert pid_of(tmp_path) != pid


def test_a_failed_start_tells_what_to_do(tmp_path: Path) -> None:
    """The hint of the module reaches the client with ComfyUI's own words."""
    config = exclusive(a=comfyui(tmp_path, env={"FAKE_START": "assets", **NEW}))
    with running(tmp_path, config) as juggler:
        answer = juggler.ask("POST", "/a/prompt", {"prompt": JOB})
        assert answer.status == 503
        problem = answer.json()
        assert problem["error"]["type"] == "backend_start_failed"
        assert "--disable-assets" in json.dumps(problem)
        assert any("ASSETS_STARTUP_FAILED" in line for line in problem["juggler"]["log_tail"])


@contextlib.contextmanager
def theirs(tmp_path: Path) -> Iterator[int]:
    """A ComfyUI that somebody else has started; its port."""
    port = free_port()
    command = [sys.executable, str(PROGRAMS / "fake_comfyui.py"), "--port", str(port)]
    process = subprocess.Popen(
        command, env={**os.environ, "FAKE_RECORD": str(tmp_path / "record")}, stderr=subprocess.DEVNULL
    )
    try:
        yield port
        assert process.poll() is None, "an attached server is never ended by us"
    finally:
        process.kill()
        process.wait()


def test_attached(tmp_path: Path) -> None:
    """Somebody else's jobs on somebody else's server hold up a swap too; it is emptied, used again, and left alone."""
    with theirs(tmp_path) as port:
        backend = {"type": "comfyui", "attach_to": f"http://localhost:{port}"}
        with running(tmp_path, exclusive(a=backend, b=web("--name", "b"))) as juggler:
            eventually(lambda: residency(juggler) == "ready", "found without a request")
            answer = ask_as(port, "POST", "/prompt", {}, {"prompt": sleep(0.5)})
            prompt_id = json.loads(answer.body)["prompt_id"]
            assert juggler.ask("POST", "/b/x").json()["name"] == "b"
            order = happened(tmp_path)
            assert order.index(f"done {prompt_id}") < order.index("freed")
            assert residency(juggler) == "unloaded"
            assert prompt_id in juggler.ask("GET", f"/a/history/{prompt_id}").json()
            finished(juggler, queued(juggler, JOB))
            assert residency(juggler) == "ready"


def test_requests_of_many_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Ten clients of two endpoints at once: every job is done, nobody gets an error."""
    with running(tmp_path, exclusive(a=comfyui(tmp_path), b=web("--name", "b"))) as juggler:
        problems: list[str] = []
        jobs: list[str] = []

        def use(number: int) -> None:
            try:
                time.sleep(0.02 * number)
                if number % 2:
                    assert juggler.ask("POST", "/b/x", timeout_s=50).status == 200
                else:
                    jobs.append(
                        juggler.ask("POST", "/a/prompt", {"prompt": sleep(0.1)}, timeout_s=50).json()["prompt_id"]
                    )
            except Exception as error:  # told in the main thread
                problems.append(repr(error))

        threads = [threading.Thread(target=use, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert problems == []
        done = eventually(
            lambda: [line for line in happened(tmp_path) if line.startswith("done ")][4:] and happened(tmp_path),
            "all done",
        )
        assert {f"done {job}" for job in jobs} <= set(done)
