"""The conformance kit on the in-tree backends."""

from __future__ import annotations

import pytest

from pyflannel.testing.backends import BackendConformance

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


class TestVxlan(BackendConformance):
    backend = "vxlan"
    variants = ({"VNI": 42}, {"VNI": 42, "DirectRouting": True}, {"VNI": 7, "Port": 4789})


class TestHostGateway(BackendConformance):
    backend = "host-gw"


class TestUdp(BackendConformance):
    backend = "udp"
    variants = ({}, {"Port": 8300})


class TestAlloc(BackendConformance):
    backend = "alloc"
    carries_traffic = False
    plans_routes = False
