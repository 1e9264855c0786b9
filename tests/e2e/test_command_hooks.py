"""Type ``command``: the operator's calls for unload, wake and busy, through the whole program."""

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import PROGRAMS, Juggler, eventually, exclusive, running, web


def hooked(*flags: str, **more: Any) -> dict[str, Any]:
    """A started server with all hooks."""
    return {
        "type": "command",
        "binary": sys.executable,
        "default_parameters": [str(PROGRAMS / "attached.py"), "--port", "{port}", *flags],
        "unload": "POST /unload",
        "wake": "POST /wake",
        "busy": {"path": "/jobs", "busy_when": "running > 0"},
        **more,
    }


def diary(juggler: Juggler) -> Any:
    return juggler.ask("GET", "/a/diary").json()


def swap(juggler: Juggler) -> None:
    assert juggler.ask("POST", "/b/x").json()["name"] == "b"


def test_unloaded_and_woken(tmp_path: Path) -> None:
    """The process stays; its model is there again before the request."""
    with running(tmp_path, exclusive(a=hooked(), b=web("--name", "b"))) as juggler:
        pid = juggler.ask("POST", "/a/x").json()["pid"]
        swap(juggler)
        assert juggler.instance("S/a")["residency"] == "unloaded"
        assert juggler.ask("POST", "/a/x").json()["pid"] == pid
        assert diary(juggler)["diary"] == ["work", "unload", "wake", "work"]


def test_busy_while_wanted(tmp_path: Path) -> None:
    """Its job ends before its model goes."""
    with running(tmp_path, exclusive(a=hooked(), b=web("--name", "b"))) as juggler:
        assert juggler.ask("POST", "/a/job?0.6").status == 200
        swap(juggler)
        assert diary(juggler)["diary"] == ["job done", "unload"]


@pytest.mark.parametrize(("expect", "residency"), [([202, 204], "unloaded"), ([200], "stopped")])
def test_expected_statuses(tmp_path: Path, expect: list[int], residency: str) -> None:
    """What is not expected is no unload: the server is stopped, as the memory is wanted."""
    unload = {"path": "/unload", "expect": expect}
    config = exclusive(a=hooked("--unload-status", "202", unload=unload), b=web("--name", "b"))
    with running(tmp_path, config) as juggler:
        assert juggler.ask("POST", "/a/x").status == 200
        swap(juggler)
        assert juggler.instance("S/a")["residency"] == residency


def test_a_wake_that_fails_ends_in_a_new_start(tmp_path: Path) -> None:
    """The waiting request hears of it; the process goes, and the next request gets a new one."""
    with running(tmp_path, exclusive(a=hooked("--wake-status", "500"), b=web("--name", "b"))) as juggler:
        pid = juggler.ask("POST", "/a/x").json()["pid"]
        swap(juggler)
        answer = juggler.ask("POST", "/a/x")
        assert answer.status == 503
        assert "wake was answered with status 500" in answer.json()["error"]["message"]
        eventually(lambda: juggler.instance("S/a")["residency"] != "stopping", "it is gone")
        assert juggler.ask("POST", "/a/x").json()["pid"] != pid


def test_without_unloading_it_is_stopped(tmp_path: Path) -> None:
    """``model_unloading: false`` means stop, whatever hooks there are."""
    with running(tmp_path, exclusive(a=hooked(model_unloading=False), b=web("--name", "b"))) as juggler:
        assert juggler.ask("POST", "/a/x").status == 200
        swap(juggler)
        assert juggler.instance("S/a")["residency"] == "stopped"
