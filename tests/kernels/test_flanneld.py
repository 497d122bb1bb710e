"""A real flanneld and our daemons in one cluster, on a backend that few kernels of test machines have."""

from __future__ import annotations

import pytest
from tests.kernels.guest import Guest
from tests.servers.flanneld import NOT_INSTALLED

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(NOT_INSTALLED is not None, reason=str(NOT_INSTALLED)),
]


def test_a_node_goes_over_and_back_on_ipip(uml: Guest) -> None:
    """From flanneld to pyflannel, and no packet is lost."""
    uml.load("br_netfilter", "ipip")
    said = uml.pytest("tests/flanneld/test_mixed.py", "-k", "goes_over_and_back and ipip", timeout=300)
    assert "1 passed" in said
