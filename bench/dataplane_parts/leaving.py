"""How soon the backend learns that a client has left: milliseconds from the client's close."""

import contextlib
import http.client
import json
import queue
import time

from bench.dataplane_parts.processes import CannotRun
from bench.dataplane_parts.scripted import WAIT_S, Action, Client, ScriptedBackend, Talk

_POST = b"POST /bench/%b HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_EVENT = b"9\r\ndata: x\n\n\r\n"
_NEVER_MS = WAIT_S * 1000


def _silent(talk: Talk) -> None:
    talk.read_body()
    talk.seen.put(talk.request)
    talk.until_gone()


def _endless(talk: Talk) -> None:
    talk.read_body()
    talk.send(_STREAM_HEAD + _EVENT)
    talk.until_gone(_EVENT, 0.02)


ACTIONS: dict[bytes, Action] = {b"/leave-silent": _silent, b"/leave-endless": _endless}


def waiting_for_head(port: int, backend: ScriptedBackend) -> float:
    """The backend has the request and says nothing yet."""
    backend.forget()
    with Client(port) as client:
        client.send(_POST % b"leave-silent")
        with contextlib.suppress(queue.Empty):
            backend.seen.get(timeout=WAIT_S)
    return _since(time.monotonic(), backend)


def streaming(port: int, backend: ScriptedBackend) -> float:
    """An event every 20 ms comes."""
    backend.forget()
    with Client(port) as client:
        client.send(_POST % b"leave-endless")
        client.until(b"data: x")
    return _since(time.monotonic(), backend)


def _since(left: float, backend: ScriptedBackend) -> float:
    try:
        return max(0.0, backend.ended.get(timeout=WAIT_S) - left) * 1000
    except queue.Empty:
        return _NEVER_MS


def queued(port: int, control_port: int, path: str) -> float:
    """The request waits for a model; asked is the control plane, every other millisecond.

    Raises:
        CannotRun: The request does not wait.
    """
    control = http.client.HTTPConnection("127.0.0.1", control_port, timeout=WAIT_S)

    def waiting() -> int:
        control.request("GET", "/api/v1/waiting")
        return len(json.loads(control.getresponse().read())["waiting"])

    def until(wanted: int) -> bool:
        end = time.monotonic() + WAIT_S
        while (count := waiting()) != wanted and time.monotonic() < end:
            time.sleep(0.001)
        return count == wanted

    try:
        with Client(port) as client:
            client.send(f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            if not until(1):
                raise CannotRun(f"a request does not wait: {client.got[:300]!r}")
        left = time.monotonic()
        return (time.monotonic() - left) * 1000 if until(0) else _NEVER_MS
    finally:
        control.close()
