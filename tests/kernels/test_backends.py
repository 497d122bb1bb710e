"""The backends on other kernels: the tests below ``inside``, which run in the machines."""

from __future__ import annotations

import pytest
from tests.kernels.guest import Guest

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]


def load_ipip(machine: Guest) -> Guest:
    """The module makes ``tunl0`` in every network namespace: from the start, so that it is nobody's leftover."""
    machine.run(["/run/guest/modprobe", "ipip"])
    return machine


@pytest.fixture(scope="module")
def with_ipip(uml: Guest) -> Guest:
    return load_ipip(uml)


@pytest.mark.parametrize("backend", ["TestVxlan", "TestHostGateway", "TestIpip"])
def test_the_conformance_kit(with_ipip: Guest, backend: str) -> None:
    with_ipip.pytest(f"tests/kernels/inside/test_backends.py::{backend}")


def test_ipip_beside_flanneld_and_others(with_ipip: Guest) -> None:
    with_ipip.pytest("tests/kernels/inside/test_ipip.py")


@pytest.mark.parametrize("backend", ["vxlan", "host-gw", "ipip"])
def test_two_nodes_under_emulation(cloud: Guest, backend: str) -> None:
    load_ipip(cloud).pytest(f"tests/kernels/inside/test_smoke.py::test_two_nodes[{backend}]")
