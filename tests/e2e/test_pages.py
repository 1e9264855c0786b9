"""A person opens a web UI whose program has to be started: what the browser shows until it is there."""

import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.support import LIMIT_S, PROGRAMS, Answer, Juggler, behind, eventually, exclusive, running, web
from tests.e2e.test_traffic import UI_TRAFFIC, ask, starts

pytestmark = pytest.mark.slow

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
UNSEEN_S = 5.3
"""Longer than a start that nobody waits for goes on (5 s), not as long as a place is kept (8 s)."""


def ui(load_s: float = 0.0, gate: Path | None = None) -> dict[str, Any]:
    parameters = [str(PROGRAMS / "web_ui.py"), "--port", "{port}", "--load-s", str(load_s)]
    server: dict[str, Any] = {"type": "command", "binary": sys.executable, "default_parameters": parameters}
    config = exclusive(ui=server if gate is None else behind(gate, server), other=web("--name", "other"))
    config["servers"][0]["endpoints"][0]["traffic"] = UI_TRAFFIC
    config["waiting"] = {"page_after": 0.3}
    return config


def opened(juggler: Juggler, path: str = "/ui/") -> Answer:
    return ask(juggler, "GET", path, **BROWSER, Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="document")


def refresh_s(page: Answer) -> int:
    """Seconds after which the page asks again."""
    assert (page.status, page.headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert page.headers["cache-control"] == "no-store"
    assert int(page.headers["retry-after"]) >= 1
    (seconds,) = re.findall(rb'http-equiv="refresh" content="([0-9]+)"', page.body)
    return int(seconds)


def test_the_page_of_a_wait_leads_to_the_ui(tmp_path: Path) -> None:
    """One start, though nobody is connected for longer than an abandoned one is let go on; then the page is at once."""
    gate = tmp_path / "gate"
    with running(tmp_path, ui(gate=gate)) as juggler:
        page = opened(juggler)
        assert refresh_s(page) == 2
        assert b"ui</bdi> is being loaded" in page.body
        assert b"It is loading" in page.body
        time.sleep(UNSEEN_S)
        assert juggler.instance("S/ui")["waiting"] == 1
        assert juggler.instance("S/ui")["running"] == 0
        threading.Timer(0.5, gate.touch).start()
        page = opened(juggler)  # held until the load ends
        assert (page.status, page.body) == (200, b'<a href="v1/models">models</a>')
        assert starts(juggler) == 1
        eventually(lambda: juggler.instance("S/ui")["running"] == 0, "nothing is kept any more")
        assert opened(juggler).status == 200


def test_who_does_not_navigate_waits(tmp_path: Path) -> None:
    """A tool and a script of a page get the real answer, late."""
    with running(tmp_path, ui(load_s=1.5)) as juggler:
        answers: list[int] = []
        script = {"Accept": "text/html", "Sec_Fetch_Mode": "cors", "Sec_Fetch_Dest": "empty"}
        threads = [
            threading.Thread(target=lambda fields=fields: answers.append(ask(juggler, "GET", "/ui/", **fields).status))
            for fields in ({"Accept": "*/*"}, script)
        ]
        for one in threads:
            one.start()
        for one in threads:
            one.join(LIMIT_S)
        assert answers == [200, 200]
        assert starts(juggler) == 1


def test_a_start_that_fails_is_shown(tmp_path: Path) -> None:
    """With the program's last words, and without trying again by itself; also where it fails between two questions."""
    gate = tmp_path / "gate"
    words = ["-c", "echo '<b>out of luck</b>' >&2; exit 3", "{port}"]
    config = exclusive(dying=behind(gate, {"type": "command", "binary": "/bin/sh", "default_parameters": words}))
    config["servers"][0]["endpoints"][0]["traffic"] = [{"match": "GET /", "class": "start"}]
    config["waiting"] = {"page_after": 0.2}
    with running(tmp_path, config) as juggler:
        page = opened(juggler, "/dying/")
        assert refresh_s(page) == 2
        gate.touch()
        eventually(lambda: juggler.instance("S/dying")["error"], "it has failed")
        failed = opened(juggler, "/dying/")
        assert failed.status == 503
        for shown in (b"dying cannot be shown", b"&lt;b&gt;out of luck&lt;/b&gt;", b"exit status 3", b"Try again"):
            assert shown in failed.body
        assert b"http-equiv" not in failed.body
        assert starts(juggler, "dying") == 1


def test_a_page_that_waits_does_not_hold_up_the_end(tmp_path: Path) -> None:
    """What is kept for it is given up with everything else."""
    with running(tmp_path, ui(load_s=60.0)) as juggler:
        refresh_s(opened(juggler))
        began = time.monotonic()
        assert juggler.stop() == 0
        assert time.monotonic() - began < 8
