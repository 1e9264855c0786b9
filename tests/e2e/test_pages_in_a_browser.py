"""The page of a wait in a real browser: it gives way to the backend's own, whatever the address looks like."""

import shutil
from typing import Any

import pytest
from tests.protocol.support import Rig, replies, rig, until

from juggler.proxy.page import waiting_page

playwright = pytest.importorskip("playwright.async_api")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(180),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]

REAL = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 16\r\n\r\n<h1>Its own</h1>"
PATHS = {"/ui/?q=1": True, "/ui/?q=1#tab=2": True, "/ui/#": True, "/ui/": False}
"""And whether scripts may run."""


async def test_it_gives_way() -> None:
    """Also where the address has a fragment, to which a mere refresh only scrolls, and where no script may run."""
    async with rig(replies(REAL)) as setup, playwright.async_playwright() as browsers:
        browser = await browsers.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            for path, scripts in PATHS.items():
                await wait_for_page(setup, await browser.new_page(java_script_enabled=scripts), path)
        finally:
            await browser.close()


async def wait_for_page(setup: Rig, page: Any, path: str) -> None:
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    setup.gateway.local = waiting_page("vision", "'gemma' is on the way out", 7.0, 1.5)
    host, port = setup.listener.addresses[0]
    address = f"http://{host}:{port}{path}"
    await page.goto(address)
    asked = len(setup.gateway.asked)
    assert await page.inner_text("h1") == "vision is being loaded"
    assert await page.evaluate("getComputedStyle(document.body).margin") == "0px"  # its style is allowed
    await until(lambda: len(setup.gateway.asked) > asked, timeout_s=30)
    setup.gateway.local = None
    await page.get_by_text("Its own").wait_for()
    assert page.url == address
    assert not [one for one in complaints if "503" not in one]
    await page.close()
