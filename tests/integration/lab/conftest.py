"""A lab, or the reason why there is none on this system."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.integration.lab.traces import network_state

from pyflannel.errors import KernelError
from pyflannel.lab import Sandbox


@pytest.fixture(scope="session", autouse=True)
def _namespaces() -> None:
    """Skip all where namespaces can't be made."""
    try:
        with Sandbox():
            pass
    except KernelError as error:
        pytest.skip(str(error))


@pytest.fixture
def untouched() -> Iterator[None]:
    """The test must leave the network namespace it runs in as it was."""
    before = network_state()
    yield
    assert network_state() == before
