"""All logs together, as the control API reads them."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator

import pytest

from juggler.errors import RoutingError
from juggler.ids import InstanceId
from juggler.lifecycle.output import OutputRing
from juggler.logs import book
from juggler.logs.book import Logs

LLM = InstanceId("S/llm")


class Knows:
    """A backend's secrets."""

    def __init__(self, *secrets: str) -> None:
        self.secrets = secrets


@pytest.fixture
async def logs() -> AsyncIterator[Logs]:
    logs = Logs(lambda: 5.0)
    logs.open()
    logger = logging.getLogger("juggler")
    before, logger.level = logger.level, logging.INFO
    yield logs
    logger.level = before
    logs.close()
    logs.close()
    assert not [one for one in logger.handlers if type(one).__name__ == "RingHandler"]


async def test_what_is_there(logs: Logs) -> None:
    """Our own log, and one for each instance, started or not; others are an error that lists them."""
    logs.of(LLM, Knows())
    assert logs.listing() == [
        {"log": "juggler", "lines": 0, "last": 0, "running": True},
        {"log": "S/llm", "lines": 0, "last": 0, "running": False},
    ]
    assert logs.read("S/llm", after=0) == {"log": "S/llm", "lines": [], "begun": [], "last": 0, "lost": 0}
    with pytest.raises(RoutingError, match="'x' is no log; there are: juggler, S/llm"):
        logs.read("x")
    with pytest.raises(RoutingError, match="is no log"):
        await logs.wait("x", 0, 0.0)


async def test_lines_as_data(logs: Logs) -> None:
    """Colours only where they are asked for."""
    output = OutputRing()
    logs.of(LLM, Knows()).started("server", output)
    output.feed("stderr", b"\x1b[31mred\n\x1b[32mgreen")
    assert logs.read("S/llm", after=1, ansi=True)["lines"] == [
        {"seq": 2, "at": 5.0, "stream": "stderr", "level": None, "text": "\x1b[31mred"}
    ]
    plain = logs.read("S/llm", limit=1)
    assert plain["lines"] == [{"seq": 2, "at": 5.0, "stream": "stderr", "level": None, "text": "red"}]
    assert plain["begun"] == [{"seq": None, "at": 5.0, "stream": "stderr", "level": None, "text": "green"}]


async def test_our_own_records(logs: Logs) -> None:
    """Each line of them, with its level, masked by what any backend hides, from other threads too."""
    logs.of(LLM, Knows("hunter2")).started("server", OutputRing())
    logging.getLogger("juggler.lifecycle").error("it said:\n    hunter2\x1b[2J")
    logging.getLogger("juggler.app").debug("below the level")
    logging.getLogger("elsewhere").error("not ours")
    waiting = asyncio.ensure_future(logs.wait("juggler", 2, 20))
    thread = threading.Thread(target=logging.getLogger("juggler.devices").warning, args=("from %s", "afar"))
    thread.start()
    assert await waiting
    thread.join()
    lines = logs.read("juggler")["lines"]
    assert isinstance(lines, list)
    told = [(line["level"], line["stream"], line["text"]) for line in lines]
    assert told == [
        ("error", "juggler", "lifecycle: it said:"),
        ("error", "juggler", "    ***"),
        ("warning", "juggler", "devices: from afar"),
    ]


async def test_failures_of_ours_with_their_traceback(logs: Logs) -> None:
    try:
        raise ValueError("broken --api-key hunter2")
    except ValueError:
        logging.getLogger("juggler.engine").exception("a mistake")
    lines = logs.read("juggler")["lines"]
    assert isinstance(lines, list)
    texts = [str(line["text"]) for line in lines]
    assert texts[0] == "engine: a mistake"
    assert texts[-1] == "ValueError: broken --api-key ***"


async def test_the_number_of_logs_is_bounded(logs: Logs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was silent longest makes room, never a running one nor ours; at its next start it is there again."""
    monkeypatch.setattr(book, "LOGS_MAX", 3)
    running = logs.of(InstanceId("running"), Knows())
    running.started("server", OutputRing())
    silent = logs.of(InstanceId("silent"), Knows())
    silent.note("something")
    logs.of(InstanceId("new"), Knows())
    assert [one["log"] for one in logs.listing()] == ["juggler", "running", "new"]
    silent.started("server", OutputRing())
    assert [one["log"] for one in logs.listing()] == ["juggler", "running", "silent"]
