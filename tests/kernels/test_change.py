"""Changes of a running network from and to the backends that few kernels of test machines have."""

from __future__ import annotations

import pytest
from tests.kernels.guest import Guest

pytestmark = [pytest.mark.root, pytest.mark.timeout(3600)]


@pytest.mark.parametrize("families", ["one family", "two families"])
def test_from_every_tunnel_to_every_other(uml: Guest, families: str) -> None:
    uml.load("ipip", "ip_gre", "ip6_gre")
    test = f"tests/kernels/inside/test_change.py::test_from_every_tunnel_to_every_other[{families}]"
    assert "1 passed" in uml.pytest(test, timeout=300)


def test_between_a_process_and_a_tunnel_of_the_kernel(uml: Guest) -> None:
    uml.load("ipip", "tun")
    test = "tests/kernels/inside/test_change.py::test_between_a_process_and_a_tunnel_of_the_kernel"
    assert "1 passed" in uml.pytest(test, timeout=300)


@pytest.mark.long
@pytest.mark.parametrize("way", ["wireguard", "other wireguards", "wireguard and gre", "ipsec", "wireguard and ipsec"])
def test_to_encryption_in_the_kernel_and_back(cloud: Guest, way: str) -> None:
    cloud.load("tun", "ip_gre", "ip6_gre")
    test = f"tests/kernels/inside/test_change.py::test_to_encryption_in_the_kernel_and_back[{way}]"
    assert "1 passed" in cloud.pytest(test, timeout=90)
