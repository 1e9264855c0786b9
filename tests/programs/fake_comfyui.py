"""A stand-in for ComfyUI: started, asked, put to work, emptied and stopped as the real one is (backends.md 5.6).

Usage: ``fake_comfyui.py --listen 127.0.0.1 --port N --disable-auto-launch``, with those of ComfyUI's options that
matter, read by argparse as the real ones are. Without ``FAKE_VERSION`` it is v0.3.64; from 0.4 on it is what is built
in 2026: refuses ``Sec-Fetch-Site: cross-site``, lists jobs and all devices, and words a busy port differently.

Every route exists with and without ``/api``. Node classes with a meaning: ``Sleep`` (``seconds`` of work), ``Preview``
(binary frames of ``bytes``), ``Fail`` (the job ends in an error), ``Die`` (the process ends while the job runs),
``DieAtOnce`` (while it is handed in). Behaviour, by environment:

    FAKE_START_S        import of the custom nodes, before the port opens (0.05)
    FAKE_START          "assets" and "port" (exit 1 with the real text), "torch", "cuda" (traceback), "hang"
    FAKE_LOAD_S         models into the GPU, by the first job that finds none there (0.05)
    FAKE_JOB_S          a job without ``Sleep`` (0.02)
    FAKE_FREE_S         what the thread needs to obey ``/free`` (0.05)
    FAKE_FREE           "lost" (the thread does not see the first order), "ignored", "error" (500)
    FAKE_MODEL_MIB      weights of a job (4096)
    FAKE_CACHE_MIB      cached results on the GPU, which only ``free_memory`` drops (2048)
    FAKE_KEPT_MIB       what custom nodes never give back (0)
    FAKE_DYNAMIC_VRAM   weights are on no allocator's books, as with comfy-aimdo in 2026
    FAKE_DEVICES        types, separated by commas: cuda, cpu, mps, privateuseone (cuda)
    FAKE_QUEUE          ``GET /prompt``: "silent", "garbage", "error"
    FAKE_STOP           "ignore": SIGINT and SIGTERM do nothing
    FAKE_RECORD         file that gets one line, ``pid what``, for everything that happens
"""

import argparse
import base64
import contextlib
import hashlib
import ipaddress
import itertools
import json
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.programs.fake_comfyui_queue import Json, Worker, log, record, seconds, variable

VERSION = variable("VERSION", "0.3.64")
IS_2026 = tuple(map(int, VERSION.split("."))) >= (0, 4)
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
BODILESS = ("GET", "HEAD", "OPTIONS")


def parse_arguments() -> argparse.Namespace:
    """The options of comfy/cli_args.py that change address, mode or the meaning of their neighbours."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1", nargs="?", const="0.0.0.0,::")
    parser.add_argument("--port", type=int, default=8188)
    parser.add_argument("--max-upload-size", type=float, default=100)
    parser.add_argument("--enable-cors-header", nargs="?", const="*")
    parser.add_argument("--async-offload", nargs="?", const=2, type=int)
    parser.add_argument("--preview-size", type=int, default=512)
    parser.add_argument("--extra-model-paths-config", nargs="+", action="append")
    parser.add_argument("--whitelist-custom-nodes", nargs="+", default=[])
    for name in ("tls-keyfile", "tls-certfile", "base-directory", "output-directory", "cuda-device", "database-url"):
        parser.add_argument(f"--{name}")
    flags = ["auto-launch", "disable-auto-launch", "quick-test-for-ci", "windows-standalone-build", "lowvram", "cpu"]
    flags += ["disable-all-custom-nodes", "disable-api-nodes", "log-stdout", "dont-print-server", "multi-user"]
    flags += ["list-feature-flags", "disable-assets", "assert-graph-breaks"] if IS_2026 else []
    for name in flags:
        parser.add_argument(f"--{name}", action="store_true")
    return parser.parse_args()


ARGS = parse_arguments()


class Socket:
    """One open page's WebSocket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, payload: bytes, *, opcode: int) -> None:
        size = len(payload)
        if size < 126:
            head = struct.pack(">BB", 0x80 | opcode, size)
        elif size < 65536:
            head = struct.pack(">BBH", 0x80 | opcode, 126, size)
        else:
            head = struct.pack(">BBQ", 0x80 | opcode, 127, size)
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(head + payload)


class Pages:
    """All open sockets by client id."""

    def __init__(self) -> None:
        self._sockets: dict[str, Socket] = {}
        self._lock = threading.Lock()

    def add(self, client: str, page: Socket) -> None:
        with self._lock:
            self._sockets[client] = page

    def remove(self, client: str, page: Socket) -> None:
        with self._lock:
            if self._sockets.get(client) is page:
                del self._sockets[client]

    def announce(self, kind: str, data: Json | bytes, client: str | None) -> None:
        """An event for one client's page, or for all."""
        with self._lock:
            chosen = [page for name, page in self._sockets.items() if client in (None, name)]
        for page in chosen:
            if isinstance(data, bytes):
                page.send(data, opcode=2)
            else:
                page.send(json.dumps({"type": kind, "data": data}).encode(), opcode=1)


PAGES = Pages()
WORKER = Worker(PAGES.announce)
NUMBERS = itertools.count()


def is_loopback(name: str | None) -> bool:
    if name is None:
        return False
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        pass
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except OSError:
        return False
    return all(ipaddress.ip_address(one).is_loopback for one in found)


def is_refused(host: str | None, origin: str | None, site: str | None) -> bool:
    """The rule against foreign pages, of server.py in v0.3.64 and with what 2026 put before it (backends.md 5.5)."""
    if ARGS.enable_cors_header:
        return False
    if IS_2026 and site == "cross-site":
        return True
    if host is None or origin is None:
        return False
    asked, came = urlsplit("//" + host.lower()), urlsplit(origin)
    host_domain: str | None = host.lower()
    origin_domain: str | None = came.netloc.lower()
    if came.port is None:
        host_domain = asked.hostname
    if asked.port is None:
        origin_domain = came.hostname
    return is_loopback(asked.hostname) and bool(host_domain and origin_domain) and host_domain != origin_domain


class Handler(BaseHTTPRequestHandler):
    """All routes; answers are JSON unless they are empty or a file."""

    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        if ARGS.tls_keyfile and ARGS.tls_certfile:
            return  # what we were sent is no TLS handshake
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        body = self._body()
        path, _, query = self.path.partition("?")
        self.query = {name: values[-1] for name, values in parse_qs(query).items()}
        if path.startswith("/api/"):
            path = path.removeprefix("/api")
        if is_refused(self.headers.get("Host"), self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site")):
            log("WARNING: request with non matching host and origin, returning 403")
            self._empty(403)
        elif self.command == "OPTIONS":
            self._empty(200)
        elif path == "/ws" and self.headers.get("Upgrade", "").lower() == "websocket":
            self._websocket()
        elif self.command in ("GET", "HEAD"):
            self._get(path)
        elif len(body) > ARGS.max_upload_size * 1024**2:
            self._text(413, "Maximum request body size exceeded")
        elif self.command == "POST":
            try:
                self._post(path, body)
            except (ValueError, KeyError, AttributeError):
                self._text(500, "500 Internal Server Error\n\nServer got itself in trouble")
        else:
            self._text(405, "405: Method Not Allowed")

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_GET  # noqa: N815  # named by http.server

    # -- routes ------------------------------------------------------------------------------------------------

    def _get(self, path: str) -> None:
        if path == "/":
            self._answer(200, b"<!DOCTYPE html><title>ComfyUI</title>", "text/html")
        elif path == "/system_stats":
            self._json(system_stats())
        elif path == "/prompt":
            self._prompt_info()
        elif path == "/queue":
            running, pending = WORKER.queues()
            self._json({"queue_running": running, "queue_pending": pending})
        elif path == "/history":
            self._json(WORKER.history)
        elif path.startswith("/history/"):
            prompt_id = path.removeprefix("/history/")
            self._json({prompt_id: WORKER.history[prompt_id]} if prompt_id in WORKER.history else {})
        elif path == "/view":
            image = WORKER.images.get(self.query.get("filename", ""))
            if image is None:
                self._text(404, "404: Not Found")
            else:
                self._answer(200, image, "image/png")
        elif path == "/object_info":
            self._json({"KSampler": {"input": {"required": {}}, "output": ["LATENT"], "name": "KSampler"}})
        elif path in ("/extensions", "/embeddings", "/models"):
            self._json([])
        elif path in ("/settings", "/features"):
            self._json({})
        elif path == "/jobs" and IS_2026:
            running, pending = WORKER.queues()
            jobs = [{"id": item[1], "status": "in_progress"} for item in running]
            jobs += [{"id": item[1], "status": "pending"} for item in pending]
            self._json({"jobs": jobs, "pagination": {"offset": 0, "limit": None, "total": len(jobs)}})
        else:
            self._text(404, "404: Not Found")

    def _post(self, path: str, body: bytes) -> None:
        if path == "/prompt":
            self._queue_prompt(json.loads(body))
        elif path == "/free":
            order = json.loads(body)
            if variable("FREE") == "error":
                self._empty(500)
                return
            WORKER.free({flag for flag in ("unload_models", "free_memory") if order.get(flag)})
            self._empty(200)
        elif path == "/queue":
            order = json.loads(body)
            if order.get("clear"):
                WORKER.clear()
            WORKER.delete(order.get("delete", []))
            self._empty(200)
        elif path == "/interrupt":
            WORKER.interrupt()
            self._empty(200)
        elif path == "/history":
            order = json.loads(body)
            for prompt_id in list(WORKER.history) if order.get("clear") else order.get("delete", []):
                WORKER.history.pop(prompt_id, None)
            self._empty(200)
        elif path == "/upload/image":
            name = re.search(rb'filename="([^"]+)"', body)
            if name is None:
                self._empty(400)
                return
            WORKER.images[name[1].decode()] = body.partition(b"\r\n\r\n")[2].rpartition(b"\r\n--")[0]
            self._json({"name": name[1].decode(), "subfolder": "", "type": "input"})
        elif path.startswith(("/settings", "/userdata")):
            self._empty(200)
        else:
            self._text(405, "405: Method Not Allowed")

    def _prompt_info(self) -> None:
        habit = variable("QUEUE")
        if habit == "silent":
            time.sleep(60)
        elif habit == "garbage":
            self._text(200, "<html>")
        elif habit == "error":
            self._empty(500)
        else:
            self._json({"exec_info": {"queue_remaining": WORKER.remaining()}})

    def _queue_prompt(self, request: Json) -> None:
        log("got prompt")
        if "prompt" not in request:
            self._json(invalid("no_prompt", "No prompt provided"), 400)
            return
        prompt = request["prompt"]
        if not prompt:
            self._json(invalid("prompt_no_outputs", "Prompt has no outputs"), 400)
            return
        if any(node.get("class_type") == "DieAtOnce" for node in prompt.values()):
            os._exit(9)
        number = float(request["number"]) if "number" in request else next(NUMBERS)
        if request.get("front"):
            number = -number
        prompt_id = str(request.get("prompt_id") or uuid.uuid4())
        extra = dict(request.get("extra_data", {}))
        if "client_id" in request:
            extra["client_id"] = request["client_id"]
        WORKER.put(number, prompt_id, prompt, extra)
        self._json({"prompt_id": prompt_id, "number": number, "node_errors": {}})

    def _websocket(self) -> None:
        key = self.headers.get("Sec-WebSocket-Key", "").encode()
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest()).decode()
        self.send_response(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "upgrade"), ("Sec-WebSocket-Accept", accept)):
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        client = self.query.get("clientId") or uuid.uuid4().hex
        page = Socket(self.connection)
        PAGES.add(client, page)
        record(f"ws open {client}")
        info = {"status": {"exec_info": {"queue_remaining": WORKER.remaining()}}, "sid": client}
        page.send(json.dumps({"type": "status", "data": info}).encode(), opcode=1)
        try:
            self._read_frames(page)
        finally:
            PAGES.remove(client, page)
            record(f"ws closed {client}")

    def _read_frames(self, page: Socket) -> None:
        """Until the client closes; what it says is of no interest here."""
        while head := self.rfile.read(2):
            size = head[-1] & 0x7F
            if size >= 126:
                size = int.from_bytes(self.rfile.read(2 if size == 126 else 8), "big")
            mask = self.rfile.read(4)
            payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(size)))
            if head[0] & 0x0F == 8:
                page.send(payload, opcode=8)
                return
            if head[0] & 0x0F == 9:
                page.send(payload, opcode=10)

    # -- messages ----------------------------------------------------------------------------------------------

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _json(self, document: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(document).encode(), "application/json; charset=utf-8")

    def _text(self, status: int, text: str) -> None:
        self._answer(status, text.encode(), "text/plain; charset=utf-8")

    def _empty(self, status: int) -> None:
        self._answer(status, b"", "application/octet-stream")

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *words: object) -> None:
        """ComfyUI logs no requests."""


def system_stats() -> Json:
    system: Json = {"os": sys.platform if IS_2026 else os.name, "ram_total": 64 * 1024**3, "ram_free": 40 * 1024**3}
    system |= {"comfyui_version": VERSION, "python_version": sys.version, "pytorch_version": "2.9.0+cu129"}
    system |= {"embedded_python": False, "argv": sys.argv}
    return {"system": system, "devices": WORKER.memory.devices(every_one=IS_2026)}


def invalid(kind: str, message: str) -> Json:
    error = {"type": kind, "message": message, "details": message, "extra_info": {}}
    return {"error": error, "node_errors": {}}


def fail_to_start(how: str) -> None:
    """End as the real program does; does nothing for a good start."""
    if how == "assets":
        log("ASSETS_STARTUP_FAILED: in_use\nAnother ComfyUI is already using this database: '/user/comfyui.db'.")
        sys.exit(1)
    if how == "torch":
        log('Traceback (most recent call last):\n  File "main.py", line 5\n    import torch')
        log("ModuleNotFoundError: No module named 'torch'")
        sys.exit(1)
    if how == "cuda":
        log('Traceback (most recent call last):\n  File "comfy/model_management.py", line 237')
        log("AssertionError: Torch not compiled with CUDA enabled")
        sys.exit(1)
    if how == "hang":
        time.sleep(60)


def bound(address: str) -> ThreadingHTTPServer:
    """A server on one address; ends the program where the port is taken, in the words of the version."""
    try:
        if variable("START") == "port":
            raise OSError(98, "Address already in use")
        ThreadingHTTPServer.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = ThreadingHTTPServer((address, ARGS.port), Handler)
    except OSError as error:
        if IS_2026:
            log(
                f"Port {ARGS.port} is already in use on address {address}. Please close the other application or use "
                "a different port with --port."
            )
        else:
            log(f"OSError: [Errno {error.errno}] error while attempting to bind on address ('{address}', {ARGS.port})")
        sys.exit(1)
    server.daemon_threads = True
    return server


def main() -> None:
    if getattr(ARGS, "list_feature_flags", False):
        print("{}")
        return
    record("start " + json.dumps(sys.argv[1:]))
    if variable("STOP") == "ignore":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    log(f"ComfyUI version: {VERSION}")
    fail_to_start(variable("START"))
    try:
        time.sleep(seconds("START_S", 0.05))
        if ARGS.quick_test_for_ci:
            return
        WORKER.start()
        log("Starting server\n")
        for address in ARGS.listen.split(","):
            threading.Thread(target=bound(address).serve_forever, args=(0.05,), daemon=True).start()
            log(f"To see the GUI go to: http://{address}:{ARGS.port}")
        if (ARGS.auto_launch or ARGS.windows_standalone_build) and not ARGS.disable_auto_launch:
            record("opens a browser")
        threading.Event().wait()
    except KeyboardInterrupt:
        log("\nStopped server")
        record("stopped by SIGINT")


if __name__ == "__main__":
    main()
