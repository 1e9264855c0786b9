"""The limit on file descriptors is raised as far as needed, and told where that is not enough."""

import asyncio
import errno
import logging

import pytest

from juggler import descriptors
from juggler.descriptors import PER_CONNECTION, RESERVED, make_room, told_in_moderation

INFINITE = -1


class System:
    """A system with limits.

    Args:
        soft: The one in force.
        hard: How far that may be raised.
        really: How far it can be raised.
    """

    RLIMIT_NOFILE = 7
    RLIM_INFINITY = INFINITE

    def __init__(self, soft: int, hard: int, really: int | None = None) -> None:
        self.soft = soft
        self.hard = hard
        self._really = really

    def getrlimit(self, which: int) -> tuple[int, int]:
        assert which == self.RLIMIT_NOFILE
        return self.soft, self.hard

    def setrlimit(self, which: int, limits: tuple[int, int]) -> None:
        assert which == self.RLIMIT_NOFILE
        if self._really is not None and limits[0] > self._really:
            raise ValueError("current limit exceeds maximum limit")
        assert limits[1] == self.hard
        self.soft = limits[0]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was raised before."""
    monkeypatch.setattr(descriptors, "_given", None)


NEEDED = RESERVED + PER_CONNECTION * 4096


@pytest.mark.parametrize(
    ("system", "soft"),
    [
        (System(1024, 1_048_576), NEEDED),
        (System(1024, INFINITE), NEEDED),
        (System(NEEDED, NEEDED), NEEDED),
        (System(100_000, 100_000), 100_000),
        (System(INFINITE, INFINITE), INFINITE),
    ],
)
def test_raised_no_further_than_needed(
    system: System, soft: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Programs that inherit the limit may walk over all of it."""
    monkeypatch.setattr(descriptors, "resource", system)
    assert make_room([4096]) is None
    assert system.soft == soft
    assert not caplog.records


@pytest.mark.parametrize(
    ("system", "soft", "fitting"),
    [(System(1024, 4096), 4096, 960), (System(256, INFINITE, really=1000), 256, 1), (System(1024, 1024), 1024, 192)],
)
def test_too_few(
    system: System, soft: int, fitting: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Each server gets what there is for it, and the log says how to change that."""
    monkeypatch.setattr(descriptors, "resource", system)
    with caplog.at_level(logging.WARNING, "juggler.app"):
        assert make_room([4096, 4096]) == fitting
    assert system.soft == soft
    (record,) = caplog.records
    assert f"each server takes {fitting} at most" in record.getMessage()


@pytest.mark.parametrize(
    ("system", "given"),
    [
        (System(1024, 1_048_576), 1024),
        (System(100_000, 100_000), None),
        (System(256, INFINITE, really=1000), None),
        (None, None),
    ],
)
def test_programs_get_what_we_were_given(
    system: System | None, given: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit from before it was raised, however often; where it was not, they inherit it as it is."""
    monkeypatch.setattr(descriptors, "resource", system)
    for connections in (4096, 8192):
        make_room([connections])
        assert descriptors.limit_for_others() == given


def test_few_connections_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is said where the operator wants less than there is."""
    monkeypatch.setattr(descriptors, "resource", System(1024, 1024))
    assert make_room([300, 20]) is None


def test_systems_without_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows."""
    monkeypatch.setattr(descriptors, "resource", None)
    assert make_room([4096]) is None


def test_that_nobody_can_be_accepted_is_told_in_moderation(caplog: pytest.LogCaptureFixture) -> None:
    """Once a minute, in one line; other failures of the loop are told as ever."""
    moments = [5.0, 6.0, 64.9, 65.0]
    loop = asyncio.new_event_loop()
    try:
        handle = told_in_moderation(lambda: moments[0])
        full = {"message": "socket.accept() out of system resource", "exception": OSError(errno.EMFILE, "too many")}
        while len(moments) > 1:
            handle(loop, full)
            moments.pop(0)
        handle(loop, full)
        expected = "no connection can be accepted (too many); trying again every second"
        assert caplog.messages == [expected] * 2
        handle(loop, {"message": "socket.accept() failed", "exception": OSError(errno.EIO, "broken")})
        handle(loop, {"message": "a task failed", "exception": ValueError()})
        assert caplog.messages[2:] == ["socket.accept() failed", "a task failed"]
    finally:
        loop.close()
