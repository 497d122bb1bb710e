"""What a refused write means: the object, the kernel's reason, and what a user can do about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from pyflannel.errors import KernelError
from pyflannel.kernel.model import (
    Address,
    FdbEntry,
    GenericInfo,
    KernelObject,
    Kind,
    Link,
    Neighbour,
    Qdisc,
    Route,
    Rule,
    VxlanInfo,
)
from pyflannel.kernel.port import SEVERAL, Write

__all__ = [
    "GONE_AGAIN",
    "NO_MASTER",
    "NO_WIREGUARD",
    "changed",
    "check_link_layer",
    "check_way",
    "foreign_label",
    "foreign_link",
    "foreign_route",
    "module_of",
    "no_member",
    "not_kept",
    "refusal",
]

NO_WIREGUARD = (
    "this kernel has no WireGuard: load its module ('modprobe wireguard'; Linux has it from 5.6 on), or let pyflannel "
    'carry the packets by itself: "Implementation": "userspace" (or "auto") in Backend of the network config'
)

_MODULES = {
    "bond": "bonding",
    "gre": "ip_gre",
    "gretap": "ip_gre",
    "ip6gre": "ip6_gre",
    "ip6gretap": "ip6_gre",
    "ip6tnl": "ip6_tunnel",
    "vlan": "8021q",
    "xfrm": "xfrm_interface",
}
"""The names of modules that are not those of their kinds of devices."""

_IPV6_OFF = "IPv6 is disabled"

GONE_AGAIN = ("it is gone again", "something else deletes or renames it, or what it is on")
"""Said of a link that was there a moment ago, and what that comes from."""

NO_MASTER = "what it is to be a part of is not there (any more)"

_MAC_LENGTH = len("xx:xx:xx:xx:xx:xx")

_ADVICE = {
    errno.EPERM: "this needs CAP_NET_ADMIN in the network namespace: run as root or grant the capability",
    errno.EACCES: "this needs root in the network namespace's user namespace",
    errno.ENODEV: "the interface is not there (any more)",
    errno.ENXIO: "the interface is not there (any more)",
    errno.ENETUNREACH: "the gateway must be on a network this node is directly attached to; see 'ip route get'",
    errno.EHOSTUNREACH: "the gateway must be on a network this node is directly attached to; see 'ip route get'",
    errno.ENETDOWN: "the interface is down: 'ip link set <interface> up'",
    errno.ENOBUFS: "a kernel buffer or table is full: see dmesg and net.ipv4.neigh.default.gc_thresh3",
    errno.ENOMEM: "the kernel is out of memory, or a limit such as net.ipv6.route.max_size is reached",
    errno.EOPNOTSUPP: "this kernel lacks the feature: load or build the module (modprobe vxlan, modprobe tun)",
    errno.EAFNOSUPPORT: "this address family is switched off in the kernel (ipv6.disable=1?)",
    errno.EBUSY: "the device is in use by another process",
    errno.EADDRINUSE: "another socket or tunnel device has the UDP port: 'ss -lnup'; 'ip -d link show type vxlan'",
    errno.EROFS: "/proc/sys is read-only here: set it on the host, or mount it writable",
    errno.ENOENT: "this kernel or namespace does not have it",
}


def refusal(write: Write, number: int, text: str = "", advice: str = "") -> KernelError:
    """The error for a write that the kernel answered with ``errno`` ``number`` and an explanation ``text``."""
    item = write.new or write.old
    assert item is not None
    verb = "create" if write.old is None else "delete" if write.new is None else "change"
    if item.key[0] in (Kind.SYSCTL, Kind.WIREGUARD):
        verb = "set"
    reason = f"{text} ({os.strerror(number)})" if text else os.strerror(number)
    if not advice and _IPV6_OFF in text:
        advice = _ipv6_is_off(item)
    advice = advice or _special_advice(item, number) or _ADVICE.get(number, "")
    return KernelError(f"can't {verb} {item}: {reason}" + (f"; {advice}" if advice else ""))


def _ipv6_is_off(item: KernelObject) -> str:
    where = str(getattr(item, "link", None) or "all").replace(".", "/")  # as sysctl wants a dot in a name
    return f"'sysctl -w net.ipv6.conf.{where}.disable_ipv6=0' switches it on, or set EnableIPv6 to false"


def _special_advice(item: KernelObject, number: int) -> str:
    """What a number means for just this kind of object."""
    if isinstance(item, Route) and item.encapsulation is not None and number == errno.EOPNOTSUPP:
        return f"this kernel has no encapsulation {item.encapsulation.kind} for routes (CONFIG_LWTUNNEL and its parts)"
    if isinstance(item, Qdisc) and number in (errno.ENOENT, errno.EOPNOTSUPP):
        return (
            f"this kernel has no queueing discipline {item.kind}: load its module ('modprobe sch_{item.kind}'), "
            "or plan another one"
        )
    if isinstance(item, Address) and item.interface.version == 6 and number == errno.EINVAL:
        return (
            f"IPv6 needs an MTU of 1280 on {item.link}: raise Backend.MTU or the underlay's, or set EnableIPv6 to false"
        )
    if isinstance(item, Rule) and number in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
        return f"this kernel has no policy rules for IPv{item.version} (CONFIG_IP_MULTIPLE_TABLES)"
    if not isinstance(item, Link):
        return ""
    info = item.info
    if isinstance(info, VxlanInfo) and number == errno.ENODEV:
        return f"its underlay interface {info.underlay} is not there"
    if isinstance(info, VxlanInfo) and number == errno.EINVAL:
        return (
            f"MTU {item.mtu} must leave room for the encapsulation (50 bytes over IPv4, 70 over IPv6) "
            f"within that of {info.underlay}"
        )
    return _generic_advice(info.kind, number) if isinstance(info, GenericInfo) else ""


def _generic_advice(kind: str, number: int) -> str:
    if number == errno.EOPNOTSUPP and kind == "wireguard":
        return NO_WIREGUARD
    if number == errno.EOPNOTSUPP:
        return (
            f"this kernel has no {kind} devices: load its module ('modprobe {module_of(kind)}'), or set another "
            "Backend.Type in the network config (host-gw needs no module, udp just tun)"
        )
    if number == errno.EEXIST:
        return f"another {kind} device has the same ends: see 'ip -d link show type {kind}'"
    return ""


def module_of(kind: str) -> str:
    """The kernel's module for a kind of devices."""
    return _MODULES.get(kind, kind)


def no_member(write: Write, wanted: Link) -> KernelError:
    """The error for a master that takes no other devices."""
    return refusal(
        write,
        errno.EOPNOTSUPP,
        f"{wanted.master} takes no other devices",
        "name a bridge, a VRF or a bond as its master",
    )


def check_link_layer(write: Write, item: Neighbour, own: str | None) -> None:
    """See whether a neighbour's link-layer address has the length that its link's has, which the kernel does not.

    :param own: the link's, in hexadecimal; empty or ``None`` where it has none.
    :raises KernelError: it has not.
    """
    if not own or (len(own) == _MAC_LENGTH and type(item.mac) is str):
        return
    length = 6 if isinstance(item.mac, str) else len(item.mac.packed)
    there = (len(own) + 1) // 3
    if length != there:
        raise refusal(
            write,
            errno.EINVAL,
            f"link-layer addresses on {item.link} have {there} bytes, not {length}",
            "a MAC address belongs to an Ethernet device, an IPv4 address to a gre device",
        )


def check_way(write: Write, item: FdbEntry, link: Link | None) -> None:
    """See whether a forwarding entry says more than how it differs from its device: the kernel forgets the rest.

    :raises KernelError: it does.
    """
    info = link.info if link is not None else None
    if not isinstance(info, VxlanInfo):
        return
    for name, value, own in (("port", item.port, info.port), ("vni", item.vni, info.vni)):
        if value is not None and value == own:
            raise refusal(write, errno.EINVAL, f"{name} {value} is what {item.link} has", f"leave {name} out")


def not_kept(wanted: KernelObject, actual: KernelObject) -> KernelError:
    """The error for an object that the kernel has taken, and keeps in another way (it rounds, or has a limit)."""
    kept = ", ".join(f"{name} {want!r} as {have!r}" for name, want, have in _differences(wanted, actual))
    return KernelError(f"can't set {wanted}: the kernel keeps {kept}; ask for what it keeps, or see what else sets it")


def changed(write: Write) -> str:
    """What somebody had done to the object of a write that puts it right."""
    if write.new is None:
        return f"{write.old} was added"
    if write.old is None:
        return f"{write.new} was gone"
    found = (f"{name} {_said(have)}" for name, _, have in _differences(write.new, write.old))
    return f"{write.new} had {', '.join(found)}"


def _said(value: object) -> str:
    if value is SEVERAL:
        return "several"
    return repr(value) if isinstance(value, str) else str(value)


def _differences(wanted: object, actual: object) -> Iterator[tuple[str, object, object]]:
    """The fields that differ, with both values, those of their values first."""
    for each in fields(wanted):  # type: ignore[arg-type] # all of the model's are dataclasses
        want, have = getattr(wanted, each.name), getattr(actual, each.name)
        if want != have and is_dataclass(want) and type(want) is type(have):
            yield from _differences(want, have)
        elif want != have:
            yield each.name, want, have


def foreign_link(write: Write, link: Link) -> KernelError:
    """The error for a write to, or in place of, a device that has our name and is not ours."""
    return refusal(
        write,
        errno.EEXIST,
        f"{link.name} is a {link.info.kind} device that is not ours",
        "rename or delete it, or choose another name (VNI)",
    )


def foreign_route(write: Write, theirs: Route, protocol: int) -> KernelError:
    """The error for a route whose destination and metric somebody else's has."""
    words = f"{theirs} proto {protocol}"
    family = "-6 " if theirs.destination.version == 6 else ""
    return refusal(
        write,
        errno.EEXIST,
        f"a foreign {words} is in the way",
        f"if nobody needs it: 'ip {family}{words.replace('route', 'route delete', 1)}'",
    )


def foreign_label(write: Write, protocol: int) -> KernelError:
    """The error for a label that has somebody else's route."""
    label = write.key[1]
    return refusal(
        write,
        errno.EEXIST,
        f"a foreign mpls route {label} proto {protocol} is in the way",
        f"choose another label, or, if nobody needs it: 'ip -f mpls route delete {label}'",
    )
