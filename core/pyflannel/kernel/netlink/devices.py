"""Devices of ours, and how packets queue for them: made, changed in place where that can be done, and deleted.

A device of another kind under our name stays as it is. What a change leads to is looked at afterwards, because the
kernel's word of it mixes with that of others' changes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from dataclasses import replace
from struct import Struct

from pyflannel.kernel import qdiscs
from pyflannel.kernel.links import (
    LinkRow,
    can_become,
    encode_link,
    encode_link_deletion,
    encode_new_link,
    encode_vxlan_change,
)
from pyflannel.kernel.model import QDISC_HANDLE, ForeignInfo, GenericInfo, Link, Qdisc, TunInfo, VxlanInfo
from pyflannel.kernel.netlink.batch import GONE, Batches
from pyflannel.kernel.netlink.dumps import Dumps
from pyflannel.kernel.netlink.listener import Listener
from pyflannel.kernel.netlink.picture import Picture
from pyflannel.kernel.port import Write
from pyflannel.kernel.refusal import GONE_AGAIN, NO_MASTER, foreign_link, no_member, not_kept, refusal

__all__ = ["Devices"]

_ETHERNET_MTU = 1500

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_TUN = 0x0001
_IFF_MULTI_QUEUE = 0x0100
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_TUN_EXCL = 0x8000
_IFREQ = Struct("=16sH22x")


class Devices:
    """Each call makes one change, and raises KernelError where the kernel refuses it.

    :param inside: calls a function in the namespace.
    """

    def __init__(
        self,
        picture: Picture,
        dumps: Dumps,
        listener: Listener,
        batches: Batches,
        inside: Callable[[Callable[[], None]], None],
    ) -> None:
        self._picture = picture
        self._dumps = dumps
        self._listener = listener
        self._batches = batches
        self._inside = inside

    def delete(self, write: Write) -> None:
        """Delete a device."""
        assert isinstance(write.old, Link)
        row = self._dumps.link(write.old.name)
        if row is None:
            return
        actual = self._picture.table.link(row)
        if actual.info.kind != write.old.info.kind:
            raise foreign_link(write, actual)
        self._batches.demand(write, encode_link_deletion(row.index), GONE)
        self._listener.drain()

    def put(self, write: Write) -> None:
        """Make a device, or make it what is wanted."""
        wanted = write.new
        assert isinstance(wanted, Link)
        row = self._dumps.link(wanted.name)
        if row is not None:
            actual = self._picture.table.link(row)
            if isinstance(actual.info, ForeignInfo):
                raise foreign_link(write, actual)
            if not can_become(actual, wanted):
                self._batches.demand(write, encode_link_deletion(row.index), GONE)
                self._listener.drain()
                row = None
        if row is None:
            self._create(write, wanted)
            row = self._dumps.link(wanted.name)
            if row is None:
                raise refusal(write, errno.ENODEV, *GONE_AGAIN)
            self._listener.overhear(row.index)  # a veth's other end is told with it
            actual = self._picture.table.link(row)
            if isinstance(wanted.info, GenericInfo) and actual.info != wanted.info:
                raise not_kept(wanted, replace(wanted, info=actual.info))
        elif isinstance(wanted.info, VxlanInfo) and actual.info != wanted.info:
            self._batches.demand(write, encode_vxlan_change(wanted.info, row.index))
        self._place(write, actual, wanted, row)
        self._settle(write, wanted, row.index)

    def _place(self, write: Write, actual: Link, wanted: Link, row: LinkRow) -> None:
        """Give a device all that can be set in place."""
        master = self._picture.table.index(wanted.master) if wanted.master else 0
        if master is None:
            raise refusal(write, errno.ENODEV, f"no interface {wanted.master}", NO_MASTER)
        joins = bool(master) and actual.master != wanted.master
        refused = self._batches.one(encode_link(actual, wanted, row.index, master, row.held_down))
        if refused is not None:
            raise no_member(write, wanted) if joins and refused.number == errno.EOPNOTSUPP else refusal(write, *refused)

    def _create(self, write: Write, wanted: Link) -> None:
        if isinstance(wanted.info, TunInfo):
            self._create_tun(write, wanted.name, wanted.info)
            return
        info = wanted.info
        assert not isinstance(info, ForeignInfo)
        underlay = 0 if info.underlay is None else self._picture.table.index(info.underlay)
        if underlay is None:
            raise refusal(write, errno.ENODEV, f"no interface {info.underlay}")
        try:
            message = encode_new_link(_made_as(wanted), underlay)
        except ValueError as error:
            raise refusal(write, errno.EINVAL, str(error)) from None
        refused = self._batches.one(message)
        if refused is not None:
            taken = refused.number == errno.EEXIST and isinstance(info, VxlanInfo)
            raise refusal(write, *refused, self._vni_holder(info) if taken else "")  # type: ignore[arg-type]

    def _vni_holder(self, info: VxlanInfo) -> str:
        """Advice for a VNI that is taken: by whom."""
        self._dumps.links()
        for row in self._picture.table.by_index.values():
            if row.kind == "vxlan":
                other = self._picture.table.link(row).info
                if isinstance(other, VxlanInfo) and _is_rival(other, info):
                    return (
                        f"{row.name} has VNI {info.vni} on UDP port {info.port} already: choose another VNI or Port, "
                        f"or, if nobody needs that device, 'ip link delete {row.name}'"
                    )
        return (
            "a device that was moved to another network namespace has the VNI: 'ip netns' lists these; find it with "
            "'ip -n NAME -d link show type vxlan', and delete it there"
        )

    def _create_tun(self, write: Write, name: str, info: TunInfo) -> None:
        flags = _IFF_TUN | _IFF_NO_PI | _IFF_TUN_EXCL
        flags |= (_IFF_VNET_HDR if info.vnet_hdr else 0) | (_IFF_MULTI_QUEUE if info.multi_queue else 0)
        try:
            self._inside(lambda: _make_tun(name, flags))
        except FileNotFoundError:
            raise refusal(write, errno.ENOENT, "no /dev/net/tun", "load the module: 'modprobe tun'") from None
        except OSError as error:
            raise refusal(write, error.errno or errno.EIO) from error

    def _settle(self, write: Write, wanted: Link, index: int) -> None:
        """Take what the kernel has told about our own changes for said, and look at what they led to."""
        self._listener.overhear(index)
        self._picture.pending.changes.pop(wanted.key, None)
        row = self._dumps.link(wanted.name)
        if row is None or row.index != index:
            raise refusal(write, errno.ENODEV, *GONE_AGAIN)
        before = self._picture.table.by_index.get(index)
        self._picture.note_interface(before, row)
        self._picture.table.put(row)
        if self._picture.in_scope(row):
            self._picture.ours[index] = self._picture.table.link(row)

    def put_qdisc(self, write: Write) -> None:
        """Give a device the queueing discipline that is wanted, or the kernel's choice again."""
        item = write.new or write.old
        assert isinstance(item, Qdisc)
        index = self._picture.index(write, item.link) if write.new is not None else self._picture.table.index(item.link)
        if index is None:
            return  # gone with its link
        there = next((row for row in self._dumps.qdisc_rows() if row.link == index and row.handle), None)
        if there is not None and (write.new is not None or there.handle == QDISC_HANDLE):
            self._batches.demand(write, qdiscs.deletion(there), GONE)
        if write.new is None:
            return
        assert isinstance(write.new, Qdisc)
        self._batches.demand(write, qdiscs.creation(write.new, index))
        kept = next((row.seen(item.link, write.new) for row in self._dumps.qdisc_rows() if row.link == index), None)
        if kept != item:
            raise not_kept(item, kept or Qdisc(item.link, "the kernel's choice"))


def _is_rival(one: VxlanInfo, other: VxlanInfo) -> bool:
    """Whether the kernel takes one of two VXLAN devices only."""
    return (one.vni, one.port, one.local.version) == (other.vni, other.port, other.local.version)


def _made_as(wanted: Link) -> Link:
    """What to make, to become what is wanted: a bridge takes on its members' MTU unless its own has been changed since
    (``br_mtu_auto_adjust`` in ``net/bridge/br_if.c``)."""
    if wanted.info.kind != "bridge":
        return wanted
    return replace(wanted, mtu=wanted.mtu + (1 if wanted.mtu < _ETHERNET_MTU else -1))


def _make_tun(name: str, flags: int) -> None:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(name.encode(), flags))
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    finally:
        os.close(descriptor)
