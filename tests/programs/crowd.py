"""Many clients in one process: idle ones, ones that stop in the middle of a head, ones that send a byte a second.

``crowd.py HOST PORT COUNT``; says ``ready`` when all are connected, and goes on until its standard input ends.
"""

import select
import socket
import sys
import time


def main() -> None:
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    clients = []
    for number in range(count):
        client = socket.create_connection((host, port), timeout=30)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")  # leaves no port in TIME_WAIT
        if number % 3:
            client.send(b"GET / HTTP/1.1\r\nHost: h\r\nX: ")
        clients.append(client)
    print("ready", flush=True)
    step = max(1, len(clients) // 30)
    position = 2
    while not select.select([sys.stdin], [], [], 0)[0]:
        for client in clients[position : position + step : 3]:
            try:
                client.send(b"a")
            except OSError:
                pass  # cut by now
        position = position + step if position + step < len(clients) else 2
        time.sleep(1 / 30)


main()
