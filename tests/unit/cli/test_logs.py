"""``juggler logs`` where its output is no terminal; on one, see tests/e2e/test_terminal.py."""

import json
from typing import Any

import pytest

from juggler.cli.logs import print_logs
from juggler.cli.remote import Remote
from juggler.errors import JugglerError
from tests.unit.cli.fake_api import FakeApi

ENDPOINTS = [
    {"endpoint": "S/a", "name": "a", "instance": "S/a"},
    {"endpoint": "S/b", "name": "b", "instance": "S/shared"},
    {"endpoint": "T/b", "name": "b", "instance": "T/b"},
    {"endpoint": "S/c", "name": "c", "instance": "S/shared"},
    {"endpoint": "T/c", "name": "c", "instance": "S/shared"},
]


def line(seq: int | None, text: str, stream: str = "stdout", level: str | None = None) -> dict[str, Any]:
    return {"seq": seq, "at": 0.0, "stream": stream, "level": level, "text": text}


def answer(
    *lines: dict[str, Any], begun: tuple[dict[str, Any], ...] = (), last: int = 0, lost: int = 0, boot: str = "b1"
) -> tuple[int, object]:
    told = {"log": "x", "lines": list(lines), "begun": list(begun), "last": last, "lost": lost, "boot": boot}
    return 200, told


@pytest.fixture
def logs(api: FakeApi) -> FakeApi:
    api.answers["GET /api/v1/endpoints"] = (200, {"endpoints": ENDPOINTS})
    api.answers["GET /api/v1/logs"] = (200, {"logs": [{"log": "juggler"}, {"log": "S/a"}, {"log": "S/shared"}]})
    return api


def show(api: FakeApi, name: str | None = None, **options: Any) -> None:
    options = {"follow": False, "since_s": None, "lines": 200, "times": False, "as_json": False} | options
    print_logs(Remote(api.url), name, **options)


@pytest.mark.parametrize(
    ("name", "log"),
    [
        (None, "juggler"),
        ("juggler", "juggler"),
        ("a", "S%2Fa"),
        ("S/b", "S%2Fshared"),
        ("c", "S%2Fshared"),
        ("S/shared", "S%2Fshared"),
    ],
)
def test_which_log(logs: FakeApi, name: str | None, log: str) -> None:
    """Our own, that of an endpoint's instance, or that of an instance."""
    logs.answers[f"GET /api/v1/logs/{log}"] = answer()
    show(logs, name, lines=5, since_s=90.0)
    assert logs.asked[-1][0] == f"GET /api/v1/logs/{log}?limit=5&since_s=90&ansi=false"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("b", "'b' is ambiguous; there are: S/b, T/b"),
        ("x", "'x' is no endpoint; there are: juggler, S/a, S/b, T/b, S/c, T/c"),
    ],
)
def test_no_such_log(logs: FakeApi, name: str, told: str) -> None:
    with pytest.raises(JugglerError, match=told):
        show(logs, name)


def test_lines_of_a_backend(logs: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """As it printed them, ours marked, begun ones last, and nothing that a terminal would obey."""
    logs.answers["GET /api/v1/logs/S%2Fa"] = answer(
        line(3, "started: x", "juggler", "info"),
        line(4, "\x1b[31mred\x1b[0m\ttab"),
        line(5, "\x1b[2Jclear", "stderr"),
        begun=(line(None, "30%"),),
        last=5,
        lost=2,
    )
    show(logs, "a")
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "[2 lines are no longer kept]"
    assert shown[1].startswith("--- ")
    assert shown[1].endswith(" started: x")
    assert shown[2:] == ["red\ttab", "?[2Jclear", "30%"]
    show(logs, "a", times=True)
    assert len(capsys.readouterr().out.splitlines()[2].partition(" red")[0]) == len("00:00:00")


def test_our_own_lines(logs: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    logs.answers["GET /api/v1/logs/juggler"] = answer(line(1, "app: hello", "juggler", "warning"), last=1)
    show(logs)
    assert capsys.readouterr().out[8:] == " WARNING app: hello\n"


def test_as_json(logs: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """One object a line, as it came."""
    logs.answers["GET /api/v1/logs/S%2Fa"] = answer(line(4, "x"), last=4)
    show(logs, "a", as_json=True)
    assert [json.loads(text) for text in capsys.readouterr().out.splitlines()] == [line(4, "x")]


def test_following(logs: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """On from the last line that was seen, also after an empty answer and in the log of another run."""
    path = "GET /api/v1/logs/juggler"
    logs.answers[f"{path}?limit=200&ansi=false"] = answer(line(7, "a", "juggler", "info"), last=7)
    logs.answers[f"{path}?after=7&limit=1000&wait_s=20&ansi=false"] = answer(line(8, "b", "juggler", "info"), last=9)
    logs.answers[f"{path}?after=8&limit=1000&wait_s=20&ansi=false"] = answer(last=3)
    logs.answers[f"{path}?after=3&limit=1000&wait_s=20&ansi=false"] = (
        404,
        {"error": {"message": "the end", "hint": None}},
    )
    with pytest.raises(JugglerError, match="the end"):
        show(logs, follow=True)
    assert [text[-1] for text in capsys.readouterr().out.splitlines()] == ["a", "b"]


def test_following_into_another_run(logs: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """Its lines are counted anew: none is taken for one that was seen."""
    path = "GET /api/v1/logs/juggler"
    new = [line(number, text, "juggler", "info") for number, text in enumerate("bcd", 1)]
    logs.answers[f"{path}?limit=200&ansi=false"] = answer(line(2, "a", "juggler", "info"), last=2)
    logs.answers[f"{path}?after=2&limit=1000&wait_s=20&ansi=false"] = answer(new[2], last=3, boot="b2")
    logs.answers[f"{path}?limit=5000&ansi=false"] = answer(*new, last=3, boot="b2")
    the_end = (404, {"error": {"message": "the end", "hint": None}})
    logs.answers[f"{path}?after=3&limit=1000&wait_s=20&ansi=false"] = the_end
    with pytest.raises(JugglerError, match="the end"):
        show(logs, follow=True)
    assert [text[-1] for text in capsys.readouterr().out.splitlines()] == ["a", "b", "c", "d"]
