"""A stand-in server that prints in colours, tells a secret, and leaves a line without its end.

Usage: prints.py PORT SECRET
"""

import http.server
import sys

port, secret = sys.argv[1:]
print("\x1b[32mgreen\x1b[0m words and \x1b[2Jno orders", flush=True)
print(f"the key is {secret}, HF_TOKEN=abcdefgh", file=sys.stderr, flush=True)
print("loading 10%\rloading 30%", end="", flush=True)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers everything; ``/print?TEXT`` prints it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/print?"):
            print(
                f"\n{self.path.partition('?')[2]}\n", end="", flush=True
            )  # in one piece, also where nothing is buffered
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, format: str, *words: object) -> None:
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever(poll_interval=0.05)
