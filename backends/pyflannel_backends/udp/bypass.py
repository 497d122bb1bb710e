"""Whether lone packets may pass the worker by, in the kernel.

There they also pass by what this node does with datagrams and packets on their way to and from the worker. Rules of a
firewall are heeded all the same, with some delay: every few seconds one packet of each kind takes the usual way
(``native/bpf/lone.bpf.c``). Of what else could be there, this module sees that it isn't, once a second:

- IPsec policies, by which datagrams may have to be encrypted, or to have been;
- somebody's queueing discipline on the TUN device, or filters where the underlay's packets come in (``tc``);
- chains of nftables where packets leave a device (family netdev, hook egress), which the kernel spares what the TUN
  device's programs send elsewhere;
- somebody who captures what the TUN device gives, say by tcpdump, and wants to see all of it.

Nor may they where the worker's clock is not the kernel's: entries would be good for another time than they should.

Sources: linux/rtnetlink.h, linux/pkt_sched.h, linux/xfrm.h, linux/netfilter/nf_tables.h, packet(7),
time_namespaces(7).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyflannel_backends.userspace._fastpath import FastPath

__all__ = ["Bypass"]

_NETLINK_XFRM, _NETLINK_NETFILTER = 6, 12
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_GETTFILTER, _RTM_GETQDISC = 46, 38
_XFRM_MSG_GETSPDINFO: Final = 0x25
_NFT_MSG_GETCHAIN, _NFT_MSG_GETGEN = 0x0A04, 0x0A10
_NFPROTO_NETDEV: Final = bytes((5, 0, 0, 0))
"""``nfgenmsg``"""
_NFTABLES: Final = Path("/sys/module/nf_tables")
_NFTA_CHAIN_HOOK, _NFTA_HOOK_HOOKNUM = 4, 1
_NF_NETDEV_EGRESS: Final = struct.pack("!I", 1)
_ATTRIBUTE: Final = struct.Struct("=HH")
_HEADER: Final = struct.Struct("=IHHII")
_TRAFFIC: Final = struct.Struct("=BxxxiIII")
"""``tcmsg``: family, index of the device, handle, parent, info."""
_TC_H_ROOT, _TC_H_CLSACT = 0xFFFFFFFF, 0xFFFFFFF1
_TC_H_MIN_INGRESS: Final = 0xFFF2
_COUNTS: Final = struct.Struct("=IHH3I")
"""Flags, an attribute's header, and of ``xfrmu_spdinfo`` how many policies there are: in, out, to be forwarded."""
_SIOCGIFHWADDR: Final = 0x8927
_IFREQ: Final = struct.Struct("16sH22x")
_ETHERNET: Final = 1
_EVERYTHING: Final = "0003"
"""``ETH_P_ALL`` in ``/proc/net/packet``."""
_TAKES: Final = {
    errno.EPERM: "; it takes CAP_BPF",
    errno.EINVAL: "; it takes Linux 6.6",
    errno.ENOSYS: "; it takes BPF",
}
"""What may be missing where the kernel says so."""
_PASSING: Final = frozenset({errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""What the kernel says that does not stay that way."""


class Bypass:
    """Has a fast path do so while it may.

    :param device: the TUN device's name, :param underlay: that of the device by which datagrams come.
    :param address: ours there.
    """

    def __init__(self, fast_path: FastPath, device: str, underlay: str, address: str) -> None:
        self._fast_path = fast_path
        self._device, self._underlay, self._address = device, underlay, address
        self._between: tuple[int, int] | None = None
        """The devices' indices, if the kernel was asked to carry packets between them."""
        self.trouble = ""
        """Why not; empty while it does."""

    def look(self) -> None:
        """Begin or end it, as things are now."""
        try:
            device, underlay = (socket.if_nametoindex(name) for name in (self._device, self._underlay))
            obstacle = self._obstacle(device, underlay)
        except OSError as error:
            obstacle = f"can't look at {self._device} and {self._underlay}: {error.strerror or error}"
        if obstacle:
            self.end()
            self.trouble = obstacle
        elif self._between != (device, underlay) or not (self.trouble or self._fast_path.carries_lone()):
            self._begin(device, underlay)

    def _begin(self, device: int, underlay: int) -> None:
        self._between, self.trouble = (device, underlay), ""
        try:
            self._fast_path.carry_lone(device, underlay, self._address)
        except OSError as error:
            if error.errno in _PASSING:
                self._between = None
            self.trouble = f"{error.strerror}{_TAKES.get(error.errno or 0, '')}"

    def end(self) -> None:
        """Leave all packets to the worker again."""
        self._between = None
        self._fast_path.carry_all()

    def _obstacle(self, device: int, underlay: int) -> str:
        """What packets must not pass by, if there is such a thing."""
        if _link_type(self._underlay) != _ETHERNET:
            return f"{self._underlay} is not an Ethernet device"
        if _has_own_clock():
            return "the worker is in a time namespace with a clock of its own"
        if _has_policies():
            return "there are IPsec policies"
        for index, handle, parent in _queueing_disciplines():
            if index == device and handle and parent in (_TC_H_ROOT, _TC_H_CLSACT):
                return f"{self._device} has a queueing discipline that it was given"
            if index == underlay and parent == _TC_H_CLSACT and _has_filters(underlay, handle):
                return f"{self._underlay} has filters for what comes in"
        if _has_egress_chains():
            return "nftables has chains where packets leave a device"
        if _is_watched(device):
            return f"packets of {self._device} are being captured"
        return ""


def _link_type(device: str) -> int:
    """``ARPHRD_*`` of linux/if_arp.h."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFHWADDR, _IFREQ.pack(device.encode(), 0))
    return int(_IFREQ.unpack(answer)[1])


def _has_own_clock() -> bool:
    """Whether CLOCK_MONOTONIC is another one than what programs in the kernel read."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/timens_offsets").read_text().splitlines():
            name, *offset = line.split()
            if name == "monotonic":
                return any(map(int, offset))
    return False


def _ask(protocol: int, kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """The bodies of what the kernel answers; none where it knows nothing of the matter."""
    with contextlib.ExitStack() as stack:
        try:
            asked = stack.enter_context(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol))
        except OSError:
            return
        asked.send(_HEADER.pack(_HEADER.size + len(body), kind, _NLM_F_REQUEST | flags, 1, 0) + body)
        while True:
            answer = memoryview(asked.recv(1 << 16))
            while len(answer) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(answer)
                if kind in (_NLMSG_ERROR, _NLMSG_DONE):
                    return
                yield bytes(answer[_HEADER.size : length])
                answer = answer[(length + 3) & ~3 :]
            if not flags:
                return


def _has_policies() -> bool:
    return any(
        any(_COUNTS.unpack_from(body)[3:])
        for body in _ask(_NETLINK_XFRM, _XFRM_MSG_GETSPDINFO, 0, bytes(4))
        if len(body) >= _COUNTS.size
    )


def _queueing_disciplines() -> Iterator[tuple[int, int, int]]:
    """Index of the device, handle (0 of those that a device has by itself) and parent."""
    for body in _ask(socket.NETLINK_ROUTE, _RTM_GETQDISC, _NLM_F_DUMP, _TRAFFIC.pack(0, 0, 0, 0, 0)):
        _, index, handle, parent, _ = _TRAFFIC.unpack_from(body)
        yield index, handle, parent


def _has_filters(device: int, handle: int) -> bool:
    request = _TRAFFIC.pack(0, device, 0, handle & 0xFFFF0000 | _TC_H_MIN_INGRESS, 0)
    return any(True for _ in _ask(socket.NETLINK_ROUTE, _RTM_GETTFILTER, _NLM_F_DUMP, request))


def _has_nftables() -> bool:
    return _had_nftables() or _NFTABLES.exists()


@functools.cache
def _had_nftables() -> bool:
    """Whether the kernel had them at first; to ask is to have it look for the module, so that is done once."""
    return any(True for _ in _ask(_NETLINK_NETFILTER, _NFT_MSG_GETGEN, 0, _NFPROTO_NETDEV))


def _has_egress_chains() -> bool:
    if not _has_nftables():
        return False
    for body in _ask(_NETLINK_NETFILTER, _NFT_MSG_GETCHAIN, _NLM_F_DUMP, _NFPROTO_NETDEV):
        chain = dict(_attributes(body[len(_NFPROTO_NETDEV) :]))
        hook = dict(_attributes(chain.get(_NFTA_CHAIN_HOOK, b"")))
        if hook.get(_NFTA_HOOK_HOOKNUM) == _NF_NETDEV_EGRESS:
            return True
    return False


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kinds and values."""
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def _is_watched(device: int) -> bool:
    """Whether a packet socket gets all that a device gives."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/net/packet").read_text().splitlines()[1:]:
            _, _, _, protocol, index, *_ = line.split()
            if protocol == _EVERYTHING and int(index) in (0, device):
                return True
    return False
