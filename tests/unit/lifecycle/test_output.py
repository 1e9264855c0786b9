"""The ring of output: what is kept, what it costs, and that reading never stops a writer."""

import asyncio
import os
import random
import time

import pytest

from juggler.lifecycle.output import LINE_BYTES_MAX, READ_BYTES, LineCutter, OutputRing, PipeDrain, strip_escapes
from juggler.units import MIB


def fed(*chunks: bytes) -> list[str]:
    ring = OutputRing()
    for chunk in chunks:
        ring.feed("stdout", chunk)
    return ring.tail(1000)


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ((b"one\ntwo\n",), ["one", "two"]),
        ((b"o", b"ne\nt", b"wo"), ["one", "two"]),
        ((b"one\r\ntwo\r\n",), ["one", "two"]),
        ((b"one\r", b"\ntwo\r", b"\n"), ["one", "two"]),
        ((b"one\r\r\n",), ["one"]),
        ((b"\n\n",), ["", ""]),
        ((b"10%\r20%\r30%",), ["30%"]),
        ((b"10%\r", b"20%\r", b"30%\r"), ["30%"]),
        ((b"\r10%", b"\r20%", b"\r30%\n", b"done\n"), ["30%", "done"]),
        ((b"10%\r20%\ndone",), ["20%", "done"]),
        ((b"caf\xc3\xa9 \xff\n",), ["café \ufffd"]),
        ((b"\x1b[31mred\x1b[0m\tx\x07\n",), ["red\tx"]),
        ((b"",), []),
    ],
)
def test_lines(chunks: tuple[bytes, ...], lines: list[str]) -> None:
    """Line ends, rewritten lines, broken encodings and colours come out as a person would read them."""
    assert fed(*chunks) == lines


def test_chunk_borders_change_nothing() -> None:
    """Wherever the reads cut the stream, the lines are the same."""
    rng = random.Random(7)
    data = b"".join(rng.choice([b"a", b"bc", b"\n", b"\r", b"\r\n", b"50%\r", b"line\n"]) for _ in range(400))
    whole = fed(data)
    for _ in range(50):
        cuts = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(1, 60)))
        assert fed(*(data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True))) == whole


def test_the_ring_is_bounded_in_lines_and_bytes() -> None:
    """Neither many short nor few long lines make it grow."""
    ring = OutputRing(lines_max=100, bytes_max=10_000)
    ring.feed("stdout", b"".join(b"%d\n" % number for number in range(5000)))
    assert ring.tail(1000)[-2:] == ["4998", "4999"]
    assert len(ring.tail(1000)) == 100
    for _ in range(100):
        ring.feed("stdout", b"y" * 1000 + b"\n")
    assert sum(len(line) + 1 for _, line in ring._lines) == ring._bytes <= 10_000


def test_one_chunk_with_very_many_lines_costs_only_its_end() -> None:
    """Skipped lines are counted, not looked at; the count is exact."""
    skipped, lines = LineCutter().feed(b"".join(b"%d\n" % number for number in range(30_000)) + b"rest")
    assert skipped + len(lines) == 30_000
    assert lines[-1] == b"29999"
    assert len(lines) == 500


def test_a_line_without_end_is_cut() -> None:
    """What never ends does not grow, and the next line is whole again."""
    ring = OutputRing()
    for _ in range(100):
        ring.feed("stdout", b"z" * 65536)
    assert len(ring._cutters["stdout"]._pending) <= LINE_BYTES_MAX + 1
    ring.feed("stdout", b"\nnext\n")
    long, following = ring.tail()
    assert len(long) == LINE_BYTES_MAX
    assert long.endswith("z [cut]")
    assert following == "next"


def test_two_streams_do_not_mix() -> None:
    """A begun line on stdout is not continued by stderr."""
    ring = OutputRing()
    ring.feed("stdout", b"load")
    ring.feed("stderr", b"error\n")
    ring.feed("stdout", b"ing\n")
    assert ring.tail() == ["error", "loading"]
    assert ring.tail(1) == ["loading"]
    assert ring.tail(0) == []


def test_subscribers_see_lines_once_and_cannot_do_harm(caplog: pytest.LogCaptureFixture) -> None:
    """Replay, order, unsubscribing, and an exception in one callback."""
    ring = OutputRing()
    ring.feed("stdout", b"before\n")
    seen: list[tuple[str, str]] = []
    fresh: list[str] = []

    def broken(stream: str, line: str) -> None:
        raise RuntimeError("broken")

    ring.subscribe(broken)
    unsubscribe = ring.subscribe(lambda stream, text: seen.append((stream, text)), replay=True)
    ring.subscribe(lambda stream, text: fresh.append(text))
    ring.feed("stderr", b"\x1b[1mafter\nbegun")
    assert seen == [("stdout", "before"), ("stderr", "\x1b[1mafter")]
    assert ring.begun() == [("stderr", "begun")]
    assert "subscriber" in caplog.text
    unsubscribe()
    unsubscribe()
    ring.finish("stderr")
    assert len(seen) == 2
    assert fresh == ["\x1b[1mafter", "begun"]


def test_escapes_of_all_kinds_are_stripped() -> None:
    """Titles, links, cursor moves, short forms and an unfinished sequence."""
    assert strip_escapes("\x1b]0;title\x07a\x1b]8;;http://x\x1b\\b\x1b[2Kc\x1b(Bd\x1b[?25le\x1b[") == "abcde"


async def test_a_pipe_is_read_to_its_end() -> None:
    """The begun last line counts, the descriptor is closed, and ``ended`` tells."""
    reader, writer = os.pipe()
    ring = OutputRing()
    drain = PipeDrain(asyncio.get_running_loop(), reader, ring, "stdout")
    os.write(writer, b"one\ntwo")
    drain.drain_now()
    assert ring.tail() == ["one", "two"]
    assert not drain.ended.done()
    os.close(writer)
    await asyncio.wait_for(drain.ended, 5)
    assert ring.tail() == ["one", "two"]
    assert ring.bytes_seen == 7
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(reader)


async def test_a_flood_leaves_the_loop_alive() -> None:
    """While a thread writes 64 MiB of short lines, the loop turns often and the writer is never stuck.

    A turn is as long as the loop's thread works: what others take of the processors meanwhile does not count.
    """
    reader, writer = os.pipe()
    loop = asyncio.get_running_loop()
    drain = PipeDrain(loop, reader, OutputRing(), "stdout")

    def flood() -> None:
        block = b"y\n" * 32768
        for _ in range(1024):
            data = block
            while data:
                data = data[os.write(writer, data) :]
        os.close(writer)

    writing = loop.run_in_executor(None, flood)
    longest, turns = 0.0, 0
    while not drain.ended.done():
        before = time.thread_time()
        await asyncio.sleep(0)
        longest, turns = max(longest, time.thread_time() - before), turns + 1
    await writing
    assert longest < 0.2
    assert turns >= 64 * MIB // READ_BYTES
