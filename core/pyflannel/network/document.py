"""The network document: what the whole overlay looks like, as every node reads it from the store.

``NetworkConfig.from_json`` is the one gate. Behind it every value is typed, every default filled in and every rule of
flannel's checked, so nothing else validates. Keys match without regard to case, as Go's decoder reads them, and keys
we don't know are kept aside and reported, not refused, because a newer flannel may share the document with us.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network, summarize_address_range
from typing import Generic, NamedTuple, TypeVar

from pyflannel.errors import ConfigError
from pyflannel.network.change import DOCUMENT_KEY, LAST_KEY
from pyflannel.network.lease import JSON, IPAddress, IPNetwork, Subnets
from pyflannel.network.parsing import json_object, overridden
from pyflannel.small.text import cut

__all__ = ["KEYS", "UNTYPED", "FamilyConfig", "NetworkConfig", "NetworkSeed", "with_backend"]

DEFAULT_BACKEND = "vxlan"

UNTYPED = "udp"
"""What flanneld runs with a document that names no backend. Its leases carry no type then."""

N = TypeVar("N", IPv4Network, IPv6Network)


@dataclass(frozen=True, slots=True)
class FamilyConfig(Generic[N]):
    """One address family's half of the document: a network cut into subnets of one length.

    ``subnet_min`` and ``subnet_max`` are the first and the last subnet that may be leased, both inclusive.
    """

    network: N
    subnet_len: int
    subnet_min: N
    subnet_max: N

    @property
    def step(self) -> int:
        """Addresses per subnet."""
        return 1 << (self.network.max_prefixlen - self.subnet_len)

    @property
    def size(self) -> int:
        """How many subnets may be leased."""
        return (int(self.subnet_max.network_address) - int(self.subnet_min.network_address)) // self.step + 1

    def subnet(self, index: int) -> N:
        """The leasable subnet number ``index``, 0 being ``subnet_min``."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        base = int(self.subnet_min.network_address) + index * self.step
        return type(self.network)((base, self.subnet_len))

    @property
    def unleasable(self) -> tuple[N, ...]:
        """The parts of the network in which no subnet may be leased: before the first one, and behind the last."""
        whole, least, most = self.network, self.subnet_min.network_address, self.subnet_max.broadcast_address
        parts: list[N] = []
        if whole.network_address != least:
            parts += summarize_address_range(whole.network_address, least - 1)
        if whole.broadcast_address != most:
            parts += summarize_address_range(most + 1, whole.broadcast_address)
        return tuple(parts)

    def index_range(self, subnet: IPNetwork) -> range:
        """The numbers of the leasable subnets that ``subnet`` (of any length) overlaps; empty if none."""
        return next(self.index_ranges((subnet,)))

    def index_ranges(self, subnets: Iterable[IPNetwork]) -> Iterator[range]:
        """The same for each of many."""
        base, step, size, bits = int(self.subnet_min.network_address), self.step, self.size, self.network.max_prefixlen
        for subnet in subnets:
            low = int(subnet.network_address) - base
            high = low + (1 << (bits - subnet.prefixlen)) - 1
            yield range(max(0, low // step), min(size, high // step + 1))

    def bounds(self, subnet: IPNetwork) -> bool:
        """Whether all of ``subnet``, of any length, lies where subnets may be leased."""
        first = int(subnet.network_address)
        last = first + (1 << (subnet.max_prefixlen - subnet.prefixlen)) - 1
        return int(self.subnet_min.network_address) <= first and last <= int(self.subnet_max.broadcast_address)

    def fits(self, subnet: IPNetwork | None) -> bool:
        """Whether ``subnet`` is one of those that may be leased."""
        return (
            subnet is not None
            and subnet.version == self.network.version
            and subnet.prefixlen == self.subnet_len
            and int(self.subnet_min.network_address)
            <= int(subnet.network_address)
            <= int(self.subnet_max.network_address)
        )


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """The validated network document. A family that is switched off is ``None``.

    ``assumption`` says which backend was taken, and why, if the document names none; empty if it names one.
    """

    ipv4: FamilyConfig[IPv4Network] | None
    ipv6: FamilyConfig[IPv6Network] | None
    backend_type: str
    backend_options: Mapping[str, JSON] = field(repr=False)  # there may be a shared key among them
    enable_nftables: bool = False
    unknown_keys: tuple[str, ...] = field(default=(), compare=False)
    assumption: str = field(default="", compare=False)

    def following(self, types: Iterable[str | None]) -> NetworkConfig:
        """This network with the backend that most of its nodes run, if the document names none.

        :param types: the backend type of each other node's lease, ``None`` where it has none.
        """
        running = Counter(UNTYPED if name is None else name.lower() for name in types)
        if not self.assumption or not running:
            return self
        most = max(running, key=lambda name: (running[name], name))
        assumption = f"the network config names no backend; {most} is what the network runs already"
        return replace(self, backend_type=most, assumption=assumption)

    def means(self, other: NetworkConfig) -> bool:
        """Whether both say the same; a backend that ``other`` only assumes says nothing."""
        if other.assumption:
            other = replace(other, backend_type=self.backend_type, backend_options=self.backend_options)
        return self == other

    @property
    def families(self) -> tuple[FamilyConfig[IPv4Network] | FamilyConfig[IPv6Network], ...]:
        """The families in use, IPv4 first."""
        return tuple(family for family in (self.ipv4, self.ipv6) if family is not None)

    def family(self, version: int) -> FamilyConfig[IPv4Network] | FamilyConfig[IPv6Network] | None:
        """The half for IP version 4 or 6; ``None`` if it is switched off."""
        return self.ipv4 if version == 4 else self.ipv6

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions in use, 4 first."""
        if self.ipv4 is None:
            return () if self.ipv6 is None else (6,)
        return (4,) if self.ipv6 is None else (4, 6)

    def contains(self, subnets: Subnets) -> bool:
        """Whether ``subnets`` lie inside this network, in just the families it uses."""
        return _inside(self.ipv4, subnets.ipv4) and _inside(self.ipv6, subnets.ipv6)

    def used(self, subnets: Subnets) -> Subnets:
        """``subnets`` without the families that this network does not use; all of them if it uses none."""
        ipv4 = subnets.ipv4 if self.ipv4 is not None else None
        ipv6 = subnets.ipv6 if self.ipv6 is not None else None
        if (ipv4 is None and ipv6 is None) or (ipv4 is subnets.ipv4 and ipv6 is subnets.ipv6):
            return subnets
        return Subnets(ipv4, ipv6)

    def fits(self, subnets: Subnets) -> bool:
        """Whether a node of this network could hold ``subnets``: the right families, lengths and bounds."""
        return (
            (self.ipv4 is None) == (subnets.ipv4 is None)
            and (self.ipv6 is None) == (subnets.ipv6 is None)
            and all(
                family.fits(subnet)
                for family, subnet in ((self.ipv4, subnets.ipv4), (self.ipv6, subnets.ipv6))
                if family is not None
            )
        )

    def regular(self, subnets: Subnets) -> bool:
        """Whether ``subnets`` are of the network's families and lengths, wherever in it they lie.

        A cluster that gives its nodes subnets gives them also those that nobody may lease, such as the first.
        """
        pairs = ((self.ipv4, subnets.ipv4), (self.ipv6, subnets.ipv6))
        return all(
            subnet is None if family is None else subnet is not None and subnet.prefixlen == family.subnet_len
            for family, subnet in pairs
        )

    @classmethod
    def from_json(cls, text: str, source: str = "network config") -> NetworkConfig:
        """Parse and validate the document.

        :param source: what the text was read from; every error begins with it.
        :raises ConfigError: naming the key, the value and the rule that is broken.
        """
        return cls._from_document(_Document(source, json_object(text, source)))

    @classmethod
    def _from_document(cls, document: _Document) -> NetworkConfig:
        enable_ipv4 = document.boolean("EnableIPv4", True)
        enable_ipv6 = document.boolean("EnableIPv6", False)
        if not (enable_ipv4 or enable_ipv6):
            raise document.error("EnableIPv4", False, "at least one of EnableIPv4 and EnableIPv6 must be true")
        ipv4 = _family(document, "", IPv4Network, _IPV4) if enable_ipv4 else None
        ipv6 = _family(document, "IPv6", IPv6Network, _IPV6) if enable_ipv6 else None
        if ipv4 is None:
            _check_unused(document, "", 4)
        if ipv6 is None:
            _check_unused(document, "IPv6", 6)
        backend = document.get("Backend")
        if backend is None and not document.has("Backend"):
            backend = {"Type": DEFAULT_BACKEND}
        if not isinstance(backend, dict):
            raise document.error("Backend", backend, 'must be an object such as {"Type": "vxlan"}')
        types = [value for name, value in backend.items() if name.lower() == "type"]
        if not types:
            raise document.missing("Backend.Type", f"name the backend, such as {DEFAULT_BACKEND!r}")
        backend_type = next((name for name in reversed(types) if name is not None), None)
        if not isinstance(backend_type, str) or not backend_type:
            raise document.error(
                "Backend.Type", backend_type, f"must be the name of a backend, such as {DEFAULT_BACKEND!r}"
            )
        _check_mtu(document, backend)
        return cls(
            ipv4=ipv4,
            ipv6=ipv6,
            backend_type=backend_type.lower(),
            backend_options={name: value for name, value in backend.items() if name.lower() != "type"},
            enable_nftables=document.boolean("EnableNFTables", False),
            unknown_keys=document.unknown,
            assumption="" if document.has("Backend") else _ASSUMED,
        )


_ASSUMED = f"the network config names no backend; {DEFAULT_BACKEND} is assumed (flanneld would run {UNTYPED})"


def with_backend(text: str, backend: str) -> str:
    """The valid document ``text`` with a backend, if it names none."""
    document = json_object(text, "network config")
    if any(name.lower() == "backend" for name in document):
        return text
    return json.dumps({**document, "Backend": {"Type": backend}})


@dataclass(frozen=True, slots=True)
class NetworkSeed:
    """The network document to create if the store has none.

    :param document: its JSON text, validated.
    :param source: where it came from, for messages.
    :param binding: a stored document that means something else is a reason not to run (``--net-config-path``).
    """

    document: str
    source: str
    binding: bool


KEYS = (
    "Network",
    "SubnetLen",
    "SubnetMin",
    "SubnetMax",
    "EnableIPv4",
    "EnableIPv6",
    "EnableNFTables",
    "IPv6Network",
    "IPv6SubnetLen",
    "IPv6SubnetMin",
    "IPv6SubnetMax",
    "Backend",
)
"""The document's keys, as flannel writes them."""


class _Document:
    """The JSON object with Go's key matching and errors that name key, value and rule."""

    def __init__(self, source: str, document: Mapping[str, JSON]) -> None:
        self.source = source
        names = {name.lower(): name for name in KEYS}
        self._values: dict[str, JSON] = {}
        for name, value in document.items():
            key = names.get(name.lower())
            if key is not None and overridden(self._values.get(key), value):
                self._values[key] = value
        self.unknown = tuple(
            name for name in document if name.lower() not in names and name not in (DOCUMENT_KEY, LAST_KEY)
        )

    def has(self, key: str) -> bool:
        return key in self._values

    def get(self, key: str) -> JSON:
        return self._values.get(key)

    def error(self, key: str, value: JSON, rule: str) -> ConfigError:
        return ConfigError(f"{self.source}: {key} is {cut(json.dumps(value))}: {rule}")

    def missing(self, key: str, rule: str) -> ConfigError:
        near = difflib.get_close_matches(key, self.unknown, 1)
        return ConfigError(f"{self.source}: {key} is missing: {rule}" + (f" (is {near[0]!r} a typo?)" if near else ""))

    def boolean(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, value, "must be true or false")
        return value

    def length(self, key: str) -> int | None:
        """The length of a prefix, of whatever is one to flanneld: it has no sign, and 64 bits."""
        value = self.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 64):
            return value
        raise self.error(key, value, "must be a whole number, 0 or more")

    def address(self, key: str, version: int) -> IPAddress | None:
        """An address; the unspecified one is Go's way of saying absent, and for IPv6 null is, too."""
        value = self.get(key)
        if value is None and (version == 6 or not self.has(key)):
            return None
        try:
            address = ip_address(value) if isinstance(value, str) and "%" not in value else None
        except ValueError:
            address = None
        if version == 4 and isinstance(address, IPv6Address):
            address = address.ipv4_mapped or address
        if address is None or address.version != version:
            raise self.error(key, value, f"must be an IPv{version} address")
        return None if address.is_unspecified else address


LARGEST_MTU = 65535
"""What the length field of an IP packet can say (RFC 791)."""


def _check_mtu(document: _Document, backend: Mapping[str, JSON]) -> None:
    """Refuse an MTU that no packet can have, whatever else the backend makes of its options."""
    for name, value in backend.items():
        if name.lower() == "mtu" and isinstance(value, int) and not 0 <= value <= LARGEST_MTU:
            raise document.error("Backend.MTU", value, f"must be between 0 and {LARGEST_MTU}")


_CIDR = re.compile(r"[0-9A-Fa-f.:]+/[0-9]+")
"""What Go reads as a network; :mod:`ipaddress` would take netmasks and scopes too, and flanneld would not start."""


class _Rules(NamedTuple):
    """What differs between the families: the smallest network, the usual subnet length, an example."""

    version: int
    bits: int
    longest: int
    subnet_len: int
    example: str


_IPV4 = _Rules(4, 32, 28, 24, "10.244.0.0/16")
_IPV6 = _Rules(6, 128, 124, 64, "fd00:10::/48")


def _family(document: _Document, prefix: str, kind: type[N], rules: _Rules) -> FamilyConfig[N]:
    network_key, len_key = f"{prefix}Network", f"{prefix}SubnetLen"
    network = _network(document, network_key, kind, rules)
    length = document.length(len_key)
    if not length:  # 0 is Go's way of saying absent
        length = max(rules.subnet_len, network.prefixlen + 2)
    elif not network.prefixlen + 2 <= length <= rules.bits - 2:
        raise document.error(
            len_key,
            length,
            f"must be between {network.prefixlen + 2} ({network_key}'s length + 2) and {rules.bits - 2}",
        )
    step = 1 << (rules.bits - length)
    last = int(network.broadcast_address) + 1 - step
    min_key, max_key = f"{prefix}SubnetMin", f"{prefix}SubnetMax"
    subnet_min = _bound(document, min_key, network, length, int(network.network_address) + step)
    subnet_max = _bound(document, max_key, network, length, last)
    if int(subnet_min.network_address) > int(subnet_max.network_address):
        raise document.error(
            min_key, str(subnet_min.network_address), f"lies behind {max_key} ({subnet_max.network_address})"
        )
    return FamilyConfig(network, length, subnet_min, subnet_max)


def _check_unused(document: _Document, prefix: str, version: int) -> None:
    """A family that is off need not make sense, but what is said of it must be readable: flanneld reads it all.

    To it an IPv4 text is one of IPv6, too.
    """
    key = f"{prefix}Network"
    text = document.get(key)
    if document.has(key):
        network = _network_of(text)
        if network is None or network.version > version:
            raise document.error(key, text, f"must be an IPv{version} network in CIDR form; leave the key out")
    document.length(f"{prefix}SubnetLen")
    for bound in (f"{prefix}SubnetMin", f"{prefix}SubnetMax"):
        if version == 4 or not _is_ipv4(document.get(bound)):
            document.address(bound, version)


def _is_ipv4(text: JSON) -> bool:
    try:
        return isinstance(text, str) and ip_address(text).version == 4
    except ValueError:
        return False


def _network(document: _Document, key: str, kind: type[N], rules: _Rules) -> N:
    network = _network_text(document, key, kind, rules)
    if network.prefixlen > rules.longest:
        raise document.error(key, str(network), f"too small: must be a /{rules.longest} or larger")
    if network.prefixlen == 0:
        raise document.error(key, str(network), "is every address there is; must be a /1 or smaller")
    whose = next((whose for block, whose in _UNROUTED[rules.version] if _lies_in(network, block)), None)
    if whose is not None:
        raise document.error(
            key, str(network), f"{whose} addresses, to which nothing is routed; use others, such as {rules.example}"
        )
    return network


_UNROUTED = {
    4: ((ip_network("127.0.0.0/8"), "loopback"), (ip_network("224.0.0.0/4"), "multicast")),
    6: (
        (ip_network("::ffff:0:0/96"), "IPv4's own"),
        (ip_network("fe80::/10"), "link-local"),
        (ip_network("ff00::/8"), "multicast"),
    ),
}
"""What the kernel forwards to no container (RFC 6890); it does forward the rest of what is reserved."""


def _lies_in(network: IPNetwork, block: IPNetwork) -> bool:
    return network.prefixlen >= block.prefixlen and network.network_address in block


def _network_text(document: _Document, key: str, kind: type[N], rules: _Rules) -> N:
    text = document.get(key)
    if not document.has(key):
        raise document.missing(key, f"EnableIPv{rules.version} needs the overlay's network, such as {rules.example}")
    network = _network_of(text)
    if not isinstance(network, kind):
        raise document.error(key, text, f"must be an IPv{rules.version} network in CIDR form, such as {rules.example}")
    return network


def _network_of(text: JSON) -> IPNetwork | None:
    try:
        return ip_network(text, strict=False) if isinstance(text, str) and _CIDR.fullmatch(text) else None
    except ValueError:
        return None


def _bound(document: _Document, key: str, network: N, length: int, default: int) -> N:
    kind = type(network)
    given = document.address(key, network.version)
    if given is None:
        return kind((default, length))
    if given not in network:
        raise document.error(key, str(given), f"lies outside the network {network}")
    if int(given) % (1 << (network.max_prefixlen - length)):
        raise document.error(key, str(given), f"is not the first address of a /{length}")
    return kind((int(given), length))


def _inside(family: FamilyConfig[N] | None, subnet: N | None) -> bool:
    if family is None or subnet is None:
        return family is None and subnet is None
    return subnet.subnet_of(family.network)
