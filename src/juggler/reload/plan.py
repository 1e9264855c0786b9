"""What a new configuration changes in the running program, before anything is changed. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields

from juggler.config.resolve import ResolvedConfig, ResolvedEndpoint, ResolvedServer
from juggler.ids import EndpointId, InstanceId
from juggler.reload.match import differing_rules, differing_settings, match

_MANY = 12
"""Names in one line; more are counted."""

_RULES_AT_THE_TOP = {
    "queue_limit": "scheduler.queue_limit",
    "max_wait_s": "scheduler.max_wait",
    "batch_deadline_s": "scheduler.deadline_batch",
    "queue_timeout_s": "scheduler.queue_timeout",
    "policy": "scheduler",
    "pools": "memory.pools",
    "comments_every_s": "waiting.comments_every",
    "processing": "waiting.processing",
    "page_after_s": "waiting.page_after",
    "answer_half_closed": "waiting.half_close",
    "warmup": "warmup",
    "watch": "reload",
}
"""Fields of the configuration that change in place, by the keys that operators know them by."""


@dataclass(frozen=True, slots=True)
class Change:
    """One instance, endpoint or server that changes."""

    name: str
    """The id of an instance or endpoint, the name of a server."""
    what: tuple[str, ...]
    """What of it, by name; never values, which may be secret."""


@dataclass(frozen=True, slots=True)
class ListenerPlan:
    """What becomes of the servers' addresses."""

    kept: tuple[tuple[str, str], ...]
    """Old and new name; the sockets and their connections stay."""
    added: tuple[str, ...]
    removed: tuple[str, ...]
    rebound: tuple[str, ...]
    """Opened at another address, or with HTTPS where there was none; the old one drains."""


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """See the module. Instances are named by the ids that they have in the running program."""

    config: ResolvedConfig
    """What will be in effect."""
    kept: tuple[InstanceId, ...]
    """Process and requests stay; its rules may change."""
    updated: tuple[Change, ...]
    """Those of ``kept`` whose rules change."""
    changed: tuple[Change, ...]
    """A new process, once the running requests of the old one have ended."""
    added: tuple[InstanceId, ...]
    removed: tuple[InstanceId, ...]
    listeners: ListenerPlan
    servers: tuple[Change, ...]
    """Kept listeners under other rules."""
    endpoints: tuple[Change, ...]
    """Endpoints under other rules."""
    endpoints_added: tuple[EndpointId, ...]
    endpoints_removed: tuple[EndpointId, ...]
    settings: tuple[str, ...]
    """Keys at the top that change in place."""
    restart_for: tuple[str, ...]
    """Keys whose new values count only after a restart of the juggler."""

    @property
    def nothing(self) -> bool:
        """Nothing is to be done now."""
        return all(one["change"] == "needs a restart of the juggler" for one in self.changes())

    @property
    def summary(self) -> str:
        """``keep 3, restart 1, new 1; listeners: keep 2, new 1``."""
        listeners = self.listeners
        instances = _counts(keep=self.kept, restart=self.changed, new=self.added, remove=self.removed)
        doors = _counts(keep=listeners.kept, move=listeners.rebound, new=listeners.added, remove=listeners.removed)
        text = f"models: {instances}; listeners: {doors}"
        if self.nothing:
            text = f"nothing to change ({text})"
        return text + (f"; needs a restart: {', '.join(self.restart_for)}" if self.restart_for else "")

    def changes(self) -> list[dict[str, object]]:
        """What changes, one entry each, as plain JSON data: ``kind``, ``name``, ``change`` and ``what`` of it."""
        doors = self.listeners
        rows: list[tuple[str, str, str, tuple[str, ...]]] = []
        rows += [("model", one.name, "restart", one.what) for one in self.changed]
        rows += [("model", name, "new", ()) for name in self.added]
        rows += [("model", name, "remove", ()) for name in self.removed]
        rows += [("model", one.name, "change in place", one.what) for one in self.updated]
        rows += [("listener", name, "new", ()) for name in doors.added]
        rows += [("listener", name, "remove", ()) for name in doors.removed]
        rows += [("listener", name, "move", ()) for name in doors.rebound]
        rows += [("listener", old, "rename", (new,)) for old, new in doors.kept if old != new]
        rows += [("listener", one.name, "change in place", one.what) for one in self.servers]
        rows += [("endpoint", one.name, "change in place", one.what) for one in self.endpoints]
        rows += [("endpoint", name, "new", ()) for name in self.endpoints_added]
        rows += [("endpoint", name, "remove", ()) for name in self.endpoints_removed]
        rows += [("setting", key, "change in place", ()) for key in self.settings]
        rows += [("setting", key, "needs a restart of the juggler", ()) for key in self.restart_for]
        return [{"kind": kind, "name": name, "change": change, "what": list(what)} for kind, name, change, what in rows]

    def lines(self) -> list[str]:
        """The same for people: ``model S/chat: restart (parameters)``."""
        return [f"{one['kind']} {one['name']}: {one['change']}{_listed(one['what'])}" for one in self.changes()]

    def as_data(self) -> dict[str, object]:
        """Plain JSON data."""
        return {
            "summary": self.summary,
            "nothing": self.nothing,
            "kept": list(self.kept),
            "changes": self.changes(),
            "lines": self.lines(),
            "restart_for": list(self.restart_for),
        }


def plan(old: ResolvedConfig, new: ResolvedConfig) -> ReloadPlan:
    """What has to happen for ``new`` to be in effect where ``old`` is. ``old`` has the ids of the running program."""
    matched = match(old, new)
    config = matched.config
    before = {one.id: one for one in old.instances}
    after = {one.id: one for one in config.instances}
    changed, updated, kept = [], [], []
    for name, one in after.items():
        if name not in before:
            continue
        settings = differing_settings(before[name], one)
        if settings:
            changed.append(Change(name, settings))
            continue
        kept.append(name)
        rules = differing_rules(before[name], one)
        if rules:
            updated.append(Change(name, rules))
    listeners = _listeners(old, config)
    endpoints_before, endpoints_after = _by_id(old), _by_id(config)
    return ReloadPlan(
        config=config,
        kept=tuple(kept),
        updated=tuple(updated),
        changed=tuple(changed),
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        listeners=listeners,
        servers=_servers(old, config, listeners),
        endpoints=tuple(_changed_endpoints(endpoints_before, endpoints_after)),
        endpoints_added=tuple(name for name in endpoints_after if name not in endpoints_before),
        endpoints_removed=tuple(name for name in endpoints_before if name not in endpoints_after),
        settings=tuple(key for name, key in _RULES_AT_THE_TOP.items() if getattr(old, name) != getattr(config, name)),
        restart_for=matched.restart_for,
    )


def _listeners(old: ResolvedConfig, new: ResolvedConfig) -> ListenerPlan:
    left = {one.name: one for one in old.servers}
    unknown = {one.name: one for one in new.servers}
    kept: list[tuple[str, str]] = []

    def keep(before: ResolvedServer, after: ResolvedServer) -> None:
        kept.append((before.name, after.name))
        del left[before.name], unknown[after.name]

    for one in new.servers:
        same = left.get(one.name)
        if same is not None and _door(same) == _door(one):
            keep(same, one)
    for one in list(unknown.values()):
        other = next((other for other in left.values() if one.port and _door(other) == _door(one)), None)
        if other is not None:
            keep(other, one)
    return ListenerPlan(
        kept=tuple(kept),
        added=tuple(name for name in unknown if name not in left),
        removed=tuple(name for name in left if name not in unknown),
        rebound=tuple(name for name in unknown if name in left),
    )


def _door(server: ResolvedServer) -> tuple[str, int, bool]:
    """What one listening socket is for."""
    return server.host.lower(), server.port, server.tls is not None


def _servers(old: ResolvedConfig, new: ResolvedConfig, listeners: ListenerPlan) -> tuple[Change, ...]:
    before = {one.name: one for one in old.servers}
    after = {one.name: one for one in new.servers}
    changes = []
    for old_name, new_name in listeners.kept:
        one, other = before[old_name], after[new_name]
        what = [name for name in ("tls", "limits") if getattr(one, name) != getattr(other, name)]
        if [_told(each) for each in one.endpoints] != [_told(each) for each in other.endpoints]:
            what.append("routes")
        if what:
            changes.append(Change(new_name, tuple(what)))
    return tuple(changes)


def _told(endpoint: ResolvedEndpoint) -> tuple[object, ...]:
    """What the table of a listener knows of an endpoint."""
    names = ("id", "name", "prefix", "strip_prefix", "type", "traffic_rules", "instance")
    return tuple(getattr(endpoint, name) for name in names)


def _changed_endpoints(
    before: Mapping[EndpointId, ResolvedEndpoint], after: Mapping[EndpointId, ResolvedEndpoint]
) -> Iterator[Change]:
    names = [one.name for one in fields(ResolvedEndpoint)]
    for name, one in after.items():
        other = before.get(name)
        if other is not None and other != one:
            yield Change(name, tuple(key for key in names if getattr(one, key) != getattr(other, key)))


def _by_id(config: ResolvedConfig) -> dict[EndpointId, ResolvedEndpoint]:
    return {one.id: one for server in config.servers for one in server.endpoints}


def _counts(**groups: tuple[object, ...]) -> str:
    return ", ".join(f"{word} {len(group)}" for word, group in groups.items() if group) or "none"


def _listed(names: object) -> str:
    assert isinstance(names, list)
    if not names:
        return ""
    shown = ", ".join(name.removesuffix("_s").removesuffix("_bytes") for name in names[:_MANY])
    return f" ({shown}{f' and {len(names) - _MANY} more' if len(names) > _MANY else ''})"
