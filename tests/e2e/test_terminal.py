"""Every command against a real juggler, in pipes and in terminals."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.support import PROGRAMS, Juggler, behind, eventually, exclusive, running, web
from tests.e2e.terminal import ENTER, LEAVE, Terminal, lines_of, terminal

PROGRAM = (sys.executable, "-m", "juggler.cli.main")
SECRET = "sesame-opens"

PRINTS = {
    "type": "command",
    "binary": sys.executable,
    "default_parameters": [str(PROGRAMS / "prints.py"), "{port}", SECRET],
    "env": {"SOME_KEY": SECRET},
}


@pytest.fixture(scope="module")
def juggler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Juggler]:
    """Four models of which one at a time is loaded."""
    tmp_path = tmp_path_factory.mktemp("cli")
    backends = {
        "Default LLM": web("--load", "0.2"),
        "Gr\u00f6\u00dfe \u2713": web(),
        "prints": PRINTS,
        "slow": behind(gate_in(tmp_path), web()),
    }
    config = exclusive(**backends)
    for endpoint in config["servers"][0]["endpoints"]:
        endpoint["path_prefix"] = f"/{len(endpoint['name'])}"
    with running(tmp_path, config) as one:
        yield one


def gate_in(tmp_path: Path) -> Path:
    """The file for which the slow one waits."""
    return tmp_path / "gate"


def environ(juggler: Juggler, **more: str) -> dict[str, str]:
    return {"JUGGLER_URL": f"http://127.0.0.1:{juggler.control_port}", "NO_COLOR": "", **more}


def run(juggler: Juggler, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *words],
        env={**os.environ, **environ(juggler, **env)},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=50,
        check=False,
    )


def done(juggler: Juggler, *words: str) -> str:
    result = run(juggler, *words)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@contextlib.contextmanager
def shown(juggler: Juggler, *words: str, columns: int = 100, rows: int = 30, **env: str) -> Iterator[Terminal]:
    with terminal([*PROGRAM, *words], environ(juggler, **env), columns, rows) as opened:
        yield opened


# ---------------------------------------------------------------- in a pipe


def test_orders(juggler: Juggler) -> None:
    """Load, restart, unload, stop: each is done when the command ends."""
    assert done(juggler, "load", "Default LLM") == "S/Default LLM: loaded\n"
    assert juggler.instance("S/Default LLM")["state"] == "ready"
    assert done(juggler, "restart", "Default LLM") == "S/Default LLM: loaded\n"
    assert juggler.instance("S/Default LLM")["starts"] >= 2
    assert "S/Default LLM" in done(juggler, "unload", "Default LLM")
    assert juggler.instance("S/Default LLM")["state"] == "stopped"
    done(juggler, "load", "prints", "Default LLM")
    assert juggler.instance("S/prints")["state"] == "stopped"
    assert "S/Default LLM" in done(juggler, "stop", "S/Default LLM")
    assert juggler.instance("S/Default LLM")["state"] == "stopped"


def test_views(juggler: Juggler) -> None:
    """For people and for programs."""
    assert "S/Default LLM" in done(juggler, "ps")
    assert {one["name"] for one in json.loads(done(juggler, "ps", "--json"))["instances"]} >= {"prints"}
    listed = done(juggler, "ls").splitlines()
    assert [line.split()[0] for line in listed] == ["ENDPOINT", "S/Default", "S/Gr\u00f6\u00dfe", "S/prints", "S/slow"]
    assert f"http://127.0.0.1:{juggler.port}/6" in listed[3]
    assert json.loads(done(juggler, "ls", "--json"))[0]["endpoint"] == "S/Default LLM"
    assert done(juggler, "queue") == "Nobody waits.\n"
    assert json.loads(done(juggler, "queue", "--json")) == []
    assert done(juggler, "top").startswith("juggler ")
    done(juggler, "load", "Default LLM")
    assert "loaded S/Default LLM" in done(juggler, "why", "Default LLM", "--count", "1")
    assert isinstance(json.loads(done(juggler, "why", "--json")), list)


def test_pins_and_lock(juggler: Juggler) -> None:
    done(juggler, "load", "Default LLM")
    assert done(juggler, "pin", "Default LLM") == "S/Default LLM: pinned\n"
    assert "ready (pinned)" in done(juggler, "ps")
    assert done(juggler, "pin", "--off", "Default LLM") == "S/Default LLM: not pinned\n"
    assert "locked" in done(juggler, "lock")
    assert "juggler lock --off" in done(juggler, "ps")
    assert "not locked" in done(juggler, "lock", "--off")
    assert juggler.status()["locked"] is None


def test_the_queue(juggler: Juggler) -> None:
    """Who waits is listed with the reason, put to the front, and cancelled; its client is answered."""
    done(juggler, "load", "Default LLM")
    done(juggler, "lock")
    clients = [
        subprocess.Popen([sys.executable, "-c", CLIENT, str(juggler.port), "/6/x"], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        eventually(lambda: len(juggler.status()["waiting"]) == 2, "both wait")
        queue = juggler.status()["waiting"]
        ids = [str(one["request"]) for one in sorted(queue, key=lambda one: one["position"])]
        lines = done(juggler, "queue").splitlines()
        assert [line.split()[0] for line in lines] == ["ID", *ids]
        assert "lock" in lines[1]
        assert done(juggler, "queue", "front", ids[1]) == f"{ids[1]}: is next\n"
        assert [line.split()[0] for line in done(juggler, "queue").splitlines()] == ["ID", ids[1], ids[0]]
        assert done(juggler, "queue", "cancel", *ids) == f"{ids[0]}: cancelled\n{ids[1]}: cancelled\n"
        answers = [client.communicate(timeout=20)[0] for client in clients]
        assert all(answer.startswith(("5", "4")) for answer in answers), answers
        again = run(juggler, "queue", "cancel", ids[0])
        assert again.returncode == 1
        assert again.stderr
    finally:
        for client in clients:
            client.kill()
            client.wait()
            assert client.stdout is not None
            client.stdout.close()
        done(juggler, "lock", "--off")


CLIENT = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
connection.request("POST", sys.argv[2], b"{}")
print(connection.getresponse().status)
"""


def test_logs(juggler: Juggler) -> None:
    """What was printed between lines of ours; no colours and no secret; begun lines too; our own log."""
    done(juggler, "load", "prints")
    lines = done(juggler, "logs", "prints").splitlines()
    begin = max(number for number, line in enumerate(lines) if " started: " in line)
    assert lines[begin].endswith("prints.py " + lines[begin].split()[-2] + " ***")
    printed = [line for line in lines[begin + 1 :] if not line.startswith("--- ")]
    assert sorted(printed) == ["green words and no orders", "loading 30%", "the key is ***, HF_TOKEN=***"]
    assert "S/prints ready after" in done(juggler, "logs", "-n", "5000")
    assert SECRET not in done(juggler, "logs", "-n", "5000")
    assert done(juggler, "logs", "prints", "--since", "0") == "loading 30%\n"
    numbers = [json.loads(line)["seq"] for line in done(juggler, "logs", "prints", "--json", "-n", "2").splitlines()]
    assert numbers[1:] == [numbers[0] + 1, None]
    done(juggler, "stop", "prints")
    lines = done(juggler, "logs", "prints").splitlines()
    assert "loading 30%" in lines[-3:]
    assert lines[-1].endswith(" was ended by signal 15")


def test_errors(juggler: Juggler) -> None:
    """Of the API, with exit status 1."""
    for words in (["load", "nope"], ["logs", "nope"], ["why", "nope"], ["pin", "nope"], ["queue", "cancel", "99999"]):
        result = run(juggler, *words)
        assert (result.returncode, result.stdout) == (1, ""), words
        assert "Traceback" not in result.stderr
        assert result.stderr.count("\n") <= 2


@pytest.mark.parametrize("words", [["ps"], ["logs"], ["schema"], ["ps", "--watch"], ["logs", "-f"], ["--help"]])
def test_whoever_reads_has_gone(juggler: Juggler, words: list[str]) -> None:
    """As with ``| head``: no word about it."""
    process = subprocess.Popen(
        [*PROGRAM, *words], env={**os.environ, **environ(juggler)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    try:
        if words in (["ps", "--watch"], ["logs", "-f"]):
            run(juggler, "load", "prints")
            run(juggler, "stop", "prints")
        _, told = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, told) == (141, b"")


def test_a_terminal_that_is_not_utf_8(juggler: Juggler) -> None:
    """Letters it lacks are replaced."""
    for words in (["ps"], ["ls"], ["top"], ["logs", "Gr\u00f6\u00dfe \u2713"]):
        with shown(juggler, *words, PYTHONIOENCODING="latin-1", TERM="dumb") as screen:
            assert screen.ends() == 0
            assert words[0] == "logs" or "Gr\ufffd\ufffde ?" in screen.seen
            assert "Traceback" not in screen.seen


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_output_that_cannot_be_written(juggler: Juggler) -> None:
    """A full disk is told; a closed descriptor is what the caller wants."""
    env = {**os.environ, **environ(juggler)}
    shell = ["sh", "-c", '"$@" > /dev/full', "sh", *PROGRAM, "ls"]
    result = subprocess.run(shell, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert (result.returncode, result.stderr) == (1, "juggler: [Errno 28] No space left on device\n")
    shell = ["sh", "-c", '"$@" >&-', "sh", *PROGRAM, "top"]
    result = subprocess.run(shell, env=env, capture_output=True, text=True, timeout=50, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_admin_key(tmp_path: Path) -> None:
    """From the configuration, the environment or the option; without it there is a sentence."""
    key = "a-key-of-the-operator"
    with running(tmp_path, {**exclusive(a=web()), "control": {"key": key}}) as juggler:
        for words, env in (
            (["--config", str(juggler.config_path)], {"JUGGLER_URL": ""}),
            ([], {"JUGGLER_KEY": key}),
            (["--key", key], {}),
        ):
            result = run(juggler, "ps", *words, **env)
            assert (result.returncode, result.stderr) == (0, ""), words
        for words, told in (([], "this needs the admin key"), (["--key", "wrong"], "that is not the admin key")):
            result = run(juggler, "ps", *words)
            assert (result.returncode, result.stdout) == (1, "")
            assert told in result.stderr
            assert key not in result.stderr
        assert key not in run(juggler, "logs", "-n", "5000", "--key", key).stdout


# ---------------------------------------------------------------- on a terminal


def test_top(juggler: Juggler) -> None:
    """Paints the second screen, follows its size, and q leaves the last view behind."""
    done(juggler, "load", "Default LLM")
    with shown(juggler, "top", "--every", "0.1") as screen:
        first = screen.wait_for("\x1b[J")
        assert screen.seen.startswith(ENTER)
        assert "Default LLM" in screen.seen
        screen.resize(50, 8)
        screen.wait_for("\x1b[H", first)
        eventually(lambda: fits(screen, 50, 8), "painted in the new size")
        screen.press("xyz")  # keys that mean nothing
        screen.press("q")
        assert screen.ends() == 0
        assert screen.is_as_before()
        assert "Default LLM" in screen.seen.rpartition(LEAVE)[2]


def fits(screen: Terminal, columns: int, rows: int) -> bool:
    """Whether the latest whole view fits, and that another came since."""
    seen = len(screen.seen)
    screen.wait_for("\x1b[J", screen.wait_for("\x1b[H", seen))
    view = screen.seen[seen:].partition("\x1b[H")[2].partition("\x1b[J")[0]
    lines = lines_of(view)
    return len(lines) <= rows and all(len(line) <= columns for line in lines)


@pytest.mark.parametrize("words", [["top"], ["ps", "--watch"]])
@pytest.mark.parametrize("ending", ["Ctrl-C", "SIGTERM", "SIGHUP"])
def test_interrupted_views(juggler: Juggler, words: list[str], ending: str) -> None:
    """The terminal is as it was."""
    with shown(juggler, *words) as screen:
        screen.wait_for("\x1b[J")
        assert not screen.is_as_before()
        if ending == "Ctrl-C":
            screen.press("\x03")
            assert screen.ends() == 130
        else:
            number = signal.Signals[ending]
            screen.process.send_signal(number)
            assert screen.ends() == 128 + number
        assert screen.is_as_before()
        assert "Traceback" not in screen.seen


def test_an_order_tells_what_it_waits_for(juggler: Juggler) -> None:
    """On a line that is gone when it is done; Ctrl-C ends the waiting, not the load."""
    done(juggler, "stop", "slow")
    with shown(juggler, "load", "slow") as screen:
        screen.wait_for("\r\x1b[KS/slow: loading for ")
        screen.press("\x03")
        assert screen.ends() == 130
        assert "Traceback" not in screen.seen
    with shown(juggler, "load", "S/slow") as screen:
        screen.wait_for("S/slow: loading for ")
        gate_in(juggler.config_path.parent).touch()
        assert screen.ends() == 0
        assert screen.seen.endswith("S/slow: loaded\r\n")
    assert juggler.instance("S/slow")["starts"] == 1


def test_a_view_that_is_suspended(juggler: Juggler) -> None:
    """Ctrl-Z finds the terminal as it was; the view comes back with the program."""
    with shown(juggler, "top") as screen:
        screen.wait_for("\x1b[J")
        screen.press("\x1a")
        screen.wait_for(LEAVE)
        eventually(lambda: state_of(screen.process.pid) == "T", "stopped")
        assert screen.is_as_before()
        mark = len(screen.seen)
        screen.process.send_signal(signal.SIGCONT)
        screen.wait_for("\x1b[J", screen.wait_for(ENTER, mark))
        screen.press("q")
        assert screen.ends() == 0
        assert screen.is_as_before()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def test_watching_a_juggler_that_goes(tmp_path: Path) -> None:
    """The view says so, and shows the next one when it is there."""
    with running(tmp_path, exclusive(a=web())) as juggler, shown(juggler, "ps", "-w", "--every", "0.1") as screen:
        screen.wait_for("S/a")
        juggler.stop()
        screen.wait_for("no juggler answers")
        screen.press("q")
        assert screen.ends() == 0
        assert screen.is_as_before()


def test_watching_without_a_terminal(juggler: Juggler) -> None:
    """A document a line, for as long as somebody reads."""
    process = subprocess.Popen(
        [*PROGRAM, "ps", "--watch", "--json", "--every", "0.1"],
        env={**os.environ, **environ(juggler)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        instants = [json.loads(process.stdout.readline())["now_at"] for _ in range(3)]
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert instants == sorted(set(instants))
    assert process.returncode == 130
    assert "Traceback" not in told


def test_a_terminal_without_a_second_screen(juggler: Juggler) -> None:
    """The view is printed once."""
    with shown(juggler, "top", TERM="dumb") as screen:
        assert screen.ends() == 0
        assert "Default LLM" in screen.seen
        assert "\x1b" not in screen.seen


def test_following_a_log(juggler: Juggler) -> None:
    """Colours are kept and orders to the terminal are not; a begun line is written over; Ctrl-C ends it."""
    done(juggler, "load", "prints")
    done(juggler, "stop", "prints")
    with shown(juggler, "logs", "-f", "prints", "-n", "1") as screen:
        screen.wait_for(" was ended by signal 15")  # what comes after that is followed
        done(juggler, "load", "prints")
        screen.wait_for("\x1b[32mgreen\x1b[0m words and no orders\x1b[0m\r\n")
        screen.wait_for("the key is ***, HF_TOKEN=***\r\n")
        begun = screen.wait_for("loading 30%")
        juggler.ask("GET", "/6/print?the-end-of-it")
        screen.wait_for("\r\x1b[Kloading 30%\r\nthe-end-of-it\r\n", begun - len("loading 30%"))
        screen.press("\x03")
        assert screen.ends() == 130
        assert screen.is_as_before()
        assert "Traceback" not in screen.seen
        assert SECRET not in screen.seen
    done(juggler, "stop", "prints")


def test_a_log_without_colours(juggler: Juggler) -> None:
    """``NO_COLOR`` (no-color.org)."""
    done(juggler, "load", "prints")
    with shown(juggler, "logs", "prints", NO_COLOR="1") as screen:
        assert screen.ends() == 0
        assert "green words and no orders\r\n" in screen.seen
        assert "\x1b" not in screen.seen


def test_following_the_log_of_a_juggler_that_ends(tmp_path: Path) -> None:
    """It is told, with exit status 1."""
    with running(tmp_path, exclusive(a=web())) as juggler, shown(juggler, "logs", "-f") as screen:
        screen.wait_for("listens on")
        juggler.stop()
        assert screen.ends() == 1
        assert "no juggler answers" in screen.seen
        assert "Traceback" not in screen.seen


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_completion_in_bash(juggler: Juggler, tmp_path: Path) -> None:
    """Tab completes the name of an endpoint, blanks and all, with a quote and without."""
    program = tmp_path / "juggler"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m juggler.cli.main "$@"\n')
    program.chmod(0o755)
    env = environ(juggler, PATH=f"{tmp_path}:{os.environ['PATH']}", PS1="$ ", INPUTRC="/dev/null")
    bash = shutil.which("bash")
    assert bash is not None
    with terminal([bash, "--norc", "--noprofile", "-i"], env, columns=200) as shell:
        shell.press('eval "$(juggler completion bash)"; echo rea""dy\n')
        mark = shell.wait_for("$ ", shell.wait_for("ready\r\n"))
        shell.press("echo pad; juggler stop Def\t")
        mark = shell.wait_for("Default\\ LLM", mark)
        shell.press("\n")
        mark = shell.wait_for("$ ", shell.wait_for("S/Default LLM: ", mark))
        shell.press("juggler stop 'Def\t")
        mark = shell.wait_for("'Default LLM'", mark)
        shell.press("\n")
        shell.wait_for("S/Default LLM: ", mark)
        shell.press("exit\n")
        assert shell.ends() == 0
