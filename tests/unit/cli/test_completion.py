"""What a shell offers."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import CompletionItem

from juggler.cli import completion
from juggler.cli.completion import SHELLS, endpoints, requests, script
from juggler.cli.main import cli
from tests.unit.cli.fake_api import FakeApi

ENDPOINTS = [
    {"endpoint": "S/Default LLM", "type": "llamacpp"},
    {"endpoint": "S/Vision", "type": "llamacpp"},
    {"endpoint": "T/Vision", "type": "vllm"},
]


PATIENT = "from juggler.cli import completion, main; completion.LIMIT_S = 20.0; main.main()"
"""The program, for a machine that is busy."""


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever answers does so, however busy the machine is."""
    monkeypatch.setattr(completion, "LIMIT_S", 20.0)


def values(items: list[CompletionItem]) -> list[str]:
    return [str(item.value) for item in items]


def test_endpoints_of_the_running_juggler(api: FakeApi) -> None:
    """Their own names where these are unique, full ones where not or where one was begun; any case."""
    api.answers["GET /api/v1/endpoints"] = (200, {"endpoints": ENDPOINTS})
    given = {"url": api.url, "config_path": Path("/nowhere")}
    assert values(endpoints(given, "")) == ["Default LLM", "S/Vision", "T/Vision"]
    assert values(endpoints(given, "def")) == ["Default LLM"]
    assert values(endpoints(given, "S/")) == ["S/Default LLM", "S/Vision"]
    assert endpoints(given, "T/")[0].help == "vllm"


@pytest.mark.parametrize("answers", [False, True])
def test_without_a_juggler_the_file_tells(tmp_path: Path, api: FakeApi, answers: bool) -> None:
    """None runs, or it wants a key that is not known."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"servers": [{"name": "S", "endpoints": [{"name": "a"}, {"name": "b"}]}]}))
    api.answers["*"] = (401, {"error": {"message": "key"}})
    given = {"url": api.url if answers else "http://127.0.0.1:1", "config_path": path}
    assert values(endpoints(given, "")) == ["a", "b"]
    assert endpoints({"url": "nonsense", "config_path": "/nowhere"}, "") == []


def test_a_juggler_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person waits: the limit is short, and then there is nothing to offer."""
    monkeypatch.setattr(completion, "LIMIT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        given = {"url": f"http://127.0.0.1:{silent.getsockname()[1]}", "config_path": Path("/nowhere")}
        assert endpoints(given, "") == []


def test_waiting_requests(api: FakeApi) -> None:
    api.answers["GET /api/v1/waiting"] = (200, {"waiting": [{"request": 41, "endpoint": "S/a"}, {"request": 5}, 3]})
    given = {"url": api.url, "config_path": Path("/nowhere")}
    assert values(requests(given, "")) == ["41", "5"]
    assert values(requests(given, "4")) == ["41"]
    assert requests({"url": "http://127.0.0.1:1", "config_path": Path("/nowhere")}, "") == []


@pytest.mark.parametrize("shell", SHELLS)
def test_scripts(shell: str) -> None:
    """They ask the program itself."""
    assert "_JUGGLER_COMPLETE" in script(shell, cli)
    assert 'COMPREPLY+=("$value")' in script("bash", cli)


def test_in_a_shell(api: FakeApi) -> None:
    """As bash asks: one line for each, and nothing else."""
    api.answers["GET /api/v1/endpoints"] = (200, {"endpoints": ENDPOINTS})
    done = subprocess.run(
        [sys.executable, "-c", PATIENT],
        env={
            "COMP_WORDS": "juggler\nload\nd",
            "COMP_CWORD": "2",
            "_JUGGLER_COMPLETE": "bash_complete",
            "JUGGLER_URL": api.url,
        },
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("plain,Default LLM\n", "")
