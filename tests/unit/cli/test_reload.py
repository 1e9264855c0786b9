"""``juggler reload``: what it prints, and its exit status."""

import json
from typing import Any

import pytest

from juggler.cli.reload import reload_config
from juggler.cli.remote import NotReachable, Remote
from juggler.errors import JugglerError
from tests.unit.cli.fake_api import FakeApi

CALL = "POST /api/v1/reload"


def outcome(**more: Any) -> dict[str, Any]:
    plan = {"lines": ["model S/a: restart (parameters)"]}
    own = {"ok": True, "result": "done", "dry_run": False, "summary": "models: restart 1", "problems": [], "plan": plan}
    return {**own, "message": "models: restart 1", "hint": None, **more}


def test_done(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers[CALL] = (200, outcome())
    assert reload_config(Remote(api.url), dry_run=False, as_json=False) == 0
    assert api.asked == [(f"{CALL}?dry_run=false", None)]
    assert capsys.readouterr().out == "models: restart 1\n  model S/a: restart (parameters)\n"


def test_a_dry_run(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.answers[CALL] = (200, outcome(dry_run=True, result="planned"))
    assert reload_config(Remote(api.url), dry_run=True, as_json=False) == 0
    assert api.asked == [(f"{CALL}?dry_run=true", None)]
    assert capsys.readouterr().out.startswith("dry run: models: restart 1\n")


def test_problems_are_told_as_by_juggler_check(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    problem = {
        "severity": "error",
        "path": "config.json",
        "line": 3,
        "column": 7,
        "message": "no such key",
        "hint": "did you mean port?",
        "code": "unknown-key",
        "key": "servers[0].prot",
        "excerpt": "    x\n    ^",
    }
    nowhere = {"severity": "error", "path": None, "line": None, "column": None, "message": "port 80 is taken"}
    found = [problem, {**nowhere, "hint": "take another"}]
    failed = outcome(ok=False, result="problems", summary="nothing was changed", problems=found, plan=None)
    api.answers[CALL] = (422, failed)
    assert reload_config(Remote(api.url), dry_run=False, as_json=False) == 2
    assert capsys.readouterr().err.splitlines() == [
        "config.json:3:7: no such key",
        "    x",
        "    ^",
        "  hint: did you mean port?",
        "port 80 is taken",
        "  hint: take another",
        "nothing was changed",
    ]


def test_json(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """The document as it came, with the same exit status."""
    refused = outcome(ok=False, result="refused", message="this juggler runs without a configuration file", plan=None)
    api.answers[CALL] = (422, refused)
    assert reload_config(Remote(api.url), dry_run=False, as_json=True) == 1
    assert json.loads(capsys.readouterr().out) == refused


def test_not_possible(api: FakeApi) -> None:
    message = "this juggler runs without a configuration file"
    api.answers[CALL] = (422, outcome(ok=False, result="refused", message=message, plan=None))
    with pytest.raises(JugglerError, match=f"nothing was changed: {message}"):
        reload_config(Remote(api.url), dry_run=False, as_json=False)


def test_nobody_there() -> None:
    with pytest.raises(NotReachable):
        reload_config(Remote("http://127.0.0.1:1"), dry_run=False, as_json=False)
