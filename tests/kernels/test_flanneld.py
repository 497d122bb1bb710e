"""A real flanneld and our daemons in one cluster, on the backends that few kernels of test machines have."""

from __future__ import annotations

import pytest
from tests.kernels.guest import Guest
from tests.servers.flanneld import BINARY

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not BINARY.exists(), reason=f"{BINARY} is missing: tools/build-flanneld"),
]


def go_over_and_back(machine: Guest, backend: str) -> None:
    """A node goes from flanneld to pyflannel and back, and no packet is lost."""
    machine.load("br_netfilter", "ipip", "ip_gre", "ip6_gre")
    said = machine.pytest("tests/flanneld/test_mixed.py", "-k", f"goes_over_and_back and {backend}")
    assert " passed" in said
    assert "skipped" not in said


def test_ipip(uml: Guest) -> None:
    go_over_and_back(uml, "ipip")


def test_wireguard(cloud: Guest) -> None:
    go_over_and_back(cloud, "wireguard")
