"""As many connections as the system gives descriptors for, and more."""

import asyncio
import resource
import socket
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from juggler.descriptors import told_in_moderation
from juggler.proxy.contract import LocalResponse
from juggler.units import KIB
from tests.protocol.support import FAST, OK, Peer, rig, until

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
PROGRAM = Path(__file__).parents[1] / "programs" / "crowd.py"
MOST = 10_000
SPARE = 300


@pytest.fixture
def descriptors() -> Iterator[int]:
    """The soft limit raised as far as it goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MOST + 2 * SPARE if hard == resource.RLIM_INFINITY else min(hard, MOST + 2 * SPARE)
    limit = max(limit, soft)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_ten_thousand_idle_and_slow_connections(descriptors: int) -> None:
    """Each costs a few KiB and no processor time to speak of; others are served as before, and all are let go."""
    count = min(MOST, descriptors - SPARE)
    limits = replace(FAST, sweep_interval_s=1.0, connections=count + 10, head_timeout_s=600.0, idle_timeout_s=600.0)
    async with rig(limits=limits) as setup:
        peer = await setup.ask(GET)
        await peer.exactly(OK)
        before = await _median_s(peer)
        memory = _resident_bytes()
        host, port = setup.listener.addresses[0]
        crowd = await asyncio.create_subprocess_exec(
            sys.executable,
            str(PROGRAM),
            host,
            str(port),
            str(count),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert crowd.stdin is not None
        assert crowd.stdout is not None
        try:
            async with asyncio.timeout(120):
                assert await crowd.stdout.readline() == b"ready\n"
            await until(lambda: len(setup.listener.connections) == count + 1, 20)
            each = (_resident_bytes() - memory) / count
            during = await _median_s(peer)
            late = await setup.ask(GET)
            await late.exactly(OK)
            busy = time.process_time()
            await asyncio.sleep(2)
            busy = time.process_time() - busy
        finally:
            crowd.stdin.close()
            await crowd.wait()
        await until(lambda: len(setup.listener.connections) == 2, 30)
        print(f"{count} connections: {each / KIB:.1f} KiB each, {busy / 2:.1%} busy, {before:.4f} -> {during:.4f} s")
        assert each < 16 * KIB
        assert busy < 1.5
        assert during < before * 20 + 0.05


async def _median_s(peer: Peer) -> float:
    times = []
    for _ in range(200):
        since = time.perf_counter()
        peer.send(GET)
        await peer.exactly(OK)
        times.append(time.perf_counter() - since)
    return statistics.median(times)


@pytest.mark.slow
async def test_without_descriptors_nobody_new_comes_and_all_else_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """1. The limit is reached in the middle of a queue of new connections. 2. Those who are in are served, and the loop
    does not turn in vain. 3. Connections end, and new ones are accepted again.
    """
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(told_in_moderation(loop.time))
    async with rig() as setup:
        setup.gateway.local = LocalResponse(200, b"ok")
        peer = await setup.ask(GET)
        assert (await peer.answer())[0] == 200
        # Sockets of our own come first: this process is client and server.
        clients = [socket.socket() for _ in range(40)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as probe:
            highest = max(probe.fileno(), *(one.fileno() for one in clients))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
        try:
            for one in clients:
                one.setblocking(False)
                one.connect_ex(setup.listener.addresses[0])
            await asyncio.sleep(0.3)
            busy = time.process_time()
            since = time.monotonic()
            served = 0
            while time.monotonic() - since < 1.5 or served <= 5:
                peer.send(GET)
                assert (await peer.answer())[0] == 200
                served += 1
                await asyncio.sleep(0.05)
            assert time.process_time() - busy < (time.monotonic() - since) / 2
            assert len(setup.listener.connections) < 20
        finally:
            for one in clients:
                one.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await until(lambda: len(setup.listener.connections) == 1)
        late = await setup.ask(GET)
        assert (await late.answer())[0] == 200
        assert len(caplog.records) <= 1
