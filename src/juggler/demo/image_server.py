"""A simulated image generator: a real process, port and HTTP API; pretended weights, load time and pictures.

Stand-alone (``python -m juggler.demo.image_server --port N``), standard library only. The routes and their answers
are those of A1111's API (AUTOMATIC1111/stable-diffusion-webui, ``modules/api/api.py``), as far as a juggler and a
curious person need them; ``/health`` is our own. It can be told to misbehave, which is what tests want it for.

While it "holds" its weights, ``/sdapi/v1/memory`` says so; nothing is allocated.
"""

import argparse
import base64
import hashlib
import json
import os
import signal
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from urllib.parse import urlsplit

from juggler.units import GIB, KIB, MIB, parse_duration, parse_size

BODY_LIMIT_BYTES = 8 * MIB
"""img2img requests carry pictures; nothing larger is meant for this program."""

SIDE_MAX = 512
"""Pixels; larger wishes are painted at this size, for the picture is encoded in Python."""

_CHECKPOINT = "pretended-v1.safetensors [0000000000]"
_PAGE = """<!doctype html><meta charset="utf-8"><title>Simulated images</title>
<style>body{{font:16px system-ui;margin:2rem auto;max-width:34rem}}img{{width:100%;image-rendering:pixelated}}</style>
<h1>Simulated image generator</h1>
<p>Pretends to hold {memory}. It paints the hash of your prompt.</p>
<form><input name="p" value="a cat on a chair" size="30"> <button>Paint</button></form><p id="s"></p><img id="i" alt="">
<script>
document.forms[0].onsubmit = async (event) => {{
  event.preventDefault(); s.textContent = "painting ...";
  const began = Date.now();
  const answer = await fetch("sdapi/v1/txt2img", {{method: "POST", headers: {{"Content-Type": "application/json"}},
    body: JSON.stringify({{prompt: document.forms[0].p.value}})}});
  if (!answer.ok) {{ s.textContent = await answer.text(); return; }}
  i.src = "data:image/png;base64," + (await answer.json()).images[0];
  s.textContent = `done after ${{((Date.now() - began) / 1000).toFixed(1)}} s`;
}};
</script>"""


def paint(prompt: str, width: int, height: int, seed: int = 0) -> bytes:
    """A PNG of ``width`` times ``height`` pixels: tiles in colours that the prompt's hash decides."""
    digest = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    base = digest[:3]
    tile = max(1, min(width, height) // 8)
    rows = []
    for tile_row in range(-(-height // tile)):
        row = bytearray()
        for tile_column in range(-(-width // tile)):
            bit = digest[3 + (tile_row * 8 + tile_column) // 8 % 29] >> (tile_column % 8) & 1
            colour = base if bit else bytes(255 - value // 2 for value in base)
            row += colour * tile
        rows.append(b"\0" + bytes(row[: 3 * width]))
    scanlines = b"".join(rows[line // tile] for line in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    text = b"parameters\0" + prompt.encode("latin-1", "replace")[: 4 * KIB]
    chunks = ((b"IHDR", header), (b"tEXt", text), (b"IDAT", zlib.compress(scanlines, 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Generator:
    """The pretended model: loads, unloads, and paints one picture at a time. Safe to use from several threads."""

    def __init__(
        self, *, load_s: float, reload_s: float, unload_s: float, generate_s: float, memory_bytes: int
    ) -> None:
        self._load_s, self._reload_s, self._unload_s = load_s, reload_s, unload_s
        self._generate_s = generate_s
        self.memory_bytes = memory_bytes
        self.options: dict[str, object] = {"sd_model_checkpoint": _CHECKPOINT}
        self._gpu = threading.Lock()
        """As A1111's queue lock: painting, loading and unloading exclude each other."""
        self._waiting = 0
        self._count = threading.Lock()
        self._began: float | None = None
        self._ends: float | None = None
        self.started = False
        self.loaded = False

    def start(self) -> None:
        """The first load, with progress lines."""
        with self._gpu:
            steps = 10
            for step in range(steps):
                time.sleep(self._load_s / steps)
                print(f"loading pretended weights: {10 * (step + 1)} %", flush=True)
            self.loaded = self.started = True
        print("model loaded", flush=True)

    def unload(self) -> None:
        """Give the pretended weights up; takes its time, after the picture in work."""
        with self._gpu:
            if self.loaded:
                time.sleep(self._unload_s)
                self.loaded = False
                print("weights unloaded", flush=True)

    def reload(self) -> None:
        """Bring them back."""
        with self._gpu:
            if not self.loaded:
                time.sleep(self._reload_s)
                self.loaded = True
                print("weights reloaded", flush=True)

    def generate(self, request: dict[str, object]) -> dict[str, object]:
        """Answer of txt2img.

        Raises:
            ValueError: A field of the wrong form.
            RuntimeError: The weights are not there, as A1111 fails after an unload.
        """
        prompt = str(request.get("prompt", ""))
        width, height = (_bounded(request, side, 64, 8, SIDE_MAX) for side in ("width", "height"))
        seed = _bounded(request, "seed", 0, -1, 2**32)
        count = _bounded(request, "batch_size", 1, 1, 4)
        with self._count:
            self._waiting += 1
        try:
            with self._gpu:
                if not self.loaded:
                    raise RuntimeError("the checkpoint is unloaded; POST /sdapi/v1/reload-checkpoint first")
                self._began = time.monotonic()
                self._ends = self._began + self._generate_s
                time.sleep(self._generate_s)
                pictures = [paint(prompt, width, height, seed + index) for index in range(count)]
        finally:
            self._began = self._ends = None
            with self._count:
                self._waiting -= 1
        info = json.dumps({"prompt": prompt, "seed": seed, "width": width, "height": height})
        images = [base64.b64encode(picture).decode() for picture in pictures]
        return {"images": images, "parameters": request, "info": info}

    def progress(self) -> dict[str, object]:
        """Answer of /sdapi/v1/progress."""
        began, ends, waiting = self._began, self._ends, self._waiting
        now = time.monotonic()
        fraction = min((now - began) / (ends - began), 0.99) if began and ends and ends > began else 0.0
        return {
            "progress": fraction,
            "eta_relative": max(0.0, ends - now) if ends else 0.0,
            "state": {"job": "txt2img" if waiting else "", "job_count": waiting, "interrupted": False},
            "current_image": None,
        }

    def memory(self) -> dict[str, object]:
        """Answer of /sdapi/v1/memory."""
        used = self.memory_bytes if self.loaded else self.memory_bytes // 50
        total = max(24 * GIB, 2 * self.memory_bytes)
        system = {"free": total - used, "used": used, "total": total}
        return {"ram": {"free": 0, "used": 0, "total": 0}, "cuda": {"system": system, "allocated": {"current": used}}}


def _bounded(request: dict[str, object], name: str, default: int, least: int, most: int) -> int:
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} must be a number")
    return int(min(max(value, least), most))


class ImageServer(ThreadingHTTPServer):
    """One listener with its generator."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], generator: Generator, die_after: int | None) -> None:
        if ":" in address[0]:
            import socket

            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)
        self.generator = generator
        self._die_after = die_after
        self._served = 0
        self._served_lock = threading.Lock()

    def count_work(self) -> None:
        """Count one request for work; the one after the last dies without an answer, as a crash would."""
        with self._served_lock:
            self._served += 1
            if self._die_after is not None and self._served > self._die_after:
                print("simulated crash: --die-after reached", file=sys.stderr, flush=True)
                os._exit(70)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    server: ImageServer

    def do_GET(self) -> None:
        generator = self.server.generator
        path = urlsplit(self.path).path
        if path == "/health":
            if generator.started:
                self._json(200, {"status": "ok", "loaded": generator.loaded})
            else:
                self._json(503, {"status": "loading", "loaded": False})
            return
        answers: dict[str, Callable[[], object]] = {
            "/sdapi/v1/progress": generator.progress,
            "/sdapi/v1/memory": generator.memory,
            "/sdapi/v1/options": lambda: generator.options,
            "/sdapi/v1/sd-models": lambda: [{"title": _CHECKPOINT, "model_name": "pretended-v1"}],
        }
        if path == "/":
            page = _PAGE.format(memory=f"{generator.memory_bytes / GIB:.1f} GiB")
            self._answer(200, page.encode(), "text/html; charset=utf-8")
        elif path in answers and generator.started:
            self._json(200, answers[path]())
        else:
            self._json(404, {"detail": "Not Found"})

    do_HEAD = do_GET  # noqa: N815  # the base class looks for this name

    def do_POST(self) -> None:
        body = self._body()
        if body is None:
            return
        generator = self.server.generator
        path = urlsplit(self.path).path
        try:
            request = json.loads(body) if body.strip() else {}
            if not isinstance(request, dict):
                raise ValueError("expected a JSON object")
            if not generator.started:
                self._json(404, {"detail": "Not Found"})  # A1111 mounts its API once the model is there
            elif path in ("/sdapi/v1/txt2img", "/sdapi/v1/img2img"):
                self.server.count_work()
                self._json(200, generator.generate(request))
            elif path == "/sdapi/v1/options":
                generator.options.update(dict(list(request.items())[:100]))
                self._json(200, None)
            elif path == "/sdapi/v1/unload-checkpoint":
                generator.unload()
                self._json(200, {})
            elif path == "/sdapi/v1/reload-checkpoint":
                generator.reload()
                self._json(200, {})
            else:
                self._json(404, {"detail": "Not Found"})
        except ValueError as error:
            self._json(422, {"detail": str(error)})
        except RuntimeError as error:
            self._json(500, {"error": "RuntimeError", "detail": "", "errors": str(error)})

    def _body(self) -> bytes | None:
        """The request's body; None if it was refused, and then the connection ends."""
        length = self.headers.get("Content-Length", "0")
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower() or not length.isdecimal():
            self.close_connection = True
            self._json(411, {"detail": "send a Content-Length"})
        elif int(length) > BODY_LIMIT_BYTES:
            self.close_connection = True
            self._json(413, {"detail": "the body is too large"})
        else:
            return self.rfile.read(int(length))
        return None

    def _json(self, status: int, document: object) -> None:
        self._answer(status, json.dumps(document).encode(), "application/json")

    def _answer(self, status: int, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.wfile.write(body)
            except OSError:
                self.close_connection = True  # the client has left, which is its right

    def log_message(self, format: str, *arguments: object) -> None:
        if urlsplit(self.path).path != "/health":
            print(f"{self.command} {format % arguments}", flush=True)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.log_message("%s %s", urlsplit(self.path).path, getattr(code, "value", code))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="image_server", description="A simulated image generator.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=7860, help="0 picks a free one")
    parser.add_argument("--load-seconds", type=_duration, default=2.0, help="from start to ready")
    parser.add_argument("--reload-seconds", type=_duration, help="after an unload (default: half of --load-seconds)")
    parser.add_argument("--unload-seconds", type=_duration, default=0.2)
    parser.add_argument("--generate-seconds", type=_duration, default=2.0, help="for one picture")
    parser.add_argument("--memory", type=_size, default=10 * GIB, help='pretended size of the weights, "10GiB"')
    parser.add_argument("--fail-start", action="store_true", help="end with status 1 instead of loading")
    parser.add_argument("--hang-start", action="store_true", help="listen, but never become ready")
    parser.add_argument("--ignore-sigterm", action="store_true", help="SIGTERM and SIGINT do nothing")
    parser.add_argument("--die-after", type=int, metavar="N", help="crash on the picture after the first N")
    return parser.parse_args()


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    """Serve until SIGTERM or SIGINT, then end with status 0 whatever is in work."""
    options = _arguments()
    if options.fail_start:
        print("simulated failure: the weights are damaged (--fail-start)", file=sys.stderr, flush=True)
        sys.exit(1)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN if options.ignore_sigterm else _leave)
    generator = Generator(
        load_s=options.load_seconds,
        reload_s=options.load_seconds / 2 if options.reload_seconds is None else options.reload_seconds,
        unload_s=options.unload_seconds,
        generate_s=options.generate_seconds,
        memory_bytes=options.memory,
    )
    try:
        server = ImageServer((options.host, options.port), generator, options.die_after)
    except OSError as error:
        print(f"cannot listen on {options.host}:{options.port}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    print(f"listening on http://{options.host}:{server.server_address[1]}", flush=True)
    if not options.hang_start:
        threading.Thread(target=generator.start, name="load", daemon=True).start()
    server.serve_forever(poll_interval=5.0)


def _leave(_number: int, _frame: FrameType | None) -> None:
    # Threads may sleep in the middle of a picture; an orderly end would wait for them.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
