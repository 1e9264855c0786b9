"""A backend that does what a test wants, to the byte: threads on plain sockets."""

import contextlib
import queue
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping

WAIT_S = 5.0
"""Nothing that is waited for here takes longer, unless it never comes."""
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"

Action = Callable[["Talk"], None]


class Talk:
    """One connection to the backend, with the request that came on it last."""

    def __init__(self, sock: socket.socket, seen: "queue.Queue[bytes]", ended: "queue.Queue[float]") -> None:
        self._sock = sock
        self._ended = ended
        self._buffer = b""
        self.seen = seen
        self.request = b""
        """Head and body."""

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def more(self) -> bytes:
        """What comes next; empty at the end."""
        data, self._buffer = self._buffer, b""
        return data or self._sock.recv(1 << 16)

    def read_to(self, mark: bytes) -> bytes:
        """Up to and with ``mark``.

        Raises:
            EOFError: The connection ended before.
        """
        while mark not in self._buffer:
            data = self._sock.recv(1 << 16)
            if not data:
                raise EOFError
            self._buffer += data
        found, self._buffer = self._buffer.split(mark, 1)
        return found + mark

    def read_head(self) -> bytes:
        self.request = self.read_to(b"\r\n\r\n")
        return self.request

    def read_body(self) -> bytes:
        """Of the request whose head was read; chunked ones with their framing."""
        length = re.search(rb"\r\nContent-Length: *(\d+)", self.request, re.I)
        body = b""
        if length is not None:
            while len(self._buffer) < int(length[1]):
                data = self._sock.recv(1 << 16)
                if not data:
                    raise EOFError
                self._buffer += data
            body, self._buffer = self._buffer[: int(length[1])], self._buffer[int(length[1]) :]
        elif re.search(rb"\r\nTransfer-Encoding: *chunked", self.request, re.I):
            body = self.read_to(b"0\r\n") + self.read_to(b"\r\n")
            while not body.endswith(b"\r\n\r\n"):
                body += self.read_to(b"\r\n")
        self.request += body
        return body

    def until_gone(self, each: bytes = b"", pause_s: float = WAIT_S) -> None:
        """Send ``each`` every ``pause_s`` until the proxy has left, and tell when that was."""
        with contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([self._sock], [], [], pause_s)
                if ready and not self._sock.recv(1 << 16):
                    break
                if each:
                    self.send(each)
        self._ended.put(time.monotonic())


class ScriptedBackend:
    """Listens until it is closed.

    Args:
        actions: By a word in the target; called once the request's head is there. Elsewhere a small answer is given.
    """

    def __init__(self, actions: Mapping[bytes, Action]) -> None:
        self._actions = actions
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.seen: queue.Queue[bytes] = queue.Queue()
        """Requests, head and body, as they came."""
        self.ended: queue.Queue[float] = queue.Queue()
        """When the proxy left somebody who was to be left: monotonic seconds."""
        threading.Thread(target=self._accept, daemon=True).start()

    def forget(self) -> None:
        """What was seen so far."""
        for one in (self.seen, self.ended):
            with contextlib.suppress(queue.Empty):
                while True:
                    one.get_nowait()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        talk = Talk(sock, self.seen, self.ended)
        with sock, contextlib.suppress(OSError, EOFError):
            while True:
                line = talk.read_head().split(b"\r\n")[0]
                action = next((action for word, action in self._actions.items() if word in line), None)
                if action is not None:
                    action(talk)
                    continue
                talk.read_body()
                self.seen.put(talk.request)
                talk.send(_OK)


class Client:
    """A connection to a proxy; whatever is read has a deadline, and is what came until then."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), WAIT_S)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.got = b""
        self.ended = False

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self.sock.sendall(data)

    def send_until_answered(self, size: int, limit_s: float = WAIT_S) -> None:
        """Send so many bytes, or fewer if anything comes back meanwhile."""
        end = time.monotonic() + limit_s
        piece = b"x" * (1 << 16)
        self.sock.setblocking(False)
        with contextlib.suppress(OSError):
            while size > 0 and time.monotonic() < end:
                readable, writable, _ = select.select([self.sock], [self.sock], [], 0.1)
                if readable:
                    break
                if writable:
                    size -= self.sock.send(piece)

    def until(self, mark: bytes, limit_s: float = WAIT_S) -> bool:
        """Read until it is there, or the end is."""
        end = time.monotonic() + limit_s
        while mark not in self.got and not self.ended:
            self.sock.settimeout(max(0.001, end - time.monotonic()))
            try:
                data = self.sock.recv(1 << 16)
            except TimeoutError:
                return False
            except OSError:
                data = b""
            self.ended = not data
            self.got += data
        return mark in self.got

    def to_end(self, limit_s: float = WAIT_S) -> bytes:
        """All until the end of the connection; ``ended`` tells whether that came."""
        self.until(b"\0 never \0", limit_s)
        return self.got
