"""What is remembered of the past by the real program, over a sudden death and a directory that cannot be written."""

import signal
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import Juggler, eventually, exclusive, running, web

pytestmark = pytest.mark.slow


def asked(juggler: Juggler, path: str) -> Any:
    return juggler.ask("GET", path, port=juggler.control_port).json()


def days(juggler: Juggler) -> list[Any]:
    """Those with requests: two where midnight comes in between."""
    return [day for day in asked(juggler, "/api/v1/history/days")["days"] if day["requests"]]


def held(file: Path) -> bytes:
    """What is in a file, if there is one."""
    return file.read_bytes() if file.exists() else b""


def test_the_past_survives_a_kill(tmp_path: Path) -> None:
    """Requests, the eviction with its reason, and the day's sums are there after kill -9 and a new start."""
    config = exclusive(a=web(), b=web())
    with running(tmp_path, config) as juggler:
        for name in ("a", "b"):
            assert juggler.ask("POST", f"/{name}/work?token=geheim", {}).status == 200
        asked_at = "/api/v1/timeline?from_at=0"
        eventually(lambda: any("evicted by b" in one["why"] for one in asked(juggler, asked_at)["spans"]), "eviction")
        file = tmp_path / "state" / "history.sqlite3"
        log = file.with_name(file.name + "-wal")
        eventually(lambda: b"/b/work" in held(file) + held(log), "both are written")
        juggler.process.send_signal(signal.SIGKILL)
        juggler.process.wait()
        eventually(lambda: not juggler.left_behind(), "its children have gone too")
    with running(tmp_path, config) as juggler:
        eventually(lambda: sum(day["requests"] for day in days(juggler)) == 2, "sums of before")
        assert juggler.ask("POST", "/a/work", {}).status == 200
        found = eventually(
            lambda: (got := asked(juggler, "/api/v1/requests")["requests"]) and len(got) == 3 and got, "all three"
        )
        assert [one["target"] for one in found] == ["/a/work", "/b/work?token=***", "/a/work?token=***"]
        assert all(one["outcome"] == "ok" and one["load_s"] > 0 for one in found)
        assert [sum(day[what] for day in days(juggler)) for what in ("requests", "swaps")] == [3, 1]
        assert all(0 < day["share_waiting"] <= 1 for day in days(juggler))
        spans = asked(juggler, "/api/v1/timeline?from_at=0")["spans"]
        assert [one["why"] for one in spans if one["why"]] == ["evicted by b, nothing else could make room"]
        assert b"geheim" not in held(file) + held(log)


def test_without_a_place_to_write(tmp_path: Path) -> None:
    """A file that cannot be opened is said once; everything is shown from memory."""
    (tmp_path / "state" / "history.sqlite3").mkdir(parents=True)
    with running(tmp_path, exclusive(a=web())) as juggler:
        for _ in range(3):
            assert juggler.ask("POST", "/a/work", {}).status == 200
        eventually(lambda: len(asked(juggler, "/api/v1/requests")["requests"]) == 3, "all three")
        metrics = juggler.ask("GET", "/metrics", port=juggler.control_port).body.decode()
        assert "juggler_history_store_up 0.0" in metrics
        assert 'juggler_requests_total{endpoint="S/a",outcome="ok"} 3.0' in metrics
        assert juggler.text().count("the history cannot be written") == 1


def test_switched_off(tmp_path: Path) -> None:
    """``history: false`` leaves no file, and shows what is in memory."""
    with running(tmp_path, {**exclusive(a=web()), "history": False}) as juggler:
        assert juggler.ask("POST", "/a/work", {}).status == 200
        eventually(lambda: len(asked(juggler, "/api/v1/requests")["requests"]) == 1, "it is shown")
    assert not list((tmp_path / "state").glob("history*"))
