"""Every view over a real juggler while stand-in backends push each other out."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.dashboard.conftest import Open
from tests.dashboard.test_real import process_of
from tests.dashboard.test_views import expect, row
from tests.e2e.support import Juggler, eventually, running, web

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds a process by /proc"),
]

VIEWS = {
    "board": "tbody.instance",
    "queue": "h2",
    "timeline": ".span",
    "requests": ".fall",
    "history": ".graph",
    "logs": ".log-line",
    "config": ".listing code",
    "connect": ".client",
    "try": ".try",
}
"""Each with what is seen once it is all there."""


def house() -> dict[str, object]:
    """Two chats and an image server that do not fit together; nothing of it is real but the processes."""
    needs = {"chat": ("14GiB", "0.6"), "coder": ("16GiB", "0.9"), "vision": ("6GiB", "0.2")}
    return {
        "memory": {"pools": {"gpu0": "24GiB"}},
        "backends": {name: web("--name", name, "--load", load_s) for name, (_, load_s) in needs.items()},
        "servers": [
            {
                "name": "LLM",
                "endpoints": [
                    {
                        "name": name,
                        "path_prefix": f"/{name}",
                        "strip_prefix": True,
                        "backend": name,
                        "memory": {"gpu0": memory},
                    }
                    for name, (memory, _) in needs.items()
                ],
            }
        ],
    }


class Traffic:
    """Clients that ask for one after the other, until they are told to stop."""

    def __init__(self, juggler: Juggler) -> None:
        self._juggler = juggler
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(at,)) for at in range(3)]

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, at: int) -> None:
        names = ("chat", "coder", "vision")
        while not self._over.wait(0.1):
            name = names[at % 3]
            at += 1
            self._juggler.ask("POST", f"/{name}/slow?0.{at % 4}", {}, timeout_s=60)


def recorded(juggler: Juggler) -> list[object]:
    answer = juggler.ask("GET", "/api/v1/requests?limit=200", port=juggler.control_port).json()
    records: list[object] = answer["requests"]
    return records


@pytest.mark.timeout(240)
def test_every_view_while_models_swap(tmp_path: Path, open_page: Open) -> None:
    """No view reports an error, asks anybody but this machine (see ``open_page``) or stays empty."""
    with running(tmp_path, house()) as juggler:
        url = f"http://127.0.0.1:{juggler.control_port}/"
        page = open_page(url=url)
        with Traffic(juggler):
            eventually(lambda: len(recorded(juggler)) > 25, "some requests have ended", 120)
            for view, there in VIEWS.items():
                page.goto(f"{url}#/{view}")
                expect(page.locator(f".view-{view} {there}").first).to_be_visible()
                if view == "try":
                    page.get_by_label("Endpoint").select_option("LLM/chat")
                    page.get_by_role("button", name="Send").click()
                    expect(page.locator(".reply")).to_contain_text('"name": "chat"', timeout=30_000)
                if view == "requests":
                    page.locator(".fall").nth(2).click()
        page.goto(f"{url}#/requests")
        expect(page.locator(".fall").first).to_be_visible()


def test_a_killed_backend_shows_at_once(tmp_path: Path, open_page: Open) -> None:
    """1. It is ready. 2. It is killed. 3. The open page says so, and its log, without being loaded again."""
    with running(tmp_path, house()) as juggler:
        page = open_page(url=f"http://127.0.0.1:{juggler.control_port}/")
        chat = row(page, "chat")
        chat.get_by_role("button", name="Load chat").click()
        expect(chat).to_contain_text("Ready")
        seen_before = page.evaluate("performance.timeOrigin")
        killed_at = time.time()
        os.kill(process_of(juggler.marker, "chat"), signal.SIGKILL)
        expect(chat).to_contain_text("Failed")
        (one,) = [each for each in juggler.status()["instances"] if each["name"] == "chat"]
        assert one["state"] == "failed"
        assert one["since_at"] >= killed_at - 0.5
        assert page.evaluate("performance.timeOrigin") == seen_before
        page.get_by_role("link", name="Logs of chat").click()
        expect(page.locator(".log")).to_contain_text("signal 9")
