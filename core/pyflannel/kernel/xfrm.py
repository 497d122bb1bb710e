"""IPsec policies of a namespace over ``NETLINK_XFRM``: read, written, and heard of.

The messages are those of the kernel's ``linux/xfrm.h``, structures in host byte order whose addresses and ports are in
network byte order. Policies carry no mark of their maker. Ours are known by the number of the xfrm interface that they
belong to (:data:`~pyflannel.kernel.model.XFRM_INTERFACES`), which is a part of their key: nobody else's policy can be
in the way of one of ours, and none of ours changes what happens to packets that don't take our interface.

Most nodes have nothing to do with IPsec. The sockets, at which the kernel loads the module for them, are opened at the
first need.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Network, IPv6Network
from socket import AF_INET, AF_INET6
from struct import Struct
from typing import Final, NamedTuple

from pyflannel.errors import KernelError
from pyflannel.kernel import wire
from pyflannel.kernel.model import XFRM_DIRECTIONS, XFRM_INTERFACES, KernelObject, Key, XfrmPolicy
from pyflannel.kernel.port import NOTHING, Write
from pyflannel.kernel.refusal import refusal
from pyflannel.kernel.rtsocket import NotificationSocket, RequestSocket
from pyflannel.network.lease import IPAddress, IPNetwork

__all__ = [
    "POLICY_GROUP",
    "PolicyRow",
    "Xfrm",
    "encode_policy",
    "encode_policy_deletion",
    "encode_policy_dump",
    "ours",
    "parse_policy",
]

POLICY_GROUP: Final = 4
"""``XFRMNLGRP_POLICY``: who has joined it is told of every policy that comes, changes or goes."""

NEWPOLICY: Final = 0x13
DELPOLICY: Final = 0x14
GETPOLICY: Final = 0x15
UPDPOLICY: Final = 0x19
FLUSHPOLICY: Final = 0x1D

_TMPL = 5
_POLICY = 7
_POLICY_TYPE = 16
_MARK = 21
_IF_ID = 31

_ESP = 50
_TUNNEL = 1
_ALLOW = 0
_ANY_ALGORITHM = 0xFFFFFFFF
_FOREVER = ((1 << 64) - 1,) * 4 + (0,) * 4
"""No limit of bytes or packets, and no time after which it ends."""

_SELECTOR = Struct("@16s16s4HH3BiI")
_INFO = Struct(f"@{_SELECTOR.size}s8Q4Q2I4B0Q")
_ID = Struct(f"@{_SELECTOR.size}sIB0I")
_TEMPLATE = Struct("@16sIB0IHxx16sI3B0I3I")
_NOTHING_THERE = frozenset({errno.ENOENT, errno.ESRCH})
_NO_IPSEC = "this kernel has no IPsec policies: load its module ('modprobe xfrm_user'; CONFIG_XFRM_USER)"
_U32 = Struct("=I")
_PAIR = Struct("=II")
_DIRECTIONS: Final = {number: name for name, number in XFRM_DIRECTIONS.items()}


class PolicyRow(NamedTuple):
    """A policy as the kernel has it. ``policy`` is what it comes to if it is ours, else ``None``. ``diverts`` says that
    it is about packets of any interface, and does something to them."""

    source: IPNetwork
    destination: IPNetwork
    direction: str
    if_id: int
    policy: XfrmPolicy | None
    diverts: bool = False


def _family(version: int) -> int:
    return AF_INET if version == 4 else AF_INET6


def _padded(address: IPAddress) -> bytes:
    return address.packed.ljust(16, b"\0")


def _selector(policy: XfrmPolicy) -> bytes:
    source, destination = policy.source, policy.destination
    return _SELECTOR.pack(
        _padded(destination.network_address),
        _padded(source.network_address),
        *(0, 0, 0, 0),
        _family(source.version),
        destination.prefixlen,
        source.prefixlen,
        *(0, 0, 0),
    )


def encode_policy(policy: XfrmPolicy) -> bytes:
    """``XFRM_MSG_UPDPOLICY``, which makes one, too, where there is none."""
    info = _INFO.pack(
        _selector(policy),
        *_FOREVER,
        *(0, 0, 0, 0),
        policy.priority,
        0,
        XFRM_DIRECTIONS[policy.direction],
        _ALLOW,
        0,
        0,
    )
    template = _TEMPLATE.pack(
        _padded(policy.tunnel_destination),
        0,
        _ESP,
        _family(policy.tunnel_source.version),
        _padded(policy.tunnel_source),
        policy.reqid,
        _TUNNEL,
        0,
        0,
        *(_ANY_ALGORITHM,) * 3,
    )
    body = info + wire.attribute(_TMPL, template) + wire.attribute(_IF_ID, _U32.pack(policy.if_id))
    return wire.message(UPDPOLICY, 0, body)


def encode_policy_deletion(policy: XfrmPolicy) -> bytes:
    """``XFRM_MSG_DELPOLICY``."""
    body = _ID.pack(_selector(policy), 0, XFRM_DIRECTIONS[policy.direction])
    return wire.message(DELPOLICY, 0, body + wire.attribute(_IF_ID, _U32.pack(policy.if_id)))


def encode_policy_dump() -> bytes:
    """``XFRM_MSG_GETPOLICY`` for all policies there are."""
    return wire.message(GETPOLICY, wire.NLM_F_DUMP, bytes(_ID.size))


def parse_policy(kind: int, datagram: bytes, start: int, end: int) -> PolicyRow | None:
    """A policy from the payload of a message; ``None`` for one that is about no traffic (a socket's own)."""
    if kind == DELPOLICY:  # says first which one, and what it was in an attribute
        found = wire.attributes(datagram, start + _ID.size, end)
        info = found.get(_POLICY, b"")
    else:
        info = datagram[start : start + _INFO.size]
        found = wire.attributes(datagram, start + _INFO.size, end)
    if len(info) < _INFO.size:
        return None
    selector, *rest = _INFO.unpack_from(info)
    direction = _DIRECTIONS.get(rest[14])
    if direction is None:
        return None
    destination, source, *ports, family, length_d, length_s, proto, link, user = _SELECTOR.unpack(selector)
    one, other = _network(family, source, length_s), _network(family, destination, length_d)
    (if_id,) = _U32.unpack(found.get(_IF_ID, bytes(4)))
    marked = any(_PAIR.unpack(found.get(_MARK, bytes(8))))
    acts = rest[15] != _ALLOW or _TMPL in found
    row = PolicyRow(one, other, direction, if_id, None, acts and not (if_id or marked))
    narrowed = marked or any((*ports, proto, link, user))
    if if_id not in XFRM_INTERFACES or narrowed or found.get(_POLICY_TYPE, b"\0")[0]:
        return row
    return row._replace(policy=_policy(row, tuple(rest[:8]), (rest[12], *rest[15:]), found.get(_TMPL, b"")))


def _policy(row: PolicyRow, lifetime: tuple[int, ...], said: tuple[int, int, int, int], templates: bytes) -> XfrmPolicy:
    priority, action, flags, share = said
    plain = lifetime == _FOREVER and not (action or flags or share) and len(templates) == _TEMPLATE.size
    unspecified = row.source.network_address.__class__(0)
    ours = XfrmPolicy(
        row.source, row.destination, row.direction, row.if_id, unspecified, unspecified, 0, priority, plain=False
    )
    if len(templates) < _TEMPLATE.size:
        return ours
    destination, spi, protocol, family, source, reqid, mode, *rest = _TEMPLATE.unpack_from(templates)
    usual = (spi, protocol, mode, *rest) == (0, _ESP, _TUNNEL, 0, 0, *(_ANY_ALGORITHM,) * 3)
    length = 4 if family == AF_INET else 16
    ends = wire.address_of(source[:length]), wire.address_of(destination[:length])
    return XfrmPolicy(
        row.source, row.destination, row.direction, row.if_id, *ends, reqid, priority, plain=plain and usual
    )


def _network(family: int, packed: bytes, length: int) -> IPNetwork:
    if family == AF_INET6:
        return IPv6Network((packed, length), strict=False)
    return IPv4Network((packed[:4], length), strict=False)  # a selector for everything has no family


class Xfrm:
    """The policies of a namespace.

    :param open_sockets: opens both in the namespace.
    """

    def __init__(self, open_sockets: Callable[[], tuple[RequestSocket, NotificationSocket]]) -> None:
        self._open_sockets = open_sockets
        self._sockets: tuple[RequestSocket, NotificationSocket] | None = None

    @property
    def is_open(self) -> bool:
        """Whether the policies are followed."""
        return self._sockets is not None

    def open(self) -> int:
        """Follow the policies from now on: the descriptor that is readable when something was told.

        :raises KernelError: this kernel has no IPsec.
        """
        self._sockets = self._open_sockets()
        return self._sockets[1].fileno()

    def close(self) -> None:
        """Close the sockets; the policies stay. Idempotent."""
        sockets, self._sockets = self._sockets, None
        for each in sockets or ():
            each.close()

    def read(self) -> list[PolicyRow]:
        """All policies there are, whoever's they are; none where they aren't followed.

        :raises KernelError: the kernel can't be read.
        """
        if self._sockets is None:
            return []
        rows = []
        for kind, datagram, start, end in self._sockets[0].dump(encode_policy_dump(), _NOTHING_THERE):
            row = parse_policy(kind, datagram, start, end)
            if row is not None:
                rows.append(row)
        return rows

    def hear(self) -> tuple[dict[Key, KernelObject | None], bool, bool]:
        """What others have changed: our policies by their keys, whether all must be read again, whether others' have.

        :raises KernelError: the kernel can't be heard.
        """
        changes: dict[Key, KernelObject | None] = {}
        lost = others = False
        if self._sockets is None:
            return changes, lost, others
        requests, notified = self._sockets
        for datagram in notified.read():
            if datagram is None:
                lost = True
                continue
            for kind, _, _, port, start, end in wire.messages(datagram):
                if port == requests.port_id:
                    continue
                if kind == FLUSHPOLICY:
                    lost = others = True
                elif kind in (NEWPOLICY, UPDPOLICY, DELPOLICY):
                    row = parse_policy(kind, datagram, start, end)
                    policy = row.policy if row is not None else None
                    if policy is not None:
                        changes[policy.key] = None if kind == DELPOLICY else policy
                    else:
                        others = True
        return changes, lost, others

    def put(
        self, writes: Iterable[Write], failures: dict[Key, KernelError], between: Callable[[], None] = lambda: None
    ) -> None:
        """Create, change and delete policies.

        :param failures: takes what the kernel refuses.
        :param between: called after some of them, again and again.
        """
        some = list(writes)
        if not some:
            return
        if self._sockets is None:
            failures.update((write.key, refusal(write, errno.EPROTONOSUPPORT, "", _NO_IPSEC)) for write in some)
            return
        requests, notified = self._sockets
        for number, refused in requests.send([_encoded(write) for write in some], notified.most, between).items():
            write = some[number]
            if write.new is not None or refused.number != errno.ENOENT:
                failures[write.key] = refusal(write, *refused)


def _encoded(write: Write) -> bytes:
    item = write.new or write.old
    assert isinstance(item, XfrmPolicy)
    return encode_policy_deletion(item) if write.new is None else encode_policy(item)


def ours(rows: Iterable[PolicyRow], known: Mapping[Key, KernelObject] = NOTHING) -> list[XfrmPolicy]:
    """Those that are ours; see :meth:`KernelPort.dump` for ``known``."""
    found = []
    for row in rows:
        if row.policy is not None:
            expected = known.get(row.policy.key)
            found.append(expected if isinstance(expected, XfrmPolicy) and expected == row.policy else row.policy)
    return found
