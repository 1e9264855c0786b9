"""Requests, History, Logs, Config, Connect and Try it in a real browser, over a pretended juggler."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest

from tests.dashboard import past
from tests.dashboard.conftest import NARROW, Open
from tests.dashboard.fake_api import FakeApi
from tests.dashboard.test_views import expect
from tests.e2e.support import eventually

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page, Route

pytestmark = pytest.mark.slow


def falls(page: Page) -> Locator:
    return page.locator(".fall")


def test_requests_show_where_their_time_went(api: FakeApi, open_page: Open) -> None:
    page = open_page("requests")
    expect(falls(page)).to_have_count(5)
    expect(page.get_by_text("waiting for loads:")).to_contain_text("11 % of all request time")
    expect(page.get_by_text("waiting at all:")).to_contain_text("12 %")
    coder = falls(page).nth(1)
    drawn = [float((one.get_attribute("width") or "").rstrip("%")) for one in coder.locator("svg.phase").all()]
    assert [width / drawn[0] for width in drawn] == pytest.approx([1, 1, 6, 0.5, 3.5])
    coder.click()
    facts = page.locator(".facts")
    expect(facts).to_contain_text("POST /coder/v1/chat/completions")
    expect(facts).to_contain_text("loading6.0 s")
    days = page.get_by_role("table", name="The last 30 days")
    expect(days.get_by_role("row", name="2026-11-28")).to_contain_text("11 %")
    expect(days.get_by_role("row", name="2026-11-28").get_by_role("cell").nth(2)).to_have_text("13 %")


def test_requests_by_keyboard(api: FakeApi, open_page: Open) -> None:
    page = open_page("requests")
    falls(page).first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    expect(falls(page).nth(1)).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowUp")
    expect(falls(page).first).to_be_focused()


def test_requests_come_live_until_they_are_paused(api: FakeApi, open_page: Open) -> None:
    page = open_page("requests")
    expect(falls(page)).to_have_count(5)
    api.send("finished", {"requests": [past.record(108, "whisper", 0)], "skipped": 0})
    expect(falls(page).first).to_contain_text("whisper")
    page.get_by_role("button", name="Pause").click()
    api.send("finished", {"requests": [past.record(109, "vision", 0)], "skipped": 7})
    expect(page.get_by_text("1 request since the pause")).to_be_visible()
    expect(page.get_by_text("7 requests ended too fast")).to_be_visible()
    expect(falls(page)).to_have_count(6)
    page.get_by_role("button", name="Pause").click()
    expect(falls(page).first).to_contain_text("vision")
    with page.expect_request(re.compile("/requests")):
        page.get_by_role("button", name="Fetch them").click()
    expect(page.get_by_text("ended too fast")).to_have_count(0)


def test_requests_that_ended_in_a_gap_are_fetched(api: FakeApi, open_page: Open) -> None:
    page = open_page("requests")
    expect(falls(page)).to_have_count(5)
    api.send("finished", {"requests": [], "skipped": 7})
    expect(page.get_by_text("7 requests ended too fast")).to_be_visible()
    missed = [past.record(109, "vision", 0), past.record(108, "whisper", 1)]
    with api.nobody_hears():
        api.answers["GET /api/v1/requests"][1]["requests"][:0] = missed
        api.send("finished", {"requests": missed, "skipped": 0})
    expect(falls(page)).to_have_count(7)
    expect(falls(page).first).to_contain_text("vision")
    expect(page.get_by_text("ended too fast")).to_have_count(0)


def test_what_was_skipped_is_told_after_a_restart_too(api: FakeApi, open_page: Open) -> None:
    page = open_page("requests")
    expect(falls(page)).to_have_count(5)
    api.send("finished", {"requests": [], "skipped": 7})
    page.get_by_role("button", name="Fetch them").click()
    expect(page.get_by_text("ended too fast")).to_have_count(0)
    with page.expect_response(re.compile("/requests")):
        api.show({**api.status, "boot": "next"})
    api.send("finished", {"requests": [], "skipped": 3})
    expect(page.get_by_text("3 requests ended too fast")).to_be_visible()


def test_a_late_answer_for_another_filter_is_dropped(api: FakeApi, open_page: Open) -> None:
    page = open_page("requests")
    expect(falls(page)).to_have_count(5)
    late: list[Route] = []
    page.route(re.compile("outcome=error"), lambda route: late.append(route))
    with page.expect_request(re.compile("outcome=error")):
        page.get_by_label("Outcome").select_option("Error")
    page.get_by_label("Outcome").select_option("Any outcome")
    expect(falls(page)).to_have_count(5)
    with page.expect_response(re.compile("outcome=error")):
        late[0].fulfill(json={"requests": [past.record(90, "coder", 900)], "more": False})
    expect(page.get_by_role("button", name="Older requests")).not_to_have_attribute("aria-busy", "true")
    page.wait_for_timeout(100)
    expect(falls(page)).to_have_count(5)


def test_requests_are_filtered_and_older_ones_fetched(api: FakeApi, open_page: Open) -> None:
    page = open_page("requests")
    expect(falls(page)).to_have_count(5)
    api.answers["GET /api/v1/requests"] = (200, {"requests": [past.record(90, "coder", 900)], "more": False})
    with page.expect_request(re.compile("before=103")):
        page.get_by_role("button", name="Older requests").click()
    expect(falls(page)).to_have_count(6)
    expect(page.get_by_role("button", name="Older requests")).to_have_count(0)
    with page.expect_request(re.compile("outcome=error")):
        page.get_by_label("Outcome").select_option("Error")
    api.send("finished", {"requests": [past.record(110, "gemma", 0)], "skipped": 0})
    api.send("finished", {"requests": [past.record(111, "gemma", 0, outcome="error")], "skipped": 0})
    expect(falls(page).filter(has_text="Error")).to_have_count(1)
    with page.expect_request(re.compile("endpoint=Main%2Fgemma.*outcome=error")):
        page.get_by_label("Endpoint").select_option("Main/gemma")


def test_requests_as_a_table(api: FakeApi, open_page: Open) -> None:
    page = open_page("requests")
    page.get_by_role("button", name="Table").click()
    refused = page.get_by_role("table", name="Requests").get_by_role("row", name="queue_full")
    expect(refused).to_contain_text("Refused")
    expect(refused).to_contain_text("2 ms")


def test_history_tells_one_moment_of_all_charts(api: FakeApi, open_page: Open) -> None:
    page = open_page("history")
    memory = page.locator(".graph", has=page.get_by_role("heading", name="Memory of gpu0"))
    name = "models at most 19.0 GiB, others at most 1.4 GiB of 24.0 GiB"
    expect(memory.get_by_role("img")).to_have_attribute("aria-label", f"Memory of gpu0: {name}")
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    expect(memory.locator(".numbers")).to_contain_text("models -")
    slider.fill("40")
    expect(memory.locator(".numbers")).to_contain_text("19.0 GiB")
    with page.expect_request(re.compile("step_s=600")):
        page.get_by_role("button", name="24 h").click()
    page.get_by_role("button", name="Table").click()
    expect(page.get_by_role("table", name="History").get_by_role("row").nth(1)).to_contain_text("GiB")


def waits_for_news(api: FakeApi) -> bool:
    return bool(api.log_calls) and "after" in api.log_calls[-1]


def lines(page: Page) -> list[str]:
    return page.locator(".log-line > span:last-child").all_inner_texts()


def test_a_log_is_followed_in_colour_until_it_is_paused(api: FakeApi, open_page: Open) -> None:
    page = open_page("board")
    page.get_by_role("link", name="Logs of gemma").click()
    expect(page.locator(".sgr-2")).to_have_text("load_model")
    expect(page.locator(".sgr-bold.sgr-1")).to_have_text("gemma")
    assert lines(page)[2] == "slot 0: processing task"
    eventually(lambda: len(api.log_calls) == 2, "it waits for news")
    api.write("Main/gemma", "another line")
    expect(page.get_by_text("another line")).to_be_visible()
    eventually(lambda: [call.get("after") for call in api.log_calls] == [None, "4", "5"], "one call at a time")
    page.get_by_role("button", name="Pause").click()
    api.write("Main/gemma", "while it was paused")
    page.get_by_label("Search").fill("LOADING GEMMA")
    expect(page.locator("mark")).to_have_text(["loading ", "gemma"])
    expect(page.get_by_role("status").filter(has_text="line")).to_have_text("1 line")
    assert page.get_by_text("while it was paused").count() == 0
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("while it was paused")).to_be_visible()


def test_a_log_begins_anew_with_the_juggler(api: FakeApi, open_page: Open) -> None:
    """Its lines are numbered from 1 again."""
    page = open_page("logs/Main%2Fgemma")
    expect(page.locator(".log-line")).to_have_count(4)
    eventually(lambda: waits_for_news(api), "it waits for news")
    with api.nobody_hears():
        api.status = {**api.status, "boot": "next"}
        api.forget("Main/gemma")
        api.write("Main/gemma", *(f"of the new run {number}" for number in range(6)))
        api.send("change", {"now_at": 1.0})
    expect(page.locator(".log-line")).to_have_count(6)
    assert lines(page) == [f"of the new run {number}" for number in range(6)]


def test_a_search_goes_through_a_log_both_ways(api: FakeApi, open_page: Open) -> None:
    page = open_page("logs/Main%2Fgemma")
    api.write("Main/gemma", "needle 1", "needle 2", "needle 3")
    expect(page.get_by_text("needle 3")).to_be_visible()
    page.get_by_label("Search").fill("needle")
    here = page.locator(".log-line.here")
    for key, found in [("Shift+Enter", 3), ("Shift+Enter", 2), ("Enter", 3), ("Enter", 1), ("Shift+Enter", 3)]:
        page.keyboard.press(key)
        expect(here).to_contain_text(f"needle {found}")


def test_a_log_is_bounded_and_keeps_its_place(api: FakeApi, open_page: Open) -> None:
    """Whoever scrolls up stays there, and gets a way back; of a flood the newest lines are kept."""
    page = open_page("logs/Main%2Fgemma")
    expect(page.locator(".log-line")).to_have_count(4)
    api.write("Main/gemma", *(f"line {number}" for number in range(1500)))
    expect(page.get_by_text("line 1499")).to_be_visible()
    page.locator(".log").evaluate("box => { box.scrollTop = 0; }")
    expect(page.get_by_role("button", name="Jump to the end")).to_be_visible()
    api.write("Main/gemma", *(f"line {number}" for number in range(1500, 2500)))
    expect(page.locator(".log-line")).to_have_count(2000)
    expect(page.get_by_text("Earlier lines are not shown")).to_be_attached()
    expect(page.get_by_text("line 2499")).not_to_be_in_viewport()
    page.get_by_role("button", name="Jump to the end").click()
    expect(page.get_by_text("line 2499")).to_be_in_viewport()


def test_the_jugglers_own_log_by_level(api: FakeApi, open_page: Open) -> None:
    page = open_page("logs")
    expect(page.locator(".log-line")).to_have_count(4)
    page.get_by_label("Level").select_option("warning and worse")
    expect(page.locator(".log-line .level")).to_have_text(["warning", "error"])
    page.get_by_role("combobox", name="Log").select_option("Main/gemma")
    expect(page.get_by_text("ready after 4.1 s")).to_be_visible()
    assert page.url.endswith("#/logs/Main%2Fgemma")


def test_leaving_a_log_ends_its_call(api: FakeApi, open_page: Open) -> None:
    page = open_page("logs")
    eventually(lambda: waits_for_news(api), "it waits for news")
    with page.expect_event("requestfailed", lambda one: "/logs/juggler" in one.url):
        page.get_by_role("link", name="Board").click()


def test_the_configuration_is_checked(api: FakeApi, open_page: Open) -> None:
    page = open_page("config")
    expect(page.get_by_text("unknown key")).to_be_visible()
    expect(page.get_by_text("5:5")).to_be_visible()
    expect(page.locator("code.wrong")).to_contain_text('"wait": 3')
    outcome = {"ok": True, "dry_run": True, "at": 1.0, "by": "api", "summary": "keep 3, restart 1, new 1",
               "changes": [], "problems": []}  # fmt: skip
    api.answers["POST /api/v1/reload"] = (200, outcome)
    page.get_by_role("button", name="Check what").click()
    expect(page.get_by_text("keep 3, restart 1, new 1")).to_be_visible()
    assert api.calls[-1][1] == "/api/v1/reload?dry_run=true"
    problem = {**past.config()["problems"][0], "severity": "error", "message": "no such backend"}
    bad = {**outcome, "ok": False, "dry_run": False, "summary": "the file has 1 problem", "problems": [problem]}
    api.answers["POST /api/v1/reload"] = (422, bad)
    page.get_by_role("button", name="Reload the configuration").click()
    expect(page.get_by_text("no such backend")).to_be_visible()


def test_a_reload_that_gets_no_answer_is_told(api: FakeApi, open_page: Open) -> None:
    """Whatever went wrong: it is asked for once, told once, and can be asked for again."""
    page = open_page("config")
    button = page.get_by_role("button", name="Check what")
    toast = page.get_by_role("alert").locator(".toast")
    page.route(re.compile("/reload"), lambda route: route.abort())
    button.click()
    expect(toast).to_contain_text("The juggler does not answer.")
    expect(button).not_to_have_attribute("aria-busy", "true")
    page.unroute(re.compile("/reload"))
    toast.get_by_role("button", name="Dismiss").click()
    refusal = {"error": {"code": "shutting_down", "message": "it shuts down", "hint": None}}
    api.answers["POST /api/v1/reload"] = (503, refusal)
    button.click()
    expect(toast).to_contain_text("It shuts down. (shutting_down)")
    assert [call[1] for call in api.calls] == ["/api/v1/reload?dry_run=true"]


def test_a_reload_that_takes_too_long_is_told(api: FakeApi, open_page: Open) -> None:
    page = open_page("config")
    page.evaluate("const { timeout } = AbortSignal; AbortSignal.timeout = (ms) => timeout.call(AbortSignal, ms / 300)")
    page.route(re.compile("/reload"), lambda route: None)
    button = page.get_by_role("button", name="Check what")
    button.click()
    expect(page.get_by_role("alert").locator(".toast")).to_contain_text("The juggler does not answer.")
    expect(button).not_to_have_attribute("aria-busy", "true")


def test_settings_are_copied(api: FakeApi, open_page: Open) -> None:
    page = open_page("connect")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    expect(page.get_by_text("neither other machines nor containers")).to_be_visible()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("status").filter(has_text="Copied")).to_be_visible()  # for three seconds
    assert page.locator("button [role=status]").count() == 0
    assert page.evaluate("navigator.clipboard.readText()") == "http://192.168.1.5:8080/gemma/v1"
    page.get_by_role("button", name="sdxl").click()
    expect(page.get_by_text("Does not work with this address")).to_be_visible()


EVENTS = [
    b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\nda',
    b'ta: {"choices":[{"delta":{"content":"lo"}}]}\n\n: still here\n\ndata: [DONE]\n\n',
]


def test_a_chat_is_tried(api: FakeApi, open_page: Open) -> None:
    """The text comes as it streams; what it waited for is told from the juggler's own measures."""
    head = {"X-Try-Status": "200", "X-Try-Type": "text/event-stream", "X-Try-Queue": "0.5", "X-Try-Load": "2.5"}
    api.trial = (head, EVENTS)
    api.trial_goes_on.clear()
    page = open_page("try")
    page.get_by_label("Endpoint").select_option("Main/gemma")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".reply")).to_have_text("Hel")
    api.trial_goes_on.set()
    expect(page.locator(".reply")).to_have_text("Hello")
    expect(page.locator(".facts")).to_contain_text("3.0 s, 2.5 s of it loading")
    expect(page.locator(".facts")).to_contain_text("Total")
    method, path, body = api.calls[-1]
    assert (method, path) == ("POST", "/api/v1/try/Main%2Fgemma?method=POST&path=%2Fv1%2Fchat%2Fcompletions")
    assert body["stream"] is True


def test_a_trial_is_cancelled_or_refused(api: FakeApi, open_page: Open) -> None:
    api.trial_goes_on.clear()
    page = open_page("try")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_text("Cancelled.")).to_be_visible()
    error = {"error": {"code": "too_many_trials", "message": "enough is being tried already", "hint": None}}
    api.answers["POST /api/v1/try/Main/gemma"] = (429, error)
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("Enough is being tried already.")).to_be_visible()


def test_a_long_answer_is_cut(api: FakeApi, open_page: Open) -> None:
    api.trial = ({"X-Try-Status": "200", "X-Try-Type": "text/plain"}, [b"a" * 150_000, b"b" * 150_000, b"c"])
    page = open_page("try")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("The answer is complete")).to_be_attached()
    assert page.locator(".reply").inner_text() == "a" * 150_000 + "b" * 50_000
    expect(page.locator(".facts")).to_contain_text("293.0 KiB")


@pytest.mark.parametrize(
    ("picture", "shown"),
    [(past.BLANK, True), (f"data:image/png;base64,{past.BLANK}", True), ("PHN2ZyBvbmxvYWQ9eD4=", False), ("x", False)],
    ids=["png", "address", "svg", "nonsense"],
)
def test_only_pictures_are_shown_as_such(api: FakeApi, open_page: Open, picture: str, shown: bool) -> None:
    api.trial = (
        {"X-Try-Status": "200", "X-Try-Type": "application/json"},
        [json.dumps({"images": [picture]}).encode()],
    )
    page = open_page("try")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_text("The answer is complete")).to_be_attached()
    expect(page.locator(".picture")).to_have_count(1 if shown else 0)
    if not shown:
        expect(page.locator(".reply")).to_contain_text(picture)


@pytest.mark.parametrize("view", ["requests", "history", "logs", "config", "connect", "try"])
def test_texts_of_others_are_only_text(api: FakeApi, open_page: Open, view: str) -> None:
    nasty = "<img src=x onerror='window.hacked=1'><script>window.hacked=2</script>${window.hacked=3}"
    own = api.answers
    own["GET /api/v1/requests"][1]["requests"][0] |= {"target": nasty, "client": nasty, "error": nasty,
                                                      "endpoint": nasty, "outcome": nasty}  # fmt: skip
    own["GET /api/v1/history/series"][1]["pools"][nasty] = own["GET /api/v1/history/series"][1]["pools"]["gpu0"]
    own["GET /api/v1/config"][1].update(text_masked=f"{nasty}\n", effective={nasty: nasty}, path=nasty)
    own["GET /api/v1/config"][1]["problems"][0] |= {"message": nasty, "hint": nasty, "excerpt": nasty}
    own["GET /api/v1/connect"][1]["warnings"].append(nasty)
    own["GET /api/v1/connect"][1]["clients"][0] |= {"client": nasty, "note": nasty}
    api.write("juggler", nasty, f"\x1b[31m{nasty}\x1b]8;;javascript:window.hacked=4\x07")
    api.trial = ({"X-Try-Status": "200", "X-Try-Type": "text/html"}, [nasty.encode()])
    page = open_page(view)
    if view == "requests":
        falls(page).first.click()
    if view == "try":
        page.get_by_role("button", name="Send").click()
    expect(page.locator("main").get_by_text("window.hacked=1").first).to_be_attached()
    assert page.locator("main img, main script, main a[href^=javascript]").count() == 0
    assert page.evaluate("window.hacked") is None


@pytest.mark.parametrize("view", ["requests", "history", "logs/Main%2Fgemma", "config", "connect", "try"])
def test_none_of_them_sticks_out_on_a_phone(api: FakeApi, open_page: Open, view: str) -> None:
    long = "b" * 190
    api.answers["GET /api/v1/requests"][1]["requests"][0] |= {"target": f"/{long}", "endpoint": f"Main/{long[:60]}"}
    api.answers["GET /api/v1/connect"][1]["clients"][0]["settings"][0]["value"] = f"http://a/{long}"
    api.write("Main/gemma", long)
    page = open_page(view, size=NARROW)
    expect(page.locator("#view-title")).to_be_visible()
    page.wait_for_load_state("load")
    if view == "requests":
        falls(page).first.click()
        expect(page.get_by_role("table", name="The last 30 days")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == NARROW[0]
