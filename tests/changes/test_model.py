"""The protocol's model with four nodes: a minute or two; with up to three it is in ``tests/unit/network``."""

from __future__ import annotations

import pytest
from tests.change_model import DONE, explore

pytestmark = pytest.mark.timeout(900)


def test_four_nodes_are_connected_in_every_order_of_events() -> None:
    """A change that goes on to its end: with going back at any moment there are ten times as many states."""
    count, ends, found = explore(4, may_abort=False, coarse=True)
    assert not found
    assert ends == {DONE}
    assert count > 400_000
