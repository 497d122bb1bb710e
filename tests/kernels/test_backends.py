"""The backends on other kernels: the tests below ``inside``, which run in the machines."""

from __future__ import annotations

import re

import pytest
from tests.kernels.guest import Guest

pytestmark = [pytest.mark.root, pytest.mark.timeout(1800)]


def load_tunnels(machine: Guest) -> Guest:
    """The modules make ``tunl0``, ``gre0`` and others in every network namespace: from the start, so that they are
    nobody's leftovers."""
    machine.load("ipip", "ip_gre", "ip6_gre")
    return machine


@pytest.fixture(scope="module")
def with_tunnels(uml: Guest) -> Guest:
    return load_tunnels(uml)


OFTEN_TRIED = [pytest.param(backend, marks=pytest.mark.long) for backend in ("TestVxlan", "TestHostGateway")]
"""Outside, and without the kit in other tests here."""


@pytest.mark.parametrize("backend", [*OFTEN_TRIED, "TestIpip", "TestGre"])
def test_the_conformance_kit(with_tunnels: Guest, backend: str) -> None:
    with_tunnels.pytest(f"tests/kernels/inside/test_backends.py::{backend}")


def test_ipip_beside_flanneld_and_others(with_tunnels: Guest) -> None:
    with_tunnels.pytest("tests/kernels/inside/test_ipip.py")


def test_neighbours_behind_a_tunnel_with_many_ends(with_tunnels: Guest) -> None:
    """What the kernel port's suite has for them, which needs gre."""
    report = with_tunnels.pytest("tests/integration/kernel/test_port.py", "-k", "tunnel_with_many_ends and netlink")
    assert "2 passed" in report


def test_what_plans_can_say_and_the_kernel_outside_lacks(with_tunnels: Guest) -> None:
    """MPLS, VRF, and queueing disciplines with options; and policy rules on a kernel that is years older."""
    suite = "tests/integration/kernel"
    files = [f"{suite}/test_{name}.py" for name in ("port", "rules", "qdiscs", "labels")]
    chosen = "puts_labels_on or of_a_vrf or test_qdiscs or a_general_rule or a_rule_is_turned_round"
    chosen = f"netlink and ({chosen}) or test_labels and not twin"
    report = with_tunnels.pytest(*files, "-k", chosen)
    assert "skipped" not in report
    assert " passed" in report


@pytest.mark.long
def test_labels_from_node_to_node(with_tunnels: Guest) -> None:
    """The kit on a backend that plans both ends of MPLS."""
    report = with_tunnels.pytest("tests/kernels/inside/test_mpls.py", timeout=200)
    assert re.search(r"test_what_is_removed_comes_back\[MPLS_ROUTE\].* PASSED", report)
    assert all(f"test_packets_carry_the_label[{version}] PASSED" in report for version in (4, 6))


@pytest.mark.long
def test_two_nodes_under_emulation(cloud: Guest) -> None:
    """Each backend in one run: pytest takes as long to start there as a backend to be tried."""
    said = load_tunnels(cloud).pytest("tests/kernels/inside/test_smoke.py", timeout=180)
    assert "4 passed" in said
