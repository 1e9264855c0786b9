"""A stand-in for A1111 and Forge, run as ``launch.py`` of a web UI's folder (backends.md 3.6).

Reads those of the real options that matter with argparse, words of COMMANDLINE_ARGS last; unknown ones end it with
status 2 (not if IGNORE_CMD_ARGS_ERRORS is set). ``steps`` of a generation take ``FAKE_STEP_S`` each. Variables:

    FAKE_VARIANT        "a1111" (loads its checkpoint beside its start) or "forge" (for the first job) (a1111)
    FAKE_IMPORT_S       before the port opens (0.05)
    FAKE_API_S          from the open port to the API, with UI: 404 meanwhile (0.05)
    FAKE_START          "zombie" (alive, never a port), "torch", "venv": end with the real texts; "deaf": no API ever
    FAKE_LOAD_S         of the checkpoint (0.05); FAKE_MOVE_S: of its way to the GPU (0.01)
    FAKE_STEP_S         one sampling step (0.01)
    FAKE_CLICK_S        from a click's arrival in the UI's queue to its job (0.05)
    FAKE_MODEL_MIB      of the checkpoint (6000); FAKE_KEPT_MIB: what extensions never give back (0)
    FAKE_CUDA           "0": no CUDA, memory is "unavailable"
    FAKE_UNLOAD         "error" (500), "ignored" (200, nothing happens), "hang"; FAKE_RELOAD: "error", "hang"
    FAKE_PROGRESS       "garbage", "hang"
    FAKE_STOP           "ignore": no signal but SIGKILL ends it
    FAKE_RECORD         file that gets one line, "PID what", for everything that happens
"""

import argparse
import base64
import contextlib
import gzip
import hashlib
import json
import os
import shlex
import signal
import socket
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.programs.fake_sdwebui_model import Jobs, Model, WebuiError, fail_to_start, record, seconds, variable

IS_FORGE = variable("VARIANT") == "forge"
ACCOUNTS_OF = {True: "lllyasviel/stable-diffusion-webui-forge", False: "AUTOMATIC1111/stable-diffusion-webui"}
VERSION = "f2.0.1v1.10.1" if IS_FORGE else "v1.7.0"
GRADIO = "4.40.0" if IS_FORGE else "3.41.2"
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
Json = dict[str, Any]

VALUES = (
    *("port", "server-name", "subpath", "api-auth", "gradio-auth", "tls-keyfile", "tls-certfile", "ngrok"),
    *("ngrok-region", "ngrok-options", "ckpt-dir", "data-dir", "theme", "cors-allow-origins", "timeout-keep-alive"),
)
FLAGS = (
    *("api", "api-log", "api-server-stop", "nowebui", "listen", "share", "autolaunch", "disable-tls-verify", "medvram"),
    *("xformers", "skip-load-model-at-start", "skip-torch-cuda-test", "skip-prepare-environment", "skip-install"),
    *("show-negative-prompt", "no-half", "enable-insecure-extension-access", "disable-nan-check", "administrator"),
)


def parse_arguments() -> argparse.Namespace:
    """As modules/paths_internal.py, cmd_args.py and shared_cmd_options.py do it."""
    sys.argv += shlex.split(os.environ.get("COMMANDLINE_ARGS", ""))
    if "--exit" in sys.argv:
        print("Exiting because of --exit argument")
        sys.exit(0)
    parser = argparse.ArgumentParser()
    parser.add_argument("-f", action="store_true")
    parser.add_argument("--use-cpu", nargs="+", default=[])
    for name in VALUES:
        parser.add_argument(f"--{name}", type=int if name == "port" else str)
    for name in FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    lenient = os.environ.get("IGNORE_CMD_ARGS_ERRORS") is not None
    return parser.parse_known_args()[0] if lenient else parser.parse_args()


class Session:
    """The event stream of one page of gradio 4."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self.changed = threading.Condition()

    def add(self, message: Json) -> None:
        with self.changed:
            self.messages.append(message)
            self.changed.notify_all()


class WebUi:
    """Everything that lives as long as the process."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.has_ui = "--nowebui" not in sys.argv
        self.model = Model(is_forge=IS_FORGE, split=args.medvram)
        self.jobs = Jobs(self.model)
        self.has_api = False
        self.queued = 0
        """Clicks that wait in gradio's queue; one of a kind is worked on at a time."""
        self.open_requests = 0
        self.sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._one_click = threading.Lock()
        accounts = (args.api_auth or "").split(",")
        self.passwords = {base64.b64encode(one.encode()).decode() for one in accounts if ":" in one}

    @property
    def is_local(self) -> bool:
        """Without what the program takes for signs of a public server (shared_cmd_options.py)."""
        args = self.args
        return not (args.share or args.listen or args.ngrok or args.server_name)

    def session(self, name: str) -> Session:
        with self._lock:
            return self.sessions.setdefault(name, Session())

    def enter(self, change: int) -> None:
        with self._lock:
            self.open_requests += change

    def queue(self, change: int) -> None:
        with self._lock:
            self.queued += change

    def click(self, take: Callable[[], list[Any]], tell: Callable[[Json], object]) -> None:
        """One event of the page: waits for its slot, is fetched (``take`` gives its data), runs, and reports."""
        self.queue(1)
        waiting = True
        try:
            time.sleep(seconds("CLICK_S", 0.05))
            with self._one_click:
                self.queue(-1)
                waiting = False
                job, steps = _of_click(take())
                tell({"msg": "process_starts"})
                try:
                    self.jobs.run(job, work_s=steps * seconds("STEP_S", 0.01))
                    tell({"msg": "process_completed", "success": True, "output": {"data": ["image"]}})
                except WebuiError as error:
                    # The UI shows errors in the place of the picture (call_queue.py, wrap_gradio_call).
                    data = ["", f"<div class='error'>{error}</div>"]
                    tell({"msg": "process_completed", "success": True, "output": {"data": data}})
        finally:
            if waiting:
                self.queue(-1)

    # -- the API -----------------------------------------------------------------------------------------------

    def generate(self, body: Json) -> Json:
        other = "sd_model_checkpoint" in (body.get("override_settings") or {})
        work_s = int(body.get("steps", 5)) * seconds("STEP_S", 0.01)
        self.jobs.run("scripts_txt2img", work_s=work_s, other_checkpoint=other)
        return {"images": ["iVBORw0KGgo" + "A" * 2000], "parameters": body, "info": "{}"}

    def options(self, body: Json) -> None:
        if "sd_model_checkpoint" in body:
            self.jobs.run("options", work_s=0, other_checkpoint=True)

    def flags(self) -> Json:
        return dict(vars(self.args))

    def progress(self) -> Json:
        if variable("PROGRESS") == "hang":
            time.sleep(3600)
        return {"detail": "?"} if variable("PROGRESS") == "garbage" else self.jobs.progress()

    def config(self) -> Json:
        link = f"https://github.com/{ACCOUNTS_OF[IS_FORGE]}/commit/0123abc"
        root = f"/{self.args.subpath}" if self.args.subpath else ""
        footer = f'\nversion: <a href="{link}">{VERSION}</a>\n'
        return {"version": GRADIO, "root": root, "components": [{"props": {"value": footer}}]}


UI: WebUi


class Handler(BaseHTTPRequestHandler):
    """uvicorn with FastAPI, as far as anybody can tell from outside."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def version_string(self) -> str:
        return "uvicorn"

    def log_message(self, format: str, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        UI.enter(1)
        try:
            self._serve()
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        finally:
            UI.enter(-1)

    do_POST = do_HEAD = do_GET  # noqa: N815  # named by http.server

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        if path.startswith("/sdapi/"):
            return self._serve_api(path, raw)
        if not UI.has_ui:
            return self._answer(404, {"detail": "Not Found"})
        if path == "/queue/join" and not IS_FORGE and self.headers.get("Upgrade", "").lower() == "websocket":
            return self._serve_websocket()
        if path == "/queue/join" and IS_FORGE and self.command == "POST":
            return self._join(json.loads(raw))
        if path == "/queue/data" and IS_FORGE:
            return self._stream(UI.session(query["session_hash"][0]))
        if path.startswith("/heartbeat/") and IS_FORGE:
            return self._heartbeat()
        page = f"<html><script>window.gradio_config = {json.dumps(UI.config())};</script></html>"
        pages: dict[str, object] = {
            "GET /": page,
            "GET /config": UI.config(),
            "GET /theme.css": ":root{}",
            "GET /queue/status": {"msg": "estimation", "queue_size": UI.queued},
        }
        if UI.has_api or variable("START") == "deaf":
            pages |= {
                "GET /internal/ping": {},
                "GET /internal/pending-tasks": {"size": len(UI.jobs.pending), "tasks": UI.jobs.pending},
                "POST /internal/progress": {"active": bool(UI.jobs.count), "queued": False, "completed": False},
            }
        found = pages.get(f"{self.command} {path}")
        return self._answer(404, {"detail": "Not Found"}) if found is None else self._answer(200, found)

    def _serve_api(self, path: str, raw: bytes) -> None:
        routes: dict[str, Callable[[], object]] = {
            "GET memory": UI.model.memory,
            "GET progress": UI.progress,
            "GET options": lambda: {"sd_model_checkpoint": "model.safetensors", "samples_format": "png"},
            "GET cmd-flags": UI.flags,
            "GET samplers": lambda: [{"name": "Euler a", "aliases": [], "options": {}}],
            "GET sd-models": lambda: [{"title": "model.safetensors", "model_name": "model"}],
            "POST options": lambda: UI.options(json.loads(raw)),
            "POST txt2img": lambda: UI.generate(json.loads(raw)),
            "POST img2img": lambda: UI.generate(json.loads(raw)),
            "POST interrupt": UI.jobs.interrupted.set,
            "POST unload-checkpoint": UI.model.unload,
            "POST reload-checkpoint": UI.model.reload,
        }
        if IS_FORGE:
            routes["GET sd-modules"] = lambda: [{"model_name": "ae.safetensors", "filename": "/ae.safetensors"}]
        if UI.args.api_server_stop:
            routes["POST server-kill"] = lambda: os._exit(0)
        route = routes.get(f"{self.command} {path.removeprefix('/sdapi/v1/')}")
        if route is None or not UI.has_api:
            return self._answer(404, {"detail": "Not Found"})
        given = self.headers.get("Authorization", "")
        if UI.passwords and given.removeprefix("Basic ") not in UI.passwords:
            detail = "Incorrect username or password" if given else "Not authenticated"
            return self._answer(401, {"detail": detail}, {"WWW-Authenticate": "Basic"})
        try:
            result = route()
        except WebuiError as error:
            return self._answer(500, {"error": "RuntimeError", "detail": "", "body": "", "errors": str(error)})
        return self._answer(200, {} if "checkpoint" in path or "interrupt" in path else result)

    def _answer(self, status: int, content: object, headers: dict[str, str] | None = None) -> None:
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        kind = "text/html; charset=utf-8" if isinstance(content, str) else "application/json"
        fields = {"Content-Type": kind, **(headers or {})}
        if len(body) >= 1000 and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body)
            fields |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        self.send_response(status)
        for name, value in {**fields, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # -- gradio 4 ----------------------------------------------------------------------------------------------

    def _join(self, body: Json) -> None:
        event, session = uuid.uuid4().hex, UI.session(str(body["session_hash"]))

        def tell(message: Json) -> None:
            session.add({**message, "event_id": event})

        record("click")
        threading.Thread(target=UI.click, args=(lambda: body["data"], tell), daemon=True).start()
        self._answer(200, {"event_id": event})

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True

    def _stream(self, session: Session) -> None:
        self._begin_stream()
        sent = 0
        while True:
            with session.changed:
                if sent == len(session.messages):
                    session.changed.wait(0.05)
                new = session.messages[sent:]
            sent += len(new)
            for message in new:
                self.wfile.write(f"data: {json.dumps(message)}\n\n".encode())
            if any(message["msg"] == "process_completed" for message in new):
                self.wfile.write(b'data: {"msg": "close_stream"}\n\n')
                return
            self._look_for_end()

    def _heartbeat(self) -> None:
        self._begin_stream()
        self.wfile.write(b"data: ALIVE\n\n")
        record("page opens")
        try:
            while True:
                time.sleep(0.02)
                self._look_for_end()
        except ConnectionError:
            record("page closes")
            raise

    def _look_for_end(self) -> None:
        """Raise if the client has gone."""
        self.connection.settimeout(0)
        try:
            if self.connection.recv(1, socket.MSG_PEEK) == b"":
                raise ConnectionAbortedError
        except BlockingIOError:
            pass
        finally:
            self.connection.settimeout(None)

    # -- gradio 3 ----------------------------------------------------------------------------------------------

    def _serve_websocket(self) -> None:
        """One job: the page is asked for its session, waits, is asked for its data, and gets the result."""
        key = self.headers.get("Sec-WebSocket-Key", "").encode()
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest()).decode()
        self.send_response_only(101)
        for name, value in (("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", accept)):
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = True
        self.connection.settimeout(5)
        self._send({"msg": "send_hash"})
        self._receive()
        self.connection.settimeout(None)
        self._send({"msg": "estimation", "queue_size": UI.queued, "rank": UI.queued})

        def take() -> list[Any]:
            self._send({"msg": "send_data"})
            return list(self._receive()["data"])

        def tell(message: Json) -> None:
            with contextlib.suppress(OSError):  # the page may be gone; its job runs on
                self._send(message)

        record("click")
        UI.click(take, tell)
        with contextlib.suppress(OSError):
            self.wfile.write(b"\x88\x00")

    def _send(self, message: Json) -> None:
        data = json.dumps(message).encode()
        head = struct.pack(">BB", 0x81, len(data)) if len(data) < 126 else struct.pack(">BBH", 0x81, 126, len(data))
        self.wfile.write(head + data)

    def _receive(self) -> Json:
        """One short text frame of a client, masked as theirs are."""
        head = self.rfile.read(2)
        if len(head) < 2 or head[0] & 0x0F == 8:
            raise ConnectionAbortedError
        size = head[1] & 0x7F
        if size == 126:
            size = struct.unpack(">H", self.rfile.read(2))[0]
        mask = self.rfile.read(4)
        masked = self.rfile.read(size)
        document: Json = json.loads(bytes(byte ^ mask[at % 4] for at, byte in enumerate(masked)))
        return document


def _of_click(data: list[Any]) -> tuple[str | None, int]:
    """Name and steps of a click's data: ``["task(x)", prompt, steps]``."""
    name = data[0] if isinstance(data[0], str) and data[0].startswith("task(") else None
    return name, int(data[2])


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def listen(args: argparse.Namespace) -> Server:
    """The open port, as gradio and uvicorn choose it.

    Raises:
        OSError: It is taken.
    """
    name = args.server_name or ("0.0.0.0" if args.listen else None)
    if not UI.has_ui:
        return Server((name or "0.0.0.0", args.port or 7861), Handler)
    first = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    ports = [args.port] if args.port else range(first, first + 100)
    host = name or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    for port in ports:
        with contextlib.suppress(OSError):
            return Server((host, port), Handler)
    raise OSError(f"Cannot find empty port in range: {ports[0]}-{ports[-1]}. You can specify a different port by ...")


def start(args: argparse.Namespace) -> Server | None:
    """From imports to the API; None where the real one lives on without a server."""
    time.sleep(seconds("IMPORT_S", 0.05))
    kind = variable("START")
    if kind == "torch":
        fail_to_start("RuntimeError: Torch is not able to use GPU; add --skip-torch-cuda-test to COMMANDLINE_ARGS")
        sys.exit(1)
    if kind == "zombie":
        return None
    if not IS_FORGE and not args.skip_load_model_at_start:
        threading.Thread(target=UI.model.get, daemon=True).start()
    try:
        server = listen(args)
    except OSError as error:
        fail_to_start(f"OSError: {error}")
        if IS_FORGE:
            return None  # its thread has died, its main thread loops on
        sys.exit(1)
    host, port = str(server.server_address[0]), server.server_port
    if UI.has_ui and os.environ.get("SD_WEBUI_RESTARTING") != "1" and (args.autolaunch or UI.is_local):
        record("opens a browser")
    if args.share or os.environ.get("GRADIO_SHARE"):
        record("opens a tunnel")
    record("listens " + json.dumps({"host": host, "port": port, "ui": UI.has_ui, "subpath": args.subpath}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    print(f"Running on local URL:  http://{host}:{port}", flush=True)
    if UI.has_ui:
        time.sleep(seconds("API_S", 0.05))
    UI.has_api = (args.api or not UI.has_ui) and kind != "deaf"
    print("Startup time: 0.1s (import torch: 0.1s).", flush=True)
    return server


def serve_until_told(server: Server | None) -> None:
    """The main thread's loop. A1111 without UI leaves signals to uvicorn, which lets open requests finish."""
    told: list[int] = []

    def leave_at_once(number: int, frame: object) -> None:
        print(f"Interrupted with signal {number} in {frame}", flush=True)
        os._exit(0)

    def leave_politely(number: int, frame: object) -> None:
        if told and number == signal.SIGINT:
            record("forced")
            os._exit(0)
        told.append(number)

    if variable("STOP") == "ignore":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif UI.has_ui or IS_FORGE:
        signal.signal(signal.SIGINT, leave_at_once)
    else:
        signal.signal(signal.SIGINT, leave_politely)
        signal.signal(signal.SIGTERM, leave_politely)
    while not told:
        time.sleep(0.01)
    if server is not None:
        server.shutdown()
        server.server_close()
    while UI.open_requests:
        time.sleep(0.01)
    record("drained")


def main() -> None:
    global UI
    record("starts " + json.dumps(sys.argv[1:]))
    args = parse_arguments()
    restart = Path("tmp/restart")
    if restart.exists():
        restart.unlink()
    UI = WebUi(args)
    serve_until_told(start(args))


if __name__ == "__main__":
    main()
