"""How a client connection writes, and how it ends: closed after what was written, with half of it, cut or reset."""

import asyncio

from juggler.proxy.body import RequestBody
from juggler.proxy.connection import ListenerSide, State, reset_when_closed, untaken_by_peer
from juggler.proxy.tls import GOODBYE_S, cut_if_all_is_sent

NEVER = float("inf")


class ClosingConnection(asyncio.Protocol):
    """The transport of a client connection and its deadline; ``proxy.client`` has what comes before the end."""

    __slots__ = (
        "_body",
        "_buffer",
        "_deadline",
        "_is_cut",
        "_limits",
        "_linger_until",
        "_listener",
        "_loop",
        "_state",
        "_transport",
        "_untaken",
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
        self._untaken = 0  # by the client, when the deadline was set that is for taking it; 0: another deadline
        self._is_cut = False

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
        """Cut the connection; what the kernel has of it is still sent."""
        self._is_cut = True
        self._transport.abort()

    def reset(self) -> None:
        """Cut the connection so that the client sees an error, where a mere end would look like the answer's."""
        if not self._is_cut:
            reset_when_closed(self._transport)
        self.abort()

    @property
    def unsent_bytes(self) -> int:
        """Bytes of answers that the client has not taken."""
        return self._transport.get_write_buffer_size()

    def _wait_for_reader(self) -> None:
        """From now on the client has so much time to take something of what was written, again and again."""
        self._untaken = untaken_by_peer(self._transport)
        self._deadline = self._loop.time() + self._limits.flush_timeout_s

    def _has_taken_some(self) -> bool:
        """The client's time is up: whether it has taken something, and gets as much again.

        Also if nobody has looked yet: between requests there is no time for sending.
        """
        if self._is_cut or not self.unsent_bytes:
            return False
        before = self._untaken
        self._wait_for_reader()
        return self._untaken < before or not before

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
        self._wait_for_reader()
        if discard and not self.unsent_bytes:
            self._deadline = self._loop.time() + self._limits.discard_timeout_s
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
            self.abort()  # the client has reset the connection, and the loop does not know it yet
