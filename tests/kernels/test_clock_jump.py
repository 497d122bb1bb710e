"""A whole machine's clock is set while servers and daemons run on it, which only a machine of one's own allows."""

from __future__ import annotations

import pytest
from tests.kernels.guest import Guest
from tests.servers import consul, etcd

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

MISSING = {"etcd": etcd.MISSING, "consul": consul.MISSING}


@pytest.mark.parametrize("store", MISSING)
def test_leases_outlive_it_and_end_in_their_time(uml: Guest, store: str) -> None:
    if (reason := MISSING[store]) is not None:
        pytest.skip(reason)
    uml.pytest("tests/kernels/inside/test_clock_jump.py", "-k", store)
