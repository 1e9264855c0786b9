"""Connections that come and go at once, by reset or cleanly, with and without bytes: arguments HOST PORT COUNT."""

import socket
import sys


def main() -> None:
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for number in range(count):
        with socket.socket() as one:
            one.settimeout(30)
            if number % 2:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            one.connect((host, port))
            if number % 3 == 0:
                try:
                    one.send(b"GET / HTTP/1.1\r\nHo")
                except OSError:
                    pass  # refused and cut


main()
