"""Pages of our own: complete, harmless, and in a loop only while something happens."""

import base64
import hashlib
import math
import re
from html.parser import HTMLParser

import pytest

from juggler.errors import JugglerError, NotLoaded, NotReady, QueueFull, StartFailed
from juggler.proxy.page import PAGE_POLICY, error_page, waiting_page

EVIL = """<script>alert(1)</script>"'&\x07 ü"""
REFRESH = b'<noscript><meta http-equiv="refresh" content="2"></noscript>'
RELOAD = "setTimeout(()=>location.reload(),2000)"


class Parsed(HTMLParser):
    """Elements and their attributes, and the text between them."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.text = self.script = ""
        self.feed(page.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" in self.open:
            self.script += data
        elif "style" not in self.open:
            self.text += data


def checked(page: bytes) -> Parsed:
    """Every page: well formed, nothing from elsewhere, its style and its one fixed script allowed by the policy."""
    parsed = Parsed(page)
    assert not parsed.open
    assert parsed.script in ("", RELOAD)
    assert (parsed.script == RELOAD) is (REFRESH in page)
    assert page.startswith(b'<!DOCTYPE html><html lang="en">')
    assert set(parsed.tags).isdisjoint({"img", "iframe", "form", "object", "base"})
    links = {(tag, value) for tag, name, value in parsed.attributes if name in ("href", "src")}
    assert links <= {("a", ""), ("link", "data:,")}
    assert not [name for _, name, _ in parsed.attributes if name == "style" or name.startswith("on")]
    policy = PAGE_POLICY[1]
    (style,) = re.findall(rb"<style>(.*?)</style>", page, re.DOTALL)
    for kind, text in (("style", style), ("script", RELOAD.encode())):
        assert f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}';" in policy
    assert policy.startswith("default-src 'none'; ")
    assert b"url(" not in style
    assert b"color-scheme:light dark" in style
    return parsed


def test_a_page_of_a_wait() -> None:
    """It says for whom, why and how long, asks again by itself, and tells machines that it is not the page."""
    answer = waiting_page("vision", "'gemma' is on the way out", 25.4, 12.0)
    parsed = checked(answer.body)
    assert "vision is being loaded" in parsed.text
    assert "'gemma' is on the way out." in parsed.text
    assert "About 25 s more" in parsed.text
    assert "waited for 12 s" in parsed.text
    assert REFRESH in answer.body
    fields = dict(answer.headers)
    assert (answer.status, answer.content_type) == (503, "text/html; charset=utf-8")
    assert (fields["Retry-After"], fields["Cache-Control"], fields["X-Juggler"]) == ("26", "no-store", "waiting")
    assert ("progress", "value", "12.0") in parsed.attributes


@pytest.mark.parametrize(
    ("expected_s", "told"), [(float("inf"), "120"), (float("nan"), "120"), (0.0, "1"), (9e9, "120")]
)
def test_estimates_that_are_none(expected_s: float, told: str) -> None:
    """Nobody is kept away for ever, nor told of infinity."""
    answer = waiting_page("e", "", expected_s, 0.0)
    assert dict(answer.headers)["Retry-After"] == told
    parsed = checked(answer.body)
    assert not {"inf", "nan"} & set(parsed.text.split())
    assert ("progress" in parsed.tags) is math.isfinite(expected_s)
    assert b"<p>.</p>" not in answer.body  # nothing is said of what stands in the way


def test_names_are_only_shown() -> None:
    """Whatever the operator or a program wrote is text."""
    parsed = checked(waiting_page(EVIL, EVIL, 5.0, 0.0).body)
    assert parsed.text.count(EVIL.replace("\x07", "")) == 4
    error = StartFailed(EVIL, endpoint=EVIL, hint=EVIL, log_tail=[EVIL, "\x1b[31mred"], exit_status=1)
    parsed = checked(error_page(error))
    assert "<script>" in parsed.text
    assert "\x1b" not in parsed.text
    assert "[31mred" in parsed.text


def test_a_failure() -> None:
    """Hint, last lines and exit status; nothing is tried again by itself."""
    error = StartFailed("'x' ended", endpoint="x", hint="look there", log_tail=["a", "b"], exit_status=-9)
    page = error_page(error)
    text = checked(page).text
    for word in ("x cannot be shown", "'x' ended.", "Look there.", "a\nb", "503 backend_start_failed, exit status -9"):
        assert word in text
    assert REFRESH not in page


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (NotReady("'x' is loading", endpoint="x"), True),
        (NotLoaded("'x' is not loaded", endpoint="x"), False),
        (QueueFull("Full.", endpoint="x", retry_after_s=1), False),
        (JugglerError("Oh."), False),
    ],
)
def test_only_a_load_of_somebody_else_is_waited_for(error: JugglerError, again: bool) -> None:
    """No page begins a loop that starts or queues anything."""
    page = error_page(error)
    title = "x is loading" if again else f"{error.endpoint or 'This address'} cannot be shown"
    assert checked(page).text.startswith(title)
    assert (REFRESH in page) is again


def test_text_that_is_no_unicode() -> None:
    """Names of files may hold any bytes."""
    checked(waiting_page("caf\udce9", "", 1.0, 0.0).body)
