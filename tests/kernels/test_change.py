"""Changes of a running network from and to the backends that few kernels of test machines have."""

from __future__ import annotations

import pytest
from tests.kernels.guest import Guest

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]


def go(machine: Guest, test: str) -> None:
    machine.load("ipip", "ip_gre", "ip6_gre", "tun")
    assert "1 passed" in machine.pytest(f"tests/kernels/inside/test_change.py::{test}", timeout=300)


@pytest.mark.parametrize(
    "test",
    [
        "test_tunnels_of_the_kernel",
        "test_tunnels_of_the_kernel_in_two_families",
        "test_tunnels_of_the_kernel_and_of_processes",
    ],
)
def test_tunnels(uml: Guest, test: str) -> None:
    go(uml, test)


def test_wireguard(cloud: Guest) -> None:
    go(cloud, "test_wireguard_in_the_kernel")


@pytest.mark.long
@pytest.mark.parametrize(
    "test", ["test_wireguard_in_the_kernel_and_all_others", "test_wireguard_in_the_kernel_in_two_families"]
)
def test_wireguard_and_all_others(cloud: Guest, test: str) -> None:
    go(cloud, test)
