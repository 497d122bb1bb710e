"""Whether two settings can be on one node at a time: what both of their plans lay claim to.

Found in the plans themselves, so that no backend is known here. Two plans may need the same thing in the same way, and
a device's MTU is then the smaller one. Else they must differ in every key, and in what the kernel gives away only once
besides: a UDP port, and what makes a tunnel that one and no other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, Final, NamedTuple

from pyflannel.backend import Backend
from pyflannel.kernel.model import GenericInfo, KernelObject, Link, Route, VxlanInfo, WireguardDevice, WireguardPeer

__all__ = ["clash", "clashing", "softened"]

_SOFT: Final[Mapping[type, str]] = {Link: "mtu", WireguardPeer: "keepalive"}
"""What two plans may differ in, for either value does for both."""

_ANOTHER_NAME: Final = (
    "change an option along with it that gives the device another name (vxlan: VNI; wireguard: ListenPort, with IPv6 "
    "ListenPortV6, too; udp: Port), or go by way of another backend"
)

_TUNNELS: Final[Mapping[str, tuple[str, ...]]] = {
    "ipip": ("LOCAL", "REMOTE", "LINK", "COLLECT_METADATA"),
    "sit": ("LOCAL", "REMOTE", "LINK", "COLLECT_METADATA"),
    "ip6tnl": ("LOCAL", "REMOTE", "LINK", "COLLECT_METADATA"),
    "gre": ("LOCAL", "REMOTE", "LINK", "IKEY", "COLLECT_METADATA"),
    "ip6gre": ("LOCAL", "REMOTE", "LINK", "IKEY", "COLLECT_METADATA"),
    "xfrm": ("IF_ID",),
}
"""Kinds of devices of which a namespace has one for each value of these attributes (ends of their names)."""

_PORTS: Final[Mapping[str, int]] = {"vxlan": 8472, "geneve": 6081}
"""Kinds of devices that receive at a UDP port, and the kernel's choice where their attributes name none."""

_VXLAN_FLAGS: Final = ("GBP", "GPE", "COLLECT_METADATA")
"""What devices at one port must have in common (``VXLAN_F_RCV_FLAGS``, ``net/vxlan.h``)."""

_NONE: Final = (None, 0, "0.0.0.0", "::", "")  # noqa: S104 - it means that there is none
"""Values of an attribute that mean the same as that it is not given."""


def clash(
    former: Backend[Any], following: Backend[Any], one: Iterable[KernelObject], other: Iterable[KernelObject]
) -> str:
    """Why two settings can't be on one node at a time, and what to do; empty if they can.

    :param one: what the former backend plans for a node, ``other``: what the new one does.
    """
    one, other = tuple(one), tuple(other)
    found = clashing(one, other)
    if found:
        return found
    kinds = {type(former), type(following)}
    if any(kind.start is not Backend.start for kind in kinds) and _same_device(one, other):
        if len(kinds) == 1:
            return (
                f"backend {former.name} moves the packets of one device by one process, which can't have both "
                f"settings; {_ANOTHER_NAME}"
            )
        return (
            f"{former.name} and {following.name} use one device, whose packets only one of them can move; "
            f"{_ANOTHER_NAME}"
        )
    shared = frozenset() if len(kinds) == 1 else _named_ports(former) & _named_ports(following)
    for port in sorted(shared):
        return _same_port(former.name, following.name, port)
    return ""


def clashing(one: Iterable[KernelObject], other: Iterable[KernelObject]) -> str:
    """What two plans need in two ways, or what both need and only one can have; empty if there is no such thing."""
    one, other = tuple(one), tuple(other)
    there = {item.key: item for item in one}
    for item in other:
        known = there.get(item.key)
        if known is None or known == item or isinstance(item, Route) or softened(known, item) is not None:
            continue
        if isinstance(item, Link):
            return f"both settings make a device {item.name}, and not the same one; {_ANOTHER_NAME}"
        return f"both settings need the same thing in two ways, {known} and {item}; {_ANOTHER_NAME}"
    taken = {claim.what: claim for claim in _claims(one)}
    for claim in _claims(other):
        owner = taken.get(claim.what)
        if owner is not None and owner.link != claim.link and not (owner.shared and owner.shared == claim.shared):
            return f"devices {owner.link} and {claim.link} of the two settings both need {claim.told}; {claim.remedy}"
    return ""


def softened(one: KernelObject, other: KernelObject) -> KernelObject | None:
    """What does for both; ``None`` if nothing does."""
    name = _SOFT.get(type(one))
    if name is None or type(one) is not type(other):
        return None
    least = min(getattr(one, name), getattr(other, name))
    first, second = replace(one, **{name: least}), replace(other, **{name: least})
    return first if first == second else None


class _Claim(NamedTuple):
    """What a device needs for itself alone.

    :param shared: those of which this says the same can have it together; empty: nobody else can.
    """

    what: tuple[object, ...]
    link: str
    told: str
    remedy: str
    shared: str = ""


def _claims(plan: Iterable[KernelObject]) -> Iterator[_Claim]:
    pairs: dict[str, str] = {}
    for item in plan:
        if isinstance(item, WireguardDevice):
            yield _port(item.listen_port, item.link, "")
        elif isinstance(item, Link):
            pairs[item.name] = pairs.get(item.name, item.name)
            if isinstance(item.info, VxlanInfo):
                vxlan = item.info
                flags = ("GBP",) if vxlan.gbp else ()
                yield from _vxlan(item.name, vxlan.vni, vxlan.port, vxlan.local.version, flags)
            elif isinstance(item.info, GenericInfo):
                yield from _generic_claims(item.name, item.info)
                if item.info.other_end is not None:
                    pairs[item.info.other_end] = item.name
    for name, made_with in pairs.items():
        yield _Claim(("name", name), made_with, f"the name {name}", _ANOTHER_NAME)


def _generic_claims(link: str, info: GenericInfo) -> Iterator[_Claim]:
    port = (_value(info, "PORT") or _PORTS[info.kind]) if info.kind in _PORTS else None
    if isinstance(port, int) and info.kind == "vxlan":
        version = 6 if _value(info, "LOCAL6") or _value(info, "GROUP6") else 4
        flags = [name for name in _VXLAN_FLAGS if _value(info, name) is not None]
        yield from _vxlan(link, _value(info, "ID"), port, version, flags)
    elif isinstance(port, int):
        yield _port(port, link, info.kind)
    if info.kind in _TUNNELS:
        ends = tuple(_value(info, name) for name in _TUNNELS[info.kind])
        yield _Claim(
            (info.kind, *ends), link, f"the one {info.kind} tunnel with these ends", "go by way of another backend"
        )


def _vxlan(link: str, vni: object, port: int, version: int, flags: Iterable[str]) -> Iterator[_Claim]:
    yield _port(port, link, " ".join(("vxlan", *flags)))
    told = f"VXLAN number {vni} on UDP port {port}"
    yield _Claim(("vxlan", vni, port, version), link, told, "give the new one another number")


def _port(port: int, link: str, shared: str) -> _Claim:
    return _Claim(("port", port), link, f"UDP port {port}", "give the new one another port", shared)


def _value(info: GenericInfo, name: str) -> object:
    """What a device's attributes say under a name, whatever its kind puts before it; ``None`` for nothing."""
    said = next((value for key, value in info.data if str(key).endswith(f"_{name}")), None)
    return None if said in _NONE else said


def _same_device(one: Iterable[KernelObject], other: Iterable[KernelObject]) -> bool:
    names = {item.name for item in one if isinstance(item, Link)}
    return any(isinstance(item, Link) and item.name in names for item in other)


def _same_port(former: str, following: str, port: int) -> str:
    return f"both {former} and {following} use UDP port {port}; give the new one another port"


def _named_ports(backend: Backend[Any]) -> frozenset[int]:
    """The UDP ports that a backend's options name."""
    options = backend.options
    if not hasattr(options, "__dataclass_fields__"):
        return frozenset()
    named = ((str(item.metadata.get("key", "")), getattr(options, item.name)) for item in fields(options))
    return frozenset(value for key, value in named if "port" in key.lower() and type(value) is int and value)
