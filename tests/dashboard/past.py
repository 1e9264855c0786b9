"""What the views of the past and of the configuration ask for, in the shapes of API v1."""

import time
from typing import Any

from tests.dashboard.scenes import GIB

Json = dict[str, Any]
BLANK = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
"""A picture of one point (PNG)."""


def record(number: int, name: str, ago_s: float, **more: Any) -> Json:
    """One request to an endpoint of Main that is over: 2 s in the queue, half of it for others, 6 s load, 4 s work."""
    ended_at = time.time() - ago_s
    return {
        "record": number,
        "request": number,
        "endpoint": f"Main/{name}",
        "instance": f"Main/{name}",
        "method": "POST",
        "target": f"/{name}/v1/chat/completions",
        "client": "192.168.1.20",
        "class": "work",
        "arrived_at": ended_at - 12,
        "granted_at": ended_at - 4,
        "queue_s": 2.0,
        "load_s": 6.0,
        "evicted_s": 1.0,
        "first_byte_s": 0.5,
        "ended_at": ended_at,
        "status": 200,
        "outcome": "ok",
        "error": None,
        "bytes_up": 900,
        "bytes_down": 48_000,
        **more,
    }


def requests() -> Json:
    now = time.time()
    refused: Json = {"status": None, "outcome": "refused", "error": "queue_full", "granted_at": None,
                     "first_byte_s": None, "load_s": 0.0, "evicted_s": None, "queue_s": 0.002,
                     "arrived_at": now - 130.002}  # fmt: skip
    return {
        "requests": [
            record(107, "gemma", 3, queue_s=0.0, load_s=0.0, evicted_s=0.0, arrived_at=now - 7, granted_at=now - 7),
            record(106, "coder", 20),
            record(105, "vision", 44, queue_s=0.3, load_s=0.0, evicted_s=None, status=500, outcome="error",
                   error="upstream_closed", arrived_at=now - 48.3, granted_at=now - 48),
            record(104, "coder", 130, **refused),
            record(103, "sdxl", 200, arrived_at=now - 290, queue_s=40.0, evicted_s=12.0, load_s=30.0,
                   granted_at=now - 220, outcome="client_left", first_byte_s=None, status=None),
        ],
        "more": True,
    }  # fmt: skip


def days() -> Json:
    sums = {"total_s": 900.0, "waited_s": 120.0, "loading_s": 99.0, "share_waiting": 0.11, "swaps": 9, "failures": 1}
    return {
        "days": [{"day": f"2026-11-{28 - at}", "requests": 128 - 9 * at, **sums, "endpoints": {}} for at in range(6)]
    }


def series() -> Json:
    now = time.time()
    at = [now - 30 * (120 - step) for step in range(121)]
    used = [None if step < 20 else (9 + step // 15 % 3 * 5) * GIB for step in range(121)]
    return {
        "at": at,
        "step_s": 30.0,
        "pools": {
            "gpu0": {
                "used_bytes": used,
                "foreign_bytes": [None if step < 20 else GIB + step * 4_000_000 for step in range(121)],
            }
        },
        "loads": [1 if step % 15 == 0 and step > 20 else 0 for step in range(121)],
        "requests": [max(0, step % 9 - 3) if step > 20 else 0 for step in range(121)],
        "bytes_down": [step % 7 * 20_000 if step > 20 else 0 for step in range(121)],
    }


def line(seq: int, text: str, stream: str = "stderr", level: str | None = None) -> Json:
    return {"seq": seq, "at": time.time() - 60 + seq, "stream": stream, "level": level, "text": text}


def logs() -> dict[str, list[Json]]:
    return {
        "juggler": [
            line(1, "app: Main listens on 127.0.0.1:8080", "juggler", "info"),
            line(2, "engine: #1 load Main/gemma: 1 waiting", "juggler", "debug"),
            line(3, "memory: gpu0: others hold 1.2 GiB", "juggler", "warning"),
            line(4, "lifecycle: Main/mixtral ended before it was ready", "juggler", "error"),
        ],
        "Main/gemma": [
            line(1, "started: llama-server -m gemma.gguf", "juggler", "info"),
            line(2, "\x1b[32mload_model\x1b[0m: loading \x1b[1;31mgemma\x1b[0m.gguf"),
            line(3, "slot 0: \x1b[38;5;200mprocessing task\x1b[0m"),
            line(4, "ready after 4.1 s", "juggler", "info"),
        ],
    }


def config() -> Json:
    text = '{\n    // all there is\n    "control": { "key": "***" },\n    "servers": [],\n    "wait": 3\n}\n'
    problem = {"severity": "warning", "path": "/home/me/config.json", "line": 5, "column": 5, "message": "unknown key",
               "hint": "did you mean max_wait?", "excerpt": "    \"wait\": 3\n    ^^^^^^"}  # fmt: skip
    return {
        "path": "/home/me/config.json",
        "loaded_at": time.time() - 3000,
        "text_masked": text,
        "effective": {"max_wait_s": 60.0, "control": {"key": "***"}},
        "problems": [problem],
        "last_reload": None,
    }


def connect() -> Json:
    url = {"name": "OPENAI_API_BASE_URL", "value": "http://192.168.1.5:8080/gemma/v1"}
    sdxl = {"name": "SD Web UI URL", "value": "http://192.168.1.5:8080/sdxl"}
    return {
        "clients": [
            {"endpoint": "Main/gemma", "client": "Open WebUI (OpenAI)", "settings": [url], "works": True, "note": None},
            {"endpoint": "Main/sdxl", "client": "SillyTavern (images, SD WebUI)", "settings": [sdxl], "works": False,
             "note": "It cuts the path off."},
        ],
        "warnings": ["Main listens on 127.0.0.1 only: neither other machines nor containers reach it."],
    }  # fmt: skip


def answers() -> dict[str, tuple[int, Json]]:
    """For ``FakeApi.answers``."""
    return {
        "GET /api/v1/requests": (200, requests()),
        "GET /api/v1/history/days": (200, days()),
        "GET /api/v1/history/series": (200, series()),
        "GET /api/v1/config": (200, config()),
        "GET /api/v1/connect": (200, connect()),
    }
