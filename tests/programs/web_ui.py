"""A stand-in web UI: a page, polls, a socket, redirects, and ComfyUI's guard against foreign pages.

    web_ui.py --port N [--name NAME] [--load-s SECONDS]

``GET /`` is the page; ``GET /v1/models`` a list with an ETag, sent in chunks with ``?chunked``; ``GET /ws`` switches
protocols and echoes; ``GET /lcpp`` redirects to an absolute address as koboldcpp's users see it; ``POST`` anywhere is
work and tells the path. Requests that ComfyUI would take for a foreign page's are 403 without a body (backends.md
section 5.5).
"""

import argparse
import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--name", default="ui")
parser.add_argument("--load-s", type=float, default=0.0, help="before it listens")
args = parser.parse_args()


class Handler(BaseHTTPRequestHandler):
    """See the module."""

    protocol_version = "HTTP/1.1"

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self._is_foreign():
            self.close_connection = True  # the body has not been read
            self._answer(403, b"", ("Connection", "close"))
            return False
        return True

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/":
            self._answer(200, b'<a href="v1/models">models</a>', ("Content-Type", "text/html"))
        elif path == "/lcpp":
            self._answer(302, b"", ("Location", f"http://127.0.0.1:{args.port}/lcpp/"))
        elif path == "/ws" and self.headers.get("Upgrade"):
            self._echo()
        else:
            body = json.dumps({"name": args.name, "pid": os.getpid(), "path": path}).encode()
            fields = [("Content-Type", "application/json"), ("ETag", f'"{args.name}"')]
            self._answer(200, body, *fields, chunked=query == "chunked")

    do_HEAD = do_GET  # noqa: N815  # named by http.server

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(200, json.dumps({"name": args.name, "pid": os.getpid(), "path": self.path}).encode())

    def _is_foreign(self) -> bool:
        if self.headers.get("Sec-Fetch-Site") == "cross-site":
            return True
        host, origin = self.headers.get("Host", "").lower(), self.headers.get("Origin", "").lower()
        came = urlsplit(origin)
        asked = host if came.port is not None else urlsplit("//" + host).hostname
        return bool(asked and came.netloc and asked != came.netloc)

    def _answer(self, status: int, body: bytes, *fields: tuple[str, str], chunked: bool = False) -> None:
        self.send_response(status)
        for name, value in fields:
            self.send_header(name, value)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
            body = b"".join(b"1\r\n%b\r\n" % bytes([byte]) for byte in body) + b"0\r\n\r\n"
        else:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _echo(self) -> None:
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.end_headers()
        self.close_connection = True
        while data := self.connection.recv(4096):
            self.connection.sendall(data)

    def log_message(self, format: str, *words: object) -> None:
        print(format % words, file=sys.stderr)


time.sleep(args.load_s)
server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
server.daemon_threads = True
print("ready", file=sys.stderr)
server.serve_forever(poll_interval=0.05)
