"""What an open page of ComfyUI has: a WebSocket, read in the background, and the headers that browsers send."""

import base64
import json
import os
import socket
import threading
from typing import Any

from tests.e2e.support import LIMIT_S, eventually


def browser_headers(origin: str, site: str = "same-origin", mode: str = "cors") -> dict[str, str]:
    """What a browser adds to a request that a script of a page sends."""
    return {"Origin": origin, "Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "User-Agent": "Mozilla/5.0"}


class Refused(Exception):
    """The upgrade was answered otherwise; the text is the status line."""


class Page:
    """One WebSocket. Frames of the server are collected; an end of the connection is noticed.

    Raises:
        Refused: The server did not switch protocols.
    """

    def __init__(self, port: int, path: str, headers: dict[str, str] | None = None) -> None:
        self.events: list[Any] = []
        """JSON messages, in order."""
        self.binary_bytes = 0
        """Of all binary messages."""
        self.closed = threading.Event()
        self._socket = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        self._stream = self._socket.makefile("rb")
        fields = {
            "Host": f"127.0.0.1:{port}",
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            **(headers or {}),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._socket.sendall(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        status = self._stream.readline().decode()
        if " 101 " not in status:
            self._stream.close()
            self._socket.close()
            raise Refused(status)
        while self._stream.readline().strip():
            pass
        self._socket.settimeout(None)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def kinds(self) -> list[str]:
        return [str(event["type"]) for event in self.events]

    def until(self, kind: str, count: int = 1) -> Any:
        """The last event of a kind, once there are ``count`` of it."""
        eventually(lambda: self.kinds().count(kind) >= count, f"{count} x {kind} in {self.kinds()}")
        return [event for event in self.events if event["type"] == kind][-1]

    def close(self) -> None:
        """As when the tab is closed."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._reader.join(LIMIT_S)
        self._stream.close()
        self._socket.close()

    def _read(self) -> None:
        try:
            while head := self._stream.read(2):
                size = head[1] & 0x7F
                if size >= 126:
                    size = int.from_bytes(self._stream.read(2 if size == 126 else 8), "big")
                payload = self._stream.read(size)
                if head[0] & 0x0F == 1:
                    self.events.append(json.loads(payload))
                else:
                    self.binary_bytes += len(payload)
        except (OSError, ValueError):
            pass
        finally:
            self.closed.set()

    def __enter__(self) -> "Page":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
