"""The certificate of a listener, taken anew from its files when they change, and the end of TLS connections.

Programs that renew certificates replace two files one after the other, and some write them in place. So a pair is
taken only when it belongs together and was still the same after it was read; until then the one before is used, for
as long as it takes. Connections keep the certificate that they began with.
"""

import asyncio
import logging
import os
import select
import ssl
from pathlib import Path
from typing import Any

from juggler.survey.threads import OneLook
from juggler.tls import BadPair, file_state, out_of_date, server_context
from juggler.units import SECONDS

_log = logging.getLogger("juggler.proxy")

LOOK_EVERY_S = 5 * SECONDS
"""Two looks at files in a thread, 0.1 ms: certificates are renewed weeks before they have to be."""

FILES_LIMIT_S = 10 * SECONDS
"""For the files of one certificate, on a disk that sleeps or a network that is gone."""

HANDSHAKE_LIMIT_S = 15 * SECONDS
"""For a client to finish its handshake; a browser's lasts two round trips."""

GOODBYE_S = 1 * SECONDS
"""For a client to say that it has seen the end of the connection. Libraries that do not look at idle connections
never do, and nobody needs to know."""

_SECOND_LOOK_S = 0.05 * SECONDS


class Certificate:
    """What a listener proves itself with. Belongs to the loop's thread.

    Args:
        cert: See ``juggler.tls.server_context``; read now, which blocks for a millisecond.
        key: The same.
        look_every_s: How often the files are looked at while ``watch`` runs.

    Raises:
        BadPair: The files cannot be used.
    """

    def __init__(self, cert: Path, key: Path, *, look_every_s: float = LOOK_EVERY_S) -> None:
        self._cert, self._key = cert, key
        self._look_every_s = look_every_s
        self._state = self._files()
        self._current, self._trouble = self._read()
        self._failed: object = None
        """State of the files that could not be used, as seen last."""
        self._told: object = None
        """The same, as logged last."""
        self._one_look = OneLook(FILES_LIMIT_S)
        self._hangs = False
        """The last look did not come back in time, as the log says."""
        self.context = self._current
        """For ``create_server``, once and for all; connections get the certificate of the day."""
        self.context.sni_callback = self._on_hello

    def _on_hello(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        """A client begins a handshake; called whether it names a server or not."""
        if self._current is not context:
            connection.context = self._current  # whose own callback is not asked any more

    def take_over(self, fresh: "Certificate") -> None:
        """From now on prove ourselves with another pair of files; connections keep what they began with."""
        self._cert, self._key = fresh._cert, fresh._key
        self._state, self._current, self._trouble = fresh._state, fresh._current, fresh._trouble
        self._failed = self._told = None
        self._one_look, self._hangs = fresh._one_look, False

    def tell(self) -> None:
        """Say in the log what is wrong with the certificate; for the moment in which it is taken into use."""
        if self._trouble is not None:
            _log.warning("the certificate in %s %s: clients will refuse it", self._cert, self._trouble)

    async def watch(self) -> None:
        """Look at the files from time to time, until cancelled."""
        while True:
            await asyncio.sleep(self._look_every_s)
            try:
                await self.look()
            except Exception:
                # A thread that cannot be had, or a mistake of ours: no reason to stop serving.
                _log.exception("the certificate in %s could not be looked at", self._cert)

    async def look(self) -> None:
        """Take a new pair if there is one; a pair that cannot be used is logged once, and the old one kept.

        So are files that cannot be read in time.
        """
        look = self._one_look.in_thread
        try:
            state = await look(self._files)
            if state in (self._state, self._told):
                self._hangs = False
                return
            fresh, trouble = await look(self._read)
            after = await look(self._files)
            self._hangs = False
            if after != state:
                return  # in the middle of a replacement
        except TimeoutError:
            if not self._hangs:
                _log.error("%s and %s cannot be read: their disk does not answer", self._cert, self._key)
            self._hangs = True
            return
        except BadPair as error:
            self._hangs = False
            # Half a replacement looks the same: it is told when it has stayed for a while.
            if state == self._failed:
                self._told = state
                hint = f"; {error.hint}" if error.hint else ""
                _log.error("%s%s; new connections get the certificate from before", error.message, hint)
            self._failed = state
            return
        self._state, self._current, self._trouble = state, fresh, trouble
        self._failed = self._told = None
        _log.info("new connections get the new certificate in %s", self._cert)
        self.tell()

    def _files(self) -> tuple[object, object]:
        return (file_state(self._cert), file_state(self._key))

    def _read(self) -> tuple[ssl.SSLContext, str | None]:
        """The pair, and why clients will refuse it."""
        context = server_context(self._cert, self._key)
        return context, out_of_date(self._cert, context)


def server_options(certificate: Certificate | None, shutdown_limit_s: float) -> dict[str, Any]:
    """What ``create_server`` has to be told."""
    if certificate is None:
        return {}
    return {
        "ssl": certificate.context,
        "ssl_handshake_timeout": HANDSHAKE_LIMIT_S,
        "ssl_shutdown_timeout": shutdown_limit_s,
    }


def cut_if_all_is_sent(transport: asyncio.Transport) -> None:
    """Abort a connection that was closed, soon and if nothing that was written would get lost by that."""
    if has_sent_all(transport):
        # The client may have made room a moment ago, and the loop not yet have used it: it does before the second look.
        asyncio.get_running_loop().call_later(
            _SECOND_LOOK_S, lambda: transport.abort() if has_sent_all(transport) else None
        )


def has_sent_all(transport: asyncio.Transport) -> bool:
    """Whether everything written has reached the kernel, which sends it even after an abort.

    A TLS transport does not count what the one below it holds. That one holds something only while the socket takes
    no more, and until the loop has found out that it does again.
    """
    if transport.get_write_buffer_size():
        return False
    taken = transport.get_extra_info("socket")
    descriptor = taken.fileno() if taken is not None else -1
    if descriptor < 0 or os.name != "posix":
        return True
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    return any(event & select.POLLOUT for _, event in poller.poll(0))
