"""The frame around the views: the stream and its end, the key, ways by keyboard, themes, accessibility."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.dashboard import scenes
from tests.dashboard.conftest import NARROW, WIDE, Open
from tests.dashboard.fake_api import FakeApi
from tests.dashboard.test_views import expect, row
from tests.e2e.support import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.slow

AXE = (Path(__file__).parent / "axe" / "axe.min.js").read_text(encoding="utf-8")
SHOTS = os.environ.get("JUGGLER_SCREENSHOTS")
"""A folder for a picture of every view."""


def test_the_page_says_when_the_stream_is_down_and_stops_counting(api: FakeApi, open_page: Open) -> None:
    """A juggler that answers with errors is asked again and again; once it streams, everything is as it was."""
    page = open_page("queue", clock=True)
    waits = page.get_by_role("row", name="no. 71").get_by_role("cell").nth(2)

    def counted() -> int:
        minutes, seconds = waits.inner_text().split(":")
        return 60 * int(minutes) + int(seconds)

    before = counted()
    page.clock.run_for(3000)
    eventually(lambda: counted() >= before + 3, "the page counts")
    api.refuses_streams = True
    with page.expect_response(re.compile("/api/v1/status")):  # once the browser's own attempt was refused
        api.cut_streams()
    page.clock.run_for(2500)
    expect(page.get_by_text("Connection lost.")).to_be_visible()
    expect(page.locator(".live")).to_have_text("No connection")
    stands = counted()
    page.clock.run_for(5000)
    assert counted() == stands
    api.answers_streams.clear()  # or the page's own next attempt could be faster than the click
    api.refuses_streams = False
    with page.expect_request(re.compile("/api/v1/events")):
        page.get_by_role("button", name="Try now").click()
    api.answers_streams.set()
    expect(page.get_by_text("Connection lost.")).to_have_count(0)
    expect(page.locator(".live")).to_have_text("Live")


def test_a_cut_stream_goes_on_where_it_was(api: FakeApi, open_page: Open) -> None:
    """The browser says which event it heard last, and a short interruption is not worth a word."""
    page = open_page()
    expect(row(page, "coder")).to_contain_text("Starting")
    api.change(today={**api.status["today"], "requests": 4711})
    expect(page.get_by_text("4,711")).to_be_visible()
    api.cut_streams()
    eventually(lambda: len(api.resumed) > 1, "the browser connects again")
    assert api.resumed == [None, f"{scenes.BOOT}-1"]
    expect(page.locator(".live")).to_have_text("Live")
    expect(page.get_by_text("Connection lost.")).to_have_count(0)


def test_the_clock_goes_on_after_a_cut(api: FakeApi, open_page: Open) -> None:
    """Who missed nothing gets no snapshot, and nothing may happen for long: the seconds are counted all the same."""
    page = open_page("queue")
    waits = page.get_by_role("row", name="no. 71").get_by_role("cell").nth(2)
    expect(waits).to_be_visible()
    api.cut_streams()
    eventually(lambda: len(api.resumed) > 1, "the browser connects again")
    expect(page.locator(".live")).to_have_text("Live")
    before = waits.inner_text()
    expect(waits).not_to_have_text(before)
    assert api.resumed[1] is not None


def test_a_stream_that_died_silently_is_noticed(api: FakeApi, open_page: Open) -> None:
    """A frozen juggler, or a network that went away: nothing arrives, and nothing says that nothing will."""
    page = open_page(clock=True)
    expect(row(page, "coder")).to_contain_text("Starting")
    api.answers_streams.clear()
    page.clock.run_for(20_000)
    expect(page.locator(".live")).to_have_text("Live")
    page.clock.run_for(8_000)
    expect(page.get_by_text("Connection lost.")).to_be_visible()
    api.answers_streams.set()
    expect(page.locator(".live")).to_have_text("Live")
    expect(page.get_by_text("Connection lost.")).to_have_count(0)


def test_a_stream_with_nothing_to_say_costs_no_further_calls(api: FakeApi, open_page: Open) -> None:
    """It is opened anew after a while, for safety; who missed nothing fetches nothing anew."""
    page = open_page("requests", clock=True)
    api.change(today={**api.status["today"], "requests": 4711})
    page.clock.run_for(1000)
    expect(page.get_by_text("4,711")).to_be_visible()
    expect(page.locator(".fall")).to_have_count(5)
    fetched: list[str] = []
    page.on("request", lambda one: fetched.append(one.url))

    def opened(times: int) -> Callable[[], bool]:
        return lambda: len(api.resumed) >= times

    for times in (2, 3):
        page.clock.run_for(26_000)
        eventually(opened(times), "the page connects again")
        expect(page.locator(".live")).to_have_text("Live")
    page.wait_for_timeout(100)
    assert {url.rpartition("/")[2] for url in fetched} == {"events"}


def test_the_key_is_asked_for(api: FakeApi, open_page: Open) -> None:
    api.key = "open sesame"
    page = open_page()
    key = page.get_by_label("Key", exact=True)
    expect(key).to_be_focused()
    expect(page.locator(".live")).to_have_text("Connecting")
    key.fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("That is not the key.")).to_be_visible()
    key.fill("open sesame")
    page.get_by_role("button", name="Log in").click()
    expect(row(page, "gemma")).to_be_visible()
    expect(page.locator(".live")).to_have_text("Live")


def test_a_key_that_is_asked_for_later_ends_the_stream(api: FakeApi, open_page: Open) -> None:
    page = open_page()
    expect(page.locator(".live")).to_have_text("Live")
    api.key = "open sesame"
    page.get_by_role("link", name="History").click()
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    expect(page.locator(".live")).to_have_text("Connecting")
    page.get_by_label("Key", exact=True).fill("open sesame")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="History")).to_be_visible()
    expect(page.locator(".live")).to_have_text("Live")


def test_while_the_key_is_asked_for_no_stream_is_tried(api: FakeApi, open_page: Open) -> None:
    """Not even one that was planned before."""
    page = open_page(clock=True)
    expect(page.locator(".live")).to_have_text("Live")
    api.refuses_streams = True
    with page.expect_response(re.compile("/api/v1/status")):  # once the browser's own attempt was refused
        api.cut_streams()
    api.key = "open sesame"
    page.get_by_role("link", name="History").click()
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    page.clock.run_for(20_000)
    expect(page.locator(".live")).to_have_text("Connecting")
    assert not [url for url in asked if url.endswith("/events")]


def test_by_keyboard_alone(api: FakeApi, open_page: Open) -> None:
    """Skip link first, then the views; entering one puts the focus on its title and names it everywhere."""
    page = open_page()
    expect(row(page, "gemma")).to_be_visible()
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the content")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Board")).to_be_focused()
    assert page.url.endswith("#/board")
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_contain_text("Numbers, and where")
    page.keyboard.press("Enter")
    expect(page.get_by_role("table", name="Memory of gpu0")).to_be_visible()
    page.get_by_role("link", name="Queue").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Queue")).to_be_focused()
    expect(page).to_have_title("Queue · Model Juggler")
    expect(page.locator("[aria-current=page]")).to_contain_text("Queue")
    page.go_back()
    expect(page.get_by_role("heading", name="Board")).to_be_focused()


def test_the_view_that_is_open_is_seen_in_a_narrow_navigation(api: FakeApi, open_page: Open) -> None:
    """Also when the numbers beside other names arrive later than the page."""
    api.answers_streams.clear()
    page = open_page("try", size=NARROW)
    here = page.get_by_role("link", name="Try it")
    expect(here).to_have_attribute("aria-current", "page")
    page.wait_for_timeout(200)
    api.answers_streams.set()
    expect(page.get_by_role("link", name="Queue")).to_have_text("Queue 4")
    expect(here).to_be_in_viewport(ratio=0.9)


def test_an_address_that_names_no_view_is_the_board(api: FakeApi, open_page: Open) -> None:
    page = open_page("nowhere/%E0%A4%A")
    expect(page.get_by_role("heading", name="Board")).to_be_visible()


def test_a_theme_is_kept(api: FakeApi, open_page: Open) -> None:
    page = open_page(theme="dark")

    def ground() -> str:
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

    expect(page.get_by_role("button", name="Theme: as the system")).to_have_attribute("aria-pressed", "true")
    dark = ground()
    page.get_by_role("button", name="Theme: light").click()
    light = eventually(lambda: (now := ground()) != dark and now, "it is light")
    page.reload()
    expect(page.get_by_role("button", name="Theme: light")).to_have_attribute("aria-pressed", "true")
    assert ground() == light
    page.get_by_role("button", name="Theme: as the system").click()
    eventually(lambda: ground() == dark, "it is as the system")


VIEWS = {
    **dict.fromkeys(("board", "queue", "timeline", "requests", "history", "connect"), ".view svg"),
    "logs": ".log-line",
    "logs/Main%2Fgemma": ".sgr-2",
    "config": ".listing",
    "try": ".try",
}
"""Each with what is seen once it is all there."""
LOOKS = [("light", WIDE), ("dark", WIDE), ("light", NARROW)]
NAMES = ["light", "dark", "narrow"]


def violations(page: Page) -> list[str]:
    """What axe finds wrong, rule by rule, with the places."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [
        f"{one['id']}: {one['help']}: " + "; ".join(str(node["target"]) for node in one["nodes"])
        for one in found["violations"]
    ]


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize(("theme", "size"), LOOKS, ids=NAMES)
def test_axe_finds_nothing_in_a_view(
    open_page: Open, request: pytest.FixtureRequest, theme: str, size: tuple[int, int], view: str
) -> None:
    page = open_page(view, theme=theme, size=size)
    expect(page.locator(f".view-{view.partition('/')[0]} h1")).to_be_visible()
    expect(page.locator(VIEWS[view]).first).to_be_visible()
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{request.node.callspec.id.replace('/', '-')}.png", full_page=True)
    assert violations(page) == []


@pytest.mark.parametrize(("theme", "size"), LOOKS[1:], ids=NAMES[1:])
def test_axe_finds_nothing_in_what_comes_and_goes(
    api: FakeApi, open_page: Open, theme: str, size: tuple[int, int]
) -> None:
    """Everything opened, notes and banners; a table while the stream is down; the form for the key."""
    page = open_page(theme=theme, size=size)
    refusal = {"error": {"code": "x", "message": "No.", "hint": "h"}}
    api.answers["POST /api/v1/endpoints/Main/whisper/load"] = (500, refusal)
    page.get_by_role("button", name="Load whisper").click()
    expect(page.locator(".toast")).to_be_visible()
    for details in page.locator("details > summary").all():
        details.click()
    api.change(locked={"since_at": 1.0, "by": "operator"}, shutting_down=True)
    expect(page.locator(".banner")).to_have_count(2)
    found = violations(page)
    page.goto(f"{api.url}#/timeline")
    page.get_by_role("button", name="Table").click()
    api.refuses_streams = True
    api.cut_streams()
    expect(page.get_by_text("Connection lost.")).to_be_visible()
    found += violations(page)
    api.key = "k"
    page.reload()
    expect(page.get_by_role("heading", name="The key")).to_be_visible()
    assert found + violations(page) == []
