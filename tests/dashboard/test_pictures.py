"""The pictures of the documentation, of a pretended juggler: JUGGLER_SCREENSHOTS=docs/images and this file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.dashboard.conftest import Open
from tests.dashboard.fake_api import FakeApi
from tests.dashboard.test_shell import VIEWS
from tests.dashboard.test_views import expect

SHOTS = os.environ.get("JUGGLER_SCREENSHOTS")
BYTES_MAX = 150_000
SIZE = (1280, 800)
CHAT = [b'data: {"choices":[{"delta":{"content":"Hello! How can I help you today?"}}]}\n\n', b"data: [DONE]\n\n"]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(SHOTS is None, reason="JUGGLER_SCREENSHOTS names no folder")]


@pytest.mark.parametrize(
    ("view", "theme"),
    [*((view, "light") for view in VIEWS if "/" not in view), ("board", "dark"), ("timeline", "dark")],
)
def test_a_picture(api: FakeApi, open_page: Open, view: str, theme: str) -> None:
    head = {"X-Try-Status": "200", "X-Try-Type": "text/event-stream", "X-Try-Queue": "0", "X-Try-Load": "0"}
    api.trial = (head, CHAT)
    page = open_page(view, theme=theme, size=SIZE)
    expect(page.locator(VIEWS[view]).first).to_be_visible()
    if view == "requests":
        page.locator(".fall").nth(1).click()
    if view == "history":
        page.get_by_role("slider").fill("80")
    if view == "try":
        page.get_by_role("button", name="Send").click()
        expect(page.locator(".reply")).to_be_visible()
        expect(page.get_by_text("The answer is complete")).to_be_attached()
    folder = Path(str(SHOTS))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"dashboard-{view}{'-dark' if theme == 'dark' else ''}.png"
    page.screenshot(path=path)
    assert path.stat().st_size <= BYTES_MAX
