"""From a listener's endpoints and a raw target to a route: top to bottom, first match wins.

A prefix matches on a segment boundary only: ``/vision`` catches ``/vision`` and ``/vision/x``, not ``/vision2``.
Matching is on raw bytes. A prefix that holds characters outside ASCII is also known in its percent-encoded form,
for that is how clients send it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from juggler.errors import BlockedRoute, RoutingError
from juggler.ids import EndpointId
from juggler.proxy.contract import Route
from juggler.routing.apis import Api
from juggler.routing.stand_in import StandIn
from juggler.routing.target import parse_target
from juggler.routing.traffic import TrafficClass, TrafficTable

_PATH_SAFE = "/%:@!$&'()*+,;=~-._"
"""What may stand unencoded in a path (RFC 3986 section 3.3); a percent sign is left as the operator wrote it."""

_CACHEABLE_METHODS = frozenset((b"GET", b"HEAD"))

_KNOWN_LIMIT = 1024
"""Requests whose route is remembered: clients ask the same few things again and again."""

_KNOWN_TARGET_BYTES = 200


@dataclass(frozen=True, slots=True)
class Entry:
    """One endpoint of a listener, in the order of the file."""

    endpoint: EndpointId
    name: str
    prefix: str
    """``""`` catches everything; else begins with ``/`` and does not end with it."""
    strip_prefix: bool
    traffic: TrafficTable
    api: Api | None = None
    """In whose shape errors are told; None: the path of a request tells."""
    stand_in: StandIn | None = None
    """Who answers for the backend while it is not up, if anybody can."""


class RoutingTable:
    """The endpoints of one listener."""

    def __init__(self, server_name: str, entries: Sequence[Entry]) -> None:
        self.server_name = server_name
        self.entries = tuple(entries)
        self._by_prefix: dict[bytes, int] = {}
        for position, entry in enumerate(self.entries):
            for form in (entry.prefix.encode(), quote(entry.prefix, safe=_PATH_SAFE).encode()):
                self._by_prefix.setdefault(form, position)
        self._known: dict[tuple[bytes, bytes], Route] = {}
        self._longest = max((form.count(b"/") for form in self._by_prefix), default=0)

    def match(self, method: bytes, target: bytes) -> Route:
        """The route of a request. The cost depends on the depth of the path, not on the number of endpoints.

        Raises:
            RoutingError: No endpoint serves this path; the details list those there are.
            BlockedRoute: The endpoint's table forbids this route to clients.
            BadRequest: The target has a form that no server serves.
        """
        key = (method, target)
        route = self._known.get(key)
        if route is None:
            route = self._match(method, target)
            if len(target) <= _KNOWN_TARGET_BYTES and b"?" not in target:
                if len(self._known) >= _KNOWN_LIMIT:
                    self._known.clear()
                self._known[key] = route
        return route

    def _match(self, method: bytes, target: bytes) -> Route:
        parsed = parse_target(target)
        position, prefix = self._find(parsed.path)
        if position is None:
            raise self._no_endpoint(parsed.path)
        entry = self.entries[position]
        path = parsed.path
        if entry.strip_prefix and prefix:
            path = path[len(prefix) :] or b"/"
        traffic, volatile, question, changes, light_if = entry.traffic.decide(method, path)
        if traffic is TrafficClass.BLOCKED:
            shown = f"{method.decode('latin-1')} {path.decode('latin-1')}"
            raise BlockedRoute(
                f"{shown} of {entry.name!r} is not open to clients: it changes state behind the juggler's back",
                hint='allow it with the endpoint\'s `traffic`, for example {"match": "' + shown + '", "class": "work"}',
                endpoint=entry.name,
                phase="routing",
            )
        return Route(
            endpoint=entry.endpoint,
            endpoint_name=entry.name,
            target=path + parsed.query,
            traffic=traffic,
            prefix=prefix if entry.strip_prefix else b"",
            bare=entry.strip_prefix and bool(prefix) and parsed.path == prefix,
            cacheable=traffic is TrafficClass.LIGHT
            and not volatile
            and (method in _CACHEABLE_METHODS or (question and method == b"POST")),
            no_store_everywhere=entry.traffic.no_store_everywhere,
            api=entry.api,
            placeholder=entry.traffic.placeholders.get(path),
            changes=changes,
            light_if=light_if,
            stand_in=entry.stand_in if entry.stand_in is not None and entry.stand_in.knows(method, path) else None,
        )

    def _find(self, path: bytes) -> tuple[int | None, bytes]:
        """The topmost entry whose prefix ends where a segment of the path ends."""
        best, prefix = self._by_prefix.get(b""), b""
        end = 0
        for _ in range(self._longest):
            end = path.find(b"/", end + 1)
            candidate = path if end < 0 else path[:end]
            position = self._by_prefix.get(candidate)
            if position is not None and (best is None or position < best):
                best, prefix = position, candidate
            if end < 0:
                break
        return best, prefix

    def _no_endpoint(self, path: bytes) -> RoutingError:
        known = [{"name": entry.name, "path_prefix": entry.prefix or "/"} for entry in self.entries]
        listed = ", ".join(f"{one['path_prefix']} ({one['name']})" for one in known)
        return RoutingError(
            f"no endpoint of {self.server_name!r} serves {path[:200].decode('latin-1')}; there are: {listed}",
            phase="routing",
            details={"endpoints": known},
        )
