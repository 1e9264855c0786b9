"""``juggler ps``."""

import json

import pytest

from juggler.cli.ps import print_status, status_lines
from juggler.cli.remote import Remote
from juggler.cli.table import width_of
from tests.unit.cli.fake_api import GIB, FakeApi, instance, status

LOADING = "it is loading, 9.2 s more are expected"


@pytest.mark.parametrize(
    ("waiting", "told"),
    [
        (1, f"S/a: 1 waits: {LOADING}; it is served in 14 s or so"),
        (3, f"S/a: 3 wait: {LOADING}; the last is served in 14 s or so"),
    ],
)
def test_what_a_queue_waits_for(waiting: int, told: str) -> None:
    """Two times that do not contradict each other: one is about the load, the other about the last in the queue."""
    one = instance(waiting=waiting, waits_for=LOADING, expected_wait_s=14.0)
    assert told in status_lines(status(one), None)


def test_a_line_for_each() -> None:
    """States with what is special about them, memory that is held or needed, and times that go on."""
    lines = status_lines(
        status(
            instance("a", pinned=True, idle_since_at=988.0, load_expected_s=3.0),
            instance("b", state="stopped", held_bytes={}, memory_origin=None),
            instance("c", attached=True, holds_on="it does not answer"),
            pools=[
                {
                    "pool": "gpu0",
                    "used_bytes": 8 * GIB,
                    "capacity_bytes": 24 * GIB,
                    "foreign_bytes": GIB,
                    "foreign_users": "x",
                }
            ],
        ),
        None,
    )
    assert lines[1].split() == [
        "S/a",
        "ready",
        "(pinned)",
        "0",
        "0",
        "gpu0",
        "8.0",
        "GiB",
        "measured",
        "12",
        "s",
        "3.0",
        "s",
    ]
    assert lines[2].split() == ["S/b", "stopped", "0", "0", "(gpu0", "8.0", "GiB)", "-", "-", "-"]
    assert "ready (attached)" in lines[3]
    assert lines[4] == "pools: gpu0 8.0 GiB of 24.0 GiB used, others use x"
    assert lines[5] == "S/c: attached, and did not free its memory: it does not answer"


def test_what_else_there_is_to_say() -> None:
    """Failures with their hints, a lock, warm-ups that failed."""
    error = {"message": "a: no such file", "hint": "set `binary`", "exit_status": 1, "log_tail": [], "retry_in_s": 1}
    lines = status_lines(
        status(
            instance(state="failed", error=error),
            locked={"since_at": 940.0, "by": "somebody"},
            shutting_down=True,
            warmup=[{"endpoint": "S/a", "state": "failed", "error": "no such file", "seconds": 1.0}],
        ),
        None,
    )
    assert lines[-5:] == [
        "locked for 60 s: no model gives way to another until `juggler lock --off`",
        "it is shutting down",
        "S/a: a: no such file",
        "  hint: set `binary`",
        "warm-up of S/a failed: no such file",
    ]


def test_a_lock_from_the_future() -> None:
    """Clocks are set back."""
    assert "locked for 0.0 s: " in "\n".join(status_lines(status(locked={"since_at": 1050.0, "by": "x"}), None))


def test_json_tells_the_terminal_nothing(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """Some take a character of the second range of control characters for the beginning of an order."""
    api.answers["GET /api/v1/status"] = (200, status(instance(name="\x9b2Jä")))
    print_status(Remote(api.url), as_json=True)
    assert capsys.readouterr().out.isascii()


def test_as_json(api: FakeApi, capsys: pytest.CaptureFixture[str]) -> None:
    """Everything, as it came."""
    api.answers["GET /api/v1/status"] = (200, status(instance()))
    print_status(Remote(api.url), as_json=True)
    assert json.loads(capsys.readouterr().out) == status(instance())


@pytest.mark.parametrize("width", [20, 40, 79, 120])
def test_narrow_terminals(width: int) -> None:
    """The table fits."""
    rows = status_lines(status(instance("a" * 50), instance("b")), width)[:3]
    assert all(width_of(row) <= width for row in rows)
