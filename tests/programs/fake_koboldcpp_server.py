"""The worker of ``fake_koboldcpp``: loads, binds and answers as KcppServerRequestHandler (backends.md 4.4 to 4.6).

HTTP/1.0, 24 threads, one connection at a time each. ``GET /fake/state`` tells what no real route does: pids, the
effective arguments, and the requests seen. A generation without a text model is answered with an invented 503.
"""

import argparse
import json
import os
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NoReturn

VERSION = "1.116.1"
PACE = float(os.environ.get("FAKE_PACE", "0.1"))
LOAD_S = float(os.environ.get("FAKE_LOAD_S", "0.1"))
TOKEN_S = float(os.environ.get("FAKE_TOKEN_S", "0.01"))
THREADS = 24
THREADS_IPV4 = 16
"""Where it listens on both; the rest serves IPv6."""
REQUEST_LIMIT_BYTES = 32 * 1024 * 1024
KINDS = {
    "txt2img": "sdmodel",
    "transcribe": "whispermodel",
    "tts": "ttsmodel",
    "embeddings": "embeddingsmodel",
}
UNAUTHORIZED = {"error": "Unauthorized", "msg": "Authentication key is missing or invalid.", "type": "unauthorized"}

Memory = Any
"""The manager's dictionary, shared by its workers; a plain one without a manager."""


def pause(real_s: float) -> None:
    """One of the real program's own pauses, in its real seconds."""
    time.sleep(real_s * PACE)


def note(event: str) -> None:
    """One line for whoever watches."""
    if path := os.environ.get("FAKE_EVENTS"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(event + "\n")


def serve(args: argparse.Namespace, memory: Memory) -> None:
    """kcpp_main_process: load everything, then answer until the end."""
    models = {name: getattr(args, key) for name, key in {"llm": "model_param", **KINDS}.items() if getattr(args, key)}
    outcomes = os.environ.get("FAKE_LOADS", "").split(",")
    number = memory["started"]
    memory["started"] = number + 1
    print(args)
    print("==========", flush=True)
    for path in models.values():
        if not Path(path).exists():
            print("")
            pause(1)
            print(f"Cannot find text model file: {path}", flush=True)
            pause(2)
            sys.exit(2)
    load(models)
    if number < len(outcomes) and outcomes[number] == "die":
        print(f"Could not load text model: {Path(args.model_param or '').absolute()}", flush=True)
        sys.exit(3)
    note(f"serving {','.join(sorted(models)) or 'nothing'} in {os.getpid()}")
    print(f"======\nPlease connect to custom endpoint at http://{args.host or 'localhost'}:{args.port}", flush=True)
    Server(args, memory, models).run()


def load(models: dict[str, str]) -> None:
    if not models:
        return
    if os.environ.get("FAKE_NATIVE_LOAD"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    print(f"Loading Text Model: {next(iter(models.values()))}", flush=True)
    line = "llama_model_loader: - tensor blk.0.attn_q.weight loaded\n"
    size = int(os.environ.get("FAKE_BIG_OUTPUT", "0"))
    for _ in range(size // len(line)):
        sys.stdout.write(line)
    time.sleep(LOAD_S)
    print("Load Text Model OK: True", flush=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


class Server:
    """RunServerMultiThreaded, and the global state of the program."""

    def __init__(self, args: argparse.Namespace, memory: Memory, models: dict[str, str]) -> None:
        self.args = args
        self.memory = memory
        self.models = models
        self.started_at = time.time()
        self.worked_at = time.time()
        self.model_busy = threading.Lock()
        self.in_queue = 0
        self.generations = 0
        self.pending = ""
        self.aborted = threading.Event()
        self.seen: list[dict[str, Any]] = []
        """Method, path and headers of the latest requests."""

    def run(self) -> None:
        four = bound(socket.AF_INET, self.args.host, self.args.port)
        six = bound(socket.AF_INET6, self.args.host, self.args.port)
        if four is None:
            print("IPv4 Socket Failed to Bind.", flush=True)
        if six is None:
            print("IPv6 Socket Failed to Bind. IPv6 will be unavailable.", flush=True)
        if four is None and six is None:
            print("ERROR: Both IPv4 and IPv6 cannot bind. Server features will not work.", flush=True)
            os._exit(0)
        handler = type("BoundHandler", (Handler,), {"state": self})
        for number in range(THREADS):
            own = (four if number < THREADS_IPV4 else six) if four and six else four or six
            threading.Thread(target=accept, args=(own, handler), daemon=True).start()
        try:
            while True:
                time.sleep(10)
        except (KeyboardInterrupt, SystemExit):
            sys.exit(0)

    @property
    def name(self) -> str:
        path = self.models.get("llm")
        return f"koboldcpp/{Path(path).stem}" if path else "inactive"

    def version(self) -> dict[str, Any]:
        """get_capabilities."""
        admin = bool(self.args.admin and self.args.admindir)
        return {
            "result": "KoboldCpp",
            "version": VERSION,
            "protected": bool(self.args.password),
            "llm": "llm" in self.models,
            **{kind: kind in self.models for kind in KINDS},
            "music": False,
            "multiplayer": False,
            "admin": (2 if self.args.adminpassword else 1) if admin else 0,
            "router": False,
        }

    def perf(self) -> dict[str, Any]:
        return {
            "last_token_count": 3,
            "total_gens": self.generations,
            "stop_reason": 1,
            "queue": self.in_queue,
            "idle": 0 if self.model_busy.locked() else 1,
            "hordeexitcounter": -1,
            "uptime": time.time() - self.started_at,
            "idletime": time.time() - self.worked_at,
            "quiet": False,
        }


def bound(family: socket.AddressFamily, host: str, port: int) -> socket.socket | None:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(THREADS)
    except OSError:
        sock.close()
        return None
    return sock


def accept(sock: socket.socket, handler: Any) -> NoReturn:
    while True:
        connection, address = sock.accept()
        try:
            handler(connection, address, None)
        except OSError:
            pass  # the client has gone
        finally:
            connection.close()


class Handler(BaseHTTPRequestHandler):
    """KcppServerRequestHandler."""

    sys_version = "1"
    server_version = "ConcedoLlamaForKoboldServer"
    state: Server

    def log_message(self, format: str, *args: object) -> None:
        """Its own is silent without ``--debugmode``."""

    # -- answers ---------------------------------------------------------------------------------------------------

    def answer(self, document: object, status: int = 200) -> None:
        self.send(json.dumps(document).encode(), status=status)

    def send(self, body: bytes, content_type: str = "application/json", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end(content_type)
        self.wfile.write(body)

    def end(self, content_type: str) -> None:
        """end_headers."""
        self.send_header("access-control-allow-origin", "*")
        self.send_header("cache-control", "no-store")
        self.send_header("content-type", content_type)
        self.end_headers()

    def trouble(self, status: int, message: str, kind: str) -> None:
        self.send_response(status)
        self.end("application/json")
        self.wfile.write(json.dumps({"detail": {"msg": message, "type": kind}}).encode())

    def allowed(self, *passwords: str | None) -> bool:
        """check_header_password: whether one of these was given, the first being empty counting as well."""
        if not passwords[0]:
            return True
        given = self.headers.get("Authorization", "")
        return given.startswith("Bearer ") and given[7:].strip() in [one for one in passwords if one]

    def secured(self) -> bool:
        """secure_endpoint."""
        if self.allowed(self.state.args.password, self.state.args.adminpassword):
            return True
        self.send_response(401)
        self.end("application/json")
        self.wfile.write(json.dumps({"detail": UNAUTHORIZED}).encode())
        return False

    def see(self) -> str:
        path = self.path.partition("?")[0]
        self.state.seen.append({"method": self.command, "path": path, "headers": dict(self.headers)})
        del self.state.seen[:-100]
        return path

    # -- GET, HEAD, OPTIONS ----------------------------------------------------------------------------------------

    def do_HEAD(self) -> None:
        self.see()
        self.send_response(200)
        self.end("text/html")

    do_OPTIONS = do_HEAD  # noqa: N815  # named by http.server

    def do_GET(self) -> None:
        path = self.see()
        if path == "/lcpp":
            return self.redirect("/lcpp/")
        path = path.rstrip("/")
        pages = {"": "KoboldAI Lite", "/api": "API documentation", "/lcpp": "llama.cpp UI", "/sdui": "StableUI"}
        if path in pages:
            return self.send(f"<html>{pages[path]}</html>".encode(), "text/html")
        if path.endswith(("/api", "/api/v1")):
            return self.redirect("/api")
        if path == "/slots":
            return self.answer({"error": {"code": 501, "message": "This server does not support slots endpoint."}}, 501)
        document = self.document(path)
        if document is None:
            self.send_response(404)
            self.end("text/html")
            self.wfile.write(b"Error: KoboldCpp HTTP Server is running, but this endpoint does not exist.")
            return None
        return self.answer(document)

    def redirect(self, location: str) -> None:
        self.send_response(302)
        self.send_header("location", location)
        self.end("text/html")

    def document(self, path: str) -> object:
        """What a route says; matched by its end, so that they work behind any prefix."""
        state = self.state
        if path == "/fake/state":
            args = {key: value for key, value in vars(state.args).items() if isinstance(value, str | int | list)}
            return {"pid": os.getpid(), "parent": os.getppid(), "args": args, "seen": state.seen}
        if path.endswith("/api/admin/list_options"):
            names = ["unload_model"] if os.environ.get("FAKE_VERSION_BEFORE_110") else ["initial_model", "unload_model"]
            return names if self.may_administrate() else []
        named = self.allowed(state.args.password, state.args.adminpassword)
        routes: dict[str, object] = {
            "/api/extra/version": state.version(),
            "/api/v1/info/version": {"result": "1.2.5"},
            "/api/v1/model": {"result": state.name if named else "koboldcpp/protected-model"},
            "/api/extra/perf": state.perf(),
            "/api/extra/true_max_context_length": {"value": state.args.contextsize},
            "/api/v1/config/max_length": {"value": 1024},
            "/api/extra/generate/check": {"results": [{"text": state.pending}]},
            "/v1/models": {"object": "list", "data": [{"id": state.name, "object": "model", "owned_by": "koboldcpp"}]},
            "/sdapi/v1/options": {"samples_format": "png", "sd_model_checkpoint": "inactive"},
            "/api/version": {"version": "0.7.0"},
            "/api/tags": {"models": [{"name": "koboldcpp", "model": f"{state.name}:latest"}]},
            "/system_stats": {"system": {"os": "posix", "comfyui_version": "v0.3.4-3-g7126ecf"}, "devices": []},
            "/props": {"chat_template": "", "id": 0, "total_slots": 1, "model_path": state.name},
        }
        return next((answer for suffix, answer in routes.items() if path.endswith(suffix)), None)

    def may_administrate(self) -> bool:
        args = self.state.args
        return bool(args.admin and args.admindir and Path(args.admindir).exists() and self.allowed(args.adminpassword))

    # -- POST ------------------------------------------------------------------------------------------------------

    def do_POST(self) -> None:
        path = self.see().rstrip("/")
        if self.headers.get("Transfer-Encoding"):
            # The real one reads up to 512 chunks; what comes through the juggler shall never depend on that.
            return self.trouble(500, "Failed to parse chunked request.", "bad_input")
        length = int(self.headers.get("Content-Length", 0))
        if length > REQUEST_LIMIT_BYTES:
            return self.trouble(500, "Payload is too big. Max payload size is 32MB.", "bad_input")
        raw = self.rfile.read(length)
        try:
            body = json.loads(raw)
        except ValueError:
            body = {}
        if path.startswith("/api/admin/reload_config"):
            return self.reload(body)
        if path.endswith("/api/extra/abort"):
            self.state.aborted.set()
            return self.answer({"success": "true", "done": "true"})
        if path.endswith("/api/extra/generate/check"):
            return self.answer({"results": [{"text": self.state.pending}]})
        return self.work(path, body)

    def reload(self, body: Any) -> None:
        """The order is noted for the manager; whether it is carried out, nobody waits for."""
        target = body.get("filename", "")
        there = target in ("initial_model", "unload_model")
        if os.environ.get("FAKE_VERSION_BEFORE_110"):
            there = target == "unload_model"
        if not there and target and self.state.args.admindir:
            there = (Path(self.state.args.admindir) / target).is_file()
        success = bool(there and self.may_administrate())
        note(f"reload {target} {'accepted' if success else 'refused'}")
        if success:
            self.state.memory["restart_target"] = target
        self.answer({"success": success})

    def work(self, path: str, body: Any) -> None:
        """Everything behind the lock of the model, with the queue in front of it."""
        state = self.state
        limit = state.args.multiuser - 1 if state.args.multiuser > 1 else 10
        waits = state.args.multiuser > 0 and state.in_queue < limit
        state.in_queue += waits
        if not state.model_busy.acquire(blocking=waits):
            return self.trouble(503, "Server is busy; please try again later.", "service_unavailable")
        state.in_queue -= waits
        try:
            state.worked_at = time.time()
            if self.secured():
                self.generate(path, body)
        finally:
            state.model_busy.release()

    def generate(self, path: str, body: Any) -> None:
        state = self.state
        if "llm" not in state.models:
            return self.trouble(503, "No text model is loaded.", "service_unavailable")
        note(f"generation {path}")
        state.generations += 1
        state.aborted.clear()
        state.pending = ""
        words = [f"word{number} " for number in range(int(body.get("max_length", body.get("max_tokens", 3))))]
        if path.endswith("/api/extra/generate/stream") or body.get("stream"):
            return self.stream(path, words)
        for word in words:
            if state.aborted.wait(TOKEN_S):
                break
            state.pending += word
        note(f"generated {len(state.pending.split())} words")
        if path.endswith("/v1/chat/completions"):
            message = {"role": "assistant", "content": state.pending}
            return self.answer({"object": "chat.completion", "model": state.name, "choices": [{"message": message}]})
        return self.answer({"results": [{"text": state.pending, "finish_reason": "length"}]})

    def stream(self, path: str, words: list[str]) -> None:
        """Ends with the connection; the end of the connection ends the generation."""
        state = self.state
        self.send_response(200)
        self.send_header("X-Accel-Buffering", "no")
        self.send_header("connection", "keep-alive")
        self.close_connection = True  # it says so all the same
        self.end("text/event-stream")
        kobold = path.endswith("/api/extra/generate/stream")
        for word in words:
            if state.aborted.wait(TOKEN_S):
                break
            state.pending += word
            event = {"token": word, "finish_reason": None} if kobold else {"choices": [{"delta": {"content": word}}]}
            head = "event: message\n" if kobold else ""
            self.wfile.write(f"{head}data: {json.dumps(event)}\n\n".encode())
        if not kobold:
            self.wfile.write(b"data: [DONE]\n\n")
