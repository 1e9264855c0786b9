"""A server that somebody else started: it holds a model, frees it when told, and keeps a diary in GET /diary.

POST /unload frees (with ``--refuses``: 409 and nothing), POST /wake loads (unless ``--wake-status`` fails), GET /jobs
gives ``{"running": N}``, POST /job?S works S seconds after its answer, anything else that is posted needs the model.
"""

import argparse
import json
import os
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--name", default="attached")
parser.add_argument("--refuses", action="store_true")
parser.add_argument("--unload-status", type=int, default=200)
parser.add_argument("--wake-status", type=int, default=200)
parser.add_argument("--unloaded", action="store_true")
parser.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
args = parser.parse_args()

loaded = not args.unloaded
jobs = 0
diary: list[str] = []


def work(seconds: float) -> None:
    global jobs
    jobs += 1
    time.sleep(seconds)
    jobs -= 1
    diary.append("job done")


class Handler(BaseHTTPRequestHandler):
    """See the module."""

    protocol_version = "HTTP/1.1"

    def answer(self, status: int, document: object) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/jobs":
            self.answer(200, {"running": jobs})
        elif self.path == "/diary":
            self.answer(200, {"diary": diary, "loaded": loaded, "pid": os.getpid()})
        else:
            self.answer(200, {"name": args.name, "path": self.path})

    def do_POST(self) -> None:
        global loaded
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, _, query = self.path.partition("?")
        if path == "/unload":
            diary.append("unload")
            loaded = args.refuses and loaded
            self.answer(409 if args.refuses else args.unload_status, {})
        elif path == "/wake":
            diary.append("wake")
            loaded = args.wake_status < 300
            self.answer(args.wake_status, {})
        elif path == "/job":
            threading.Thread(target=work, args=(float(query),), daemon=True).start()
            self.answer(200, {"name": args.name})
        else:
            diary.append("work" if loaded else "work without the model")
            time.sleep(float(query or 0))
            self.answer(200 if loaded else 500, {"name": args.name, "pid": os.getpid()})

    def log_message(self, format: str, *words: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
if args.tls:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*args.tls)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
server.daemon_threads = True
print("ready", flush=True)
server.serve_forever(poll_interval=0.02)
