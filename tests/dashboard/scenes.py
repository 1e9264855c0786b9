"""States of a juggler, in the shapes of API v1, for the fake that the dashboard is tested against."""

import time
from typing import Any

GIB = 1 << 30
Json = dict[str, Any]
BOOT = "b00t"


def instance(name: str, state: str = "stopped", size_gib: float = 8.0, **more: Any) -> Json:
    """One instance of one endpoint on ``gpu0``, on a server called Main."""
    now = time.time()
    holds = state not in ("stopped", "failed", "down", "unloaded")
    bytes_needed = int(size_gib * GIB)
    return {
        "instance": f"Main/{name}",
        "name": name,
        "endpoints": [f"Main/{name}"],
        "type": "llamacpp",
        "state": state,
        "residency": "ready" if state == "busy" else state,
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
        "held_bytes": {"gpu0": bytes_needed} if holds else {},
        "needs_bytes": {"gpu0": bytes_needed},
        "memory_origin": "learned",
        "since_at": now - 200,
        "last_used_at": now - 95,
        "idle_since_at": None,
        "idle_unload_s": None,
        "load_expected_s": 20.0,
        "load_began_at": None,
        "starts": 1,
        "address": None,
        "error": None,
        **more,
    }


def endpoint(one: Json, port: int = 8080) -> Json:
    return {
        "endpoint": one["endpoints"][0],
        "server": "Main",
        "name": one["name"],
        "instance": one["instance"],
        "prefix": f"/{one['name']}",
        "strip_prefix": True,
        "type": one["type"],
        "priority": 0,
        "urls": [f"http://127.0.0.1:{port}/{one['name']}"],
    }


def waiting(request: int, one: Json, position: int, **more: Any) -> Json:
    now = time.time()
    return {
        "request": request,
        "endpoint": one["endpoints"][0],
        "instance": one["instance"],
        "method": "POST",
        "target": "/v1/chat/completions",
        "client": "192.168.1.20",
        "kind": "work",
        "priority": 0,
        "position": position,
        "arrived_at": now - 9,
        "due_at": now + 60,
        "timeout_at": now + 600,
        "why": "",
        "needs_bytes": one["needs_bytes"],
        "free_bytes": {"gpu0": int(6.1 * GIB)},
        "expected_s": 25.0,
        "phase": "queued",
        **more,
    }


def running(request: int, one: Json, **more: Any) -> Json:
    now = time.time()
    return {
        "request": request,
        "endpoint": one["endpoints"][0],
        "instance": one["instance"],
        "method": "POST",
        "target": "/v1/chat/completions",
        "client": "127.0.0.1",
        "arrived_at": now - 14,
        "granted_at": now - 12.6,
        "queue_s": 0.2,
        "load_s": 1.2,
        "class": "work",
        **more,
    }


def status(instances: list[Json], *, foreign_gib: float = 0.0, capacity_gib: float = 24.0, **more: Any) -> Json:
    """A Status around some instances; what they hold is in the one pool ``gpu0``."""
    now = time.time()
    holders = [
        {
            "instance": one["instance"],
            "bytes": one["held_bytes"]["gpu0"],
            "state": one["state"],
            "origin": one["memory_origin"],
        }
        for one in instances
        if one["held_bytes"].get("gpu0")
    ]
    return {
        "version": "0.9.0",
        "boot": BOOT,
        "now_at": now,
        "started_at": now - 4 * 3600,
        "shutting_down": False,
        "locked": None,
        "pools": [
            {
                "pool": "gpu0",
                "capacity_bytes": int(capacity_gib * GIB),
                "used_bytes": sum(one["bytes"] for one in holders),
                "foreign_bytes": int(foreign_gib * GIB),
                "foreign_users": "Xorg (412 MiB), firefox (790 MiB)" if foreign_gib else "",
                "holders": holders,
            }
        ],
        "instances": instances,
        "endpoints": [endpoint(one) for one in instances],
        "waiting": [],
        "running": [],
        "listeners": [{"server": "Main", "addresses": ["127.0.0.1:8080"], "https": False, "connections": 3}],
        "warmup": [],
        "config": {"path": "/home/me/config.json", "loaded_at": now - 4 * 3600, "problems": 0, "last_reload": None},
        "today": {
            "requests": 128,
            "total_s": 812.0,
            "waited_s": 101.0,
            "loading_s": 88.0,
            "share_waiting": 0.11,
            "swaps": 14,
            "failures": 1,
        },
        **more,
    }


def busy_house() -> Json:
    """A machine with a bit of everything: what screenshots and the accessibility checks look at."""
    now = time.time()
    gemma = instance(
        "gemma", "busy", 9.5, running=1, slots=2, waiting=1, last_used_at=now - 2, since_at=now - 1900, pinned=True,
        pinned_by="operator",
    )  # fmt: skip
    vision = instance(
        "vision", "ready", 6.4, last_used_at=now - 340, idle_since_at=now - 340, idle_unload_s=600.0, type="koboldcpp",
        soft_unload=True, memory_origin="declared", since_at=now - 340,
    )  # fmt: skip
    coder = instance(
        "coder", "starting", 5.2, load_expected_s=40.0, load_began_at=now - 8, since_at=now - 8, waiting=2, starts=3
    )
    sdxl = instance(
        "sdxl", "unloaded", 11.0, type="comfyui", soft_unload=True, attached=True, held_bytes={"gpu0": GIB // 2},
        waiting=1, since_at=now - 1260, last_used_at=now - 1300, memory_origin="measured",
    )  # fmt: skip
    whisper = instance("whisper", "stopped", 3.1, type="command", memory_origin="estimated", last_used_at=None)
    broken = instance(
        "mixtral", "failed", 21.0, since_at=now - 31, starts=2,
        error={
            "message": "The process ended before it was ready.",
            "hint": "See whether the file of the parameter -m exists.",
            "exit_status": 1,
            "log_tail": [
                "main: loading model",
                "error: failed to open model file 'mixtral-8x7b.Q4_K_M.gguf': No such file or directory",
                "main: error: unable to load model",
            ],
            "retry_in_s": 29.0,
        },
    )  # fmt: skip
    state = status([gemma, vision, coder, sdxl, whisper, broken], foreign_gib=1.2)
    state["pools"].append(
        {
            "pool": "ram",
            "capacity_bytes": 64 * GIB,
            "used_bytes": 4 * GIB,
            "foreign_bytes": 11 * GIB,
            "foreign_users": "",
            "holders": [{"instance": "Main/gemma", "bytes": 4 * GIB, "state": "busy", "origin": "measured"}],
        }
    )
    gemma["held_bytes"] = {"gpu0": int(9.5 * GIB), "ram": 4 * GIB}
    gemma["needs_bytes"] = gemma["held_bytes"]
    state["waiting"] = [
        waiting(71, coder, 1, phase="loading", why="it is loading, 32 s more are expected", expected_s=33.0),
        waiting(72, coder, 2, phase="loading", why="it is loading, 32 s more are expected", expected_s=36.0,
                client="192.168.1.31", arrived_at=now - 4),
        waiting(73, gemma, 1, needs_bytes={}, why="all its 2 slots are in use", expected_s=6.0, arrived_at=now - 1.5),
        waiting(70, sdxl, 1, target="/prompt", why="gemma: it has 1 request under way; vision: used a moment ago",
                arrived_at=now - 31, expected_s=29.0),
    ]  # fmt: skip
    state["running"] = [
        running(69, gemma),
        running(64, gemma, target="/v1/embeddings", queue_s=0.0, load_s=0.0,
                granted_at=now - 0.8, arrived_at=now - 0.8),
        running(50, vision, method="GET", target="/ws?clientId=4f1d", **{"class": "held-open"}, arrived_at=now - 2400,
                granted_at=now - 2400, load_s=0.0),
    ]  # fmt: skip
    return state


def timeline(now: float) -> Json:
    """Two instances that push each other out, one that stays, one that failed; over the last 15 minutes."""
    spans: list[Json] = []
    failed, idle = "its start failed", "idle"

    def lane(name: str, begin_s: float, *parts: tuple[str, float, str]) -> None:
        at = now - begin_s
        for state, lasts_s, why in parts:
            ends = None if lasts_s == 0 else at + lasts_s
            evicted_by = why.removeprefix("evicted by ").partition(",")[0] if why.startswith("evicted") else None
            spans.append(
                {"span": len(spans) + 1, "instance": f"Main/{name}", "state": state, "from_at": at, "to_at": ends,
                 "why": why, "decision": len(spans) if why and why != failed else None,
                 "evicted_by": evicted_by and f"Main/{evicted_by}"}
            )  # fmt: skip
            at = ends or at

    lane(
        "gemma", 1800, ("starting", 22, ""), ("ready", 900, ""), ("busy", 240, ""), ("ready", 300, ""), ("busy", 0, "")
    )
    swap = [("starting", 18, ""), ("busy", 55, ""), ("ready", 12, "")]
    out = "evicted by {}, least recently used"
    lane("vision", 800, *swap, ("draining", 4, out.format("coder")), ("stopping", 3, ""), ("stopped", 128, ""),
         *swap, ("stopping", 5, out.format("coder")), ("stopped", 120, ""), *swap, ("ready", 0, ""))  # fmt: skip
    lane("coder", 708, *swap, ("stopping", 6, out.format("vision")), ("stopped", 122, ""), *swap,
         ("stopping", 5, out.format("vision")), ("stopped", 380, ""), ("starting", 0, ""))  # fmt: skip
    lane(
        "sdxl",
        1200,
        ("busy", 60, ""),
        ("unloading", 3, idle),
        ("unloaded", 237, ""),
        ("busy", 60, ""),
        ("ready", 30, ""),
        ("unloading", 3, out.format("vision")),
        ("unloaded", 0, ""),
    )
    lane("mixtral", 90, ("starting", 9, ""), ("stopping", 1, failed), ("failed", 0, failed))
    lane("whisper", 1800, ("stopped", 0, ""))
    return {
        "spans": spans,
        "from_at": now - 900,
        "to_at": now,
        "thrash": [
            {
                "instances": ["Main/vision", "Main/coder"],
                "swaps": 4,
                "text": "vision and coder took turns 4 times within 5 min: 55 s of serving, 76 s of swapping. They do "
                "not fit together: smaller models or more memory would help, or `scheduler.dial: throughput`",
            }
        ],
    }
