"""A control plane that says what a test tells it to, and keeps what it was asked.

Run it to look at the dashboard without a juggler: ``python -m tests.dashboard.fake_api [PORT]``.
"""

import contextlib
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.dashboard import past, scenes
from tests.dashboard.refresh_vendored import STATIC

Json = dict[str, Any]
COMMENT_S = 10
FROZEN_S = 30
HEARD_S = 20
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""What the real control plane sends; test_real.py holds the two together."""
MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
"""Of every file that a browser may ask for; the others (licences, checksums) are not served."""
LIST = ("pools", "instances", "endpoints", "waiting", "running", "listeners")


class FakeApi:
    """One listener on 127.0.0.1; the dashboard is at its root."""

    def __init__(self, status: Json, port: int = 0) -> None:
        self.status = status
        self.timeline: Json = {"spans": [], "from_at": 0, "to_at": 0, "thrash": []}
        self.answers: dict[str, tuple[int, Json]] = past.answers()
        """What ``"POST /api/v1/..."`` (decoded, without its query) is answered with, instead of an empty success."""
        self.calls: list[tuple[str, str, Any]] = []
        """Method, path with query as it was sent, and body, of every change that was asked for."""
        self.trial: tuple[dict[str, str], list[bytes]] = ({"X-Try-Status": "200"}, [b"hello"])
        """How a request of "Try it" is answered: fields of the head, pieces of the body."""
        self.trial_goes_on = threading.Event()
        """While it is not set, the last piece of that is kept back."""
        self.trial_goes_on.set()
        self.log_calls: list[dict[str, str]] = []
        """The parameters of every reading of a log."""
        self._logs = past.logs()
        self._log_news = threading.Condition()
        self._closed = False
        self.key: str | None = None
        """The key to log in with; None: nobody is asked."""
        self.refuses_streams = False
        self.answers_streams = threading.Event()
        """While it is not set, whoever asks for a stream is left waiting."""
        self.answers_streams.set()
        self.resumed: list[str | None] = []
        """The ``Last-Event-ID`` of every stream that was opened."""
        self._streams: set[queue.SimpleQueue[str | None]] = set()
        self._lock = threading.Condition()
        """Of the streams and the number; notified when one is opened."""
        self._number = 0
        owner = self

        class Handler(_Handler):
            api = owner

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/"

    def __enter__(self) -> "FakeApi":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.answers_streams.set()
        self.trial_goes_on.set()
        with self._log_news:
            self._closed = True
            self._log_news.notify_all()
        self.cut_streams()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def show(self, status: Json) -> None:
        """A new state, as a snapshot to everybody who listens."""
        self.status = status
        self.send("snapshot", status)

    def change(self, **changed: Any) -> None:
        """Some of the state; it is kept for snapshots to come, too."""
        removed = changed.pop("removed", {})
        for name, value in changed.items():
            if name in LIST:
                key = name.removesuffix("s") if name not in ("waiting", "running", "listeners") else "request"
                key = "server" if name == "listeners" else key
                merged = {one[key]: one for one in self.status[name]} | {one[key]: one for one in value}
                self.status[name] = [one for at, one in merged.items() if at not in removed.get(name, [])]
            else:
                self.status[name] = value
        for name, gone in removed.items():
            key = "request" if name in ("waiting", "running") else name.removesuffix("s")
            self.status[name] = [one for one in self.status[name] if one[key] not in gone]
        self.send("change", {"now_at": time.time(), "removed": removed, **changed})

    def send(self, event: str, data: Json) -> None:
        """To everybody who listens; a page that is still about to is waited for, or it would never hear of this."""
        with self._lock:
            if self.answers_streams.is_set():
                heard = self._lock.wait_for(lambda: self._streams, HEARD_S)
                assert heard, f"nobody listens to hear of {event}"
            self._number += 1
            text = f"id: {scenes.BOOT}-{self._number}\nevent: {event}\ndata: {json.dumps(data)}\n\n"
            for stream in self._streams:
                stream.put(text)

    def cut_streams(self) -> None:
        with self._lock:
            for stream in self._streams:
                stream.put(None)
            self._streams.clear()

    @contextlib.contextmanager
    def nobody_hears(self) -> Iterator[None]:
        """What is sent meanwhile is missed; afterwards a snapshot is all that those get who come back."""
        self.answers_streams.clear()
        self.cut_streams()
        yield
        self.answers_streams.set()

    def open_stream(self, last_id: str | None) -> "queue.SimpleQueue[str | None]":
        """It begins with a snapshot, whose id is that of the last message before it, or the time for who knows all."""
        stream: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        with self._lock:
            identity = f"{scenes.BOOT}-{self._number}"
            if last_id == identity:
                stream.put(f'event: alive\nretry: 200\ndata: {{"now_at": {time.time()}}}\n\n')
            else:
                data = json.dumps(self.status)
                stream.put(f"id: {identity}\nevent: snapshot\nretry: 200\ndata: {data}\n\n")
            self._streams.add(stream)
            self._lock.notify_all()
        return stream

    def close_stream(self, stream: "queue.SimpleQueue[str | None]") -> None:
        with self._lock:
            self._streams.discard(stream)

    def write(self, log: str, *texts: str, **more: Any) -> None:
        """Further lines of a log."""
        with self._log_news:
            lines = self._logs.setdefault(log, [])
            first = lines[-1]["seq"] + 1 if lines else 1
            lines += [past.line(first + at, text, **more) for at, text in enumerate(texts)]
            self._log_news.notify_all()

    def forget(self, log: str) -> None:
        """As after a restart: its lines are numbered from 1 again."""
        with self._log_news:
            self._logs[log] = []

    def read_log(self, log: str, query: dict[str, str]) -> Json:
        """The lines behind ``after``; waits for one if there is none."""
        self.log_calls.append(query)
        after, limit = int(query.get("after", 0)), int(query["limit"])
        with self._log_news:
            lines = self._logs.setdefault(log, [])

            def ready() -> bool:
                return self._closed or bool(lines and lines[-1]["seq"] > after)

            self._log_news.wait_for(ready, float(query.get("wait_s", 0)))
            newer = [one for one in lines if one["seq"] > after]
            found = newer[:limit] if "after" in query else newer[-limit:]
            last = lines[-1]["seq"] if lines else 0
            return {"log": log, "lines": found, "begun": [], "last": last, "lost": 0, "boot": scenes.BOOT}

    def answer(self, method: str, path: str) -> tuple[int, Json]:
        given = self.answers.get(f"{method} {path}")
        if given is not None:
            return given
        if method == "GET":
            known = {"/api/v1/status": self.status, "/api/v1/timeline": self.timeline}
            found = known.get(path)
            return (200, found) if found is not None else (404, _error("not_found", f"there is no {path}"))
        return 200, {}


def _error(code: str, message: str, hint: str | None = None) -> Json:
    return {"error": {"code": code, "message": message, "hint": hint}}


class _Handler(BaseHTTPRequestHandler):
    api: FakeApi
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if not path.startswith("/api/"):
            self._file(path)
        elif not self._let_in():
            self._json(401, _error("login", "The key is missing."))
        elif path == "/api/v1/events":
            self._stream()
        elif path == "/api/v1/logs":
            self._json(200, {"logs": [{"log": name} for name in self.api._logs]})
        elif path.startswith("/api/v1/logs/"):
            query = {name: value for name, (value,) in parse_qs(urlsplit(self.path).query).items()}
            with contextlib.suppress(OSError):  # the reader may have gone meanwhile
                self._json(200, self.api.read_log(unquote(path.removeprefix("/api/v1/logs/")), query))
        else:
            self._json(*self.api.answer("GET", unquote(path)))

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        path = unquote(urlsplit(self.path).path)
        if path == "/api/v1/login":
            right = body == {"key": self.api.key}
            fields = {"Set-Cookie": "juggler=in; HttpOnly; SameSite=Strict; Path=/"} if right else {}
            self._json(200 if right else 401, {} if right else _error("login", "That is not the key."), fields)
            return
        self.api.calls.append((self.command, self.path, body))
        if path.startswith("/api/v1/try/") and f"POST {path}" not in self.api.answers:
            with contextlib.suppress(OSError):
                self._trial()
            return
        self._json(*self.api.answer(self.command, path))

    def _trial(self) -> None:
        fields, pieces = self.api.trial
        self.close_connection = True
        self.send_response(200)
        for name, value in {**fields, "Content-Type": "application/octet-stream", "Connection": "close"}.items():
            self.send_header(name, value)
        self.end_headers()
        for piece in pieces[:-1]:
            self.wfile.write(piece)
        self.wfile.flush()
        self.api.trial_goes_on.wait(FROZEN_S)
        self.wfile.write(pieces[-1])

    def do_PUT(self) -> None:
        self.do_POST()

    def do_DELETE(self) -> None:
        self.do_POST()

    def _let_in(self) -> bool:
        return self.api.key is None or "juggler=in" in self.headers.get("Cookie", "")

    def _file(self, path: str) -> None:
        name = "index.html" if path == "/" else path.lstrip("/")
        kind = MEDIA_TYPES.get(PurePosixPath(name).suffix)
        file = STATIC / name
        if kind is None or ".." in name or not file.is_file():
            self._json(404, _error("not_found", f"there is no {path}"))
            return
        self._body(200, file.read_bytes(), {"Content-Type": kind, "Content-Security-Policy": POLICY})

    def _json(self, status: int, data: Json, fields: dict[str, str] | None = None) -> None:
        self._body(status, json.dumps(data).encode(), {"Content-Type": "application/json", **(fields or {})})

    def _body(self, status: int, body: bytes, fields: dict[str, str]) -> None:
        self.send_response(HTTPStatus(status))
        for name, value in fields.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        if self.api.refuses_streams:
            self._json(503, _error("unavailable", "no streams now"))
            return
        self.close_connection = True
        if not self.api.answers_streams.wait(FROZEN_S):
            return
        last_id = self.headers.get("Last-Event-ID")
        self.api.resumed.append(last_id)
        stream = self.api.open_stream(last_id)
        try:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            while (text := self._next(stream)) is not None:
                self.wfile.write(text.encode())
                self.wfile.flush()
        except OSError:
            pass  # the page is gone
        finally:
            self.api.close_stream(stream)

    def _next(self, stream: "queue.SimpleQueue[str | None]") -> str | None:
        try:
            return stream.get(timeout=COMMENT_S)
        except queue.Empty:
            return ": still here\n\n"


def main() -> None:
    with FakeApi(scenes.busy_house(), int(sys.argv[1]) if len(sys.argv) > 1 else 8020) as api:
        api.timeline = scenes.timeline(time.time())
        print(f"A pretended juggler is at {api.url} (Ctrl-C ends it)")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
