"""A stand-in model server with bad habits, each a flag. Answers every path with JSON about itself."""

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--name", default="web")
parser.add_argument("--load", type=float, default=0.0)
parser.add_argument("--fail", help="print this and exit 3 instead of serving")
parser.add_argument("--never-ready", action="store_true")
parser.add_argument("--ignore-sigterm", action="store_true")
parser.add_argument("--flood", action="store_true")
args = parser.parse_args()

if args.ignore_sigterm:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if args.fail:
    print("loading weights", file=sys.stderr)
    print(args.fail, file=sys.stderr)
    sys.exit(3)
if args.flood:

    def flood() -> None:
        while True:
            os.write(1, b"x" * 99 + b"\n")

    threading.Thread(target=flood, daemon=True).start()
time.sleep(args.load)


class Handler(BaseHTTPRequestHandler):
    """GET and POST; ``/slow?S`` takes S seconds, ``/large?N`` sends N bytes more, ``/die`` ends the process."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are written apart: the body would wait 40 ms for an ACK

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        path, _, query = self.path.partition("?")
        if args.never_ready:
            self.send_error(503)
            return
        if path == "/die":
            os._exit(9)
        if path == "/slow":
            time.sleep(float(query))
        answer = json.dumps({"name": args.name, "pid": os.getpid(), "path": self.path, "received": len(body)})
        if path == "/large":
            answer += " " * int(query)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer.encode())

    do_POST = do_PUT = do_GET  # noqa: N815  # named by http.server

    def log_message(self, format: str, *words: object) -> None:
        print(format % words, file=sys.stderr)


server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
server.daemon_threads = True
print("ready", file=sys.stderr)
server.serve_forever(poll_interval=0.05)
