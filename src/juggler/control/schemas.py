"""JSON Schemas of what the API answers with. Fields may be added in later versions of the program, not taken away."""

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
_WHOLE: Schema = {"type": "integer"}
_WHOLE_OR_NULL: Schema = {"type": ["integer", "null"]}
_NUMBER: Schema = {"type": "number"}
_NUMBER_OR_NULL: Schema = {"type": ["number", "null"]}
_YES_NO: Schema = {"type": "boolean"}
_OBJECT: Schema = {"type": "object"}
_OBJECT_OR_NULL: Schema = {"type": ["object", "null"]}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_NUMBERS: Schema = {"type": "array", "items": _NUMBER}
_PER_POOL: Schema = {"type": "object", "additionalProperties": _WHOLE}


def obj(fields: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these fields, and perhaps others."""
    return {"type": "object", "properties": fields | (optional or {}), "required": list(fields)}


def ref(name: str) -> Schema:
    """One of ``SCHEMAS``."""
    return {"$ref": f"#/components/schemas/{name}"}


def array(name: str) -> Schema:
    """A list of one of ``SCHEMAS``."""
    return {"type": "array", "items": ref(name)}


def listed(name: str, item: str) -> Schema:
    """An object with one list in it."""
    return obj({name: array(item)})


_SUMS = {
    "requests": _WHOLE,
    "failures": _WHOLE,
    "total_s": _NUMBER,
    "waited_s": _NUMBER,
    "loading_s": _NUMBER,
    "share_waiting": _NUMBER_OR_NULL,
    "swaps": _WHOLE,
}

_RUNNING = {
    "endpoint": _TEXT,
    "instance": _TEXT,
    "method": _TEXT,
    "target": _TEXT,
    "client": _TEXT,
    "class": _TEXT,
    "arrived_at": _NUMBER,
    "queue_s": _NUMBER,
    "load_s": _NUMBER,
}

SCHEMAS: dict[str, Schema] = {
    "Error": obj({"error": obj({"code": _TEXT, "message": _TEXT, "hint": _TEXT_OR_NULL})}),
    "Ready": obj({"ready": _YES_NO, "reasons": _TEXTS}),
    "Status": obj(
        {
            "version": _TEXT,
            "boot": _TEXT,
            "now_at": _NUMBER,
            "started_at": _NUMBER,
            "shutting_down": _YES_NO,
            "locked": _OBJECT_OR_NULL,
            "pools": array("Pool"),
            "instances": array("Instance"),
            "endpoints": array("Endpoint"),
            "waiting": array("Waiting"),
            "running": array("Running"),
            "listeners": array("Listener"),
            "warmup": {"type": "array", "items": _OBJECT},
            "config": _OBJECT,
            "today": obj(_SUMS),
        }
    ),
    "Pool": obj(
        {
            "pool": _TEXT,
            "capacity_bytes": _WHOLE,
            "used_bytes": _WHOLE,
            "foreign_bytes": _WHOLE,
            "foreign_users": _TEXT,
            "holders": {
                "type": "array",
                "items": obj({"instance": _TEXT, "bytes": _WHOLE, "state": _TEXT, "origin": _TEXT_OR_NULL}),
            },
        }
    ),
    "Instance": obj(
        {
            "instance": _TEXT,
            "name": _TEXT,
            "endpoints": _TEXTS,
            "type": _TEXT,
            "state": _TEXT,
            "residency": _TEXT,
            "since_at": _NUMBER_OR_NULL,
            "attached": _YES_NO,
            "holds_on": _TEXT_OR_NULL,
            "pinned": _YES_NO,
            "pinned_by": _TEXT_OR_NULL,
            "soft_unload": _YES_NO,
            "running": _WHOLE,
            "waiting": _WHOLE,
            "light": _WHOLE,
            "slots": _WHOLE,
            "waits_for": _TEXT_OR_NULL,
            "waited_s": _NUMBER_OR_NULL,
            "expected_wait_s": _NUMBER_OR_NULL,
            "held_bytes": _PER_POOL,
            "needs_bytes": _PER_POOL,
            "memory_origin": _TEXT_OR_NULL,
            "last_used_at": _NUMBER_OR_NULL,
            "idle_since_at": _NUMBER_OR_NULL,
            "idle_unload_s": _NUMBER_OR_NULL,
            "load_began_at": _NUMBER_OR_NULL,
            "load_expected_s": _NUMBER_OR_NULL,
            "starts": _WHOLE,
            "address": _TEXT_OR_NULL,
            "error": {
                "anyOf": [
                    {"type": "null"},
                    obj(
                        {
                            "message": _TEXT,
                            "hint": _TEXT_OR_NULL,
                            "exit_status": _WHOLE_OR_NULL,
                            "log_tail": _TEXTS,
                            "retry_in_s": _NUMBER,
                        }
                    ),
                ]
            },
        }
    ),
    "Endpoint": obj(
        {
            "endpoint": _TEXT,
            "server": _TEXT,
            "name": _TEXT,
            "instance": _TEXT,
            "prefix": _TEXT,
            "strip_prefix": _YES_NO,
            "type": _TEXT,
            "priority": _WHOLE,
            "urls": _TEXTS,
        }
    ),
    "Listener": obj({"server": _TEXT, "addresses": _TEXTS, "https": _YES_NO, "connections": _WHOLE}),
    "Waiting": obj(
        {
            "request": _WHOLE,
            "endpoint": _TEXT,
            "instance": _TEXT,
            "method": _TEXT_OR_NULL,
            "target": _TEXT_OR_NULL,
            "client": _TEXT,
            "kind": {"enum": ["work", "load"]},
            "priority": _WHOLE,
            "position": _WHOLE,
            "arrived_at": _NUMBER,
            "due_at": _NUMBER,
            "timeout_at": _NUMBER,
            "why": _TEXT,
            "needs_bytes": _PER_POOL,
            "free_bytes": _PER_POOL,
            "expected_s": _NUMBER,
            "phase": _TEXT,
        }
    ),
    "Running": obj({"request": _WHOLE, **_RUNNING, "granted_at": _NUMBER}),
    "Request": obj(
        {
            "record": _WHOLE,
            "request": _WHOLE_OR_NULL,
            **_RUNNING,
            "granted_at": _NUMBER_OR_NULL,
            "evicted_s": _NUMBER_OR_NULL,
            "first_byte_s": _NUMBER_OR_NULL,
            "ended_at": _NUMBER,
            "status": _WHOLE_OR_NULL,
            "outcome": _TEXT,
            "error": _TEXT_OR_NULL,
            "bytes_up": _WHOLE,
            "bytes_down": _WHOLE,
        }
    ),
    "Decision": obj(
        {
            "number": _WHOLE,
            "at": _NUMBER,
            "target": _TEXT_OR_NULL,
            "cause": _TEXT,
            "victims": {"type": "array", "items": obj({"instance": _TEXT, "mode": _TEXT})},
            "waiting": _WHOLE,
            "waited_s": _NUMBER,
            "client": _TEXT,
            "missing_bytes": _PER_POOL,
            "considered": {"type": "array", "items": _OBJECT},
            "expected_s": _NUMBER,
            "took_s": _NUMBER_OR_NULL,
            "outcome": _TEXT,
        }
    ),
    "Span": obj(
        {
            "span": _WHOLE,
            "instance": _TEXT,
            "state": _TEXT,
            "from_at": _NUMBER,
            "to_at": _NUMBER_OR_NULL,
            "why": _TEXT,
            "decision": _WHOLE_OR_NULL,
            "evicted_by": _TEXT_OR_NULL,
        }
    ),
    "Timeline": obj(
        {
            "spans": array("Span"),
            "from_at": _NUMBER,
            "to_at": _NUMBER,
            "thrash": {"type": "array", "items": obj({"instances": _TEXTS, "swaps": _WHOLE, "text": _TEXT})},
        }
    ),
    "Day": obj({"day": _TEXT, **_SUMS, "endpoints": _OBJECT}),
    "Series": obj(
        {
            "at": _NUMBERS,
            "step_s": _NUMBER,
            "pools": _OBJECT,
            "loads": _NUMBERS,
            "requests": _NUMBERS,
            "bytes_down": _NUMBERS,
        }
    ),
    "Problem": obj(
        {
            "severity": {"enum": ["error", "warning"]},
            "path": _TEXT_OR_NULL,
            "line": _WHOLE_OR_NULL,
            "column": _WHOLE_OR_NULL,
            "message": _TEXT,
            "hint": _TEXT_OR_NULL,
        },
        {"excerpt": _TEXT_OR_NULL},
    ),
    "Config": obj(
        {
            "path": _TEXT_OR_NULL,
            "loaded_at": _NUMBER_OR_NULL,
            "text_masked": _TEXT_OR_NULL,
            "effective": _OBJECT_OR_NULL,
            "problems": {"anyOf": [array("Problem"), _WHOLE]},
            "last_reload": _OBJECT_OR_NULL,
        }
    ),
    "Reload": obj(
        {
            "ok": _YES_NO,
            "dry_run": _YES_NO,
            "summary": _TEXT,
            "changes": {"type": "array", "items": _OBJECT},
            "problems": array("Problem"),
        }
    ),
    "Connect": obj(
        {
            "clients": {
                "type": "array",
                "items": obj(
                    {
                        "client": _TEXT,
                        "settings": {"type": "array", "items": obj({"name": _TEXT, "value": _TEXT})},
                        "note": _TEXT_OR_NULL,
                    }
                ),
            },
            "warnings": _TEXTS,
        }
    ),
    "Log": obj({"log": _TEXT, "lines": _WHOLE, "last": _WHOLE, "running": _YES_NO}),
    "LogLines": obj(
        {
            "log": _TEXT,
            "lines": {
                "type": "array",
                "items": obj({"seq": _WHOLE, "at": _NUMBER, "stream": _TEXT, "level": _TEXT_OR_NULL, "text": _TEXT}),
            },
            "begun": {"type": "array", "items": obj({"at": _NUMBER, "stream": _TEXT, "text": _TEXT})},
            "last": _WHOLE,
            "lost": _WHOLE,
            "boot": _TEXT,
        }
    ),
    "Order": obj({"endpoint": _TEXT, "instance": _TEXT, "result": _TEXT, "done": _YES_NO}),
    "Pin": obj({"endpoint": _TEXT, "pinned": _YES_NO}),
    "LockState": obj({"locked": _OBJECT_OR_NULL}),
}
