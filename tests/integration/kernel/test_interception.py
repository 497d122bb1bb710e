"""What others put onto a device to see its packets first is found; what the kernel or we put there is not."""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
from pathlib import Path
from typing import Final

import pytest
from tests.integration.kernel.conftest import NamespaceWorld
from tests.integration.kernel.objects import Family

from pyflannel.kernel.interception import read_interception
from pyflannel.kernel.model import Qdisc
from pyflannel.kernel.netns import call_in

pytestmark = pytest.mark.root

NAME = "flannel.1"
EVERYTHING = ("protocol", "all", "u32", "match", "u32", "0", "0", "classid", "1:1")

_BPF: Final = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _XDP = 5, 6
_DROP_ALL = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)
"""r0 = XDP_DROP; exit"""


@pytest.fixture
def device(namespace: NamespaceWorld) -> NamespaceWorld:
    namespace.become([Family(4).link])
    return namespace


def seen(world: NamespaceWorld) -> dict[str, tuple[str, ...]]:
    return dict(call_in(Path("/run/netns") / world.name, read_interception))


def test_what_the_kernel_and_we_put_there_is_not_told(device: NamespaceWorld) -> None:
    assert seen(device) == {}
    device.become([Family(4).link, Qdisc(NAME, "pfifo", (("limit", 50),))])
    device.tc("qdisc", "add", "dev", NAME, "clsact")
    assert seen(device) == {}, "without a filter it does nothing"


@pytest.mark.parametrize(
    ("queue", "place", "words"),
    [
        ("clsact", ("ingress",), "filters of tc on ingress (u32)"),
        ("clsact", ("egress",), "filters of tc on egress (u32)"),
        ("ingress", ("parent", "ffff:"), "filters of tc on ingress (u32)"),
    ],
)
def test_filters(device: NamespaceWorld, queue: str, place: tuple[str, ...], words: str) -> None:
    device.tc("qdisc", "add", "dev", NAME, queue)
    device.tc("filter", "add", "dev", NAME, *place, *EVERYTHING)
    assert seen(device) == {NAME: (words,)}


def test_a_queueing_discipline_of_somebody_s(device: NamespaceWorld) -> None:
    device.tc("qdisc", "add", "dev", NAME, "root", "pfifo", "limit", "1")
    assert seen(device) == {NAME: ("a foreign queueing discipline (pfifo)",)}


def test_an_xdp_program(device: NamespaceWorld) -> None:
    call_in(Path("/run/netns") / device.name, lambda: drop_by_xdp(NAME))
    assert seen(device) == {NAME: ("an XDP program",)}
    device.ip("link", "set", NAME, "xdpgeneric", "off")
    assert seen(device) == {}


def drop_by_xdp(name: str) -> None:
    """Attach a program that drops everything (``bpf(2)``; ``IFLA_XDP`` in linux/if_link.h)."""
    number = _BPF.get(platform.machine())
    if number is None:
        pytest.skip(f"no number of bpf(2) is known here for {platform.machine()}")
    program, licence = ctypes.create_string_buffer(_DROP_ALL), ctypes.create_string_buffer(b"GPL")
    said = struct.pack("<IIQQ", _XDP, len(_DROP_ALL) // 8, ctypes.addressof(program), ctypes.addressof(licence))
    attributes = ctypes.create_string_buffer(said + bytes(128 - len(said)))
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(number, _PROG_LOAD, attributes, 128)
    if descriptor < 0:
        pytest.skip(f"this kernel loads no BPF program: {os.strerror(ctypes.get_errno())}")
    try:
        nested = struct.pack("<HHiHHI", 8, 1, descriptor, 8, 3, 2)  # IFLA_XDP_FD; IFLA_XDP_FLAGS: generic mode
        body = struct.pack("<BxHiII", 0, 0, socket.if_nametoindex(name), 0, 0)
        body += struct.pack("<HH", 4 + len(nested), 43 | 0x8000) + nested
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
            kernel.send(struct.pack("<IHHII", 16 + len(body), 16, 1 | 4, 1, 0) + body)  # RTM_NEWLINK, with an ACK
            assert struct.unpack_from("<i", kernel.recv(1 << 16), 16)[0] == 0
    finally:
        os.close(descriptor)
