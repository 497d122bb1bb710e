"""Changes of a running network on another kernel: from and to each backend that this machine's own kernel may lack.

Pairs of backends that every kernel has are tried elsewhere (:mod:`tests.changes.test_matrix`). Where a process moves
the packets, or every instruction is emulated, pings come at a rate that the machine can carry: at a hundred a second
from each of six, packets pile up before such a process, and it ends with them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.changing import HOST_GW, UDP, USERSPACE, VXLAN, WIREGUARD, Document, go_round, tour

pytestmark = [pytest.mark.root, pytest.mark.timeout(0)]

KERNEL: Document = {**WIREGUARD, "Implementation": "kernel"}
IPIP: Document = {"Type": "ipip"}
GRE: Document = {"Type": "gre"}

OFTEN, SELDOM = 0.01, 0.1
"""Seconds between two pings of a pair."""


def go(
    backends: Sequence[Document], apart: Sequence[Sequence[Document]], versions: Sequence[int], pause: float
) -> None:
    go_round(tour(backends, apart), "file", versions, streams=False, interval=pause)


def test_tunnels_of_the_kernel() -> None:
    go([VXLAN, HOST_GW, IPIP, GRE], [[VXLAN, HOST_GW]], (4,), OFTEN)


def test_tunnels_of_the_kernel_in_two_families() -> None:
    go([VXLAN, HOST_GW, GRE], [[VXLAN, HOST_GW]], (4, 6), OFTEN)


def test_tunnels_of_the_kernel_and_of_processes() -> None:
    go([UDP, USERSPACE, IPIP, GRE], [[UDP, USERSPACE], [IPIP, GRE]], (4,), SELDOM)


def test_wireguard_in_the_kernel() -> None:
    go([VXLAN, KERNEL, IPIP], [[VXLAN, IPIP]], (4,), SELDOM)


def test_wireguard_in_the_kernel_and_all_others() -> None:
    others = [HOST_GW, GRE, UDP]
    go([KERNEL, *others], [others], (4,), SELDOM)


def test_wireguard_in_the_kernel_in_two_families() -> None:
    others = [VXLAN, HOST_GW, GRE]
    go([KERNEL, *others], [others], (4, 6), SELDOM)
