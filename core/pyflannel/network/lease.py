"""Leases as values: the subnets a node holds, how it can be reached, and the text both have in a store.

A lease is one record of the store. Its *key* names the subnets (``172.16.68.0-24``, dual-stack
``172.16.68.0-24&fd00:10:0:1::-64``, IPv6-only ``fd00:10:0:1::-64``), its *value* is flannel's JSON document of
attributes. Both directions live here, so that stores carry opaque text and nothing else knows the schema. Unknown
attributes are kept and written back, within bounds: a newer flannel's fields survive a renewal by us. A subnet has one
spelling as a key; and how long each text may be is bounded here, where it comes in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network, NetmaskValueError
from socket import AF_INET, inet_ntop, inet_pton
from typing import Any, Final, TypeAlias

from pyflannel.errors import MalformedError
from pyflannel.network.marks import NO_MARKS, Marks
from pyflannel.network.parsing import DECODER, deeper
from pyflannel.small.text import cut

__all__ = [
    "DEFAULT_MARGIN",
    "JSON",
    "MARGIN_KEY",
    "MAX_KEY",
    "MAX_NODE_ID",
    "MAX_VALUE",
    "IPAddress",
    "IPNetwork",
    "Lease",
    "LeaseAttributes",
    "Subnets",
    "bounded",
    "lies_in",
    "meets",
]

IPAddress: TypeAlias = IPv4Address | IPv6Address
"""An address of either family."""

IPNetwork: TypeAlias = IPv4Network | IPv6Network
"""A network of either family."""

MAX_KEY: Final = 128
"""Characters of a lease's key at most; the longest has 65."""

MAX_VALUE: Final = 1 << 15
"""Characters of a lease's value at most."""

MARGIN_KEY: Final = "RenewBefore"
"""The key of a lease's attributes with the seconds before its end at which its node renews it, where that is not
:data:`DEFAULT_MARGIN`: so anybody can tell that a node has missed it."""

DEFAULT_MARGIN: Final = 3600.0
"""Seconds before a lease's end at which a node renews it, unless its settings or a short lease say otherwise."""

MAX_NODE_ID: Final = 256
"""Characters of ``NodeID`` at most."""

_MAX_TYPE, _MAX_EXTRA, _MAX_DEPTH = 64, 1 << 13, 32
"""Characters of ``BackendType``, and of all unknown attributes together; how deep those may go."""

JSON: TypeAlias = Any
"""A value as :func:`json.loads` returns it."""


@dataclass(frozen=True, slots=True)
class Subnets:
    """The subnets one lease covers: an IPv4 network, an IPv6 network, or one of each."""

    ipv4: IPv4Network | None = None
    ipv6: IPv6Network | None = None

    def __post_init__(self) -> None:
        if self.ipv4 is None and self.ipv6 is None:
            raise MalformedError("a lease needs an IPv4 or an IPv6 subnet")

    def __str__(self) -> str:
        return " ".join(str(subnet) for subnet in self.each)

    @property
    def each(self) -> tuple[IPNetwork, ...]:
        """The subnets that are present, IPv4 first."""
        if self.ipv4 is None:
            return () if self.ipv6 is None else (self.ipv6,)
        return (self.ipv4,) if self.ipv6 is None else (self.ipv4, self.ipv6)

    def of(self, version: int) -> IPNetwork | None:
        """The subnet of IP version 4 or 6."""
        return self.ipv4 if version == 4 else self.ipv6

    @property
    def key(self) -> str:
        """The lease's key in a store, as flannel writes it."""
        ipv4, ipv6 = self.ipv4, self.ipv6
        first = "" if ipv4 is None else f"{inet_ntop(AF_INET, ipv4.network_address.packed)}-{ipv4.prefixlen}"
        if ipv6 is None:
            return first  # nearly always: thousands of leases come by here
        second = f"{ipv6.network_address}-{ipv6.prefixlen}"
        return f"{first}&{second}" if first else second

    @classmethod
    def from_key(cls, key: str) -> Subnets:
        """Parse a lease's key.

        :raises MalformedError: it is not a subnet key, or its addresses have host bits set.
        """
        plain = _plain_ipv4(key)
        if plain is not None:
            return cls(plain)
        if len(key) > MAX_KEY:
            raise MalformedError(f"lease key {cut(key)!r}: it is longer than any")
        first, separator, second = key.partition("&")
        try:
            if separator:
                subnets = cls(_ipv4_from_key(first), _ipv6_from_key(second))
            elif ":" in first:
                subnets = cls(None, _ipv6_from_key(first))
            else:
                subnets = cls(_ipv4_from_key(first), None)
        except (AddressValueError, NetmaskValueError, ValueError) as error:
            raise MalformedError(
                f"lease key {key!r}: {error}; expected 172.16.68.0-24, fd00:10:0:1::-64 or both joined by '&'"
            ) from None
        if subnets.key != key:  # or one subnet would have several records
            raise MalformedError(f"lease key {key!r}: another spelling of {subnets.key}, which is the one that counts")
        return subnets

    def overlaps(self, other: Subnets) -> bool:
        """Whether any address belongs to both."""
        return _overlap(self.ipv4, other.ipv4) or _overlap(self.ipv6, other.ipv6)


def _overlap(one: IPNetwork | None, other: IPNetwork | None) -> bool:
    """Whether two networks of one family overlap; unlike theirs, this leaves no cached values behind in either."""
    if one is None or other is None:
        return False
    shift = one.max_prefixlen - min(one.prefixlen, other.prefixlen)
    return int(one.network_address) >> shift == int(other.network_address) >> shift


def lies_in(network: IPNetwork, space: IPNetwork) -> bool:
    """Whether ``network`` is a part of ``space``, or all of it; never if they are of two families."""
    if network.version != space.version or network.prefixlen < space.prefixlen:
        return False
    shift = space.max_prefixlen - space.prefixlen
    return int(network.network_address) >> shift == int(space.network_address) >> shift


def meets(one: IPNetwork, other: IPNetwork) -> bool:
    """Whether two networks have addresses in common; never if they are of two families."""
    return one.version == other.version and _overlap(one, other)


def _split_key(part: str) -> tuple[str, int]:
    address, separator, length = part.rpartition("-")
    if not separator or not (length.isascii() and length.isdigit()):
        raise ValueError(f"{part!r} has no prefix length")
    if not int(length):
        raise ValueError(f"{part!r} is every address")
    return address, int(length)


_LENGTHS: Final = {str(length): length for length in range(1, 33)}
"""The prefix lengths of IPv4 subnets, by their one spelling."""


def _plain_ipv4(key: str) -> IPv4Network | None:
    """The subnet of a key that is an IPv4 one and right, in half the time: thousands of leases come by here."""
    address, _, length = key.rpartition("-")
    try:
        packed = inet_pton(AF_INET, address)
        if length in _LENGTHS and inet_ntop(AF_INET, packed) == address:
            return IPv4Network((packed, _LENGTHS[length]))
    except (OSError, ValueError):
        pass  # which of the ways in which it is not is found out slowly
    return None


def _ipv4_from_key(part: str) -> IPv4Network:
    address, length = _split_key(part)
    return IPv4Network((int(_ipv4(address)), length))


def _ipv4(text: str) -> IPv4Address:
    """An address as :class:`IPv4Address` reads it, in half the time: thousands of leases come by here."""
    try:
        return IPv4Address(inet_pton(AF_INET, text))
    except (OSError, ValueError):
        return IPv4Address(text)  # which says what is wrong with it


def _ipv6_from_key(part: str) -> IPv6Network:
    address, length = _split_key(part)
    if "%" in address:
        raise ValueError(f"{address!r} has a scope")
    return IPv6Network((int(IPv6Address(address)), length))


@dataclass(frozen=True, slots=True)
class LeaseAttributes:
    """How a node can be reached: the value of its lease.

    ``backend_type`` is ``None`` where the document has none (flannel's udp and alloc backends). ``backend_data`` and
    ``backend_v6_data`` are whatever the backend published. ``node_id`` is pyflannel's own addition, ``None`` on a
    lease that flanneld wrote. So are ``marks``, which tell machines of one node id apart, and ``twin_of``: the node id
    that a machine would go by, if another one didn't. ``extra`` keeps the keys we don't know.
    """

    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None
    backend_type: str | None = None
    backend_data: JSON = None
    backend_v6_data: JSON = None
    node_id: str | None = None
    extra: Mapping[str, JSON] = field(default_factory=dict)
    marks: Marks = NO_MARKS
    twin_of: str | None = None

    def public(self, version: int) -> IPAddress | None:
        """The public address of IP version 4 or 6."""
        return self.public_ip if version == 4 else self.public_ipv6

    @property
    def holder(self) -> str:
        """Whose lease it is, for people."""
        address = self.public_ip or self.public_ipv6
        return f"node {self.node_id!r} at {address}" if self.node_id else f"the node at {address}"

    def data(self, version: int) -> JSON:
        """What the backend published for IP version 4 or 6."""
        return self.backend_data if version == 4 else self.backend_v6_data

    @classmethod
    def from_json(cls, text: str) -> LeaseAttributes:
        """Parse a lease's value.

        :raises MalformedError: not a JSON object, or a field has the wrong type.
        """
        if len(text) > MAX_VALUE:
            raise MalformedError(f"lease value has more than {MAX_VALUE} characters")
        document = _decoded(text)
        if not isinstance(document, dict):
            raise MalformedError(f"lease value is not a JSON object but {type(document).__name__}")
        extra: dict[str, JSON] = {}
        known = document if document.keys() <= _FIELDS.keys() else _known(document, extra)
        fields: dict[str, Any] = {}
        try:
            for name, value in known.items():
                if value is not None:
                    field_name, read = _FIELDS[name]
                    fields[field_name] = read(name, value)
        except AddressValueError as error:
            raise MalformedError(f"lease value has a bad address: {cut(str(error))}") from None
        return cls(**fields, extra=bounded(extra) if extra else extra)

    def to_json(self) -> str:
        """The document as flannel writes it: one line, both public addresses always present, the rest when set."""
        document: dict[str, JSON] = {
            "PublicIP": str(self.public_ip) if self.public_ip else None,
            "PublicIPv6": str(self.public_ipv6) if self.public_ipv6 else None,
        }
        optional = {
            "BackendType": self.backend_type,
            "BackendData": self.backend_data,
            "BackendV6Data": self.backend_v6_data,
            "NodeID": self.node_id,
            "Machine": self.marks.to_document() or None,
            "TwinOf": self.twin_of,
        }
        document.update((name, value) for name, value in optional.items() if value is not None)
        document.update(self.extra)
        return json.dumps(document, separators=(",", ":"))

    def same_node(self, other: LeaseAttributes) -> bool:
        """Whether two leases were written by one node, as far as one can tell.

        The node id decides when both carry one. flanneld writes none and takes the public address for the identity,
        so that is what is compared otherwise.
        """
        if self.node_id is not None and other.node_id is not None:
            return self.node_id == other.node_id
        if self.public_ip is not None and other.public_ip is not None:
            return self.public_ip == other.public_ip
        return self.public_ipv6 is not None and self.public_ipv6 == other.public_ipv6


def _known(document: dict[str, JSON], extra: dict[str, JSON]) -> dict[str, JSON]:
    """What we know, under our own names; the rest comes into ``extra``."""
    known: dict[str, JSON] = {}
    for name, value in document.items():
        ours = _KNOWN.get(name) or _KNOWN.get(name.lower())
        if ours is None:
            extra[name] = value
        else:
            known[ours] = value
    return known


_decode = DECODER.raw_decode


def _decoded(text: str) -> JSON:
    """A JSON document's value."""
    try:
        value, end = _decode(text)
        if end == len(text):
            return value
    except (ValueError, RecursionError):
        pass  # blanks around it, or no JSON, which is said below
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"lease value is not JSON: {error}") from None


def _address(make: Callable[[str], IPAddress]) -> Callable[[str, JSON], IPAddress | None]:
    def read(name: str, value: JSON) -> IPAddress | None:
        text = _text(name, value)
        if "%" in text and make is IPv6Address:
            raise MalformedError(f"lease value: {name} is {cut(text)!r}, an address with a scope")
        return make(text) if text else None

    return read


def _at_most(limit: int) -> Callable[[str, JSON], str | None]:
    def read(name: str, value: JSON) -> str | None:
        text = _text(name, value)
        if len(text) > limit:
            raise MalformedError(f"lease value: a name of {len(text)} characters, {cut(text)!r}; {limit} are enough")
        return text or None

    return read


def _text(name: str, value: JSON) -> str:
    if not isinstance(value, str):
        raise MalformedError(f"lease value: {name} is {cut(repr(value))}, expected a string")
    return value


_FIELDS: Final[Mapping[str, tuple[str, Callable[[str, JSON], Any]]]] = {
    "PublicIP": ("public_ip", _address(_ipv4)),
    "PublicIPv6": ("public_ipv6", _address(IPv6Address)),
    "BackendType": ("backend_type", _at_most(_MAX_TYPE)),
    "BackendData": ("backend_data", lambda name, value: value),
    "BackendV6Data": ("backend_v6_data", lambda name, value: value),
    "NodeID": ("node_id", _at_most(MAX_NODE_ID)),
    "Machine": ("marks", lambda name, value: Marks.from_document(value)),
    "TwinOf": ("twin_of", _at_most(MAX_NODE_ID)),
}
"""What we know of a lease's document: each with its field, and how that is read from what isn't null."""

_KNOWN: Final = {name.lower(): name for name in _FIELDS} | {name: name for name in _FIELDS}


def bounded(extra: Mapping[str, JSON]) -> dict[str, JSON]:
    """The attributes besides those that flannel knows, as they are read: what is too large, or nested too deeply, is
    left behind.
    """
    kept: dict[str, JSON] = {}
    left = _MAX_EXTRA
    for name, value in extra.items():
        if deeper(value, _MAX_DEPTH):
            continue
        size = len(name) + len(json.dumps(value))
        if size <= left:
            kept[name] = value
            left -= size
    return kept


@dataclass(frozen=True, slots=True)
class Lease:
    """One node's place in the overlay: its subnets and how to reach them."""

    subnets: Subnets
    attributes: LeaseAttributes

    @property
    def key(self) -> str:
        """The lease's key in a store."""
        return self.subnets.key

    @classmethod
    def from_record(cls, key: str, value: str) -> Lease:
        """Read a lease from a store's key and value.

        :raises MalformedError: either can't be read.
        """
        return cls(Subnets.from_key(key), LeaseAttributes.from_json(value))

    def with_attributes(self, attributes: LeaseAttributes) -> Lease:
        """The same subnets, reachable in another way."""
        return replace(self, attributes=attributes)
