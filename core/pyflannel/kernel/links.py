"""Links and addresses between the model and netlink, and the table of all links by index and name.

There are few of these messages and their attributes are many, so pyroute2's classes encode and decode them (see
:mod:`~pyflannel.kernel.rtnl`). The table is different: it follows every device of the machine, containers' included,
so it reads the four attributes it needs by itself and leaves the decoding to those links that turn out to be ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from ipaddress import ip_address, ip_interface
from socket import AF_INET6
from struct import Struct
from typing import Any, Final, TypeVar

from pyflannel.kernel import wire
from pyflannel.kernel.model import (
    OWNER,
    Address,
    Attributes,
    AttributeValue,
    ForeignInfo,
    GenericInfo,
    Link,
    LinkInfo,
    TunInfo,
    VxlanInfo,
)
from pyflannel.kernel.rtnl import messages

__all__ = [
    "LinkRow",
    "LinkTable",
    "address_index",
    "can_become",
    "decode_address",
    "encode_address",
    "encode_address_dump",
    "encode_link",
    "encode_link_deletion",
    "encode_link_query",
    "encode_new_link",
    "encode_vxlan_change",
    "in_order",
    "parse_link",
]

IFF_UP: Final = 1

_IFLA_ADDRESS = 1
_IFLA_IFNAME = 3
_IFLA_MTU = 4
_IFLA_LINK = 5
_IFLA_MASTER = 10
_IFLA_TXQLEN = 13
_IFLA_LINKINFO = 18
_IFLA_IFALIAS = 20
_IFLA_GROUP = 27
_IFLA_PROTO_DOWN = 39
_IFLA_PERM_ADDRESS = 54
_IFLA_INFO_KIND = 1
_IFLA_INFO_DATA = 2
_RTEXT_FILTER_SKIP_STATS = 8
_IFF_TUN = 1
_IFA_F_NODAD = 0x02
_IFA_F_PERMANENT = 0x80

_LINK = Struct("=BxHiII")
_U32 = Struct("=I")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LinkRow:
    """A link as the kernel has it; ``message`` is the whole of its netlink message."""

    index: int
    name: str
    up: bool
    mtu: int
    mac: str
    alias: str
    kind: str
    message: bytes
    lasting_mac: str = ""
    """The address that a network card was made with, whatever it has now."""
    master: int = 0
    held_down: bool = False
    """Whether somebody has switched its carrier off (``ip link set protodown on``)."""

    @property
    def attributes(self) -> dict[int, bytes]:
        """All that the kernel says of it."""
        return wire.attributes(self.message, 32, len(self.message))

    @property
    def shape(self) -> tuple[object, ...]:
        """What others may care about, to see whether it changed."""
        return (self.name, self.up, self.mtu, self.mac)


def parse_link(datagram: bytes, start: int, end: int) -> LinkRow | None:
    """A link from the payload of ``RTM_NEWLINK`` or ``RTM_DELLINK``; ``None`` if the message is about a bridge port."""
    family, _, index, flags, _ = _LINK.unpack_from(datagram, start)
    if family != 0:
        return None
    found = wire.attributes(datagram, start + 16, end)
    info = found.get(_IFLA_LINKINFO, b"")
    mac = found.get(_IFLA_ADDRESS, b"")
    held_down = found.get(_IFLA_PROTO_DOWN, b"\0") != b"\0"
    return LinkRow(
        index=index,
        name=_text(found.get(_IFLA_IFNAME, b"")),
        up=bool(flags & IFF_UP) and not held_down,
        mtu=_U32.unpack(found[_IFLA_MTU])[0] if _IFLA_MTU in found else 0,
        mac=mac.hex(":"),
        alias=_text(found.get(_IFLA_IFALIAS, b"")),
        kind=_text(wire.attributes(info, 0, len(info)).get(_IFLA_INFO_KIND, b"")),
        message=datagram[start - 16 : end],
        lasting_mac=found.get(_IFLA_PERM_ADDRESS, b"").hex(":"),
        master=_U32.unpack(found[_IFLA_MASTER])[0] if _IFLA_MASTER in found else 0,
        held_down=held_down,
    )


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="surrogateescape")


def can_become(actual: Link, wanted: Link) -> bool:
    """Whether a device can become the wanted one in place; otherwise it has to be made anew."""
    have, want = actual.info, wanted.info
    if isinstance(have, VxlanInfo) and isinstance(want, VxlanInfo):
        return replace(have, local=want.local, learning=want.learning) == want and (
            have.local.version == want.local.version
        )
    if isinstance(have, TunInfo) and isinstance(want, TunInfo):
        return replace(have, queue_length=want.queue_length) == want
    return have == want


def in_order(links: Iterable[T], of: Callable[[T], Link]) -> list[T]:
    """The same, those that others need before these: what they sit on, are part of, or are made together with."""
    items = {of(item).name: item for item in links}
    needs = {name: set(of(item).needs) & items.keys() for name, item in items.items()}
    for name, item in items.items():
        info = of(item).info
        if isinstance(info, GenericInfo) and info.other_end in items and info.other_end != name:
            needs[info.other_end].add(name)
    try:
        return [items[name] for name in TopologicalSorter(needs).static_order()]
    except CycleError:  # the kernel says what is wrong with them
        return list(items.values())


class LinkTable:
    """Every link of the namespace.

    :param generic: the wanted links of which not all is ours to say; see :class:`~pyflannel.kernel.port.Scope`.
    """

    def __init__(self, generic: Mapping[str, Link] | None = None) -> None:
        self._generic: Mapping[str, Link] = generic or {}
        self.by_index: dict[int, LinkRow] = {}
        self._by_name: dict[str, int] = {}

    def put(self, row: LinkRow) -> None:
        """Add a link, or take in its new state."""
        before = self.by_index.get(row.index)
        if before is not None and before.name != row.name:
            self.remove(row.index)
        self.by_index[row.index] = row
        self._by_name[row.name] = row.index

    def remove(self, index: int) -> None:
        """Forget a link."""
        row = self.by_index.pop(index, None)
        if row is not None and self._by_name.get(row.name) == index:
            del self._by_name[row.name]

    def index(self, name: str) -> int | None:
        """The index of the link that has this name now."""
        return self._by_name.get(name)

    def named(self, name: str) -> LinkRow | None:
        """The link that has this name now."""
        index = self._by_name.get(name)
        return None if index is None else self.by_index[index]

    def name(self, index: int) -> str | None:
        """The name that the link with this index has now."""
        row = self.by_index.get(index)
        return row.name if row else None

    def link(self, row: LinkRow) -> Link:
        """A row as the model's value."""
        info = self._info(row)
        wanted = self._generic.get(row.name)
        any_mac = isinstance(info, TunInfo) or (wanted is not None and wanted.mac is None)
        return Link(
            name=row.name,
            info=info,
            mtu=row.mtu,
            mac=None if any_mac or not row.mac else row.mac,
            up=row.up,
            marked=row.alias == OWNER,
            master=None if wanted is not None and wanted.master is None else self._master(row),
            group=None if wanted is None or wanted.group is None else _group(row),
        )

    def _master(self, row: LinkRow) -> str:
        """The name of what a link is a part of; empty: of nothing."""
        return (self.name(row.master) or "?") if row.master else ""

    def _info(self, row: LinkRow) -> LinkInfo:
        wanted = self._generic.get(row.name)
        if wanted is not None and isinstance(wanted.info, GenericInfo) and wanted.info.kind == row.kind:
            return self._like(wanted.info, row)
        if row.kind in ("vxlan", "tun"):
            data = _info_data(row.message)
            info = self._vxlan(data) if row.kind == "vxlan" else _tun(data, row.message)
            # One that carries our mark, and can't be said with the fields that we have, some backend has said by names.
            return info if row.alias != OWNER or not isinstance(info, ForeignInfo) else GenericInfo(row.kind)
        return GenericInfo(row.kind) if row.alias == OWNER and row.kind else ForeignInfo(row.kind or "physical")

    def _like(self, wanted: GenericInfo, row: LinkRow) -> LinkInfo:
        """What a device says about all that a wanted one says something about."""
        underlay = None
        lower = _U32.unpack(row.attributes.get(_IFLA_LINK, b"\0\0\0\0"))[0]
        if wanted.underlay is not None:
            underlay = self.name(lower) or ""
        data: dict[Any, Any] = {**_info_data(row.message), **_raw_data(row.attributes)} if wanted.data else {}
        if wanted.other_end is not None and lower in self.by_index:  # which the kernel tells by its index alone
            data["VETH_INFO_PEER"] = _decoded(self.by_index[lower].message)
        return GenericInfo(row.kind, underlay, _named(wanted.data, data))

    def _vxlan(self, data: dict[str, Any]) -> LinkInfo:
        local = data.get("IFLA_VXLAN_LOCAL") or data.get("IFLA_VXLAN_LOCAL6")
        if data.get("IFLA_VXLAN_COLLECT_METADATA"):
            return ForeignInfo("vxlan external")
        if local is None or "IFLA_VXLAN_GROUP" in data or "IFLA_VXLAN_GROUP6" in data:
            return ForeignInfo("vxlan with a group or remote, or without a local address")
        if data.get("IFLA_VXLAN_TTL") or data.get("IFLA_VXLAN_DF"):  # a router may drop what has them
            return ForeignInfo("vxlan with a TTL or DF of its own")
        return VxlanInfo(
            vni=data["IFLA_VXLAN_ID"],
            port=data["IFLA_VXLAN_PORT"],
            local=ip_address(local),
            underlay=self.name(data.get("IFLA_VXLAN_LINK", 0)) or "",
            gbp="IFLA_VXLAN_GBP" in data,
            learning=bool(data.get("IFLA_VXLAN_LEARNING")),
        )


def _group(row: LinkRow) -> int:
    group = row.attributes.get(_IFLA_GROUP)
    return _U32.unpack(group)[0] if group else 0


def _decoded(message: bytes) -> Any:
    decoded = messages().link(message)
    decoded.decode()
    return decoded


def _info_data(message: bytes) -> dict[str, Any]:
    """The attributes of a link's kind."""
    found = _decoded(message).get_nested("IFLA_LINKINFO", "IFLA_INFO_DATA")
    return dict(found["attrs"]) if isinstance(found, Mapping) else {}


def _raw_data(found: Mapping[int, bytes]) -> dict[int, bytes]:
    """The same by number, as bytes."""
    info = found.get(_IFLA_LINKINFO, b"")
    data = wire.attributes(info, 0, len(info)).get(_IFLA_INFO_DATA, b"")
    return wire.attributes(data, 0, len(data))


def _named(wanted: Attributes, found: Mapping[Any, Any]) -> Attributes:
    """What was found under the wanted names, nested as these are."""
    return tuple((name, _value(value, found[name])) for name, value in wanted if name in found)


def _value(wanted: AttributeValue, found: Any) -> AttributeValue:
    if isinstance(wanted, tuple) and isinstance(found, Mapping):
        return _named(wanted, dict(found["attrs"]))
    return found  # type: ignore[no-any-return] # whatever pyroute2 makes of it


def _nested(data: Attributes) -> list[tuple[str, Any]]:
    """Those attributes that pyroute2 knows, as it takes them."""
    return [
        (name, {"attrs": _nested(value)} if isinstance(value, tuple) else value)
        for name, value in data
        if isinstance(name, str)
    ]


def _with_raw(message: bytes, data: Attributes) -> bytes:
    """A message about a link, with those attributes of its kind that have numbers for names."""
    raw = b"".join(wire.attribute(name, value) for name, value in data if type(name) is int and type(value) is bytes)
    if not raw:
        return message
    found = wire.attributes(message, 32, len(message))
    info = wire.attributes(found[_IFLA_LINKINFO], 0, len(found[_IFLA_LINKINFO]))
    there = info.get(_IFLA_INFO_DATA, b"")
    info[_IFLA_INFO_DATA] = there + bytes(-len(there) % 4) + raw
    found[_IFLA_LINKINFO] = _attributes(info)
    _, kind, flags, _, _ = wire.HEADER.unpack_from(message)
    return wire.message(kind, flags, message[16:32] + _attributes(found))


def _attributes(values: Mapping[int, bytes]) -> bytes:
    return b"".join(wire.attribute(kind, value) for kind, value in values.items())


def _tun(data: dict[str, Any], message: bytes) -> LinkInfo:
    if data.get("IFLA_TUN_TYPE") != _IFF_TUN:
        return ForeignInfo("tap")
    (queue_length,) = _U32.unpack(wire.attributes(message, 32, len(message))[_IFLA_TXQLEN])
    return TunInfo(bool(data.get("IFLA_TUN_VNET_HDR")), bool(data.get("IFLA_TUN_MULTI_QUEUE")), queue_length)


def encode_link_query(name: str | None) -> bytes:
    """``RTM_GETLINK`` for one link by name, or for a dump of all."""
    attrs: list[tuple[str, Any]] = [("IFLA_EXT_MASK", _RTEXT_FILTER_SKIP_STATS)]
    if name is not None:
        attrs.append(("IFLA_IFNAME", name))
    return _encode(messages().link, wire.RTM_GETLINK, 0 if name is not None else wire.NLM_F_DUMP, {}, attrs)


def encode_new_link(link: Link, underlay: int) -> bytes:
    """``RTM_NEWLINK`` that creates a device. It is down and unmarked: the kernel takes both only later.

    :param underlay: the index of the interface that it sits on; 0 for none.
    :raises ValueError: an attribute of a :class:`GenericInfo` can't be encoded; the message says which.
    """
    if isinstance(link.info, GenericInfo):
        return _encode_generic(link, link.info, underlay)
    assert isinstance(link.info, VxlanInfo)
    local = "IFLA_VXLAN_LOCAL" if link.info.local.version == 4 else "IFLA_VXLAN_LOCAL6"
    data: list[tuple[str, Any]] = [
        ("IFLA_VXLAN_ID", link.info.vni),
        ("IFLA_VXLAN_LINK", underlay),
        (local, str(link.info.local)),
        ("IFLA_VXLAN_PORT", link.info.port),
        ("IFLA_VXLAN_LEARNING", int(link.info.learning)),
        ("IFLA_VXLAN_UDP_CSUM", 1),
    ]
    if link.info.gbp:
        data.append(("IFLA_VXLAN_GBP", True))
    return _encode_creation(link, [_link_info("vxlan", data)])


def _encode_generic(link: Link, info: GenericInfo, underlay: int) -> bytes:
    attrs: list[tuple[str, Any]] = [("IFLA_LINK", underlay)] if underlay else []
    try:
        encoded = _encode_creation(link, [*attrs, _link_info(info.kind, _nested(info.data))])
    except Exception as error:  # pyroute2 raises whatever its encoders do
        refused = next((item for item in info.data if not _is_encoded(link, info.kind, item)), None)
        what = f"{refused[0]} = {refused[1]!r}" if refused else "something"
        raise ValueError(f"{what}: a {info.kind} device can't have that value: {error}") from None
    taken = _info_data(encoded)  # it leaves out without a word what it does not know
    for name, value in info.data:
        if isinstance(name, str) and (name not in taken or _value(value, taken[name]) != value):
            raise ValueError(f"{name} = {value!r} {_why_not(info.kind, name)}")
    return _with_raw(encoded, info.data)


def _why_not(kind: str, name: str) -> str:
    """What is wrong with an attribute that was left out."""
    known = [str(row[0]) for row in getattr(messages().link.ifinfo.data_map.get(kind), "nla_map", ())]
    if name in known:
        return f"is not a value that a {kind} device can have"
    near = difflib.get_close_matches(name, known, 1)
    if near:
        return f"is not an attribute of a {kind} device: did you mean {near[0]!r}?"
    return f"is not an attribute of a {kind} device; one that pyroute2 has no name for is named by its number"


def _is_encoded(link: Link, kind: str, item: tuple[str | int, AttributeValue]) -> bool:
    """Whether one attribute has a value that can be written down."""
    try:
        _encode_creation(link, [_link_info(kind, _nested((item,)))])
    except Exception:
        return False
    return True


def _encode_creation(link: Link, more: list[tuple[str, Any]]) -> bytes:
    attrs: list[tuple[str, Any]] = [("IFLA_IFNAME", link.name), ("IFLA_MTU", link.mtu), *more]
    if link.mac is not None:
        attrs.append(("IFLA_ADDRESS", link.mac))
    return _encode(messages().link, wire.RTM_NEWLINK, wire.NLM_F_CREATE | wire.NLM_F_EXCL, {}, attrs)


def encode_link(actual: Link, wanted: Link, index: int, master: int = 0, held_down: bool = False) -> bytes:
    """``RTM_NEWLINK`` that gives a link the MTU, MAC, queue, mark, place and state it lacks, and repeats none that it
    has: setting a MAC address, even to what it is, costs the link its neighbours.

    :param master: the index of the wanted master; 0 for none.
    :param held_down: its carrier is switched off.
    """
    attrs: list[tuple[str, Any]] = []
    if actual.mtu != wanted.mtu:
        attrs.append(("IFLA_MTU", wanted.mtu))
    if wanted.mac is not None and actual.mac != wanted.mac:
        attrs.append(("IFLA_ADDRESS", wanted.mac))
    if isinstance(wanted.info, TunInfo) and actual.info != wanted.info:
        attrs.append(("IFLA_TXQLEN", wanted.info.queue_length))
    if wanted.marked and not actual.marked:
        attrs.append(("IFLA_IFALIAS", OWNER))
    if wanted.master is not None and actual.master != wanted.master:
        attrs.append(("IFLA_MASTER", master))
    if wanted.group is not None and actual.group != wanted.group:
        attrs.append(("IFLA_GROUP", wanted.group))
    if wanted.up and held_down:
        attrs.append(("IFLA_PROTO_DOWN", 0))
    fields = {"index": index, "flags": IFF_UP if wanted.up else 0, "change": IFF_UP}
    return _encode(messages().link, wire.RTM_NEWLINK, 0, fields, attrs)


def encode_vxlan_change(info: VxlanInfo, index: int) -> bytes:
    """``RTM_NEWLINK`` that changes what a VXLAN device lets be changed. It refuses an MTU in the same message."""
    local = "IFLA_VXLAN_LOCAL" if info.local.version == 4 else "IFLA_VXLAN_LOCAL6"
    attrs = [_link_info("vxlan", [(local, str(info.local)), ("IFLA_VXLAN_LEARNING", int(info.learning))])]
    return _encode(messages().link, wire.RTM_NEWLINK, 0, {"index": index}, attrs)


def encode_link_deletion(index: int) -> bytes:
    """``RTM_DELLINK``."""
    return _encode(messages().link, wire.RTM_DELLINK, 0, {"index": index}, [])


def _link_info(kind: str, data: list[tuple[str, Any]]) -> tuple[str, Any]:
    attrs: list[tuple[str, Any]] = [("IFLA_INFO_KIND", kind)]
    if data:
        attrs.append(("IFLA_INFO_DATA", {"attrs": data}))
    return ("IFLA_LINKINFO", {"attrs": attrs})


def encode_address(kind: int, address: Address, index: int, flags: int = 0) -> bytes:
    """``RTM_NEWADDR`` or ``RTM_DELADDR``. An IPv6 address is usable at once: nobody else can have it on our link.

    To delete an IPv4 address the kernel compares the other end, too; one without has its own there.
    """
    interface = address.interface
    text = str(interface.ip)
    far = text if address.peer is None else str(address.peer)
    fields = {"family": _family(interface.version), "prefixlen": interface.network.prefixlen, "index": index}
    attrs: list[tuple[str, Any]] = [("IFA_LOCAL", text), ("IFA_ADDRESS", far)]
    if interface.version == 6 and kind == wire.RTM_NEWADDR:
        attrs.append(("IFA_FLAGS", _IFA_F_NODAD))
    return _encode(messages().address, kind, flags, fields, attrs)


def encode_address_dump(index: int, strict: bool) -> bytes:
    """``RTM_GETADDR`` for both families; of one link where the kernel can select."""
    return _encode(messages().address, wire.RTM_GETADDR, wire.NLM_F_DUMP, {"index": index if strict else 0}, [])


def address_index(datagram: bytes, start: int) -> int:
    """The interface index in the payload of an address message."""
    (index,) = _U32.unpack_from(datagram, start + 4)
    return int(index)


def decode_address(link: str, datagram: bytes, start: int, end: int) -> Address | None:
    """An address from the payload of ``RTM_NEWADDR`` or ``RTM_DELADDR``; ``None`` if it is not somebody's choice.

    Left out are link-local addresses of IPv6 and those with a lifetime, which autoconfiguration makes.
    """
    message = messages().address(datagram[start - 16 : end])
    message.decode()
    attrs = dict(message["attrs"])
    text = attrs.get("IFA_LOCAL") or attrs.get("IFA_ADDRESS")
    if text is None or not attrs.get("IFA_FLAGS", message["flags"]) & _IFA_F_PERMANENT:
        return None
    interface = ip_interface(f"{text}/{message['prefixlen']}")
    if interface.version == 6 and interface.is_link_local:
        return None
    far = attrs.get("IFA_ADDRESS", "0.0.0.0")  # noqa: S104 - IPv4's zero is left out
    return Address(link, interface, None if far == text else ip_address(far))


def _family(version: int) -> int:
    return 2 if version == 4 else int(AF_INET6)


def _encode(message_class: Any, kind: int, flags: int, fields: dict[str, Any], attrs: list[tuple[str, Any]]) -> bytes:
    message = message_class()
    message["header"] = {"type": kind, "flags": flags | wire.NLM_F_REQUEST, "sequence_number": 0, "pid": 0}
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attrs
    message.encode()
    data = bytes(message.data)
    return data + bytes(-len(data) % 4)
