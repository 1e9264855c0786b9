"""Board, Queue and Timeline in a real browser, over a pretended juggler."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.dashboard import scenes
from tests.dashboard.conftest import NARROW, Open
from tests.dashboard.fake_api import FakeApi
from tests.e2e.support import LIMIT_S

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Request

pytestmark = pytest.mark.slow


def expect(what: Locator | Page) -> Any:
    from playwright.sync_api import expect as expected

    expected.set_options(timeout=LIMIT_S * 1000)
    return expected(what)


def row(page: Page, name: str) -> Locator:
    return page.locator("tbody.instance", has=page.get_by_text(name, exact=True))


def called(api: FakeApi, page: Page, button: Locator) -> tuple[str, str]:
    """The call that a press of a button makes."""
    before = len(api.calls)
    with page.expect_response(lambda answer: answer.request.method != "GET"):
        button.click()
    (call,) = api.calls[before:]
    return call[:2]


def test_the_board_tells_who_holds_the_memory_and_how_that_is_known(api: FakeApi, open_page: Open) -> None:
    page = open_page()
    pool = page.locator(".pool", has=page.get_by_role("heading", name="gpu0"))
    bar = pool.get_by_role("img")
    expect(bar).to_have_attribute("aria-label", re.compile("gemma: 9.5 GiB, busy, learned from earlier runs; .*free: "))
    expect(bar.locator(".part.hatched")).to_contain_text("coder")
    expect(bar.locator(".part.others title")).to_have_text("Others: 1.2 GiB, Xorg (412 MiB), firefox (790 MiB)")
    expect(page.get_by_text("11 % of the time of those answered was waiting for loads")).to_be_visible()
    pool.get_by_text("Numbers, and where").click()
    numbers = pool.get_by_role("row").all_inner_texts()
    assert [" ".join(text.split()) for text in numbers] == [
        "Who State Holds Known how",
        "gemma Busy 9.5 GiB learned from earlier runs",
        "vision Ready 6.4 GiB declared in the configuration",
        "coder Starting 5.2 GiB learned from earlier runs",
        "sdxl Unloaded 512.0 MiB measured in this run",
        "Others - 1.2 GiB measured now: Xorg (412 MiB), firefox (790 MiB)",
        "Free - 1.2 GiB what is left of 24.0 GiB",
    ]


def test_the_board_where_nothing_is_known_of_the_memory(api: FakeApi, open_page: Open) -> None:
    """The stand-in pool of one place is not shown as one byte."""
    one = scenes.instance("solo", "ready", held_bytes={"exclusive": 1}, needs_bytes={"exclusive": 1})
    state = scenes.status([one])
    holder = {"instance": "Main/solo", "bytes": 1, "state": "ready", "origin": "unknown"}
    state["pools"] = [
        {"pool": "exclusive", "capacity_bytes": 1, "used_bytes": 1, "foreign_bytes": 0, "holders": [holder]}
    ]
    api.status = state
    page = open_page()
    expect(page.locator(".pool")).to_contain_text("one instance is loaded at a time")
    expect(row(page, "solo").get_by_role("cell").nth(2)).to_contain_text("the only place")
    assert "1 B" not in page.locator("main").inner_text()


def test_the_board_shows_states_in_words_with_what_is_left_to_wait(api: FakeApi, open_page: Open) -> None:
    page = open_page()
    expect(row(page, "gemma")).to_contain_text("Busy")
    expect(row(page, "gemma")).to_contain_text("pinned (operator)")
    expect(row(page, "vision")).to_contain_text("unloads in 4 min")
    expect(row(page, "coder")).to_contain_text(re.compile(r"about [23]\d s more"))
    expect(row(page, "sdxl")).to_contain_text("Unloaded")
    broken = row(page, "mixtral")
    expect(broken).to_contain_text("The process ended before it was ready. (exit status 1)")
    expect(broken).to_contain_text(re.compile(r"Tried again in 2\d s"))
    broken.get_by_text("Its last 3 lines").click()
    expect(broken.locator("pre")).to_contain_text("failed to open model file")


def test_buttons_ask_for_what_they_say(api: FakeApi, open_page: Open) -> None:
    """Names go into paths as one segment; what makes no sense asks for nothing and keeps the focus."""
    page = open_page()
    whisper, gemma, vision = row(page, "whisper"), row(page, "gemma"), row(page, "vision")
    path = "/api/v1/endpoints/Main%2F"
    assert called(api, page, whisper.get_by_role("button", name="Load whisper")) == (
        "POST",
        f"{path}whisper/load?wait_s=2",
    )
    assert called(api, page, vision.get_by_role("button", name="Unload")) == ("POST", f"{path}vision/unload?wait_s=2")
    assert called(api, page, vision.get_by_role("button", name="Stop")) == ("POST", f"{path}vision/stop?wait_s=2")
    assert called(api, page, vision.get_by_role("button", name="Restart")) == ("POST", f"{path}vision/restart?wait_s=2")
    pin = gemma.get_by_role("button", name="Pin gemma")
    expect(pin).to_have_attribute("aria-pressed", "true")
    assert called(api, page, pin) == ("DELETE", f"{path}gemma/pin")
    assert called(api, page, vision.get_by_role("button", name="Pin")) == ("PUT", f"{path}vision/pin")
    expect(vision.get_by_role("link", name="Open vision")).to_have_attribute("href", "http://127.0.0.1:8080/vision")
    before = len(api.calls)
    stop = whisper.get_by_role("button", name="Stop")
    expect(stop).to_have_attribute("title", "It does not run")
    stop.focus()
    page.keyboard.press("Enter")
    expect(stop).to_be_focused()
    assert len(api.calls) == before


def test_a_refusal_is_told_with_its_hint(api: FakeApi, open_page: Open) -> None:
    error = {"code": "locked", "message": "swaps are locked", "hint": "Take the lock off first."}
    api.answers["POST /api/v1/endpoints/Main/whisper/load"] = (409, {"error": error})
    page = open_page()
    page.get_by_role("button", name="Load whisper").click()
    told = page.get_by_role("alert").locator(".toast")
    expect(told).to_contain_text("Load whisper: not done")
    expect(told).to_contain_text("Swaps are locked. (locked)")
    expect(told).to_contain_text("Take the lock off first.")
    told.get_by_role("button", name="Dismiss").click()
    expect(told).to_have_count(0)


def test_changes_arrive_and_states_alone_are_announced(api: FakeApi, open_page: Open) -> None:
    page = open_page()
    live = page.locator(".unseen[role=status]")
    expect(row(page, "coder")).to_contain_text("Starting")
    coder = api.status["instances"][2]
    api.change(instances=[{**coder, "state": "busy", "running": 1, "waiting": 1, "load_began_at": None}])
    expect(row(page, "coder")).to_contain_text("Busy")
    expect(live).to_have_text("coder: Busy.")
    api.change(instances=[{**coder, "state": "busy", "running": 0, "waiting": 0}])
    expect(row(page, "coder").get_by_role("cell").nth(4)).to_have_text("0")
    expect(live).to_have_text("coder: Busy.")
    api.change(removed={"instances": ["Main/whisper"]})
    expect(row(page, "whisper")).to_have_count(0)


def test_the_lock_forbids_swaps_and_says_so_everywhere(api: FakeApi, open_page: Open) -> None:
    page = open_page("queue")
    lock = page.get_by_role("switch", name="Lock")
    expect(lock).to_have_attribute("aria-checked", "false")
    assert called(api, page, lock) == ("PUT", "/api/v1/lock")
    api.change(locked={"since_at": time.time(), "by": "operator"})
    expect(lock).to_have_attribute("aria-checked", "true")
    expect(page.locator(".banner")).to_contain_text("Locked by operator")
    assert called(api, page, lock) == ("DELETE", "/api/v1/lock")
    api.change(locked=None)
    expect(page.locator(".banner")).to_have_count(0)


def test_the_queue_says_why(api: FakeApi, open_page: Open) -> None:
    page = open_page("queue")
    waits = page.get_by_role("table", name="Waiting requests")
    expect(page.get_by_role("row", name="no. 70")).to_contain_text(
        "Needs 11.0 GiB, 6.1 GiB free. gemma: it has 1 request under way; vision: used a moment ago."
    )
    expect(page.get_by_role("row", name="no. 70")).to_contain_text(re.compile(r"about 2\d s"))
    # Loaded already: memory is not what stands in the way.
    expect(page.get_by_role("row", name="no. 73").get_by_role("cell").nth(1)).to_have_text(
        "All its 2 slots are in use."
    )
    groups = waits.get_by_role("rowheader").all_inner_texts()
    assert [" ".join(text.split()) for text in groups] == [
        "sdxl Unloaded 1 waiting", "coder Starting 2 waiting", "gemma Busy 1 waiting"
    ]  # fmt: skip
    runs = page.get_by_role("table", name="Running requests")
    expect(runs.get_by_role("row", name="no. 69")).to_contain_text("1.2 s of it loading")
    expect(runs.get_by_role("row", name="no. 50")).to_contain_text("held open: keeps nothing loaded")


def test_the_queue_is_steered(api: FakeApi, open_page: Open) -> None:
    """The row that goes hands the focus on, so that the keyboard is not lost with it."""
    page = open_page("queue")
    second = page.get_by_role("row", name="no. 72")
    assert called(api, page, second.get_by_role("button", name="front")) == ("POST", "/api/v1/requests/72/front")
    cancel = second.get_by_role("button", name="Cancel request 72")
    assert called(api, page, cancel) == ("DELETE", "/api/v1/requests/72")
    expect(cancel).to_be_focused()
    api.change(instances=[{**api.status["instances"][2], "waiting": 1}], removed={"waiting": [72]})
    expect(second).to_have_count(0)
    expect(page.get_by_role("heading", name="Queue")).to_be_focused()
    expect(page.get_by_role("link", name="Queue")).to_have_text("Queue 3")
    idle = [{**one, "waiting": 0} for one in api.status["instances"]]
    api.change(instances=idle, removed={"waiting": [70, 71, 73], "running": [50, 64, 69]})
    expect(page.get_by_text("Nobody waits")).to_be_visible()
    expect(page.get_by_text("Nothing runs")).to_be_visible()


def test_a_crowded_queue_is_cut(api: FakeApi, open_page: Open) -> None:
    """Of ten thousand the juggler lists some and the page draws fewer; the number is told all the same."""
    state = scenes.status([scenes.instance("coder", "busy", waiting=10_000)])
    state["waiting"] = [scenes.waiting(number, state["instances"][0], number) for number in range(1, 501)]
    api.status = state
    page = open_page("queue")
    expect(page.get_by_text("and 9,800 more")).to_be_visible()
    assert page.get_by_role("button", name="Cancel").count() == 200


def test_an_order_to_load_waits_like_a_request(api: FakeApi, open_page: Open) -> None:
    one = api.status["instances"][4]
    one["waiting"] = 1
    api.status["waiting"] = [scenes.waiting(5, one, 1, kind="load", method=None, target=None, client="operator")]
    page = open_page("queue")
    expect(page.get_by_role("table", name="Waiting requests").locator(".target")).to_have_text("Load")


def test_the_timeline_shows_states_and_who_gave_way(api: FakeApi, open_page: Open) -> None:
    page = open_page("timeline")
    lane = page.get_by_role("group", name="vision", exact=True)
    expect(lane.locator(".mark title").first).to_have_text("evicted by coder, least recently used")
    assert lane.locator(".span").first.get_attribute("aria-label") is not None
    expect(page.get_by_text("vision and coder took turns 4 times")).to_be_visible()
    assert page.locator("main").inner_text().count("more memory") == 1
    expect(page.locator("main code")).to_have_text("scheduler.dial: throughput")
    given = page.get_by_role("region", name="Who gave way")
    expect(given.get_by_role("listitem")).to_have_count(5)
    expect(given).not_to_contain_text("mixtral")
    expect(page.get_by_role("group", name="mixtral", exact=True).locator(".mark")).to_have_count(0)
    now = time.time()
    span = {
        "instance": "Main/whisper",
        "state": "starting",
        "from_at": now - 1,
        "to_at": None,
        "why": "",
        "decision": None,
    }
    api.send("spans", {"spans": [{"span": 900, **span}]})
    expect(page.get_by_role("group", name="whisper", exact=True).locator(".span.hatched")).to_have_count(1)

    def asked_for(one: Request) -> list[float]:
        begin, end = re.findall(r"(?:from|to)_at=([0-9.]+)", one.url) or (0, 0)
        return [float(end) - float(begin)]

    # The view asks anew each minute: that may be the next request, too.
    with page.expect_request(lambda one: asked_for(one) == pytest.approx([86400], abs=1)):
        page.get_by_role("button", name="24 h").click()


def test_the_timeline_forgets_what_it_knew_before_a_gap(api: FakeApi, open_page: Open) -> None:
    """A span whose end was missed is not open for ever: it is fetched."""
    page = open_page("timeline")
    whisper = page.get_by_role("group", name="whisper", exact=True)
    span = {"span": 900, "instance": "Main/whisper", "state": "starting", "from_at": time.time() - 60, "to_at": None,
            "why": "", "decision": None}  # fmt: skip
    api.send("spans", {"spans": [span]})
    expect(whisper.locator(".span.hatched")).to_have_attribute("aria-label", re.compile("until now"))
    with api.nobody_hears():
        ended = {**span, "to_at": time.time()}
        api.timeline["spans"].append(ended)
        api.send("spans", {"spans": [ended]})
    expect(whisper.locator(".span.hatched")).to_have_attribute("aria-label", re.compile(r"until [0-9:]+, "))


def test_the_timeline_as_a_table(api: FakeApi, open_page: Open) -> None:
    page = open_page("timeline")
    page.get_by_role("button", name="Table").click()
    table = page.get_by_role("table", name="Timeline")
    expect(table.get_by_role("row", name="evicted by coder")).to_have_count(2)
    expect(table.get_by_role("row", name="mixtral").first).to_contain_text("Failed")


def test_the_timeline_by_keyboard(api: FakeApi, open_page: Open) -> None:
    """One stop per lane; arrows go on from there, and what has the focus is told below."""
    page = open_page("timeline")
    first = page.locator(".span[tabindex='0']").first
    expect(first).to_have_attribute("aria-label", re.compile("gemma: busy from"))
    assert page.locator(".span[tabindex='0']").count() == page.locator(".lane").count()
    first.focus()
    page.keyboard.press("ArrowLeft")
    expect(page.locator(".told")).to_contain_text("Ready")
    page.keyboard.press("ArrowDown")
    expect(page.locator(":focus")).to_have_attribute("aria-label", re.compile("vision: "))
    page.keyboard.press("Home")
    expect(page.locator(".told")).to_contain_text("vision")
    expect(page.locator(".told")).to_contain_text("Starting")


@pytest.mark.parametrize("view", ["board", "queue", "timeline"])
def test_names_and_texts_are_only_text(api: FakeApi, open_page: Open, view: str) -> None:
    """Whatever a configuration, a client or a backend's output holds, nothing in it becomes markup or a link."""
    nasty = "<img src=x onerror='window.hacked=1'><script>window.hacked=2</script>${window.hacked=3}"
    error = {"message": nasty, "hint": nasty, "exit_status": 1, "log_tail": [nasty], "retry_in_s": 0}
    bad = scenes.instance(nasty, "failed", error=error, type=nasty, memory_origin=nasty)
    state = scenes.status([bad, scenes.instance("ok", "busy", running=1, waiting=1)], foreign_gib=1)
    state["pools"][0] |= {"pool": nasty, "foreign_users": nasty}
    state["endpoints"][0]["urls"] = ["javascript:window.hacked=4", "data:text/html,x"]
    state["waiting"] = [scenes.waiting(1, bad, 1, why=nasty, target=nasty, client=nasty)]
    state["running"] = [scenes.running(2, bad, target=nasty, client=nasty)]
    state["locked"] = {"since_at": 1.0, "by": nasty}
    state["version"] = nasty
    state["warmup"] = [{"endpoint": nasty, "state": "failed", "error": nasty, "seconds": 1}]
    api.status = json.loads(json.dumps(state))
    api.timeline = scenes.timeline(time.time())
    for span in api.timeline["spans"]:
        span |= {"instance": f"Main/{nasty}", "why": nasty}
    api.timeline["thrash"][0]["text"] = nasty
    page = open_page(view)
    expect(page.get_by_text("window.hacked=1").first).to_be_attached()
    assert page.locator("img:not(.brand img), main script").count() == 0
    assert page.evaluate("window.hacked") is None
    assert page.locator("a[href^=javascript], a[href^=data]").count() == 0


@pytest.mark.parametrize("view", ["board", "queue", "timeline"])
def test_nothing_sticks_out_on_a_phone(api: FakeApi, open_page: Open, view: str) -> None:
    """Also with long names, without a place to break them."""
    long = scenes.instance("a" * 60, "busy", 4.0, running=1)
    api.status["instances"].append(long)
    api.status["endpoints"].append(scenes.endpoint(long))
    api.status["waiting"].append(scenes.waiting(99, long, 1, target="/" + "b" * 190))
    page = open_page(view, size=NARROW)
    expect(page.locator("#view-title")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW[0]
