"""The dashboard over a real juggler: what is pressed there happens, and what happens is seen there."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.dashboard.conftest import Open
from tests.dashboard.fake_api import POLICY
from tests.dashboard.test_views import expect, row
from tests.e2e.support import exclusive, running, web

pytestmark = pytest.mark.slow


def process_of(marker: str, name: str) -> int:
    """The process of one stand-in backend, found by its environment and command line."""
    for directory in Path("/proc").iterdir():
        if directory.name.isdecimal() and int(directory.name) != os.getpid():
            try:
                line = (directory / "cmdline").read_bytes().split(b"\0")
                ours = marker.encode() in (directory / "environ").read_bytes()
            except OSError:
                continue
            if ours and line[0] == sys.executable.encode() and b"web.py" in line[1] and name.encode() in line:
                return int(directory.name)
    raise AssertionError(f"{name} does not run")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds a process by /proc")
def test_steering_and_seeing(tmp_path: Path, open_page: Open) -> None:
    """A load, a swap with its reason, a lock, a backend that is killed, and the end of the juggler."""
    config = exclusive(left=web("--name", "left"), right=web("--name", "right"))
    with running(tmp_path, config) as juggler:
        sent = juggler.ask("GET", "/", port=juggler.control_port)
        assert sent.headers["content-security-policy"] == POLICY
        page = open_page(url=f"http://127.0.0.1:{juggler.control_port}/")
        left, right = row(page, "left"), row(page, "right")
        left.get_by_role("button", name="Load left").click()
        expect(left).to_contain_text("Ready")
        right.get_by_role("button", name="Load right").click()
        expect(right).to_contain_text("Ready")
        expect(left).to_contain_text("Stopped")
        page.get_by_role("switch", name="Lock").click()
        expect(page.locator(".banner")).to_contain_text("Locked")
        page.get_by_role("switch", name="Lock").click()
        expect(page.locator(".banner")).to_have_count(0)
        os.kill(process_of(juggler.marker, "right"), signal.SIGKILL)
        expect(right).to_contain_text("Failed")
        page.get_by_role("link", name="Timeline").click()
        given = page.get_by_role("region", name="Who gave way").get_by_role("listitem")
        expect(given.filter(has_text="left")).to_contain_text("evicted by right")
        juggler.stop()
        expect(page.get_by_text("Connection lost.")).to_be_visible()
