"""The protocol's model with four nodes: minutes; with up to three it is in ``tests/unit/network``."""

from __future__ import annotations

import pytest
from tests.change_model import ABORTED, DONE, explore

pytestmark = pytest.mark.timeout(1800)


def test_four_nodes_are_connected_in_every_order_of_events() -> None:
    count, ends, found = explore(4, coarse=True)
    assert not found
    assert ends == {DONE, ABORTED}
    assert count > 400_000
