"""What the control plane sees of the juggler: reading, and the few things that it may ask for."""

from collections.abc import Callable, Mapping
from typing import Protocol

from juggler.config.resolve import ResolvedConfig
from juggler.control.steering import Steering
from juggler.engine import Engine
from juggler.history.history import History
from juggler.logs.book import Logs
from juggler.proxy.listener import Listener
from juggler.warmup import Warmup


class Subject(Protocol):
    """One running juggler."""

    @property
    def config(self) -> ResolvedConfig:
        """What runs now."""
        ...

    @property
    def engine(self) -> Engine: ...
    @property
    def warmup(self) -> Warmup: ...
    @property
    def listeners(self) -> Mapping[str, Listener]: ...
    @property
    def logs(self) -> Logs: ...
    @property
    def history(self) -> History: ...
    @property
    def steering(self) -> Steering: ...

    def config_summary(self) -> dict[str, object]:
        """Where the configuration came from, how many problems it has, what the last reload did."""
        ...

    def config_report(self) -> dict[str, object]:
        """The configuration with its problems, secrets masked."""
        ...

    async def reload_by_api(self, *, dry_run: bool) -> dict[str, object]:
        """Read the configuration again; returns what came of it as plain data, with ``ok``."""
        ...

    def when_changed(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have ``listener`` called after each reload; returns what ends that."""
        ...
