"""docs/proxy.md names every bound with the value that is in force."""

import re
from dataclasses import Field, fields
from pathlib import Path

import pytest

from juggler.config.schema import LimitsModel, WaitingModel
from juggler.proxy.handshakes import MOST, MOST_CALLERS
from juggler.proxy.limits import Limits
from juggler.proxy.tls import HANDSHAKE_LIMIT_S
from juggler.units import KIB, MIB

DOCS = Path(__file__).parents[3] / "docs"
TEXT = (DOCS / "proxy.md").read_text(encoding="utf-8")

FIXED = {
    "response_head_bytes": "Head of a backend's answer",
    "held_body_bytes": "Body kept while a request waits",
    "retry_body_bytes": "Body kept for a second try",
    "pipelined_bytes": "Requests sent ahead",
    "write_buffer_bytes": "Bytes waiting for a slow reader",
    "discard_timeout_s": "Rest of a refused upload",
    "flush_timeout_s": "Client that takes nothing of the end of its answer (behind TLS: not all of it)",
    "half_close_timeout_s": "Tunnel, one half of which has ended",
    "expect_timeout_s": "Silence before we answer `Expect`",
    "stream_look_bytes": 'Body searched for `"stream": true`',
    "failure_bytes": "Refusal told in an event stream",
    "failure_timeout_s": "Refusal told in an event stream",
}
"""Bounds without a setting, and the row that tells of each."""

WAITING = {
    "answer_half_closed": "half_close",
    "page_after_s": "page_after",
    "comment_after_s": "comments_every",
    "comment_every_s": "comments_every",
    "send_processing": "processing",
}
INNER = {"sweep_interval_s"}
"""Of no interest outside."""


def _rows() -> list[list[str]]:
    section = TEXT.partition("## Limits\n")[2].partition("\n## ")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*\|$", section, re.M)]


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "none"
    if name.endswith("_s"):
        return f"{value / 60:g} min" if value >= 60 else f"{value:g} s"
    if name.endswith("_bytes"):
        return f"{value / MIB:g} MiB" if value >= MIB else f"{value / KIB:g} KiB"
    return f"{value:g}"


def _setting(name: str) -> str:
    """What the operator calls a field: durations do not say their unit."""
    return name.removesuffix("_s")


@pytest.mark.parametrize("field", fields(Limits), ids=lambda field: field.name)
def test_every_bound_is_documented(field: Field[object]) -> None:
    """A row each, with the setting where there is one, and the default."""
    name = field.name
    if name in INNER:
        return
    if name in WAITING:
        assert WAITING[name] in WaitingModel.model_fields
        assert f"`{WAITING[name]}`" in TEXT.partition("## Signs of waiting\n")[2]
        return
    shown = _shown(name, getattr(Limits(), name))
    if name in FIXED:
        (row,) = [row for row in _rows() if row[0] == FIXED[name]]
        assert row[1] == ""
    else:
        assert _setting(name) in LimitsModel.model_fields
        (row,) = [row for row in _rows() if row[1] == f"`{_setting(name)}`"]
    assert re.search(rf"(?<![0-9]){re.escape(shown)}\b", row[2]), (row, shown)


@pytest.mark.parametrize(
    ("what", "shown"),
    [
        ("TLS handshakes at a time", str(MOST)),
        ("Connections whose handshake is not done", str(MOST_CALLERS)),
        ("Time for a TLS handshake", _shown("x_s", HANDSHAKE_LIMIT_S)),
    ],
)
def test_bounds_of_handshakes_are_documented(what: str, shown: str) -> None:
    """They are no fields, but bounds all the same."""
    (row,) = [row for row in _rows() if row[0] == what]
    assert row[2] == shown


def test_every_setting_is_a_bound() -> None:
    """None is read and forgotten."""
    assert set(LimitsModel.model_fields) <= {_setting(field.name) for field in fields(Limits)}


@pytest.mark.parametrize("name", ["proxy.md", "configuration.md"])
def test_links_lead_somewhere(name: str) -> None:
    """Between the pages and within them."""
    text = (DOCS / name).read_text(encoding="utf-8")
    for page, anchor in re.findall(r"\]\(([a-z]*\.?m?d?)(?:#([a-z-]+))?\)", text):
        target = (DOCS / (page or name)).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", target, re.M)
        anchors = {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, (page, anchor)


def test_the_readme_leads_there() -> None:
    assert "docs/proxy.md" in (DOCS.parent / "README.md").read_text(encoding="utf-8")
