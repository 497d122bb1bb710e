"""Traffic for the tests: ``sink PORT`` counts and hashes one TCP connection, ``source HOST PORT BYTES`` feeds it.

Both print one line of JSON; the data is the same for the same number of bytes.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import sys
from collections.abc import Iterator


def data(size: int) -> Iterator[bytes]:
    block = random.Random(5).randbytes(1 << 20)
    while size > 0:
        yield block[:size]
        size -= len(block)


def digest(size: int) -> str:
    total = hashlib.sha256()
    for block in data(size):
        total.update(block)
    return total.hexdigest()


def sink(port: int) -> None:
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        print(json.dumps("listening"), flush=True)
        connection, _ = server.accept()
        total, size = hashlib.sha256(), 0
        with connection:
            while block := connection.recv(1 << 20):
                total.update(block)
                size += len(block)
        print(json.dumps([size, total.hexdigest()]), flush=True)


def source(host: str, port: int, size: int) -> None:
    with socket.create_connection((host, port)) as connection:
        for block in data(size):
            connection.sendall(block)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        print(json.dumps("sent"), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "sink":
        sink(int(sys.argv[2]))
    else:
        source(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
