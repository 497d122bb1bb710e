"""What a refused write means, where the kernel's own number says something else."""

from __future__ import annotations

import errno
from ipaddress import ip_address, ip_interface

import pytest

from pyflannel.kernel.model import Address, KernelObject, Link, Neighbour, VxlanInfo
from pyflannel.kernel.port import Write
from pyflannel.kernel.refusal import GONE_AGAIN, refusal

DEVICE = "flannel-v6.1"


def test_where_ipv6_has_no_room_that_is_said() -> None:
    """The kernel's word for it is "Invalid argument"."""
    item = Address(DEVICE, ip_interface("fd00::1/128"))
    assert "MTU of 1280 on flannel-v6.1" in str(refusal(Write(None, item), errno.EINVAL))


def test_a_device_that_was_there_has_not_gone_for_want_of_an_underlay() -> None:
    """Somebody has renamed it, say; the kernel's number is the same."""
    link = Link("flannel.1", VxlanInfo(1, 8472, ip_address("192.0.2.1"), "eth0"), 1450)
    assert "underlay interface eth0 is not there" in str(refusal(Write(None, link), errno.ENODEV))
    assert "eth0 is not there" not in str(refusal(Write(None, link), errno.ENODEV, *GONE_AGAIN))


@pytest.mark.parametrize(
    ("item", "number"),
    [
        (Address(DEVICE, ip_interface("fd00::1/128")), errno.EACCES),
        (Neighbour(DEVICE, ip_address("fd00::2"), "02:00:00:00:00:01"), errno.EINVAL),
    ],
)
def test_where_ipv6_is_off_that_is_the_reason_and_not_a_lack_of_rights(item: KernelObject, number: int) -> None:
    said = str(refusal(Write(None, item), number, "ipv6: IPv6 is disabled on this device"))
    assert "sysctl -w net.ipv6.conf.flannel-v6/1.disable_ipv6=0" in said
    assert "root" not in said
