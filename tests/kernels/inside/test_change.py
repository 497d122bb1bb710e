"""Changes of a running network on another kernel: from and to the tunnels that this machine's own kernel may lack.

Pairs of backends that every kernel has are tried elsewhere (:mod:`tests.changes.test_matrix`).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.changing import HOST_GW, UDP, VXLAN, Document, go_round, tour

pytestmark = [pytest.mark.root, pytest.mark.timeout(0)]

IPIP: Document = {"Type": "ipip"}
GRE: Document = {"Type": "gre"}
SELDOM = 0.1
"""Seconds between two pings of a pair, where a process moves the packets."""


@pytest.mark.parametrize(
    ("versions", "tunnels"), [((4,), [IPIP, GRE]), ((4, 6), [GRE])], ids=["one family", "two families"]
)
def test_from_every_tunnel_to_every_other(versions: Sequence[int], tunnels: Sequence[Document]) -> None:
    others = [VXLAN, HOST_GW]
    go_round(tour([*others, *tunnels], apart=[others]), "file", versions, streams=False)


def test_between_a_process_and_a_tunnel_of_the_kernel() -> None:
    """Ten pings a second: of a hundred a second from each of six, such a machine answers not all without a change."""
    go_round([UDP, IPIP, UDP], "file", (4,), streams=False, interval=SELDOM)
