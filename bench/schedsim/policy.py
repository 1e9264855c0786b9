"""The interface between the world and a policy: the world reports, the policy gives orders to the world."""

from typing import TYPE_CHECKING

from bench.schedsim.model import Request

if TYPE_CHECKING:
    from bench.schedsim.world import World


class Policy:
    """A policy that does nothing; subclasses override what they care about.

    Orders are methods of the world: ``hand``, ``refuse``, ``start``, ``stop``, ``unload``, ``wake``, ``read_ahead``,
    and ``at`` for timers. Each that takes time is answered by one of the reports here.
    """

    name = ""
    slots: int | None = None
    """Requests that each backend works on at the same time, where the program's default is not the model's."""
    sees_first_bytes = False
    """``first_byte`` is to be called."""

    def __init__(self, world: "World") -> None:
        self.world = world

    def arrived(self, request: Request) -> None:
        """A client sent a request: it must be handed over or refused at some time."""
        raise NotImplementedError

    def first_byte(self, request: Request) -> None:
        """The answer to a request has begun."""

    def ended(self, request: Request) -> None:
        """The answer is complete."""

    def ready(self, model: str) -> None:
        """A start or a wake is over: the model can serve."""

    def unloaded(self, model: str) -> None:
        """A soft unload is over."""

    def gone(self, model: str) -> None:
        """The process has ended and its memory is free."""

    def read_ended(self, model: str) -> None:
        """A read-ahead is over: all was read, or a load began."""
