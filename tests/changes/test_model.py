"""The protocol's model with four nodes; with up to three it is in ``tests/unit/network``."""

from __future__ import annotations

import pytest

pytest.importorskip("numpy")

from tests.change_model import ABORTED, DONE, explore

pytestmark = pytest.mark.timeout(1800)


@pytest.mark.parametrize(
    ("size", "joiners", "coarse", "worlds"), [(4, 0, True, 800_000), (4, 0, False, 1_500_000), (3, 1, True, 160_000)]
)
def test_nodes_are_connected_in_every_order_of_events(size: int, joiners: int, coarse: bool, worlds: int) -> None:
    """Going back at any moment while the change is prepared, and while nodes switch over."""
    found = explore(size, joiners, may_abort=True, coarse=coarse)
    assert not found.fault
    assert found.ends == {DONE, ABORTED}
    assert found.worlds >= worlds, "none of them was left out"
