"""A stand-in for the juggler's API, for commands that call it."""

import http.server
import json
import threading
from typing import Any

GIB = 1024**3


class FakeApi:
    """Answers what it was told to; remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, object]] = {}
        """By method and path, with or without the query; ``"*"``: all else."""
        self.asked: list[tuple[str, str | None]] = []
        """Method and path with query, and the ``Authorization`` field."""
        self.agents: list[str | None] = []
        """What those who asked call themselves."""
        self.is_juggler = True
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = f"{self.command} {self.path}"
                api.asked.append((asked, self.headers["Authorization"]))
                api.agents.append(self.headers["User-Agent"])
                known = (asked, asked.partition("?")[0], "*")
                missing = (404, {"error": {"code": "not_found", "message": f"no {asked}", "hint": None}})
                status, document = next((api.answers[one] for one in known if one in api.answers), missing)
                body = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if api.is_juggler and status >= 400 and isinstance(document, dict) and "error" in document:
                    self.send_header("X-Juggler", "error")
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815  # the base class's names

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def instance(name: str = "a", /, **values: object) -> dict[str, Any]:
    """One instance as the API tells it."""
    return {
        "instance": f"S/{name}",
        "name": name,
        "endpoints": [f"S/{name}"],
        "type": "command",
        "state": "ready",
        "residency": "ready",
        "attached": False,
        "holds_on": None,
        "pinned": False,
        "pinned_by": None,
        "soft_unload": False,
        "running": 0,
        "waiting": 0,
        "light": 0,
        "slots": 1,
        "waits_for": None,
        "waited_s": None,
        "expected_wait_s": None,
        "held_bytes": {"gpu0": 8 * GIB},
        "needs_bytes": {"gpu0": 8 * GIB},
        "memory_origin": "measured",
        "since_at": 990.0,
        "last_used_at": None,
        "idle_since_at": None,
        "idle_unload_s": None,
        "load_expected_s": None,
        "load_began_at": None,
        "starts": 1,
        "address": None,
        "error": None,
        **values,
    }


def pool(name: str = "gpu0", /, **values: object) -> dict[str, Any]:
    """One pool of memory."""
    return {
        "pool": name,
        "capacity_bytes": 24 * GIB,
        "used_bytes": 8 * GIB,
        "foreign_bytes": 0,
        "foreign_users": "",
        "holders": [{"instance": "S/a", "bytes": 8 * GIB, "state": "ready", "origin": "measured"}],
        **values,
    }


def waiting(request: int = 17, **values: object) -> dict[str, Any]:
    """One waiting request."""
    return {
        "request": request,
        "endpoint": "S/a",
        "instance": "S/a",
        "method": "POST",
        "target": "/v1/chat/completions",
        "client": "10.0.0.7",
        "kind": "work",
        "priority": 0,
        "position": 1,
        "arrived_at": 991.0,
        "due_at": 1021.0,
        "timeout_at": 1291.0,
        "why": "b has to go first",
        "needs_bytes": {"gpu0": 8 * GIB},
        "free_bytes": {"gpu0": 0},
        "expected_s": 14.0,
        "phase": "queued",
        **values,
    }


def running(request: int = 16, **values: object) -> dict[str, Any]:
    """One running request."""
    return {
        "request": request,
        "endpoint": "S/a",
        "instance": "S/a",
        "client": "10.0.0.9",
        "method": "GET",
        "target": "/",
        "class": "work",
        "arrived_at": 991.5,
        "granted_at": 992.0,
        "queue_s": 0.5,
        "load_s": 0.0,
        **values,
    }


def status(*instances: dict[str, Any], **values: object) -> dict[str, Any]:
    """All there is, at second 1000."""
    return {
        "version": "0.1",
        "boot": "b1",
        "now_at": 1000.0,
        "started_at": 10.0,
        "shutting_down": False,
        "locked": None,
        "pools": [],
        "instances": list(instances),
        "endpoints": [],
        "waiting": [],
        "running": [],
        "listeners": [],
        "warmup": [],
        "config": {},
        "today": {
            "requests": 1,
            "failures": 0,
            "total_s": 900.0,
            "waited_s": 120.0,
            "loading_s": 99.0,
            "share_waiting": 0.11,
            "swaps": 4,
        },
        **values,
    }
