"""Requests that wait or run, as plain JSON data: who, for what, why, and for how long."""

import heapq
import math
from collections.abc import Iterable

from juggler.engine import Engine
from juggler.history.records import shown_target, text_of
from juggler.leases import EngineLease
from juggler.scheduler.events import Kind
from juggler.scheduler.explain import outlook
from juggler.scheduler.ledger import Amounts
from juggler.scheduler.queue import Waiting
from juggler.scheduler.state import Instance
from juggler.scheduler.transitions import LOADING
from juggler.scheduler.value import work_s

LISTED_MAX = 500
"""Requests of each list; with more in the queues nobody reads them all, and the counts are told anyway."""

Item = dict[str, object]


def waiting(engine: Engine, now: float, offset: float) -> list[Item]:
    """Who waits, the first of each instance's queue first.

    Args:
        offset: What makes an instant since 1970 of a monotonic one.
    """
    items: list[Item] = []
    free = engine.scheduler.state.ledger.free()
    for instance in engine.scheduler.state.instances.values():
        if not len(instance.queue):
            continue
        ahead = outlook(engine.scheduler.state, instance, now)
        per_request_s = work_s(instance) / max(1, instance.spec.slots)
        first_s = max(0.0, ahead.expected_s - work_s(instance))
        needs = instance.need() if not instance.up else {}
        of_all: Item = {
            "instance": instance.id,
            "needs_bytes": plain_amounts(needs),
            "free_bytes": {str(pool): max(0, free.get(pool, 0)) for pool in needs},
            "phase": "loading" if instance.residency in LOADING else "queued",
        }
        for position, one in enumerate(first_in_line(instance, now, LISTED_MAX - len(items)), start=1):
            expected_s = first_s + (position - 1) * per_request_s
            items.append(_waiting(engine, one, position, ahead.why, expected_s, offset) | of_all)
    return items


def first_in_line(instance: Instance, now: float, most: int) -> list[Waiting]:
    """Who is served next, in order: who is due, then by priority, then by arrival."""
    return heapq.nsmallest(
        most,
        instance.queue,
        key=lambda one: (one.due_at if one.due_at <= now else math.inf, -one.priority, one.arrived_at, one.id),
    )


def _waiting(engine: Engine, one: Waiting, position: int, why: str, expected_s: float, offset: float) -> Item:
    asked = engine.waiters.get(one.id)
    info = asked.info if asked is not None else None
    return {
        "request": one.id,
        "endpoint": asked.endpoint if asked is not None else one.instance,
        "method": info.method.decode("latin-1") if info is not None else None,
        "target": shown_target(text_of(info.target)) if info is not None else None,
        "client": info.client if info is not None else one.client,
        "kind": "load" if one.kind is Kind.LOAD else "work",
        "priority": one.priority,
        "position": position,
        "arrived_at": round(one.arrived_at + offset, 3),
        "due_at": round(one.due_at + offset, 3),
        "timeout_at": round(one.timeout_at + offset, 3),
        "why": why or ("another request is served first" if position > 1 else "it is next"),
        "expected_s": round(expected_s, 1),
    }


def running(engine: Engine, offset: float) -> list[Item]:
    """Who was let in and is not over, the oldest first."""
    return list(_running(engine.leases.values(), offset))


def _running(leases: Iterable[EngineLease], offset: float) -> Iterable[Item]:
    for number, lease in enumerate(leases):
        if number >= LISTED_MAX:
            return
        yield {
            "request": lease.request,
            "endpoint": lease.endpoint,
            "instance": lease.instance,
            "method": lease.info.method.decode("latin-1"),
            "target": shown_target(text_of(lease.info.target)),
            "client": lease.info.client,
            "class": lease.route.traffic.value,
            "arrived_at": round(lease.arrived_at + offset, 3),
            "granted_at": round(lease.granted_at + offset, 3),
            "queue_s": round(lease.queue_s, 3),
            "load_s": round(lease.load_s, 3),
        }


def plain_amounts(amounts: Amounts) -> dict[str, int]:
    """Bytes per pool as JSON data."""
    return {str(pool): size for pool, size in amounts.items()}
