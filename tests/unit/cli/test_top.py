"""The view of ``juggler top``; the live one is in tests/e2e/test_terminal.py."""

import pytest

from juggler.cli.remote import Remote
from juggler.cli.table import width_of
from juggler.cli.top import show_top, view
from tests.unit.cli.fake_api import GIB, FakeApi, instance, pool, running, status, waiting

HOLDERS = [
    {"instance": "S/a", "bytes": 12 * GIB, "state": "ready", "origin": "measured"},
    {"instance": "S/b", "bytes": 4 * GIB, "state": "ready", "origin": None},
]
POOL = pool(used_bytes=16 * GIB, foreign_bytes=2 * GIB, foreign_users="blender", holders=HOLDERS)
ERROR: dict[str, object] = {
    "message": "it does not start",
    "hint": None,
    "exit_status": 3,
    "log_tail": [],
    "retry_in_s": 1,
}


def shown(width: int = 120, height: int | None = None, *, colours: bool = False, **values: object) -> list[str]:
    instances = [
        instance("a", state="busy", running=1),
        instance("b", state="starting", load_began_at=995.0, load_expected_s=12.0),
        instance("c", state="failed", error=ERROR, held_bytes={}),
        *(instance(f"m{number}", state="stopped", held_bytes={}) for number in range(30)),
    ]
    whole = status(*instances, pools=[POOL], waiting=[waiting()], running=[running()], **values)
    return view(whole, "http://x", width, height, colours=colours)


def test_what_is_seen() -> None:
    """Everything without colours too; what needs a look comes first."""
    lines = shown()
    text = "\n".join(lines)
    assert "juggler 0.1 at http://x, up 16 min" in lines[0]
    assert "today: 1 request, 4 swaps, 11% of the time spent waiting for loads" in lines[1]
    bar = lines[2].partition("[")[2].partition("]")[0]
    parts = bar.split("|")
    assert [part.strip(" .~") for part in parts] == ["a", "b", "others", ""]
    assert len(parts[0]) > 2.5 * len(parts[1])
    assert lines[2].endswith("16.0 GiB of 24.0 GiB")
    names = [line.split()[0] for line in lines[5:8]]
    assert names == ["c", "a", "b"]
    for told in (
        "it does not start",
        "loading for 5.0 s of about 12 s",
        "b has to go first",
        "GET /",
        "m29",
    ):
        assert told in text


@pytest.mark.parametrize("height", [5, 10, 15, 24, 50])
@pytest.mark.parametrize("width", [20, 60, 89, 200])
def test_every_size(width: int, height: int) -> None:
    """It fits, and tells how much is left out."""
    lines = shown(width, height)
    assert len(lines) <= height
    assert all(width_of(line) <= width for line in lines)
    if 15 <= height <= 24:
        assert any(line.startswith("... and ") for line in lines)
    if height >= 15 and width >= 60:
        assert any("POST" in line or "b has to go" in line for line in lines)


def test_special_states() -> None:
    lines = shown(locked={"since_at": 1.0, "by": "x"}, shutting_down=True)
    assert "LOCKED" in lines[0]
    assert "SHUTTING DOWN" in lines[0]


def test_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where they may be."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;32m" in "".join(shown(colours=True))
    assert "\x1b" not in "".join(shown())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not [text for text in shown(colours=True) if "\x1b[1;32m" in text or "\x1b[31m" in text]


def test_names_cannot_do_harm() -> None:
    """Neither control characters nor what looks like markup."""
    evil = status(instance("x", name="\x1b[2J[red]x[/red]"), running=[running(target="/[bold]\x07")])
    text = "\n".join(view(evil, "http://x", 120, None, colours=False))
    assert "?[2J[red]x[/red]" in text
    assert "GET /[bold]?" in text


def test_no_terminal(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """Once, without colours."""
    api.answers["GET /api/v1/status"] = (200, status(instance(), pools=[POOL]))
    show_top(Remote(api.url), every_s=1.0)
    assert capsys.readouterr().out.startswith("juggler 0.1 at ")
    assert len(api.asked) == 1
