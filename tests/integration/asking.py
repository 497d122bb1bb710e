"""Asking a lab's daemons over HTTP, and finding their workers."""

from __future__ import annotations

import http.client
from contextlib import closing
from pathlib import Path

from tests.waiting import PATIENCE, until

from pyflannel.kernel.netns import call_in
from pyflannel.lab import Node

__all__ = ["PATIENCE", "get", "until", "workers"]


def get(node: Node, path: str, port: int = 8401) -> tuple[int, str]:
    """Status and body of what the node's health port answers, asked from inside its namespace."""

    def ask() -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        with closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    return call_in(_netns(node), ask)


def workers(node: Node, backend: str) -> set[int]:
    """The pids of a backend's worker processes in this node's network namespace."""
    namespace = _netns(node).stat().st_ino
    module = f"{backend}.worker".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            is_worker = entry.name.isdigit() and module in (entry / "cmdline").read_bytes()
            if is_worker and (entry / "ns/net").stat().st_ino == namespace:
                found.add(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def _netns(node: Node) -> Path:
    return Path(node.sandbox.namespaces(node.name)[-1])
