"""What a refused write means: the object, the kernel's reason, and what a user can do about it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import fields, is_dataclass

from pyflannel.errors import KernelError
from pyflannel.kernel.model import GenericInfo, KernelObject, Kind, Link, Route, VxlanInfo
from pyflannel.kernel.port import Write

__all__ = ["NO_WIREGUARD", "foreign_link", "foreign_route", "not_kept", "refusal"]

NO_WIREGUARD = (
    "this kernel has no WireGuard: load its module ('modprobe wireguard'; Linux has it from 5.6 on), or let pyflannel "
    'carry the packets by itself: "Implementation": "userspace" (or "auto") in Backend of the network config'
)

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
    errno.EADDRINUSE: "another socket has the UDP port: 'ss -lnup'",
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
    advice = advice or _ADVICE.get(number, "")
    if number == errno.ENODEV and isinstance(item, Link) and isinstance(item.info, VxlanInfo):
        advice = f"its underlay interface {item.info.underlay} is not there"
    if number == errno.EOPNOTSUPP and isinstance(item, Link) and isinstance(item.info, GenericInfo):
        kind = item.info.kind
        advice = (
            f"this kernel has no {kind} devices: load its module ('modprobe {kind}'), or set another Backend.Type in "
            "the network config (host-gw needs no module, udp just tun)"
        )
        advice = NO_WIREGUARD if kind == "wireguard" else advice
    if number == errno.EEXIST and isinstance(item, Link) and isinstance(item.info, GenericInfo) and not advice:
        advice = f"another {item.info.kind} device has the same ends: see 'ip -d link show type {item.info.kind}'"
    if number == errno.EINVAL and isinstance(item, Link) and isinstance(item.info, VxlanInfo):
        advice = (
            f"MTU {item.mtu} must leave room for the encapsulation (50 bytes over IPv4, 70 over IPv6) "
            f"within that of {item.info.underlay}"
        )
    return KernelError(f"can't {verb} {item}: {reason}" + (f"; {advice}" if advice else ""))


def not_kept(wanted: KernelObject, actual: KernelObject) -> KernelError:
    """The error for an object that the kernel has taken, and keeps in another way (it rounds, or has a limit)."""
    kept = ", ".join(_differences(wanted, actual))
    return KernelError(f"can't set {wanted}: the kernel keeps {kept}; ask for what it keeps, or see what else sets it")


def _differences(wanted: object, actual: object) -> Iterator[str]:
    """The fields that differ, those of their values first."""
    for each in fields(wanted):  # type: ignore[arg-type] # all of the model's are dataclasses
        want, have = getattr(wanted, each.name), getattr(actual, each.name)
        if want != have and is_dataclass(want) and type(want) is type(have):
            yield from _differences(want, have)
        elif want != have:
            yield f"{each.name} {want!r} as {have!r}"


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
        f"somebody else's {words} is in the way",
        f"if nobody needs it: 'ip {family}{words.replace('route', 'route delete', 1)}'",
    )
