"""What a route can do to the packets that it sends: put them into tunnels, give them segments or labels."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import ClassVar, Final, TypeAlias

from pyflannel.kernel.model.checks import ADDRESS_RULE, U8, U64, check_flags, check_number, is_address, refuse
from pyflannel.network.lease import IPAddress

__all__ = [
    "IMPLICIT_NULL",
    "MOST_LABEL",
    "MOST_LABELS",
    "MOST_SEGMENTS",
    "Encapsulation",
    "ForeignEncapsulation",
    "IpEncapsulation",
    "MplsEncapsulation",
    "Seg6Encapsulation",
    "is_label",
]

MOST_LABEL: Final = (1 << 20) - 1

IMPLICIT_NULL: Final = 3
"""The label that routers tell each other and never put on a packet (RFC 3032, 2.1)."""

MOST_LABELS: Final = 30
"""As many as the kernel takes (``MAX_NEW_LABELS`` in ``net/mpls/internal.h``)."""

MOST_SEGMENTS: Final = 126
"""As many as the length of a routing header can say, with one to spare for the destination of an inline one."""


@dataclass(frozen=True, slots=True)
class IpEncapsulation:
    """Packets along a route go into a tunnel to ``destination`` (``ip-route(8)``, encap ip and ip6).

    The route's link must be a device that asks each packet for its tunnel: one of kind vxlan, geneve, gre or ip6gre
    that is ``external`` (``IFLA_*_COLLECT_METADATA``).

    :param destination: the tunnel's other end; its version is that of the outer header.
    :param id: the tunnel's number, as a VNI or a key of GRE.
    :param source: our end; ``None``: the kernel's choice.
    :param ttl: of the outer header, IPv6's hop limit; 0: the kernel's choice.
    :param tos: of the outer header, IPv6's traffic class.
    :param key: whether a header that can do without the number, as GRE's can, has it.
    """

    destination: IPAddress
    id: int = 0
    source: IPAddress | None = None
    ttl: int = 0
    tos: int = 0
    key: bool = False

    def __post_init__(self) -> None:
        if not is_address(self.destination):
            raise refuse(self, "destination", ADDRESS_RULE)
        check_number(self, "id", U64)
        if self.source is not None and (
            not is_address(self.source) or self.source.version != self.destination.version or not int(self.source)
        ):
            raise refuse(self, "source", "must be an address of the destination's version, or None")
        check_number(self, "ttl", U8)
        check_number(self, "tos", U8)
        check_flags(self, "key")

    @property
    def kind(self) -> str:
        """As after ``encap`` in ``ip-route(8)``."""
        return "ip" if self.destination.version == 4 else "ip6"

    def __str__(self) -> str:
        words = [self.kind, "id", str(self.id)] + (["src", str(self.source)] if self.source else [])
        words += ["dst", str(self.destination)]
        names = ("ttl", "tos") if self.destination.version == 4 else ("hoplimit", "tc")
        values = (str(self.ttl) if self.ttl else "", f"{self.tos:#x}" if self.tos else "")
        words += [f"{name} {value}" for name, value in zip(names, values, strict=True) if value]
        return " ".join([*words, "key"] if self.key else words)


@dataclass(frozen=True, slots=True)
class Seg6Encapsulation:
    """Packets along a route visit ``segments`` one after the other (RFC 8754; ``ip-route(8)``, encap seg6).

    :param segments: IPv6 addresses, the first one to visit first.
    :param inline: the list goes into the packet's own IPv6 header, and not into one around it.
    """

    kind: ClassVar[str] = "seg6"
    segments: tuple[IPv6Address, ...]
    inline: bool = False

    def __post_init__(self) -> None:
        segments = self.segments
        if type(segments) is not tuple or not 1 <= len(segments) <= MOST_SEGMENTS or not all(map(_is_ipv6, segments)):
            raise refuse(self, "segments", f"must be a tuple of 1 to {MOST_SEGMENTS} IPv6Addresses without a scope")
        check_flags(self, "inline")

    def __str__(self) -> str:
        return f"seg6 mode {'inline' if self.inline else 'encap'} segs {','.join(map(str, self.segments))}"


def _is_ipv6(value: object) -> bool:
    return type(value) is IPv6Address and value.scope_id is None


@dataclass(frozen=True, slots=True)
class MplsEncapsulation:
    """Packets along a route get ``labels`` (RFC 3032; ``ip-route(8)``, encap mpls).

    :param labels: the outermost first.
    :param ttl: of the labels; 0: the packet's own.
    """

    kind: ClassVar[str] = "mpls"
    labels: tuple[int, ...]
    ttl: int = 0

    def __post_init__(self) -> None:
        labels = self.labels
        if type(labels) is not tuple or not 1 <= len(labels) <= MOST_LABELS or not all(map(is_label, labels)):
            rule = (
                f"must be a tuple of 1 to {MOST_LABELS} whole numbers between 0 and {MOST_LABEL}, without 3 (implicit)"
            )
            raise refuse(self, "labels", rule)
        check_number(self, "ttl", U8)

    def __str__(self) -> str:
        return f"mpls {'/'.join(map(str, self.labels))}" + (f" ttl {self.ttl}" if self.ttl else "")


def is_label(value: object) -> bool:
    """Whether a packet can have it."""
    return type(value) is int and 0 <= value <= MOST_LABEL and value != IMPLICIT_NULL


@dataclass(frozen=True, slots=True)
class ForeignEncapsulation:
    """An encapsulation that we don't write, or with details that we don't; only ever actual, never desired."""

    kind: str

    def __str__(self) -> str:
        return f"foreign {self.kind}"


Encapsulation: TypeAlias = IpEncapsulation | Seg6Encapsulation | MplsEncapsulation | ForeignEncapsulation
"""What a route does to packets before it sends them (``ip-route(8)``, encap)."""
