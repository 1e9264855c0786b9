"""A stand-in for ``vllm serve MODEL`` (backends.md section 7.1), with an engine process of its own.

Options: ``--host``, ``--port``, ``--enable-sleep-mode``, ``--api-key`` (guards /v1 alone), ``--version``; unknown ones
end it with status 2 as argparse does. The port is bound before the engine is ready: /health is 503 until then.

FAKE_VLLM_LOAD=S        seconds until the engine is ready (0.1)
FAKE_VLLM_NO_SLEEP=1    ends at the start when sleep mode is asked for, as on machines that cannot
FAKE_VLLM_DEAF=1        ignores SIGTERM, and so does the engine
FAKE_VLLM_INSOMNIA=1    /sleep answers 200 and nothing happens
FAKE_VLLM_SLOW_SLEEP=S  /sleep takes S seconds

The engine process holds "the memory": it lives as long as the server, and outlives a SIGKILL of the server alone.
GET /fake/state tells what happened. POST /v1/completions {"seconds": S} works for S seconds; asleep it never answers.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

DEV_MODE = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"


class Engine:
    """What sleeps and works."""

    def __init__(self, sleep_mode: bool) -> None:
        self.sleep_mode = sleep_mode
        self.ready_at = time.monotonic() + float(os.environ.get("FAKE_VLLM_LOAD", "0.1"))
        self.awake = {"weights", "kv_cache"}
        self.contents = True
        """Whether the weights are the model's: level 2 throws them away."""
        self.running = 0
        self.cut = threading.Event()
        """Set when a sleep kills what runs."""
        self.events: list[str] = []
        self.lock = threading.Lock()
        self.pid = os.fork()
        if self.pid == 0:
            if os.environ.get("FAKE_VLLM_DEAF"):
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            else:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            while True:
                time.sleep(60)

    def sleep(self, level: str, mode: str) -> None:
        time.sleep(float(os.environ.get("FAKE_VLLM_SLOW_SLEEP", "0")))
        self.events.append(f"sleep {level} {mode}")
        if os.environ.get("FAKE_VLLM_INSOMNIA"):
            return
        while mode == "wait" and self.running:
            time.sleep(0.01)
        self.cut.set()
        self.awake = set()
        self.contents = self.contents and level == "1"

    def wake(self, tags: list[str]) -> None:
        self.events.append(f"wake {','.join(tags) or 'all'}")
        self.awake |= set(tags or ("weights", "kv_cache"))

    def work(self, seconds: float) -> int:
        """Status of the answer: 200, or 500 when it was cut; asleep it never comes back."""
        with self.lock:
            self.running += 1
            self.cut = threading.Event()
        try:
            while len(self.awake) < 2:
                time.sleep(0.05)
            self.events.append("work" if self.contents else "work on empty weights")
            return 500 if self.cut.wait(seconds) else 200
        finally:
            with self.lock:
                self.running -= 1


class Handler(BaseHTTPRequestHandler):
    """The routes; see the module."""

    protocol_version = "HTTP/1.1"
    engine: Engine
    key: str | None = None

    def answer(self, status: int, document: object = None, kind: str = "application/json") -> None:
        body = (
            b""
            if document is None
            else document.encode()
            if isinstance(document, str)
            else json.dumps(document).encode()
        )
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def do_GET(self) -> None:
        engine, path = self.engine, urlsplit(self.path).path
        if path == "/health":
            self.answer(200 if time.monotonic() >= engine.ready_at else 503)
        elif path == "/version":
            self.answer(200, {"version": "0.11.0"})
        elif path == "/metrics":
            lines = (
                "# TYPE vllm:num_requests_running gauge",
                f'vllm:num_requests_running{{engine="0",model_name="m"}} {float(engine.running)}',
                'vllm:num_requests_waiting{engine="0",model_name="m"} 0.0',
            )
            self.answer(200, "\n".join(lines) + "\n", "text/plain")
        elif path == "/is_sleeping" and DEV_MODE:
            self.answer(200, {"is_sleeping": len(engine.awake) < 2})
        elif path == "/fake/state":
            state = {"events": engine.events, "pids": [os.getpid(), engine.pid], "argv": sys.argv[1:]}
            self.answer(200, {**state, "awake": sorted(engine.awake)})
        elif path.startswith("/v1/") and self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self.answer(401, {"error": "Unauthorized"})
        elif path == "/v1/models":
            self.answer(200, {"object": "list", "data": [{"id": "m", "owned_by": "vllm"}]})
        else:
            self.answer(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        engine, parts = self.engine, urlsplit(self.path)
        query = parse_qs(parts.query)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        if parts.path == "/sleep" and DEV_MODE:
            if not engine.sleep_mode:
                self.answer(500, {"error": "Sleep mode is not enabled"})
                return
            engine.sleep(query.get("level", ["1"])[0], query.get("mode", ["abort"])[0])
            self.answer(200)
        elif parts.path == "/wake_up" and DEV_MODE:
            engine.wake(query.get("tags", []))
            self.answer(200)
        elif parts.path == "/collective_rpc" and DEV_MODE:
            engine.events.append(f"rpc {body.get('method')}")
            engine.contents = engine.contents or (body.get("method") == "reload_weights" and "weights" in engine.awake)
            self.answer(200)
        elif self.key and self.headers.get("Authorization") != f"Bearer {self.key}":
            self.answer(401, {"error": "Unauthorized"})
        elif parts.path == "/v1/completions":
            status = engine.work(float(body.get("seconds", 0)))
            self.answer(status, {"choices": [{"text": "hello"}]} if status == 200 else {"error": "aborted"})
        else:
            self.answer(404, {"detail": "Not Found"})

    def log_message(self, format: str, *words: object) -> None:
        pass


def main() -> None:
    if sys.argv[1:2] == ["--version"]:
        print("0.11.0")
        return
    parser = argparse.ArgumentParser(prog="vllm serve")
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model")
    parser.add_argument("--host")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--enable-sleep-mode", action="store_true")
    parser.add_argument("--api-key")
    parser.add_argument("--max-model-len")
    args = parser.parse_args()
    if args.enable_sleep_mode and os.environ.get("FAKE_VLLM_NO_SLEEP"):
        print("ValueError: Sleep mode is not supported on current platform.", file=sys.stderr)
        sys.exit(1)
    print("INFO loading\n" * 4000, file=sys.stderr, flush=True)
    engine = Engine(args.enable_sleep_mode)

    def on_term(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(engine.pid, signal.SIGTERM)
        os._exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if os.environ.get("FAKE_VLLM_DEAF") else on_term)
    Handler.engine, Handler.key = engine, args.api_key
    server = ThreadingHTTPServer((args.host or "0.0.0.0", args.port), Handler)
    server.daemon_threads = True
    server.serve_forever(poll_interval=0.02)


main()
