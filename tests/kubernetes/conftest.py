"""One API server for all tests of a process. Each test finds it running, and without Nodes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from tests.servers.kubernetes import MISSING, Kubernetes, kubernetes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if MISSING is not None:
        for item in items:
            if "tests/kubernetes/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason=MISSING))


@pytest.fixture(scope="session")
def _server() -> Iterator[Kubernetes]:
    with kubernetes() as server:
        yield server


@pytest.fixture
def kube(_server: Kubernetes) -> Iterator[Kubernetes]:
    """A running API server without Nodes."""
    with ExitStack() as stack:
        stack.callback(_revive, _server)
        _revive(_server)
        _server.remove_nodes()
        yield _server


def _revive(server: Kubernetes) -> None:
    if server.server.running:
        server.server.resume()
    server.start()
