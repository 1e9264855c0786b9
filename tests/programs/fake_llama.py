"""A stand-in for ``llama-server``: the routes that clients use, with answers that are always the same.

Options: ``--host``, ``--port``; others are taken and ignored. Bad habits, by the ``model`` of a request:

    refuse      400, as for a prompt that is too long
    die         the process ends after two events, or before any answer where none were asked for
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]

WORDS = ("Good", " day", " — \u2028ünïcode", "!")
STAMP = 1_700_000_000
MODELS = {"object": "list", "data": [{"id": "m", "object": "model", "created": STAMP}]}
USAGE = {"prompt_tokens": 5, "completion_tokens": len(WORDS), "total_tokens": 5 + len(WORDS)}
REFUSAL = {
    "error": {
        "code": 400,
        "message": "the request exceeds the available context size",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 9000,
        "n_ctx": 8192,
    }
}


class Handler(BaseHTTPRequestHandler):
    """As server.cpp, as far as a client can tell."""

    protocol_version = "HTTP/1.1"
    server_version = "llama.cpp"
    sys_version = ""
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        plain: dict[str, object] = {
            "GET /health": {"status": "ok"},
            "GET /props": {"build_info": "b1-stand-in", "chat_template": "{{ x }}", "total_slots": 4, "modalities": {}},
            "GET /slots": [{"id": 0, "is_processing": False}],
            "GET /v1/models": MODELS,
            "GET /api/tags": MODELS,
            "POST /api/show": {"template": "{{ x }}", "model_info": {"llama.context_length": 8192}},
            "POST /v1/embeddings": {
                "object": "list",
                "model": "m",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.5, -0.25]}],
                "usage": {"prompt_tokens": 1, "total_tokens": 1},
            },
            "POST /infill": {"content": "".join(WORDS), "stop": True},
            "POST /v1/audio/transcriptions": {"text": f"{len(self.raw)} bytes"},
        }
        key = f"{'GET' if self.command == 'HEAD' else self.command} {path}"
        if key == "GET /":
            self.whole(200, "text/html; charset=utf-8", b"<!doctype html><title>llama.cpp</title>")
        elif key in plain:
            self.json(plain[key])
        elif key == "POST /v1/chat/completions":
            self.complete(chat)
        elif key == "POST /v1/completions":
            self.complete(text)
        elif key == "POST /completion":
            self.complete(native)
        else:
            self.json({"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}}, 404)

    do_HEAD = do_POST = do_GET  # noqa: N815  # named by http.server

    def complete(self, make: Any) -> None:
        """An answer at once, or as events."""
        request = json.loads(self.raw)
        if request.get("model") == "refuse":
            self.json(REFUSAL, 400)
            return
        if not request.get("stream"):
            if request.get("model") == "die":
                os._exit(9)
            self.json(make(None))
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, word in enumerate(WORDS):
            if number == 2 and request.get("model") == "die":
                os._exit(9)
            self.chunk(f"data: {json.dumps(make(word), ensure_ascii=False)}\n\n")
        if make is not native:
            self.chunk("data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, event: str) -> None:
        data = event.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def json(self, document: object, status: int = 200) -> None:
        self.whole(status, "application/json; charset=utf-8", json.dumps(document).encode())

    def whole(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *words: object) -> None:
        """Quiet."""


def chat(word: str | None) -> Json:
    if word is None:
        message = {"role": "assistant", "content": "".join(WORDS)}
        choice: Json = {"index": 0, "message": message, "finish_reason": "stop"}
        return {
            "id": "c",
            "object": "chat.completion",
            "created": STAMP,
            "model": "m",
            "choices": [choice],
            "usage": USAGE,
        }
    choice = {"index": 0, "delta": {"content": word}, "finish_reason": "stop" if word == WORDS[-1] else None}
    return {"id": "c", "object": "chat.completion.chunk", "created": STAMP, "model": "m", "choices": [choice]}


def text(word: str | None) -> Json:
    choice = {"index": 0, "text": "".join(WORDS) if word is None else word, "finish_reason": "stop"}
    answer = {"id": "t", "object": "text_completion", "created": STAMP, "model": "m", "choices": [choice]}
    return answer | ({"usage": USAGE} if word is None else {})


def native(word: str | None) -> Json:
    return {"content": "".join(WORDS) if word is None else word, "stop": word in (None, WORDS[-1])}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    host = sys.argv[sys.argv.index("--host") + 1]
    port = int(sys.argv[sys.argv.index("--port") + 1])
    Server((host, port), Handler).serve_forever(poll_interval=0.05)
