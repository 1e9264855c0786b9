"""What dashboards cost those who are served. Run: ``python bench/observer.py [--endpoints 50] [--pairs 20]``.

200 requests/s, sent when they are due whatever became of the others, go through one ``juggler serve`` to a fast
backend: with nobody looking; with ten open dashboards, each of which reads the stream of events and asks for the whole
status every ten seconds; and with ten and one more that never reads what it is sent. These alternate, in the order
A B C C B A, and each turn gives one ratio per quantity to its own A. Printed is the median of the ratios with an
interval that holds it with 95 % (by the order of the ratios). Exit status 1 above the target.

Linux only, needs gcc. A machine that others use needs more turns: the interval tells.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.dataplane_parts.contenders import UVLOOP, start_juggler
from bench.dataplane_parts.processes import CannotRun, Process, compile_c

RATE = 200
"""Requests per second."""
CONNECTIONS = 128
"""So many may wait for their answer: 0.6 s of a stall."""
DASHBOARDS = 10
STATUS_EVERY_S = 10.0
TARGET = 1.05
SETTLE_S = 0.5
_OPEN_LIMIT_S = 20.0
_NO_LINGER = "import juggler.control.stream; juggler.control.stream.LINGER_S = 0.0"
"""Else the stream is made for half a minute after the last reader left: right into the next measurement."""
_EVENTS = b"GET /api/v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
_STATUS = b"GET /api/v1/status HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"

WAYS = ((0, 0), (DASHBOARDS, 0), (DASHBOARDS, 1))
"""Readers, and those that do not read."""
TITLES = ("alone", f"{DASHBOARDS} dashboards", f"{DASHBOARDS} + 1 silent")
QUANTITIES = ("latency p50, us", "latency p99, us", "juggler's CPU, %")


async def dashboard(port: int, first_status_s: float) -> None:
    """As the page: one stream, read as it comes, and now and then the whole status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(_EVENTS)

    async def follow() -> None:
        while await reader.read(1 << 16):
            pass

    async def ask() -> None:
        await asyncio.sleep(first_status_s)
        while True:
            answer, question = await asyncio.open_connection("127.0.0.1", port)
            question.write(_STATUS)
            await answer.read()
            question.close()
            await asyncio.sleep(STATUS_EVERY_S)

    try:
        await asyncio.gather(follow(), ask())
    finally:
        writer.close()


def silent(port: int) -> socket.socket:
    """A stream that nobody reads, with little room in the kernel."""
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect(("127.0.0.1", port))
    one.sendall(_EVENTS)
    return one


def look(port: int, orders: Connection) -> None:
    """A process with all dashboards: it is told how many there are to be, says when that is so, ends with the pipe."""

    async def all_of_them() -> None:
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []
        mute: list[socket.socket] = []
        while (wanted := await loop.run_in_executor(None, _received, orders)) is not None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for one in mute:
                one.close()
            apart_s = STATUS_EVERY_S / DASHBOARDS
            tasks = [asyncio.create_task(dashboard(port, number * apart_s)) for number in range(wanted[0])]
            mute = [silent(port) for _ in range(wanted[1])]
            await asyncio.sleep(SETTLE_S)
            if failed := [task.exception() for task in tasks if task.done()]:
                raise SystemExit(f"a dashboard has ended: {failed[0]}")
            orders.send("so it is")

    asyncio.run(all_of_them())


def _received(orders: Connection) -> tuple[int, int] | None:
    try:
        readers, mute = orders.recv()
    except EOFError:
        return None
    return readers, mute


class Dashboards:
    """The process with them, in a context that ends it."""

    def __init__(self, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=look, args=(port, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def be(self, wanted: tuple[int, int]) -> None:
        """Have so many readers, and so many that do not read.

        Raises:
            CannotRun: They do not come up.
        """
        self._orders.send(wanted)
        with contextlib.suppress(EOFError):
            if self._orders.poll(_OPEN_LIMIT_S) and self._orders.recv():
                return
        raise CannotRun("the dashboards do not open")

    def close(self) -> None:
        self._orders.close()
        self._process.kill()
        self._process.join()


class Meter:
    """The load on one juggler."""

    def __init__(self, load: Path, juggler: Process, seconds: float) -> None:
        self._command = [str(load), "paced", str(juggler.port), str(CONNECTIONS), str(seconds), "0.2", str(RATE)]
        self._juggler = juggler

    def measure(self) -> tuple[float, ...]:
        """The quantities, in order.

        Raises:
            CannotRun: An answer was missing or wrong.
        """
        cpu_s, began = self._juggler.cpu_s(), time.monotonic()
        done = subprocess.run(self._command, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise CannotRun(f"the load: {done.stderr.strip()}")
        share = (self._juggler.cpu_s() - cpu_s) / (time.monotonic() - began)
        numbers = json.loads(done.stdout)
        return numbers["p50_us"], numbers["p99_us"], share * 100


def interval(values: list[float]) -> tuple[float, float]:
    """Around the median, 95 %: by the order of the values, as the binomial distribution has it."""
    ordered, count = sorted(values), len(values)
    skipped = max(0, int((count - 1.96 * count**0.5) / 2))
    return ordered[skipped], ordered[count - 1 - skipped]


def report(endpoints: int, turns: list[list[tuple[float, ...]]]) -> bool:
    """Print the table; returns whether the target is met."""
    print(
        f"{RATE} requests/s, {endpoints} endpoints, {len(turns)} turns; ratios to {TITLES[0]} of the same turn (95 %)"
    )
    passed = True
    for index, quantity in enumerate(QUANTITIES):
        alone = statistics.median(turn[0][index] for turn in turns)
        print(f"{quantity:<18} {TITLES[0]:<14} {alone:8.1f}")
        for way in range(1, len(WAYS)):
            ratios = [turn[way][index] / turn[0][index] for turn in turns if turn[0][index]]
            ratio, (low, high) = statistics.median(ratios), interval(ratios)
            verdict = ""
            if index == 0:
                verdict = f"target < {TARGET}: {'PASS' if ratio < TARGET else 'MISS'}"
                passed = passed and ratio < TARGET
            value = statistics.median(turn[way][index] for turn in turns)
            print(
                f"{'':<18} {TITLES[way]:<14} {value:8.1f}   {ratio:.3f} ({low:.3f} to {high:.3f})  {verdict}".rstrip()
            )
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--pairs", type=int, default=20, help="turns")
    parser.add_argument("--endpoints", type=int, default=10)
    options = parser.parse_args()
    turns: list[list[tuple[float, ...]]] = []
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        load = compile_c("load", directory)
        backend = Process([compile_c("backend", directory)], directory / "backend.log")
        stack.callback(backend.stop)
        juggler, control_port = start_juggler(UVLOOP, options.endpoints, backend, directory / "juggler", _NO_LINGER)
        stack.callback(juggler.stop)
        watchers = Dashboards(control_port)
        stack.callback(watchers.close)
        meter = Meter(load, juggler, options.seconds)
        for way in WAYS:  # whatever is made at first use
            watchers.be(way)
            meter.measure()
        for number in range(options.pairs):
            turn: list[tuple[float, ...]] = [()] * len(WAYS)
            for index in range(len(WAYS)) if number % 2 == 0 else reversed(range(len(WAYS))):
                watchers.be(WAYS[index])
                turn[index] = meter.measure()
            turns.append(turn)
    return 0 if report(options.endpoints, turns) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except CannotRun as reason:
        print(reason, file=sys.stderr)
        sys.exit(2)
