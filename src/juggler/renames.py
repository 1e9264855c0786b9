"""Endpoints that a new configuration calls something else, for those who asked for them before.

A request is routed once, by the names of that moment, and may wait for long. A name that its endpoint has lost may be
another's by then: two servers can swap theirs. So who waits keeps the name together with the moment (``Named``).
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

from juggler.ids import EndpointId
from juggler.proxy.contract import Route

KEPT_MOST = 1000
"""Configurations with other names that are remembered; nobody waits, and no listener drains, through more of them."""

_GONE = "/"
"""Before the last name of an endpoint that there is no more; no server's name is empty, so it is nobody's."""


def gone(endpoint: EndpointId) -> EndpointId:
    """What an endpoint is called from now on that a new configuration does not have: its name may be another's."""
    return EndpointId(_GONE + endpoint)


def last_name(endpoint: EndpointId) -> EndpointId:
    """The name of an endpoint that people know; if it is gone, that of then."""
    return EndpointId(endpoint.removeprefix(_GONE))


class Renames:
    """The latest changes of names, in order."""

    def __init__(self) -> None:
        self.count = 0
        """How many there were so far: the moment that a name is of."""
        self._latest: deque[Mapping[EndpointId, EndpointId]] = deque(maxlen=KEPT_MOST)

    def add(self, renamed: Mapping[EndpointId, EndpointId]) -> None:
        """A configuration is in effect that has other names for some endpoints, all at once."""
        if renamed:
            self._latest.append(renamed)
            self.count += 1

    def present(self, endpoint: EndpointId, since: int) -> EndpointId:
        """The name of today of what was called ``endpoint`` when ``count`` was ``since``."""
        changes = min(self.count - since, len(self._latest))
        if changes:
            for renamed in list(self._latest)[-changes:]:
                endpoint = renamed.get(endpoint, endpoint)
        return endpoint


class Named:
    """An endpoint by the name that it has now, whatever that becomes."""

    __slots__ = ("_endpoint", "_renames", "_since")

    def __init__(self, renames: Renames, endpoint: EndpointId) -> None:
        self._renames = renames
        self._endpoint = endpoint
        self._since = renames.count

    @property
    def id(self) -> EndpointId:
        """What it is called today; perhaps it is no endpoint any more."""
        return self._renames.present(self._endpoint, self._since)

    def on(self, route: Route) -> Route:
        """A request's route to it, by the name under which it is shown and counted now; if it is gone, by its last."""
        endpoint = last_name(self.id)
        return route if route.endpoint == endpoint else replace(route, endpoint=endpoint)
