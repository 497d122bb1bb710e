"""One pair of edges for each file of tests, and a fresh fast path between them for each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from tests.unit.backends.userspace.edges import Edges

if TYPE_CHECKING:
    from tests.unit.backends.userspace.fastpath.bench import Bench


@pytest.fixture(scope="module")
def edges() -> Iterator[Edges]:
    edges = Edges()
    yield edges
    edges.close()


@pytest.fixture
def bench(edges: Edges) -> Bench:
    # That module skips its importer where the extension was not compiled, which this file must not be.
    from tests.unit.backends.userspace.fastpath.bench import Bench

    return Bench(edges)
