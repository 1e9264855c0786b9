"""Requests per second through the data plane against the same backend without it, and CPU per request. Seconds to run.

    python bench/dataplane_quick.py [--loop asyncio|uvloop] [--connections 32] [--seconds 3] [--body 1024]

Backend, proxy and load are three processes that share the machine, so throughput says little by itself: compare
the ratios of one run. CPU per request is the stable number; the backend's own, a bare asyncio server that parses
nothing, is the yardstick beside it.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from juggler.ids import EndpointId
from juggler.proxy.contract import ExchangeResult, LocalResponse, RequestInfo, Route
from juggler.proxy.listener import start_listener
from juggler.proxy.upstream import UpstreamPool
from juggler.routing.traffic import TrafficClass

_ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"ok": true}\r'


class _Lease:
    def __init__(self, pool: UpstreamPool) -> None:
        self.upstream = pool

    def switched(self) -> None:
        pass

    def release(self, result: ExchangeResult) -> None:
        pass


class _Gateway:
    """Everything goes to one backend at once."""

    def __init__(self, port: int) -> None:
        self._lease = _Lease(UpstreamPool("127.0.0.1", port))

    def route(self, method: bytes, target: bytes, host: bytes | None) -> Route | LocalResponse:
        return Route(EndpointId("bench/all"), "all", target, TrafficClass.WORK)

    async def acquire(self, route: Route, request: RequestInfo) -> _Lease:
        return self._lease


class _Backend(asyncio.Protocol):
    """Answers when a head and its announced body have arrived."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return
        start = data.find(b"Content-Length: ", 0, end)
        length = int(data[start + 16 : data.find(b"\r\n", start)]) if start >= 0 else 0
        if len(data) >= end + 4 + length:
            self._buffer = data[end + 4 + length :]
            self.transport.write(_ANSWER)


class _Client(asyncio.Protocol):
    """Sends the next request when an answer has arrived."""

    transport: asyncio.Transport

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._got = b""
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self.transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._got += data
        if self._got.endswith(_ANSWER[-13:]):
            self._got = b""
            self._load.latencies.append(time.perf_counter() - self._sent_at)
            self._send()


@dataclass
class _Load:
    request: bytes
    latencies: list[float]


async def _measure(port: int, connections: int, seconds: float, body_bytes: int) -> list[float]:
    head = (
        f"POST /v1/x HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {body_bytes}\r\n\r\n"
    )
    load = _Load(head.encode() + b"x" * body_bytes, [])
    loop = asyncio.get_running_loop()
    transports = [
        (await loop.create_connection(lambda: _Client(load), "127.0.0.1", port))[0] for _ in range(connections)
    ]
    await asyncio.sleep(0.3)
    load.latencies.clear()
    await asyncio.sleep(seconds)
    latencies = sorted(load.latencies)
    for transport in transports:
        transport.abort()
    return latencies


async def _serve(role: str, backend_port: int) -> None:
    """A backend or proxy process: prints its port, and its CPU seconds for each line read."""
    loop = asyncio.get_running_loop()
    if role == "backend":
        server = await loop.create_server(_Backend, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
    else:
        port = (await start_listener(_Gateway(backend_port), "127.0.0.1", 0)).addresses[0][1]
    print(port, flush=True)
    ended = asyncio.Event()

    def watch() -> None:
        for _ in sys.stdin:
            print(time.process_time(), flush=True)
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=watch, daemon=True).start()
    await ended.wait()


class _Process:
    """A child in one of the roles."""

    def __init__(self, role: str, loop_name: str, backend_port: int = 0) -> None:
        command = [sys.executable, __file__, "--role", role, "--loop", loop_name, "--backend-port", str(backend_port)]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.port = int(self._line())

    def _line(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline()

    def cpu_s(self) -> float:
        assert self._child.stdin is not None
        self._child.stdin.write("cpu\n")
        self._child.stdin.flush()
        return float(self._line())

    def stop(self) -> None:
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def _loop_factory(name: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if name == "uvloop":
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
        return factory
    return asyncio.new_event_loop


def _row(process: _Process, port: int, options: argparse.Namespace) -> dict[str, float]:
    before = process.cpu_s()
    with asyncio.Runner(loop_factory=_loop_factory(options.loop)) as runner:
        latencies = runner.run(_measure(port, options.connections, options.seconds, options.body))
    cpu_s = process.cpu_s() - before
    count = len(latencies)
    if not count:
        raise SystemExit("no request was answered")
    return {
        "requests_per_s": count / options.seconds,
        # The warm-up is in the CPU time and not in the count: corrected in proportion.
        "cpu_us": cpu_s / count * 1e6 * options.seconds / (options.seconds + 0.3),
        "p50_ms": latencies[count // 2] * 1e3,
        "p99_ms": latencies[count * 99 // 100] * 1e3,
    }


def main() -> None:
    """Run the children, measure, print one table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--body", type=int, default=1024, help="bytes of each request's body")
    parser.add_argument("--role", choices=("load", "backend", "proxy"), default="load", help=argparse.SUPPRESS)
    parser.add_argument("--backend-port", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role != "load":
        with asyncio.Runner(loop_factory=_loop_factory(options.loop)) as runner:
            runner.run(_serve(options.role, options.backend_port))
        return
    backend = _Process("backend", options.loop)
    proxy = _Process("proxy", options.loop, backend.port)
    try:
        direct = _row(backend, backend.port, options)
        proxied = _row(proxy, proxy.port, options)
    finally:
        proxy.stop()
        backend.stop()
    ratios = {
        "throughput_proxied_to_direct": proxied["requests_per_s"] / direct["requests_per_s"],
        "cpu_per_request_proxy_to_bare_server": proxied["cpu_us"] / direct["cpu_us"],
    }
    table = {"loop": options.loop, "connections": options.connections, "direct": direct, "proxied": proxied, **ratios}
    print(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
