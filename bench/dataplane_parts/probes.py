"""What a proxy makes of unusual exchanges, by raw sockets on both sides (dataplane.md section 4).

Each probe asks one question of a proxy and says what it did: ``OK``, or a few words. A request goes to
``/bench/NAME...``, and the backend acts by that name.
"""

import contextlib
import gzip
import queue
import re
import time
from collections.abc import Callable

from bench.dataplane_parts.scripted import Action, Client, ScriptedBackend, Talk

OK = "ok"
_PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_SILENCE_S = 1.0
"""Long enough for what is to come, where nothing may come."""
_ZIPPED = gzip.compress(b"x" * 2000)
_UPGRADE = b"GET /bench/upgrade HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n"
_ANSWER_FIELDS = (
    b"HTTP/1.1 200 Fine By Me\r\nx-LoWer: 1\r\nX-B: 2\r\nServer: its own\r\nx-LoWer: 3\r\nContent-Type: a/b\r\n"
    b"Content-Length: 2\r\n\r\nok"
)


def _answering(data: bytes) -> Action:
    def answer(talk: Talk) -> None:
        talk.read_body()
        talk.seen.put(talk.request)
        talk.send(data)

    return answer


def _cut(talk: Talk) -> None:
    talk.send(_CHUNKED + b"5\r\nhello\r\n")
    raise EOFError  # the connection is closed


def _continue(talk: Talk) -> None:
    talk.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    talk.read_body()
    talk.seen.put(talk.request)
    talk.send(_PLAIN)


def _refuse(talk: Talk) -> None:
    talk.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
    end = time.monotonic() + 2.0
    while time.monotonic() < end and talk.more():
        pass
    raise EOFError


def _switch(talk: Talk) -> None:
    talk.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: raw\r\n\r\n\0hello")
    while data := talk.more():
        talk.send(data[::-1])
    raise EOFError


ACTIONS: dict[bytes, Action] = {
    b"/fields": _answering(_ANSWER_FIELDS),
    b"/zipped": _answering(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(_ZIPPED) + _ZIPPED
    ),
    b"/trailer": _answering(
        _CHUNKED.replace(b"\r\n\r\n", b"\r\nTrailer: X-T\r\n\r\n") + b"2\r\nok\r\n0\r\nX-T: 1\r\n\r\n"
    ),
    b"/early": _answering(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + _PLAIN),
    b"/chunked": _answering(_CHUNKED + b"2\r\nok\r\n0\r\n\r\n"),
    b"/hop": _answering(b"HTTP/1.1 200 OK\r\nConnection: X-Hop\r\nX-Hop: 1\r\nX-End: 2\r\nContent-Length: 2\r\n\r\nok"),
    b"/cut": _cut,
    b"/continue": _continue,
    b"/refuse": _refuse,
    b"/upgrade": _switch,
}

_HEAD = b"POST /bench/x HTTP/1.1\r\nHost: h\r\n"
_CODED = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
MALFORMED: dict[str, bytes] = {
    "length and chunked": _HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "differing lengths": _HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "length +3": _HEAD + b"Content-Length: +3\r\n\r\nabc",
    "length 3, 3": _HEAD + b"Content-Length: 3, 3\r\n\r\nabc",
    "length 0x3": _HEAD + b"Content-Length: 0x3\r\n\r\nabc",
    "coding xchunked": _HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding chunked, gzip": _HEAD + b"Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    "coding twice": _HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "blank before colon": _HEAD + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "chunked in HTTP/1.0": b"POST /bench/x HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "folded line": _HEAD + b"X: a\r\n b\r\nContent-Length: 0\r\n\r\n",
    "folded coding": _HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"GET /bench/x HTTP/1.1\nHost: h\n\n",
    "bare CR": b"GET /bench/x HTTP/1.1\r\nHost: h\r\nX: a\rb\r\n\r\n",
    "NUL in a value": b"GET /bench/x HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n",
    "bad name": b"GET /bench/x HTTP/1.1\r\nHost: h\r\nX(y): a\r\n\r\n",
    "no colon": b"GET /bench/x HTTP/1.1\r\nHost: h\r\nnothing\r\n\r\n",
    "no Host": b"GET /bench/x HTTP/1.1\r\n\r\n",
    "two Hosts": b"GET /bench/x HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n",
    "control byte in target": b"GET /bench/x\x01 HTTP/1.1\r\nHost: h\r\n\r\n",
    "HTTP/1.2": b"GET /bench/x HTTP/1.2\r\nHost: h\r\n\r\n",
    "chunk size 0x2": _CODED + b"0x2\r\nab\r\n0\r\n\r\n",
    "chunk size 1_0": _CODED + b"1_0\r\n" + b"a" * 16 + b"\r\n0\r\n\r\n",
    "chunk size -1": _CODED + b"-1\r\nab\r\n0\r\n\r\n",
    "chunk size too long": _CODED + b"1" * 20 + b"\r\nab\r\n0\r\n\r\n",
    "chunk size ended by LF": _CODED + b"2\nab\r\n0\r\n\r\n",
    "chunk without its end": _CODED + b"2\r\nabc\r\n0\r\n\r\n",
    "LF in extension": _CODED + b"2;a\nb\r\nab\r\n0\r\n\r\n",
    "LF after chunk": _CODED + b"2\r\nab\n0\r\n\r\n",
}
"""By what is wrong; none of them may reach the backend as a whole request."""


class Prober:
    """Asks one proxy.

    Args:
        port: Of the proxy.
        backend: Behind it, with ``ACTIONS``.
    """

    def __init__(self, port: int, backend: ScriptedBackend) -> None:
        self._port = port
        self._backend = backend

    def probes(self) -> dict[str, Callable[[], str]]:
        """By what is asked."""
        return {
            "request: case, order, repeated fields": self._request_fields,
            "answer: the same, and the reason": self._answer_fields,
            "nothing added to the request": self._nothing_added,
            "body as it is without Accept-Encoding": self._zipped,
            "raw path": lambda: self._target(b"/bench/a%2Fb//c/./d?x=%zz&&"),
            "raw bytes in the target": lambda: self._target(b'/bench/\xc3\xa9[|"{}'),
            "any method": self._methods,
            "request trailers": self._request_trailer,
            "answer trailers": lambda: self._tells("trailer", b"X-T: 1\r\n\r\n"),
            "Expect: 100-continue end to end": self._expect,
            "103 before the answer": lambda: self._tells("early", b"HTTP/1.1 103 ", b"Link: </a>"),
            "raw upgrade, both ways": self._upgrade,
            "POST with Upgrade: h2c": self._h2c,
            "HTTP/1.0 client, chunked answer": self._old_client,
            "absolute form": self._absolute,
            "60 KB of head": self._long_head,
            "cut answer shows": self._cut,
            "early 413 reaches the sender": self._refused,
            "Connection-listed fields removed": self._hop,
        }

    def malformed(self) -> list[str]:
        """Which of ``MALFORMED`` reach the backend as a whole request."""
        passed = []
        for name, request in MALFORMED.items():
            self._backend.forget()
            with Client(self._port) as client:
                client.send(request)
                client.until(b"\r\n\r\n", _SILENCE_S)
                refused = re.match(rb"HTTP/1\.[01] [45]", client.got) is not None or (client.ended and not client.got)
            if not refused:
                passed.append(name)
        return passed

    def _ask(self, request: bytes, mark: bytes = b"\r\n\r\n", limit_s: float = 5.0) -> bytes:
        """What is answered up to ``mark``, or all that came."""
        self._backend.forget()
        with Client(self._port) as client:
            client.send(request)
            client.until(mark, limit_s)
            client.until(b"\0 never \0", 0.05)
            return client.got

    def _seen(self) -> bytes:
        """The request as the backend has got it; empty: none."""
        with contextlib.suppress(queue.Empty):
            return self._backend.seen.get(timeout=_SILENCE_S)
        return b""

    def _request_fields(self) -> str:
        self._ask(b"GET /bench/x HTTP/1.1\r\nHost: h\r\nx-lOwer: 1\r\nA-b: \xe9\r\nx-lOwer: 2\r\n\r\n")
        seen = self._seen()
        names = [line.split(b":")[0] for line in seen.split(b"\r\n") if line.lower().startswith((b"x-lower", b"a-b"))]
        return OK if names == [b"x-lOwer", b"A-b", b"x-lOwer"] and b"\xe9" in seen else f"{names!r}"

    def _answer_fields(self) -> str:
        got = self._ask(b"GET /bench/fields HTTP/1.1\r\nHost: h\r\n\r\n")
        wanted = (b"x-LoWer: 1", b"X-B: 2", b"Server: its own", b"x-LoWer: 3")
        places = [got.find(b"\r\n" + field) for field in wanted]
        reason = got.startswith(b"HTTP/1.1 200 Fine By Me\r\n")
        missing = [field.decode() for field, place in zip(wanted, places, strict=True) if place < 0]
        if missing or places != sorted(places):
            return f"lost: {', '.join(missing) or 'order'}"
        return OK if reason else "reason lost"

    def _nothing_added(self) -> str:
        self._ask(b"GET /bench/x HTTP/1.1\r\nHost: h\r\n\r\n")
        names = {line.split(b":")[0].lower() for line in self._seen().split(b"\r\n")[1:] if line}
        added = {name for name in names if not name.startswith((b"x-forwarded", b"via", b"forwarded"))}
        return OK if added <= {b"host", b"connection"} else b", ".join(added - {b"host", b"connection"}).decode()

    def _zipped(self) -> str:
        got = self._ask(b"GET /bench/zipped HTTP/1.1\r\nHost: h\r\n\r\n", _ZIPPED[-8:], _SILENCE_S)
        return OK if got.endswith(_ZIPPED) else "changed"

    def _target(self, target: bytes) -> str:
        self._ask(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
        seen = self._seen().split(b" ")
        if len(seen) < 2:
            return "refused"
        # A juggler and Go keep the prefix; what matters is what is behind it.
        return OK if seen[1].endswith(target.removeprefix(b"/bench")) else f"{seen[1]!r}"

    def _methods(self) -> str:
        failed = []
        for method in (b"FOO", b"PROPFIND", b"get"):
            self._ask(method + b" /bench/x HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
            if not self._seen().startswith(method + b" "):
                failed.append(method.decode())
        return OK if not failed else f"not {', '.join(failed)}"

    def _request_trailer(self) -> str:
        self._ask(_HEAD + b"Transfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2\r\nab\r\n0\r\nX-T: 1\r\n\r\n")
        return OK if b"X-T: 1\r\n\r\n" in self._seen() else "dropped"

    def _tells(self, path: str, *wanted: bytes) -> str:
        got = self._ask(
            f"GET /bench/{path} HTTP/1.1\r\nHost: h\r\nTE: trailers\r\n\r\n".encode(), wanted[-1], _SILENCE_S
        )
        return OK if all(one in got for one in wanted) else "dropped"

    def _expect(self) -> str:
        self._backend.forget()
        with Client(self._port) as client:
            client.send(
                b"POST /bench/continue HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
            )
            if not client.until(b"100 Continue\r\n\r\n", _SILENCE_S):
                return "no 100"
            client.send(b"ab")
            if not client.until(b"\r\n\r\nok", _SILENCE_S):
                return "no answer"
        return OK if b"expect: 100-continue" in self._seen().lower() else "answered by the proxy"

    def _upgrade(self) -> str:
        with Client(self._port) as client:
            client.send(_UPGRADE)
            if not client.until(b"\0hello", _SILENCE_S) or b" 101 " not in client.got:
                return "refused"
            client.send(b"abc\0")
            return OK if client.until(b"\0cba", _SILENCE_S) else "one way"

    def _h2c(self) -> str:
        got = self._ask(
            _HEAD + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
            b"Content-Length: 2\r\n\r\nab"
        )
        return OK if b" 200 " in got and self._seen().endswith(b"\r\n\r\nab") else "body lost"

    def _old_client(self) -> str:
        got = self._ask(b"GET /bench/chunked HTTP/1.0\r\nHost: h\r\n\r\n", b"ok", _SILENCE_S)
        head, _, body = got.partition(b"\r\n\r\n")
        return OK if body == b"ok" and b"chunked" not in head.lower() else "chunks sent"

    def _absolute(self) -> str:
        self._ask(b"GET http://h/bench/x HTTP/1.1\r\nHost: h\r\n\r\n")
        return OK if re.match(rb"GET /\S* HTTP", self._seen()) else "refused"

    def _long_head(self) -> str:
        got = self._ask(b"GET /bench/x HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 60_000 + b"\r\n\r\n")
        return OK if b" 200 " in got else got[9:12].decode("latin-1") or "cut"

    def _cut(self) -> str:
        with Client(self._port) as client:
            client.send(b"GET /bench/cut HTTP/1.1\r\nHost: h\r\n\r\n")
            got = client.to_end(_SILENCE_S)
            if b"0\r\n\r\n" in got:
                return "ends as if whole"
            return OK if client.ended else "left hanging"

    def _refused(self) -> str:
        self._backend.forget()
        with Client(self._port) as client:
            client.send(b"POST /bench/refuse HTTP/1.1\r\nHost: h\r\nContent-Length: 8000000\r\n\r\n")
            client.send_until_answered(4_000_000)
            return OK if client.until(b"\r\n\r\nbig", 3.0) and b" 413 " in client.got else "lost"

    def _hop(self) -> str:
        got = self._ask(
            b"GET /bench/hop HTTP/1.1\r\nHost: h\r\nConnection: X-Mine\r\nX-Mine: 1\r\nX-Stays: 2\r\n\r\n",
            b"\r\n\r\nok",
        )
        seen = self._seen()
        leaks = [where for where, text in (("request", seen), ("answer", got)) if b"X-Mine" in text or b"X-Hop" in text]
        if b"X-End" not in got or b"X-Stays" not in seen:
            return "too many removed"
        return OK if not leaks else f"leaks in the {' and '.join(leaks)}"
