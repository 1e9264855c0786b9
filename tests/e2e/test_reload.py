"""A changed configuration in the running program: real processes, sockets, signals and files."""

import copy
import http.client
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.certificates import make_pair, trusting
from tests.e2e.support import LIMIT_S, PROGRAMS, Juggler, eventually, processes_marked, running, web
from tests.ports import free_port

pytestmark = pytest.mark.slow


def roomy(**backends: dict[str, Any]) -> dict[str, Any]:
    """One endpoint per backend, ``/<name>``, and memory for all of them at once."""
    return {
        "memory": {"pools": {"pretend": "100GiB"}},
        "backends": backends,
        "servers": [
            {"name": "S", "endpoints": [endpoint(name) for name in backends]},
        ],
    }


def endpoint(backend: str, **more: Any) -> dict[str, Any]:
    own = {"name": backend, "path_prefix": f"/{backend}", "strip_prefix": True, "backend": backend, "memory": "10GiB"}
    return {**own, **more}


def write(juggler: Juggler, config: dict[str, Any]) -> None:
    juggler.config_path.write_text(json.dumps(config, indent=4))


def reload(juggler: Juggler, config: dict[str, Any]) -> dict[str, Any]:
    """Write another configuration and have it taken up by SIGHUP; returns what came of it."""
    write(juggler, config)
    return hang_up(juggler)


def hang_up(juggler: Juggler) -> dict[str, Any]:
    before = last_reload(juggler)
    juggler.process.send_signal(signal.SIGHUP)
    outcome: dict[str, Any] = eventually(lambda: _newer(last_reload(juggler), before), "the reload has come to its end")
    return outcome


def _newer(now: Any, before: Any) -> Any:
    return now if now is not None and (before is None or now["at"] != before["at"]) else None


def done(outcome: Any) -> Any:
    return outcome if outcome is not None and outcome["result"] == "done" else None


def last_reload(juggler: Juggler) -> Any:
    return juggler.ask("GET", "/api/v1/config", port=juggler.control_port).json()["last_reload"]


def pid(juggler: Juggler, name: str, **more: Any) -> int:
    answer = juggler.ask("POST", f"/{name}/x", {}, **more)
    assert answer.status == 200, answer.body
    return int(answer.json()["pid"])


def backends_alive(juggler: Juggler) -> list[str]:
    return [line for line in processes_marked(juggler.marker) if "web.py" in line and "guardian" not in line]


def test_other_arguments_of_one_endpoint(tmp_path: Path) -> None:
    """Its process is another one; that of its neighbour goes on, with the request that runs on it."""
    config = roomy(a=web("--name", "a"), b=web("--name", "b"))
    with running(tmp_path, config) as juggler:
        before_a, before_b = pid(juggler, "a"), pid(juggler, "b")
        answers: list[int] = []
        slow = threading.Thread(target=lambda: answers.append(juggler.ask("POST", "/b/slow?4", {}).status))
        slow.start()
        eventually(lambda: juggler.instance("S/b")["running"] == 1, "it runs")
        changed = copy.deepcopy(juggler.config)
        changed["servers"][0]["endpoints"][0]["parameters"] = ["--name", "other"]
        outcome = reload(juggler, changed)
        assert outcome["result"] == "done", outcome
        assert outcome["summary"] == "models: keep 1, restart 1; listeners: keep 1"
        assert juggler.ask("POST", "/a/x", {}).json()["name"] == "other"
        assert pid(juggler, "a") != before_a
        assert pid(juggler, "b") == before_b
        slow.join(LIMIT_S)
        assert answers == [200]
        assert len(backends_alive(juggler)) == 2
        assert "reload (SIGHUP): models: keep 1, restart 1; listeners: keep 1" in juggler.text()
        assert "reload: model S/a: restart (parameters)" in juggler.text()


def test_a_removed_and_an_added_listener(tmp_path: Path) -> None:
    """The new one serves; the old one lets its request end, and its port is free; the model behind both goes on."""
    config = roomy(a=web("--name", "a"))
    with running(tmp_path, config) as juggler:
        before = pid(juggler, "a")
        answers: list[int] = []
        slow = threading.Thread(target=lambda: answers.append(juggler.ask("POST", "/a/slow?4", {}).status))
        slow.start()
        eventually(lambda: juggler.instance("S/a")["running"] == 1, "it runs")
        port = free_port()
        changed = copy.deepcopy(juggler.config)
        changed["servers"] = [{"name": "T", "port": port, "endpoints": [endpoint("a", name="b", path_prefix="/b")]}]
        outcome = reload(juggler, changed)
        assert outcome["result"] == "done", outcome
        assert pid(juggler, "b", port=port) == before, "the process is the same, whatever its endpoint is called"
        slow.join(LIMIT_S)
        assert answers == [200]
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", juggler.port), 1)
        juggler.port = port  # for the end


def test_a_kept_listener_drops_no_connection(tmp_path: Path) -> None:
    """One connection asks before and after; its new requests go by the new routes."""
    config = roomy(a=web("--name", "a"))
    with running(tmp_path, config) as juggler:
        connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=20)
        try:

            def ask(path: str) -> tuple[int, Any]:
                connection.request("POST", path, b"{}", {"Content-Type": "application/json"})
                answer = connection.getresponse()
                return answer.status, json.loads(answer.read())

            status, before = ask("/a/x")
            assert status == 200
            own = connection.sock.getsockname()
            changed = copy.deepcopy(juggler.config)
            changed["servers"][0]["endpoints"] = [endpoint("a", path_prefix="/elsewhere")]
            changed["limits"] = {"idle_timeout": "5m"}
            assert reload(juggler, changed)["result"] == "done"
            status, after = ask("/elsewhere/x")
            assert (status, after["pid"]) == (200, before["pid"])
            assert connection.sock.getsockname() == own, "it is the same connection"
            assert ask("/a/x")[0] == 404
        finally:
            connection.close()


def test_a_broken_file_changes_nothing_and_is_told(tmp_path: Path) -> None:
    """By the log, by the API, and by the command's exit status; the next good one is taken up."""
    config = roomy(a=web("--name", "a"))
    with running(tmp_path, config) as juggler:
        before = pid(juggler, "a")
        juggler.config_path.write_text('{"backends": {"a": }')
        outcome = hang_up(juggler)
        assert (outcome["ok"], outcome["result"]) == (False, "problems")
        place = f"{juggler.config_path}:1:{outcome['problems'][0]['column']}"
        assert "nothing was changed" in juggler.text()
        assert place in juggler.text()
        assert pid(juggler, "a") == before
        command = juggler_command(juggler, "reload")
        assert command.returncode == 2
        assert place in command.stderr
        juggler.config_path.unlink()
        assert "there is no such file" in hang_up(juggler)["message"]
        write(juggler, juggler.config)
        assert juggler_command(juggler, "reload").returncode == 0
        assert pid(juggler, "a") == before


def test_the_command(tmp_path: Path) -> None:
    """A dry run tells and changes nothing; the real one tells the same and does it."""
    config = roomy(a=web("--name", "a"))
    with running(tmp_path, config) as juggler:
        before = pid(juggler, "a")
        changed = copy.deepcopy(juggler.config)
        changed["servers"][0]["endpoints"][0]["parameters"] = ["--name", "other"]
        write(juggler, changed)
        told = juggler_command(juggler, "reload", "--dry-run")
        assert told.returncode == 0, told.stderr
        assert told.stdout.splitlines() == [
            "dry run: models: restart 1; listeners: keep 1",
            "  model S/a: restart (parameters)",
        ]
        assert pid(juggler, "a") == before
        told = juggler_command(juggler, "reload", "--json")
        assert told.returncode == 0, told.stderr
        assert json.loads(told.stdout)["result"] == "done"
        assert juggler.ask("POST", "/a/x", {}).json()["name"] == "other"
        assert "nothing to change" in juggler_command(juggler, "reload").stdout


def juggler_command(juggler: Juggler, *words: str) -> "subprocess.CompletedProcess[str]":
    url = f"http://127.0.0.1:{juggler.control_port}"
    program = [sys.executable, "-m", "juggler.cli.main", *words, "--url", url]
    return subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("how", ["rename over", "symlink swap", "written in place"])
def test_a_watched_file(tmp_path: Path, how: str) -> None:
    """However it is changed it is taken up, once; a moment without it is no change."""
    config = {**roomy(a=web("--name", "a")), "reload": "watch"}
    with running(tmp_path, config) as juggler:
        before = pid(juggler, "a")
        changed = copy.deepcopy(juggler.config)
        changed["servers"][0]["endpoints"][0]["parameters"] = ["--name", "other"]
        text = json.dumps(changed, indent=4)
        path = juggler.config_path
        if how == "written in place":
            path.write_text(text)
        elif how == "rename over":
            (tmp_path / ".config.json.swp").write_text(text)
            (tmp_path / ".config.json.swp").replace(path)
        else:
            (tmp_path / "v1").mkdir()
            path.rename(tmp_path / "v1" / "config.json")  # for a moment it is not there
            path.symlink_to(tmp_path / "v1" / "config.json")
            (tmp_path / "v2").mkdir()
            (tmp_path / "v2" / "config.json").write_text(text)
            link = tmp_path / "next"
            link.symlink_to(tmp_path / "v2" / "config.json")
            link.replace(path)
        # The file that it began with is looked at, too: nothing is to be changed for it.
        taken_up = eventually(lambda: done(last_reload(juggler)), "it is taken up")
        assert taken_up["by"] == "file change"
        answer = juggler.ask("POST", "/a/x", {}).json()
        assert answer["name"] == "other"
        assert answer["pid"] != before
        before_touch = last_reload(juggler)
        os.utime(path)
        touched = eventually(lambda: _newer(last_reload(juggler), before_touch), "it is noticed again")
        assert (touched["by"], touched["result"]) == ("file change", "nothing")
        assert juggler.text().count("reload (file change)") == 1, "touched is not changed, and not worth a line"


def test_watching_begins_and_ends_with_the_setting(tmp_path: Path) -> None:
    """It is a setting like others: a reload by hand switches it on, the file itself switches it off."""
    config = roomy(a=web("--name", "a"))
    with running(tmp_path, config) as juggler:
        assert reload(juggler, {**juggler.config, "reload": "watch"})["summary"].startswith("models: keep 1")
        before = last_reload(juggler)
        write(juggler, juggler.config)
        # It may have looked before: the file that it began with is nothing to change anything for.
        outcome = eventually(lambda: done(_newer(last_reload(juggler), before)), "it is taken up")
        assert outcome["by"] == "file change"
        write(juggler, {**juggler.config, "reload": "watch"})
        time.sleep(2.5)
        assert last_reload(juggler)["at"] == outcome["at"], "nobody looks any more"


@pytest.mark.timeout(240)
def test_twenty_reloads_under_load(tmp_path: Path) -> None:
    """Another endpoint is changed, removed and added while clients work: nothing of theirs fails, nothing is left."""
    config = roomy(a=web("--name", "a"), b=web("--name", "b"))
    with running(tmp_path, config) as juggler:
        before = pid(juggler, "a")
        pid(juggler, "b")
        open_before = descriptors(juggler)
        over = threading.Event()
        served: list[int] = []
        failed: list[str] = []

        def client(number: int) -> None:
            connection = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=20)
            while not over.is_set():
                try:
                    connection.request("POST", "/a/slow?0.02" if number % 2 else "/a/x", b"{}")
                    answer = connection.getresponse()
                    body = answer.read()
                    if answer.status != 200 or json.loads(body)["pid"] != before:
                        failed.append(f"{answer.status} {body[:200]!r}")
                    else:
                        served.append(number)
                except (OSError, http.client.HTTPException) as error:
                    failed.append(repr(error))
                    connection.close()
            connection.close()

        clients = [threading.Thread(target=client, args=(number,)) for number in range(8)]
        for one in clients:
            one.start()
        try:
            for number in range(20):
                changed = copy.deepcopy(juggler.config)
                changed["servers"][0]["endpoints"][1]["parameters"] = ["--name", f"b{number}"]
                if number % 5 == 4:
                    changed["servers"][0]["endpoints"].pop()
                if number % 3 == 2:
                    extra = {"name": "T", "port": free_port(), "endpoints": [endpoint("b", name=f"t{number}")]}
                    changed["servers"].append(extra)
                outcome = reload(juggler, changed)
                assert outcome["result"] == "done", outcome
                if number % 5 != 4:
                    assert juggler.ask("POST", "/b/x", {}).json()["name"] == f"b{number}"
        finally:
            over.set()
            for one in clients:
                one.join(30)
        assert failed == []
        assert len(served) > 100
        assert reload(juggler, juggler.config)["result"] == "done"
        assert pid(juggler, "a") == before
        pid(juggler, "b")
        eventually(lambda: len(backends_alive(juggler)) == 2, "the rest has ended")
        kept = len(clients)  # connections to the backend, for whoever asks next
        eventually(lambda: descriptors(juggler) <= open_before + kept + 4, "no descriptor is left open")


def descriptors(juggler: Juggler) -> int:
    return len(list(Path(f"/proc/{juggler.process.pid}/fd").iterdir()))


def test_requests_that_wait_are_carried_over_and_those_of_a_removed_endpoint_are_told(tmp_path: Path) -> None:
    """Both wait behind a running one; the new process serves the one, the other gets 503 and why."""
    config = roomy(a=web("--name", "a"), b=web("--name", "b"))
    for one in config["servers"][0]["endpoints"]:
        one["concurrency"] = 1
    with running(tmp_path, config) as juggler:
        answers: dict[str, Any] = {}

        def ask(key: str, path: str) -> None:
            answers[key] = juggler.ask("POST", path, {})

        threads = [threading.Thread(target=ask, args=(f"runs {name}", f"/{name}/slow?5")) for name in "ab"]
        for one in threads:
            one.start()
        eventually(lambda: all(juggler.instance(f"S/{name}")["running"] == 1 for name in "ab"), "they run")
        threads += [threading.Thread(target=ask, args=(f"waits {name}", f"/{name}/x")) for name in "ab"]
        for one in threads[2:]:
            one.start()
        eventually(lambda: all(juggler.instance(f"S/{name}")["waiting"] == 1 for name in "ab"), "they wait")
        changed = copy.deepcopy(juggler.config)
        changed["servers"][0]["endpoints"] = [endpoint("a", concurrency=1, parameters=["--name", "other"])]
        assert reload(juggler, changed)["result"] == "done"
        for one in threads:
            one.join(20)
        assert answers["runs a"].json()["name"] == "a"
        assert answers["waits a"].json()["name"] == "other"
        assert answers["runs b"].json()["name"] == "b"
        assert answers["waits b"].status == 503
        assert answers["waits b"].json()["error"]["code"] == "endpoint_removed"
        assert "the configuration was changed" in answers["waits b"].json()["error"]["message"]
        eventually(lambda: [one["instance"] for one in juggler.status()["instances"]] == ["S/a"], "b is forgotten")
        assert len(backends_alive(juggler)) == 1
        assert juggler.ask("POST", "/b/x", {}).status == 404


def test_a_busy_port_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """Also what could have been changed beside it."""
    config = roomy(a=web("--name", "a"))
    with running(tmp_path, config) as juggler, socket.create_server(("127.0.0.1", 0)) as taken:
        before = pid(juggler, "a")
        changed = copy.deepcopy(juggler.config)
        changed["servers"][0]["endpoints"][0]["parameters"] = ["--name", "other"]
        changed["servers"] += [
            {"name": "T", "port": free_port(), "endpoints": []},
            {"name": "U", "port": taken.getsockname()[1], "endpoints": []},
        ]
        outcome = reload(juggler, changed)
        assert outcome["result"] == "problems"
        assert "server 'U' cannot listen on" in outcome["problems"][-1]["message"]
        assert pid(juggler, "a") == before
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", changed["servers"][1]["port"]), 1)


def test_a_listener_moves_to_an_address_that_includes_its_own(tmp_path: Path) -> None:
    """From this machine to all of its addresses, on the same port."""
    config = roomy(a=web("--name", "a"))
    with running(tmp_path, config) as juggler:
        before = pid(juggler, "a")
        changed = copy.deepcopy(juggler.config)
        changed["servers"][0]["host"] = "0.0.0.0"
        outcome = reload(juggler, changed)
        assert (outcome["result"], outcome["summary"]) == ("done", "models: keep 1; listeners: move 1")
        assert pid(juggler, "a") == before


def test_a_warm_up_that_is_new_loads(tmp_path: Path) -> None:
    """And one whose model was changed loads again; what is warm already is left alone."""
    config = roomy(a=web("--name", "a"), b=web("--name", "b"), c=web("--name", "c"))
    config["warmup"] = [{"server": "S", "endpoint": name} for name in "ab"]
    with running(tmp_path, config) as juggler:

        def states() -> dict[str, Any]:
            return {one["instance"]: (one["state"], one["starts"]) for one in juggler.status()["instances"]}

        eventually(lambda: states()["S/b"][0] == "ready", "warm")
        changed = copy.deepcopy(juggler.config)
        changed["servers"][0]["endpoints"][0]["parameters"] = ["--name", "other"]
        changed["warmup"].append({"server": "S", "endpoint": "c"})
        assert reload(juggler, changed)["result"] == "done"
        eventually(lambda: states()["S/c"][0] == "ready", "the new one is warm")
        assert states() == {"S/a": ("ready", 2), "S/b": ("ready", 1), "S/c": ("ready", 1)}


def test_a_reload_while_it_shuts_down_is_refused(tmp_path: Path) -> None:
    """The shutdown goes on."""
    config = roomy(a=web("--name", "a"))
    with running(tmp_path, config) as juggler:
        slow = threading.Thread(target=lambda: juggler.ask("POST", "/a/slow?6", {}))
        slow.start()
        eventually(lambda: juggler.instance("S/a")["running"] == 1, "it runs")
        juggler.process.send_signal(signal.SIGTERM)
        eventually(lambda: "shutting down" in juggler.text(), "it goes down")
        juggler.process.send_signal(signal.SIGHUP)
        told = "reload (SIGHUP): nothing was changed: the juggler is shutting down"
        eventually(lambda: told in juggler.text(), "it is told")
        slow.join(LIMIT_S)
        assert juggler.process.wait(LIMIT_S) == 0


def test_certificates(tmp_path: Path) -> None:
    """Another pair of files on a kept listener, HTTPS where there was none, and back, all on one port."""
    first, second = make_pair(tmp_path), make_pair(tmp_path, name="second")
    config = roomy(a=web("--name", "a"))
    with running(tmp_path, config) as juggler:

        def secure(request: str = "/a/x") -> tuple[str, int]:
            connection = http.client.HTTPSConnection("localhost", juggler.port, timeout=10, context=trusting())
            try:
                connection.request("POST", request, b"")
                found = connection.sock.getpeercert()
                assert found is not None
                return str(found["serialNumber"]), connection.getresponse().status
            finally:
                connection.close()

        before = pid(juggler, "a")
        plain = http.client.HTTPConnection("127.0.0.1", juggler.port, timeout=LIMIT_S)
        plain.request("POST", "/a/slow?4", b"")
        eventually(lambda: juggler.instance("S/a")["running"] == 1, "it runs")
        changed = copy.deepcopy(juggler.config)
        changed["servers"][0]["tls"] = {"cert": str(first.cert), "key": str(first.key)}
        outcome = reload(juggler, changed)
        assert (outcome["result"], outcome["summary"]) == ("done", "models: keep 1; listeners: move 1")
        serial, status = secure()
        assert status == 200
        assert plain.getresponse().status == 200, "what ran on the plain listener ends there"
        plain.close()
        changed["servers"][0]["tls"] = {"cert": str(second.cert), "key": str(first.key)}
        outcome = reload(juggler, changed)
        assert outcome["result"] == "problems"
        assert "does not belong to the certificate" in outcome["message"]
        assert secure() == (serial, 200)
        changed["servers"][0]["tls"] = {"cert": str(second.cert), "key": str(second.key)}
        outcome = reload(juggler, changed)
        assert (outcome["result"], outcome["summary"]) == ("done", "models: keep 1; listeners: keep 1")
        other, status = secure()
        assert (status, other != serial) == (200, True)
        assert reload(juggler, juggler.config)["result"] == "done"
        assert pid(juggler, "a") == before


def test_a_listener_gets_its_address_back_when_its_successor_cannot_have_it(tmp_path: Path) -> None:
    """It has to leave its address first, for the wider one includes it; but somebody else has a part of that."""
    config = roomy(a=web("--name", "a"))
    with running(tmp_path, config) as juggler, socket.create_server(("127.0.0.2", juggler.port)):
        before = pid(juggler, "a")
        changed = copy.deepcopy(juggler.config)
        changed["servers"][0]["host"] = "0.0.0.0"
        outcome = reload(juggler, changed)
        assert outcome["result"] == "problems", outcome
        assert "cannot listen on 0.0.0.0" in outcome["message"]
        assert pid(juggler, "a") == before


def test_an_attached_server_is_let_go_and_runs_on(tmp_path: Path) -> None:
    """Whoever is no longer in the configuration is not ours to stop; one that comes is found without a request."""
    port = free_port()
    command = [sys.executable, str(PROGRAMS / "attached.py"), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            theirs = {"type": "command", "attach_to": f"http://localhost:{port}", "unload": "POST /unload"}
            config = roomy(a=web("--name", "a"), theirs=theirs)
            with running(tmp_path, config) as juggler:
                eventually(lambda: juggler.instance("S/theirs")["residency"] == "ready", "found")
                without = copy.deepcopy(juggler.config)
                without["servers"][0]["endpoints"].pop()
                assert reload(juggler, without)["result"] == "done"
                eventually(lambda: len(juggler.status()["instances"]) == 1, "it is forgotten")
                assert process.poll() is None
                assert reload(juggler, juggler.config)["result"] == "done"
                eventually(lambda: juggler.instance("S/theirs")["residency"] == "ready", "found again")
                assert juggler.ask("POST", "/theirs/x", {}).status == 200
        finally:
            process.kill()


def test_a_terminal_that_is_closed_ends_it(tmp_path: Path) -> None:
    """SIGHUP then is no order to reload: nobody would be left who could end it."""
    config_path = tmp_path / "config.json"
    config = {"control": False, "temp_dir": str(tmp_path / "t"), "state_dir": str(tmp_path / "s"), **roomy(a=web())}
    config["servers"][0]["port"] = free_port()
    config_path.write_text(json.dumps(config))
    own_terminal = "fcntl.ioctl(0, termios.TIOCSCTTY, 0)"
    begin = f"import fcntl, os, sys, termios; os.setsid(); {own_terminal}; os.execv(sys.argv[1], sys.argv[1:])"
    serve = [sys.executable, "-m", "juggler.cli.main", "serve", "--config", str(config_path)]
    terminal, inside = pty.openpty()
    try:
        # Buffered as on any user's machine: what is left in a buffer cannot be written at the end.
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        process = subprocess.Popen(
            [sys.executable, "-c", begin, *serve], stdin=inside, stdout=inside, stderr=inside, env=environ
        )
        os.close(inside)
        printed = b""
        while b"listens on" not in printed:
            printed += os.read(terminal, 4096)
    finally:
        os.close(terminal)
    try:
        assert process.wait(20) == 0
    finally:
        process.kill()


def test_rules_change_in_place(tmp_path: Path) -> None:
    """Memory declared anew counts for the loaded model, larger pools and lower limits at once; no process changes."""
    config = roomy(a=web("--name", "a"), b=web("--name", "b"))
    with running(tmp_path, config) as juggler:
        before = pid(juggler, "a"), pid(juggler, "b")
        changed = copy.deepcopy(juggler.config)
        changed["memory"] = {"pools": {"pretend": "200GiB"}}
        changed["scheduler"] = {"dial": "throughput"}
        changed["servers"][0]["endpoints"][0] |= {"memory": "60GiB", "concurrency": 1, "queue_limit": 1}
        outcome = reload(juggler, changed)
        assert outcome["summary"] == "models: keep 2; listeners: keep 1"
        assert juggler.instance("S/a")["held_bytes"] == {"pretend": 60 * 2**30}
        pool = juggler.status()["pools"][0]
        assert (pool["capacity_bytes"], pool["used_bytes"]) == (200 * 2**30, 70 * 2**30)
        answers: list[int] = []
        works = threading.Thread(target=lambda: answers.append(juggler.ask("POST", "/a/slow?5", {}).status))
        works.start()
        eventually(lambda: juggler.instance("S/a")["running"] == 1, "it runs")
        waits = threading.Thread(target=lambda: answers.append(juggler.ask("POST", "/a/x", {}).status))
        waits.start()
        eventually(lambda: juggler.instance("S/a")["waiting"] == 1, "one waits")
        assert juggler.ask("POST", "/a/x", {}).status == 429
        for one in (works, waits):
            one.join(LIMIT_S)
        assert answers == [200, 200]
        assert (pid(juggler, "a"), pid(juggler, "b")) == before
