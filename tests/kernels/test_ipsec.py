"""ipsec on kernels that have ESP: keys in one that is fast, packets in one that has xfrm interfaces, too."""

from __future__ import annotations

import shutil

import pytest
from tests.kernels.guest import Guest

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(shutil.which("/usr/lib/ipsec/charon") is None, reason="needs charon, of strongswan-charon"),
]

NODES = "tests/kernels/inside/test_ipsec.py"


def passed(said: str) -> bool:
    return " passed" in said and "skipped" not in said


def test_charons_agree_on_keys_that_the_kernel_takes(uml: Guest) -> None:
    assert passed(uml.pytest("tests/integration/backends/ipsec", timeout=180))


def test_nodes_with_daemons(cloud: Guest) -> None:
    assert passed(cloud.pytest(NODES, "-k", "not TestIpsec"))


@pytest.mark.long
def test_the_conformance_kit(cloud: Guest) -> None:
    said = cloud.pytest(NODES, "-k", "TestIpsec", timeout=600)
    assert " passed" in said
