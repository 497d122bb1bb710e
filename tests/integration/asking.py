"""Asking a lab's daemons over HTTP, and waiting for what comes true in its own time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from pyflannel.lab import Node

PATIENCE = 60.0

_GET = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=30)
connection.request("GET", sys.argv[2])
response = connection.getresponse()
sys.stdout.write(f"{response.status}\\n{response.read().decode()}")
"""


def until(condition: Callable[[], object], what: object = "") -> None:
    """Wait for a condition; ``what`` is said if it does not come true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, what or condition
        time.sleep(0.02)


def get(node: Node, path: str, port: int = 8401) -> tuple[int, str]:
    """Status and body of what the node's health port answers, asked from inside its namespace."""
    done = node.run([sys.executable, "-c", _GET, str(port), path])
    status, _, body = done.stdout.partition("\n")
    return int(status), body
