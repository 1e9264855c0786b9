"""What the page of a gradio 3 UI does for one click: a WebSocket on which the server asks for the job."""

import base64
import json
import os
import socket
import struct
import threading
from typing import Any

from tests.e2e.support import LIMIT_S, eventually


class Click:
    """One click on "Generate", answered in the background.

    Args:
        steps: Of the job.
        gives_data: Whether the page hands its job over when asked; else the click stays between page and job.

    Raises:
        AssertionError: The server did not switch protocols; the text is its status line.
    """

    def __init__(self, port: int, path: str = "/queue/join", *, steps: int = 5, gives_data: bool = True) -> None:
        self.messages: list[dict[str, Any]] = []
        self.closed = threading.Event()
        self._steps = steps
        self._gives_data = gives_data
        self._socket = socket.create_connection(("127.0.0.1", port), LIMIT_S)
        self._stream = self._socket.makefile("rb")
        self._status = ""
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        self._reader = threading.Thread(target=self._talk)
        self._reader.start()

    @property
    def kinds(self) -> list[str]:
        return [str(message["msg"]) for message in self.messages]

    def until(self, kind: str) -> dict[str, Any]:
        """The message of a kind, once it is there."""
        eventually(lambda: kind in self.kinds or self.closed.is_set(), f"{kind} in {self.kinds} {self._status!r}")
        assert kind in self.kinds, (self._status, self.messages)
        return self.messages[self.kinds.index(kind)]

    def result(self) -> str:
        """The picture, or the text of the error in its place."""
        return str(self.until("process_completed")["output"]["data"][-1])

    def close(self) -> None:
        """As when the tab is closed."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._reader.join(LIMIT_S)
        self._stream.close()
        self._socket.close()

    def _talk(self) -> None:
        try:
            self._status = self._stream.readline().decode()
            if " 101 " not in self._status:
                return
            while self._stream.readline().strip():
                pass
            self._socket.settimeout(None)
            while (message := self._receive()) is not None:
                self.messages.append(message)
                if message["msg"] == "send_hash":
                    self._send({"fn_index": 1, "session_hash": "abc"})
                elif message["msg"] == "send_data" and self._gives_data:
                    self._send({"data": ["task(click)", "a cat", self._steps], "fn_index": 1, "session_hash": "abc"})
        except (OSError, ValueError):
            pass
        finally:
            self.closed.set()

    def _receive(self) -> dict[str, Any] | None:
        head = self._stream.read(2)
        if len(head) < 2 or head[0] & 0x0F == 8:
            return None
        size = head[1]
        if size == 126:
            size = struct.unpack(">H", self._stream.read(2))[0]
        document: dict[str, Any] = json.loads(self._stream.read(size))
        return document

    def _send(self, document: dict[str, Any]) -> None:
        data = json.dumps(document).encode()
        assert len(data) < 126
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(data))
        self._socket.sendall(bytes([0x81, 0x80 | len(data)]) + mask + masked)

    def __enter__(self) -> "Click":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
