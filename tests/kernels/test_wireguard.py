"""wireguard on a kernel that has it: the tests that skip elsewhere, run in the machine that emulates one."""

from __future__ import annotations

import pytest
from tests.kernels.guest import Guest

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]

NODES = "tests/integration/backends/wireguard/test_kernel.py"


def passed(said: str) -> bool:
    """Whether something ran: in this machine nothing may skip for want of WireGuard."""
    return " passed" in said and "has no WireGuard" not in said


def test_the_kernel_is_programmed_as_wg_sees_it(cloud: Guest) -> None:
    assert passed(cloud.pytest("tests/integration/kernel/test_wireguard.py"))


def test_nodes_with_daemons(cloud: Guest) -> None:
    assert passed(cloud.pytest(NODES, "-k", "not TestKernel"))


@pytest.mark.long
def test_the_conformance_kit(cloud: Guest) -> None:
    assert passed(cloud.pytest(NODES, "-k", "TestKernel"))


def test_both_implementations_in_one_network(cloud: Guest) -> None:
    cloud.load("tun")  # nobody makes /dev/net/tun there beforehand, as udev does elsewhere
    assert passed(cloud.pytest("tests/integration/backends/wireguard/test_mixed.py"))
