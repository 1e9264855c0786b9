"""A browser for the tests of the dashboard: the distribution's Chromium, driven by Playwright; skipped without them.

Every page that a test opens is watched: a request to anywhere but loopback, an error in a script, or anything that the
Content-Security-Policy stopped fails the test.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from tests.dashboard import scenes
from tests.dashboard.fake_api import FakeApi
from tests.e2e.support import LIMIT_S

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Error, Page, Request

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE = (1360, 900)
NARROW = (360, 740)

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright for Python")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("the browser tests need Chromium (chromium on the PATH)")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with FakeApi(scenes.busy_house()) as fake:
        fake.timeline = scenes.timeline(time.time())
        yield fake


@pytest.fixture
def open_page(browser: Browser, api: FakeApi) -> Iterator[Open]:
    """Opens a view: ``open_page("queue", theme="dark", size=NARROW)``."""
    faults: list[str] = []
    pages: list[Page] = []

    def ask(request: Request) -> None:
        host = urlsplit(request.url).hostname
        if host not in ("127.0.0.1", None):
            faults.append(f"a request to {request.url}")

    def hear(message: ConsoleMessage) -> None:
        # What the network refuses is part of some tests, and is told of by the dashboard itself.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            faults.append(message.text)

    def fail(error: Error) -> None:
        faults.append(error.stack or error.message)

    def opened(
        view: str = "board",
        *,
        theme: str = "light",
        size: tuple[int, int] = WIDE,
        clock: bool = False,
        url: str = api.url,
    ) -> Page:
        page = browser.new_page(
            color_scheme="dark" if theme == "dark" else "light",
            viewport={"width": size[0], "height": size[1]},
            locale="en-GB",
            timezone_id="Europe/Berlin",
            reduced_motion="reduce",
        )
        page.set_default_timeout(LIMIT_S * 1000)
        pages.append(page)
        page.on("request", ask)
        page.on("console", hear)
        page.on("pageerror", fail)
        if clock:
            page.clock.install()
        page.goto(f"{url}#/{view}")
        return page

    yield opened
    for page in pages:
        page.context.close()
    assert not faults
