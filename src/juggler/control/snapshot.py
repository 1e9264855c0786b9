"""The state as plain JSON data. A snapshot may be stale the moment it is made and never gates an action.

Durations are seconds, sizes bytes, instants (``*_at``) seconds since 1970.
"""

import time

from juggler import __version__
from juggler.config.resolve import ResolvedEndpoint, ResolvedServer
from juggler.control.subject import Subject
from juggler.control.urls import shown_address, urls_of
from juggler.control.waiting import plain_amounts, running, waiting
from juggler.ids import EndpointId, InstanceId, PoolId
from juggler.scheduler.explain import outlook
from juggler.scheduler.state import Instance
from juggler.scheduler.transitions import GONE, LOADING

Item = dict[str, object]


class Snapshots:
    """Makes snapshots of one juggler.

    Args:
        subject: What is looked at; nothing of it is changed.
        boot: What tells this run from others.
    """

    def __init__(self, subject: Subject, boot: str) -> None:
        self._subject = subject
        self.boot = boot
        self._started_at = time.time()
        self._asleep: dict[InstanceId, tuple[object, Item]] = {}
        """What was told of instances that do nothing, and what that came from: of fifty models one or two work."""
        self._endpoints: tuple[object, list[Item]] = (None, [])
        self._types: dict[InstanceId, str] = {}
        """Backend type of each instance; not of one that is about to be forgotten."""

    def status(self) -> Item:
        """Everything, as ``GET /api/v1/status`` tells it."""
        subject = self._subject
        return {
            "version": __version__,
            "boot": self.boot,
            "now_at": round(time.time(), 3),
            "started_at": round(self._started_at, 3),
            **self.scalars(),
            **self.collections(),
        } | {"warmup": self._warmup(), "config": subject.config_summary()}

    def scalars(self) -> Item:
        """What is one of its kind and changes."""
        subject = self._subject
        return {
            "shutting_down": subject.engine.scheduler.state.shutting_down,
            "locked": subject.steering.locked,
            "today": subject.history.today(),
        }

    def collections(self) -> dict[str, list[Item]]:
        """What there are several of, each item with its own key."""
        offset = self._offset()
        state, now = self._subject.engine.scheduler.state, self._subject.engine.now()
        endpoints_of: dict[InstanceId, list[EndpointId]] = {}
        for endpoint, policy in self._subject.engine.endpoints.items():
            endpoints_of.setdefault(policy.instance, []).append(endpoint)
        since = {span.instance: span.from_at for span in self._subject.history.last_spans() if span.to_at is None}
        self._types = {one.id: one.settings.type for one in self._subject.config.instances}
        known, self._asleep = self._asleep, {}
        return {
            "pools": [self._pool(pool) for pool in state.ledger.capacity],
            "instances": [
                self._instance_or_known(known, one, endpoints_of.get(one.id, []), since.get(one.id), now, offset)
                for one in state.instances.values()
            ],
            "endpoints": self._all_endpoints(),
            "waiting": waiting(self._subject.engine, now, offset),
            "running": running(self._subject.engine, offset),
            "listeners": [
                {
                    "server": name,
                    "addresses": [shown_address(host, port) for host, port in one.addresses],
                    "https": one.secure,
                    "connections": len(one.connections),
                }
                for name, one in self._subject.listeners.items()
            ],
        }

    def _offset(self) -> float:
        """What makes an instant since 1970 of a monotonic one."""
        return time.time() - self._subject.engine.now()

    def _warmup(self) -> list[Item]:
        return [
            {"endpoint": entry.endpoint, "state": entry.state, "error": entry.error, "seconds": entry.seconds}
            for entry in self._subject.warmup.entries
        ]

    def _pool(self, pool: PoolId) -> Item:
        state = self._subject.engine.scheduler.state
        ledger = state.ledger
        holders: list[Item] = []
        for one in state.instances.values():
            held = ledger.held(one.id).get(pool, 0)
            if held:
                origin = self._origin(one.id)
                holders.append({"instance": one.id, "bytes": held, "state": state_word(one), "origin": origin})
        return {
            "pool": pool,
            "capacity_bytes": ledger.capacity[pool],
            "used_bytes": ledger.used(pool),
            "foreign_bytes": ledger.foreign.get(pool, 0),
            "foreign_users": state.users.get(pool, ""),
            "holders": holders,
        }

    def _origin(self, instance: InstanceId) -> str | None:
        keeper = self._subject.engine.keeper
        return keeper.origin(instance).value if keeper is not None else None

    def _instance_or_known(
        self,
        known: dict[InstanceId, tuple[object, Item]],
        instance: Instance,
        endpoints: list[EndpointId],
        since_at: float | None,
        now: float,
        offset: float,
    ) -> Item:
        asleep = instance.residency in GONE and instance.failure is None and not instance.attached
        if not asleep or len(instance.queue) or instance.running or instance.light:
            return self._instance(instance, endpoints, since_at, now, offset)
        # All of which the item of such an instance is made.
        origin = (
            (self._subject.config, instance.spec, tuple(endpoints), since_at, round(offset)),
            (instance.residency, instance.generation, instance.pin, instance.pinned, instance.soft_unload),
            (instance.last_used, instance.idle_since, instance.estimates.load_samples, instance.load_s()),
            (self._origin(instance.id), dict(instance.full)),
            dict(self._subject.engine.scheduler.state.ledger.held(instance.id)),
        )
        before = known.get(instance.id)
        if before is None or before[0] != origin:
            before = (origin, self._instance(instance, endpoints, since_at, now, offset))
        self._asleep[instance.id] = before
        return before[1]

    def _instance(
        self, instance: Instance, endpoints: list[EndpointId], since_at: float | None, now: float, offset: float
    ) -> Item:
        engine = self._subject.engine
        state = engine.scheduler.state
        supervisor = engine.supervisors.get(instance.id)
        address = supervisor.address if supervisor is not None else None
        shown = address is not None and instance.residency.value not in ("stopped", "failed")
        ahead = outlook(state, instance, now)
        oldest = instance.queue.oldest_arrival()
        failure = instance.failure
        loading = instance.residency in LOADING
        return {
            "instance": instance.id,
            "name": instance.spec.name,
            "endpoints": list(endpoints),
            "type": self._types.get(instance.id, ""),
            "state": state_word(instance),
            "residency": instance.residency.value,
            "since_at": None if since_at is None else round(since_at, 3),
            "attached": instance.attached,
            "attaches": instance.spec.attaches,
            "starts_programs": instance.spec.starts,
            "holds_on": instance.holds_on if instance.attached and instance.holds_on_until > now else None,
            "pinned": instance.pinned,
            "pinned_by": None if not instance.pinned else "configuration" if instance.pin is None else "operator",
            "soft_unload": instance.soft_unload,
            "running": len(instance.running),
            "waiting": len(instance.queue),
            "light": len(instance.light),
            "slots": instance.spec.slots,
            "waits_for": ahead.why or None,
            "waited_s": None if oldest is None else round(now - oldest, 1),
            "expected_wait_s": round(ahead.expected_s, 1) if len(instance.queue) else None,
            "held_bytes": plain_amounts(state.ledger.held(instance.id)),
            "needs_bytes": plain_amounts(instance.full),
            "memory_origin": self._origin(instance.id),
            "last_used_at": round(instance.last_used + offset, 3) if instance.last_used else None,
            "idle_since_at": None if instance.idle_since is None else round(instance.idle_since + offset, 1),
            "idle_s": None if instance.idle_since is None else round(now - instance.idle_since, 1),
            "idle_unload_s": instance.spec.idle_unload_s,
            "load_began_at": round(instance.order_given_at + offset, 1) if loading else None,
            "load_expected_s": round(instance.load_s(), 3) if instance.estimates.load_samples or loading else None,
            "starts": instance.generation,
            "address": str(address) if shown else None,
            "error": None
            if failure is None
            else {
                "message": failure.message,
                "hint": failure.hint,
                "exit_status": failure.exit_status,
                "log_tail": list(failure.log_tail),
                "retry_in_s": round(max(instance.retry_at - now, 0.0), 1),
            },
        }

    def _all_endpoints(self) -> list[Item]:
        """Made anew only when the configuration or an address has changed."""
        servers = self._subject.config.servers
        addresses = {name: list(one.addresses) for name, one in self._subject.listeners.items()}
        origin = (self._subject.config, addresses)
        before, items = self._endpoints
        if before != origin:
            items = [self._endpoint(server, one) for server in servers for one in server.endpoints]
            self._endpoints = (origin, items)
        return items

    def _endpoint(self, server: ResolvedServer, endpoint: ResolvedEndpoint) -> Item:
        listener = self._subject.listeners.get(server.name)
        addresses = listener.addresses if listener is not None else [(server.host, server.port)]
        return {
            "endpoint": endpoint.id,
            "server": server.name,
            "name": endpoint.name,
            "instance": endpoint.instance,
            "prefix": endpoint.prefix,
            "strip_prefix": endpoint.strip_prefix,
            "type": endpoint.type,
            "priority": endpoint.priority,
            "urls": urls_of(server, endpoint, addresses),
        }


def state_word(instance: Instance) -> str:
    """The word shown: the residency, ``busy`` while it works, ``down`` for an attached server that is not there."""
    if instance.up and instance.running:
        return "busy"
    if instance.residency in GONE and not instance.spec.starts:
        return "down"
    return instance.residency.value
