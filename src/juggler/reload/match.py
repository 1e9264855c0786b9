"""What of a new configuration is what runs already. Pure.

An instance is the same if its process would be: neither its name nor the server of its endpoints matter, so an
endpoint can be renamed or moved without a restart. What stays keeps the id it has; a new one that would take such an
id by its name gets another.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

from juggler.backends.base import BackendSettings
from juggler.backends.registry import knows_its_prefix
from juggler.config.resolve import ResolvedConfig, ResolvedInstance, instances_of
from juggler.ids import EndpointId, InstanceId, PoolId

IN_PLACE = frozenset({"instance", "endpoint_name", "start_timeout_s", "stop_timeout_s", "kv_cache_quota_bytes"})
"""Settings of a backend that a process need not be started anew for."""

RESTART_ONLY = ("temp_dir", "state_dir", "control", "history")
"""Keys at the top whose new values wait for a restart of the juggler; so does which ``memory.pools`` there are."""


_POOLS = "memory.pools"


@dataclass(frozen=True, slots=True)
class Matched:
    """A new configuration in the terms of the running one."""

    config: ResolvedConfig
    """With the ids that are known here, and with the old values of what only a restart changes."""
    restart_for: tuple[str, ...]
    """The keys whose new values wait for a restart."""


def match(old: ResolvedConfig, new: ResolvedConfig) -> Matched:
    """See the module."""
    held, restart_for = _hold_back(old, new)
    pools_wait = _POOLS in restart_for
    ids = _ids(old, held, pools_wait=pools_wait)
    instances = tuple(_renamed(one, ids[one.id]) for one in held.instances)
    if pools_wait:
        # Sizes are written for pools that are not there yet: those known now stay, others are to be learned.
        known = {one.id: one for one in old.instances}
        instances = tuple(_with_memory_of(one, known.get(one.id)) for one in instances)
    servers = tuple(
        replace(server, endpoints=tuple(replace(one, instance=ids[one.instance]) for one in server.endpoints))
        for server in held.servers
    )
    return Matched(replace(held, instances=instances, servers=servers), restart_for)


def differing_settings(old: ResolvedInstance, new: ResolvedInstance) -> tuple[str, ...]:
    """The settings for which a process has to be started anew; empty: it is the same."""
    free = IN_PLACE if knows_its_prefix(new.settings.type) else IN_PLACE | {"ui_prefix"}
    names = [
        one.name
        for one in fields(BackendSettings)
        if one.name not in free and getattr(old.settings, one.name) != getattr(new.settings, one.name)
    ]
    return (*names, *(["pool"] if old.pool != new.pool else []))


def differing_rules(old: ResolvedInstance, new: ResolvedInstance) -> tuple[str, ...]:
    """What changes in place."""
    kept = ("settings", "id", "pool")
    rules = [one.name for one in fields(ResolvedInstance) if one.name not in kept]
    names = [name for name in rules if getattr(old, name) != getattr(new, name)]
    names += [
        name
        for name in sorted(IN_PLACE - {"instance", "endpoint_name"})
        if getattr(old.settings, name) != getattr(new.settings, name)
    ]
    return tuple(names)


def _hold_back(old: ResolvedConfig, new: ResolvedConfig) -> tuple[ResolvedConfig, tuple[str, ...]]:
    """The new one with the old values of what only a restart changes."""
    back: dict[str, object] = {}
    told: list[str] = []
    for name in RESTART_ONLY:
        if getattr(old, name) != getattr(new, name):
            back[name] = getattr(old, name)
            told.append(name)
    instances = new.instances
    if "temp_dir" in back or "state_dir" in back:
        instances = tuple(
            replace(one, settings=replace(one.settings, temp_dir=old.temp_dir, state_dir=old.state_dir))
            for one in instances
        )
    if (old.auto_pools, _names(old.pools)) != (new.auto_pools, _names(new.pools)):
        told.append(_POOLS)
        back |= {"pools": old.pools, "auto_pools": old.auto_pools}
    return replace(new, instances=instances, **back), tuple(told)  # type: ignore[arg-type]  # each its own type


def _names(pools: Mapping[PoolId, int] | None) -> tuple[str, ...] | None:
    return None if pools is None else tuple(sorted(pools))


def _with_memory_of(one: ResolvedInstance, before: ResolvedInstance | None) -> ResolvedInstance:
    if before is None:
        return replace(one, memory=None, memory_unloaded={}, pool=None)
    return replace(one, memory=before.memory, memory_unloaded=before.memory_unloaded, pool=before.pool)


def _ids(old: ResolvedConfig, new: ResolvedConfig, *, pools_wait: bool) -> dict[InstanceId, InstanceId]:
    """The id of each new instance here; with ``pools_wait`` whatever pool it is to be in after a restart."""
    endpoints = instances_of(old.servers)
    left = {one.id: one for one in old.instances}
    ids: dict[InstanceId, InstanceId] = {}

    def is_same(name: InstanceId, one: ResolvedInstance) -> bool:
        before = left[name]
        return not differing_settings(replace(before, pool=one.pool) if pools_wait else before, one)

    def same_served(one: ResolvedInstance) -> InstanceId | None:
        """The process that serves one of its endpoints now, if it is the same."""
        return next((name for name in known_to(one) if is_same(name, one)), None)

    def same_elsewhere(one: ResolvedInstance) -> InstanceId | None:
        """Any that is the same, and that nobody has a better claim to: its endpoint has another name now."""
        return next((name for name in left if is_same(name, one)), None)

    def another(one: ResolvedInstance) -> InstanceId | None:
        """One that serves one of its endpoints now, whose place another process takes."""
        return next(known_to(one), None)

    def known_to(one: ResolvedInstance) -> Iterator[InstanceId]:
        return (name for name in _served_by(one.id, new, endpoints) if name in left)

    unknown = list(new.instances)
    for find in (same_served, same_elsewhere, another):
        for one in list(unknown):
            known = find(one)
            if known is not None:
                ids[one.id] = known
                del left[known]
                unknown.remove(one)
    taken = {*ids.values(), *left}
    for one in unknown:
        number, name = 2, one.id
        while name in taken:
            name = InstanceId(f"{one.id} ({number})")
            number += 1
        ids[one.id] = name
        taken.add(name)
    return ids


def _served_by(
    name: InstanceId, new: ResolvedConfig, endpoints: Mapping[EndpointId, InstanceId]
) -> Iterator[InstanceId]:
    """The instances that serve the endpoints of a new one now."""
    for server in new.servers:
        for one in server.endpoints:
            if one.instance == name and one.id in endpoints:
                yield endpoints[one.id]


def _renamed(one: ResolvedInstance, name: InstanceId) -> ResolvedInstance:
    return replace(one, id=name, settings=replace(one.settings, instance=name))
