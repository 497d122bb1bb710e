"""The conformance kit's lab on another kernel: three daemons, traffic, repairs, restarts, and a cleanup."""

from __future__ import annotations

import pytest

from pyflannel.testing.backends import BackendBehaviour

pytestmark = pytest.mark.root


class TestVxlan(BackendBehaviour):
    backend = "vxlan"
    variants = ({"VNI": 42}, {"VNI": 42, "DirectRouting": True})


class TestHostGateway(BackendBehaviour):
    backend = "host-gw"


class TestGre(BackendBehaviour):
    backend = "gre"
    variants = ({}, {"Key": 4294967295, "TTL": 9}, {"DirectRouting": True})


class TestIpip(BackendBehaviour):
    backend = "ipip"
    variants = ({}, {"DirectRouting": True})
