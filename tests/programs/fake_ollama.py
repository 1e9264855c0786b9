"""A stand-in for ollama v0.33: started, asked, loaded, unloaded and stopped as the real one is (backends.md 6.5).

Usage: ``fake_ollama.py serve``; the address comes from ``OLLAMA_HOST`` alone, as in envconfig.Host. Read are also
``OLLAMA_KEEP_ALIVE``, ``OLLAMA_NUM_PARALLEL``, ``OLLAMA_MAX_QUEUE``, ``OLLAMA_ORIGINS``; ``HOME`` must be set.

Each loaded model is a child process in the same group, without a parent-death signal: it outlives a SIGKILL of the
parent and, with ``FAKE_DEAF_RUNNERS``, a SIGTERM too. ``GET /fake/state`` shows what no real route does: pids, the
pretended GPU memory, the requests seen. Speeds and bad habits, by environment:

    FAKE_START_S        between the bind and the first accept (0.05); the log says "Listening" before it
    FAKE_LOAD_S         one load (0.1)
    FAKE_TOKEN_S        one word of an answer (0.01); a request's ``num_predict`` says how many (3)
    FAKE_PULL_S         one of the ten progress lines of a pull (0.01)
    FAKE_RECOVERY_S     from the end of a runner to the return of its GPU memory (0.1)
    FAKE_VRAM_MB        GPU memory (1000); what does not fit goes to the CPU without a word
    FAKE_MODELS         the store: "name=MB,name=MB" (small:latest=300,big:latest=600,embed:latest=100)
    FAKE_LISTS_LOADING  a model is listed from the start of its load, as in older versions; orders to unload it wait
    FAKE_UNLOAD         "name=ACTION,...": ignored (200, and it stays), 500, or 404 (and it stays: files removed)
    FAKE_FOREIGN        a model that somebody else loads, once, when the first model has been unloaded
    FAKE_FAIL           this line on stderr and exit status 1 instead of serving
    FAKE_IGNORE_SIGTERM SIGTERM and SIGINT do nothing
"""

import contextlib
import http.client
import ipaddress
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.programs.fake_ollama_models import Refused, Runner, Scheduler, keep_alive_s, log, seconds, variable

VERSION = "0.33.0"
MB = 1024 * 1024
Json = dict[str, Any]


def listen_address() -> tuple[str, int]:
    """As envconfig.Host."""
    scheme, separator, rest = variable("OLLAMA_HOST").partition("://")
    default = {"http": 80, "https": 443}.get(scheme, 11434) if separator else 11434
    hostport = (rest if separator else scheme).partition("/")[0]
    host, colon, port = hostport.rpartition(":")
    if not colon or hostport.endswith("]"):
        host, port = hostport or "127.0.0.1", str(default)
    number = int(port) if port.isdecimal() and int(port) <= 65535 else default
    return host.strip("[]"), number


class Handler(BaseHTTPRequestHandler):
    """The routes of server/routes.go, GenerateRoutes."""

    protocol_version = "HTTP/1.1"
    scheduler: Scheduler
    seen: "list[Json]"

    def do_GET(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.seen.append({name: self.headers.get(name) for name in ("host", "origin")} | {"path": path})
        del self.seen[:-100]
        if path.startswith("/debug/pprof/"):  # Go's own multiplexer, before any of ollama's checks
            return self.text(200, "profiles")
        if self.foreign_origin() or not self.allowed_host():
            return self.text(403, "")
        if self.command == "OPTIONS":
            return self.text(204, "")
        try:
            self.route(path)
        except Refused as refused:
            error: Any = refused.error
            if path.startswith("/v1/"):
                error = {"message": refused.error, "type": "api_error", "param": None, "code": None}
            self.json({"error": error}, refused.status)
        return None

    do_HEAD = do_POST = do_DELETE = do_OPTIONS = do_PUT = do_GET  # noqa: N815  # named by http.server

    # -- who may ask -----------------------------------------------------------------------------------------------

    def foreign_origin(self) -> bool:
        """gin-contrib/cors applyCors: refused unless it is this host's own page or on the list."""
        origin = self.headers.get("Origin", "")
        host = self.headers.get("Host", "")
        if not origin or origin in (f"http://{host}", f"https://{host}"):
            return False
        allowed = [entry for entry in variable("OLLAMA_ORIGINS").split(",") if entry]
        if "*" in allowed or origin in allowed:
            return False
        scheme, _, rest = origin.partition("://")
        name, _, port = rest.partition(":")
        if scheme in ("http", "https") and name in ("localhost", "127.0.0.1", "0.0.0.0"):
            return bool(port) and not port.isdecimal()
        return scheme not in ("app", "file", "tauri", "vscode-webview", "vscode-file")

    def allowed_host(self) -> bool:
        """routes.go allowedHostsMiddleware; it looks only when bound to loopback."""
        if not ipaddress.ip_address(self.connection.getsockname()[0]).is_loopback:
            return True
        host = self.headers.get("Host", "").lower()
        if host.startswith("["):
            host = host[1:].partition("]")[0]
        elif host.count(":") == 1:
            host = host.partition(":")[0]
        with contextlib.suppress(ValueError):
            address = ipaddress.ip_address(host)
            return address.is_loopback or address.is_private or address.is_unspecified
        own = ("", "localhost", socket.gethostname().lower())
        return host in own or host.endswith((".localhost", ".local", ".internal"))

    # -- routes ----------------------------------------------------------------------------------------------------

    def route(self, path: str) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        plain: dict[str, Callable[[], Any]] = {
            "GET /api/version": lambda: {"version": VERSION},
            "GET /api/status": lambda: {"cloud": {"disabled": False, "source": "none"}},
            "GET /api/tags": self.tags,
            "GET /api/ps": self.ps,
            "GET /v1/models": lambda: {"object": "list", "data": [self.model_card(n) for n in self.scheduler.store]},
            "GET /fake/state": self.state,
            "POST /api/show": self.show,
            "POST /api/copy": dict,
            "POST /api/me": lambda: {"name": "nobody"},
            "DELETE /api/delete": dict,
            "POST /api/embed": self.embed,
            "POST /api/embeddings": self.embed,
            "POST /v1/embeddings": self.embed,
        }
        streamed: dict[str, Callable[[], None]] = {
            "POST /api/pull": self.transfer,
            "POST /api/push": self.transfer,
            "POST /api/create": self.transfer,
            "POST /api/generate": self.generate,
            "POST /api/chat": self.generate,
            "POST /v1/chat/completions": self.complete,
            "POST /v1/completions": self.complete,
            "POST /v1/responses": self.complete,
            "POST /v1/messages": self.complete,
        }
        key = f"{method} {path}"
        if key == "GET /":
            self.text(200, "Ollama is running")
        elif key in plain:
            self.json(plain[key]())
        elif key in streamed:
            streamed[key]()
        elif path.startswith("/api/blobs/"):
            self.text(201, "")
        elif any(known.endswith(f" {path}") for known in (*plain, *streamed, "GET /")):
            self.text(405, "405 method not allowed")
        else:
            self.text(404, "404 page not found")

    def document(self) -> Json:
        if not self.body:
            raise Refused(400, "missing request body")
        try:
            document = json.loads(self.body)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        return document if isinstance(document, dict) else {}

    def details(self, name: str) -> Json:
        size = self.scheduler.store[name] * MB
        families = {"format": "gguf", "family": "llama", "families": ["llama"]}
        details = {**families, "parameter_size": "1B", "quantization_level": "Q4_0"}
        return {"name": name, "model": name, "size": size, "digest": "0" * 64, "details": details}

    def model_card(self, name: str) -> Json:
        return {"id": name, "object": "model", "created": 1, "owned_by": "library"}

    def tags(self) -> Json:
        return {"models": [{**self.details(name), "modified_at": stamp()} for name in self.scheduler.store]}

    def ps(self) -> Json:
        with self.scheduler.changed:
            runners = list(self.scheduler.loaded.values())
        return {
            "models": [
                {
                    **self.details(runner.name),
                    "size_vram": runner.vram_mb * MB,
                    "expires_at": stamp(min(runner.keep_s, 1e9)),
                    "context_length": 4096,
                }
                for runner in runners
            ]
        }

    def show(self) -> Json:
        name = self.scheduler.full_name(self.document().get("model"))
        return {"details": self.details(name)["details"], "model_info": {}, "capabilities": ["completion"]}

    def state(self) -> Json:
        scheduler = self.scheduler
        with scheduler.changed:
            return {
                "pid": os.getpid(),
                "runners": {name: runner.process.pid for name, runner in scheduler.loaded.items()},
                "busy": [name for name, runner in scheduler.loaded.items() if runner.users],
                "vram_used_mb": scheduler.vram_used_mb,
                "loads": list(scheduler.loads),
                "orders": list(scheduler.orders),
                "seen": list(self.seen),
            }

    def embed(self) -> Json:
        request = self.document()
        with self.scheduler.using(request.get("model"), request.get("keep_alive"), self.client_is_there):
            return {"model": request.get("model"), "embeddings": [[0.0, 1.0]]}

    def transfer(self) -> None:
        self.document()
        self.begin("application/x-ndjson")
        for done in range(10):
            time.sleep(seconds("FAKE_PULL_S", 0.01))
            self.chunk({"status": "pulling", "total": 10, "completed": done + 1})
        self.chunk({"status": "success"})
        self.finish()

    def generate(self) -> None:
        """/api/generate and /api/chat: unload, load, or answer."""
        request = self.document()
        name = self.scheduler.full_name(request.get("model"))
        chat = self.path.startswith("/api/chat")
        empty = not request.get("messages") if chat else not request.get("prompt")
        keep_alive = request.get("keep_alive")
        frame = {"model": request.get("model"), "created_at": stamp()}
        nothing = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
        if empty and keep_alive is not None and keep_alive_s(keep_alive) == 0:
            self.scheduler.expire(name)
            self.json({**frame, **nothing, "done": True, "done_reason": "unload"})
            return
        with self.scheduler.using(name, keep_alive, self.client_is_there) as runner:
            if empty:
                self.json({**frame, **nothing, "done": True, "done_reason": "load"})
            elif request.get("stream") is False:
                text = "".join(self.words(runner, request))
                answer = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
                self.json({**frame, **answer, "done": True, "done_reason": "stop"})
            else:
                self.begin("application/x-ndjson")
                try:
                    for word in self.words(runner, request):
                        said = {"message": {"role": "assistant", "content": word}} if chat else {"response": word}
                        self.chunk({**frame, **said, "done": False})
                    self.chunk({**frame, **nothing, "done": True, "done_reason": "stop"})
                except Refused as refused:  # too late for a status
                    self.chunk({"error": refused.error})
                self.finish()

    def complete(self) -> None:
        """The routes of other makers: JSON, or server-sent events."""
        request = self.document()
        with self.scheduler.using(request.get("model"), None, self.client_is_there) as runner:
            if not request.get("stream"):
                content = "".join(self.words(runner, request))
                self.json({"object": "chat.completion", "choices": [{"message": {"content": content}}]})
                return
            self.begin("text/event-stream")
            try:
                for word in self.words(runner, request):
                    event: Json = {"object": "chat.completion.chunk", "choices": [{"delta": {"content": word}}]}
                    self.chunk(b"data: " + json.dumps(event).encode() + b"\n\n")
            except Refused as refused:
                self.chunk(b"data: " + json.dumps({"error": {"message": refused.error}}).encode() + b"\n\n")
            self.chunk(b"data: [DONE]\n\n")
            self.finish()

    def words(self, runner: Runner, request: Json) -> Iterator[str]:
        options = request.get("options") or {}
        count = int(options.get("num_predict") or request.get("max_tokens") or 3)
        for number in range(1, count + 1):
            time.sleep(seconds("FAKE_TOKEN_S", 0.01))
            if not runner.alive:
                raise Refused(500, "model runner has unexpectedly stopped")
            if not self.client_is_there():
                raise ConnectionResetError
            yield f"word{number} "

    def client_is_there(self) -> bool:
        """Closing the connection is how a client cancels."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return not readable or bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    # -- answers ---------------------------------------------------------------------------------------------------

    def text(self, status: int, text: str) -> None:
        self.whole(status, "text/plain; charset=utf-8", text.encode())

    def json(self, document: Json, status: int = 200) -> None:
        self.whole(status, "application/json; charset=utf-8", json.dumps(document).encode())

    def whole(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def begin(self, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, line: Json | bytes) -> None:
        data = line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n"
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *words: object) -> None:
        print(f"[GIN] {format % words}", file=sys.stderr, flush=True)


class Server(ThreadingHTTPServer):
    """Binds with SO_REUSEADDR, as Go does; a request's thread ends with the process."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def stamp(in_s: float = 0.0) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + in_s))


def show_version() -> None:
    """``--version`` asks the running server, and says so if there is none (cmd/cmd.go versionHandler)."""
    host, port = listen_address()
    connection = http.client.HTTPConnection(host, port, timeout=2)
    try:
        connection.request("GET", "/api/version")
        print(f"ollama version is {json.loads(connection.getresponse().read())['version']}")
    except (OSError, ValueError, KeyError):
        print("Warning: could not connect to a running Ollama instance")
        print(f"Warning: client version is {VERSION}")
    finally:
        connection.close()


def serve(arguments: list[str]) -> None:
    """cmd/cmd.go RunServer, server/routes.go Serve."""
    if flag := next((word for word in arguments if word.startswith("-")), None):
        raise SystemExit(f"Error: unknown flag: {flag}")
    if arguments:
        raise SystemExit(f"Error: accepts 0 arg(s), received {len(arguments)}")
    if "HOME" not in os.environ:
        raise SystemExit("Error: $HOME is not defined")
    if line := os.environ.get("FAKE_FAIL"):
        raise SystemExit(line)
    host, port = listen_address()
    Server.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        server = Server((host, port), Handler)
    except OSError:
        raise SystemExit(f"Error: listen tcp {host}:{port}: bind: address already in use") from None
    ending = threading.Event()

    def end(_number: int, _frame: object) -> None:
        # A handler in any case: an ignored signal would be ignored by the runners, too.
        if not os.environ.get("FAKE_IGNORE_SIGTERM"):
            ending.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    log(f"Listening on {host}:{server.server_address[1]} (version {VERSION})")
    time.sleep(seconds("FAKE_START_S", 0.05))
    Handler.scheduler = Scheduler()
    Handler.seen = []
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    ending.wait()
    server.socket.close()
    Handler.scheduler.end()
    os._exit(0)  # open connections are dropped, as by http.Server.Close


def main() -> None:
    words = sys.argv[1:]
    if "--version" in words or "-v" in words:
        show_version()
    elif words[:1] in (["serve"], ["start"]):
        if "--help" in words:
            print("Start Ollama\n\nUsage:\n  ollama serve [flags]\n\nEnvironment Variables:\n  OLLAMA_HOST ...")
            return
        serve(words[1:])
    elif words:
        raise SystemExit(f'Error: unknown command "{words[0]}" for "ollama"')


if __name__ == "__main__":
    main()
