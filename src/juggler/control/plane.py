"""The control plane as one object: its listener, its API, its stream and its page."""

import asyncio
import logging
import secrets
from typing import TYPE_CHECKING

from juggler.config.resolve import ControlAddress
from juggler.control.server import AsgiApp, ControlServer

if TYPE_CHECKING:
    from juggler.control.stream import EventStream
    from juggler.control.subject import Subject

_log = logging.getLogger("juggler.control")


class ControlPlane:
    """See the module. Opened with the other listeners, running until its task is cancelled.

    Args:
        subject: What it shows and steers.
        address: Where it listens, and who may.

    Raises:
        OSError: The address is taken or not ours; the text names it.
    """

    def __init__(self, subject: "Subject", address: ControlAddress) -> None:
        self._subject = subject
        self._address = address
        self._boot = secrets.token_hex(4)
        self._server = ControlServer(address.host, address.port)
        self._stream: EventStream | None = None

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where it listens: numeric host and port."""
        return self._server.addresses

    async def run(self) -> None:
        """Serve until cancelled; what goes wrong here ends nothing else."""
        try:
            # Imported only now, in a thread: the listeners that clients wait for are open already.
            await self._server.start(self._make_app)
            assert self._stream is not None
            await self._stream.run()
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("the control plane has ended; models are served all the same")
        finally:
            if self._stream is not None:
                self._stream.close()
            await self._server.close()

    def abort(self) -> None:
        """Close its sockets now."""
        self._server.abort()

    def _make_app(self) -> AsgiApp:
        from juggler.control.application import application
        from juggler.control.snapshot import Snapshots
        from juggler.control.stream import EventStream

        snapshots = Snapshots(self._subject, self._boot)
        self._stream = EventStream(self._subject, snapshots, self._boot)
        return application(self._subject, self._address, snapshots, self._stream)
