"""How a client connection writes, and how it ends: closed after what was written, with half of it, cut or reset."""

import asyncio

from juggler.proxy.body import RequestBody
from juggler.proxy.connection import ListenerSide, State, reset_when_closed
from juggler.proxy.tls import GOODBYE_S, cut_if_all_is_sent

NEVER = float("inf")


class ClosingConnection(asyncio.Protocol):
    """The transport of a client connection and its deadline; ``proxy.client`` has what comes before the end."""

    __slots__ = (
        "_body",
        "_buffer",
        "_deadline",
        "_limits",
        "_linger_until",
        "_listener",
        "_loop",
        "_state",
        "_transport",
    )

    def __init__(self, listener: ListenerSide) -> None:
        self._listener = listener
        self._limits = listener.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._state = State.HEAD
        self._buffer = b""
        self._body: RequestBody | None = None  # of the request in work, until it has arrived whole
        self._deadline = NEVER
        self._linger_until = 0.0  # bound of a deadline that bytes from the client put off

    @property
    def draining(self) -> bool:
        return self._listener.draining

    @property
    def secure(self) -> bool:
        """The client speaks TLS, so neither side can end its half alone."""
        return self._listener.secure

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing() and self._state is not State.CLOSING:
            self._transport.write(data)

    def write_eof(self) -> None:
        """The backend's half of a tunnel has ended."""
        self._deadline = self._loop.time() + self._limits.half_close_timeout_s
        self._end_output()

    def abort(self) -> None:
        self._transport.abort()

    def reset(self) -> None:
        """Cut the connection so that the client sees an error, where a mere end would look like the answer's."""
        reset_when_closed(self._transport)
        self._transport.abort()

    def update_reading(self) -> None:
        """Read on or pause."""
        raise NotImplementedError

    def _answer_and_close(self, answer: bytes) -> None:
        self.write(answer)
        self._close(discard=True)

    def _close(self, *, discard: bool) -> None:
        """Close after what was written. ``discard`` reads on for a while, or the client might lose the answer.

        Closing a socket with unread input resets it, and a reset overtakes data in flight (RFC 9112 9.6).
        """
        self._state = State.CLOSING
        if self._transport.is_closing():
            return
        unsent = self._transport.get_write_buffer_size() > 0
        limits = self._limits
        wait_s = limits.flush_timeout_s if unsent or not discard else limits.discard_timeout_s
        self._deadline = self._loop.time() + wait_s
        self._buffer = b""
        self._body = None
        if not discard:
            if self.secure:
                self._deadline = self._loop.time() + GOODBYE_S
            self._transport.close()
            return
        self.update_reading()
        if self.secure:
            # TLS cannot end one half. The answer says that it is the last one; a client that goes on sending is read
            # for a while, one that is silent gets the end soon.
            self._linger_until = self._deadline
            self._deadline = min(self._loop.time() + GOODBYE_S, self._linger_until)
        else:
            self._end_output()

    def _end_tls(self, now: float) -> None:
        """Close, or cut what was closed once all has left: not every client answers the end of a TLS connection.

        A client that does not read has the time of the transport itself (``flush_timeout_s``).
        """
        if not self._transport.is_closing():
            self._transport.close()
        else:
            cut_if_all_is_sent(self._transport)
        self._deadline = now + GOODBYE_S

    def _end_output(self) -> None:
        """End our half, after what was written."""
        if self._transport.is_closing():
            return
        try:
            self._transport.write_eof()
        except OSError:
            self._transport.abort()  # the client has reset the connection, and the loop does not know it yet
