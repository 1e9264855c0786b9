"""An instance's log over several starts."""

from collections.abc import Callable

import pytest

from juggler.lifecycle.launcher import ExitReport
from juggler.lifecycle.output import CUT_MARK, OutputRing
from juggler.logs.launches import FLOOD_LINES, LaunchLog, only_colours
from juggler.logs.ring import LogRing


def written(secrets: Callable[[], tuple[str, ...]] = lambda: ()) -> tuple[LogRing, LaunchLog]:
    ring = LogRing(lambda: 1.0)
    return ring, LaunchLog(lambda: ring, secrets)


def shown(ring: LogRing) -> list[tuple[str, str]]:
    return [(line.stream, line.text) for line in ring.read().lines]


def test_two_starts() -> None:
    """Each between lines of ours, with what was printed before we looked; the log outlives both processes."""
    ring, log = written()
    first, second = OutputRing(), OutputRing()
    first.feed("stderr", b"early\n")
    log.started("server -m a", first)
    assert ring.running
    first.feed("stdout", b"hello\nbeg")
    assert [(line.stream, line.text) for line in ring.read().begun] == [("stdout", "beg")]
    first.feed("stdout", b"un\n")
    log.ended(ExitReport(1, 2.0))
    assert not ring.running
    log.started("server -m a", second)
    second.feed("stdout", b"again")
    second.finish("stdout")
    log.ended(ExitReport(-9, 2.0))
    assert ring.read().begun == []
    assert shown(ring) == [
        ("juggler", "started: server -m a"),
        ("stderr", "early"),
        ("stdout", "hello"),
        ("stdout", "begun"),
        ("juggler", "exited with status 1"),
        ("juggler", "started: server -m a"),
        ("stdout", "again"),
        ("juggler", "was ended by signal 9"),
    ]


def test_secrets_are_asked_for_at_each_start() -> None:
    """koboldcpp's are only known once its settings file was read; a line of ours is masked as well."""
    words: list[str] = []
    ring, log = written(lambda: tuple(words))
    words.append("hunter2")
    output = OutputRing()
    log.started("server --name hunter2", output)
    output.feed("stdout", b"I am hunter2\nand hun")
    output.feed("stderr", b"hunter2" * 2000 + b"\n")
    log.note("failed: hunter2")
    texts = [line.text for line in ring.read().lines]
    assert texts[:2] == ["started: server --name ***", "I am ***"]
    assert set(texts[2].removesuffix(CUT_MARK)) == {"*"}
    assert texts[3] == "failed: ***"
    assert [line.text for line in ring.read().begun] == ["and ***"]


def test_a_flood_is_recorded_in_part() -> None:
    """Bounded in lines per second, in stretches, and what is left out is told, at the end at the latest."""
    now = 100.0
    ring = LogRing(lambda: now, lines_max=10**6, bytes_max=10**9)
    log = LaunchLog(lambda: ring, lambda: ())
    output = OutputRing()
    log.started("flood", output)
    for _ in range(120):
        now += 0.1
        output.feed("stdout", b"x\n" * 400)
    log.ended(ExitReport(0, 12.0))
    texts = [line.text for line in ring.read(limit=10**6).lines]
    recorded = texts.count("x")
    notes = [int(text.split()[0]) for text in texts if "were skipped" in text]
    assert recorded + sum(notes) == 48_000
    assert recorded == 3 * FLOOD_LINES
    assert len(notes) == 3
    assert texts[-1] == "exited with status 0"


def test_an_attached_server_has_no_end_of_ours() -> None:
    ring, log = written()
    log.note("attached at http://127.0.0.1:1")
    log.ended(ExitReport(0, 1.0))
    assert shown(ring) == [("juggler", "attached at http://127.0.0.1:1")]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("plain \x1b[31mred\x1b[0m\ttab", "plain \x1b[31mred\x1b[0m\ttab"),
        ("\x1b[38;2;1;2;3mx\x1b[38:5:1my", "\x1b[38;2;1;2;3mx\x1b[38:5:1my"),
        ("\x1b[2J\x1b[H\x1b]0;title\x07\x1b[?1049hx", "x"),
        ("\x1b[6n\x1bc\x07a\x08b\x00", "ab"),
        ("\x1b[>4;2m", ""),
        ("caf\u00e9 \u2588\u2591", "caf\u00e9 \u2588\u2591"),
        ("a\x9b31mx\x85y\u2028", "a31mxy"),
        ("of two\nlines", "of two lines"),
    ],
)
def test_only_colours_are_left(text: str, left: str) -> None:
    """What a backend prints may neither clear the reader's terminal nor make it answer."""
    assert only_colours(text) == left
