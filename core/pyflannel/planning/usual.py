"""Plans of the usual kind, from a lease's text straight to the plan's bytes: thousands differ in addresses alone.

A backend may say which leases are usual (:meth:`pyflannel.backend.Backend.usual`): those whose data holds, besides one
MAC address, nothing but what it names. It is asked to plan for one of them, made up with addresses of which none
occurs twice; where they stand in that plan, those of any other usual lease stand in its own. A second one that is
planned shows whether that is so. After that a usual lease costs no call, and no object.

Whatever is out of the ordinary about a lease, by the judgement of :mod:`~pyflannel.planning.judging` or in its
spelling, is left to be read, judged and planned in full. So this answers with just what that would, or not at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from operator import itemgetter
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton
from struct import Struct
from typing import Any, Final, NamedTuple

from pyflannel.backend import Node, UsualData
from pyflannel.kernel.packed import FDB4, FDB6, ROUTE4, ROUTE6, Plan, part_index, parts
from pyflannel.network.document import FamilyConfig
from pyflannel.network.lease import MAX_NODE_ID, IPNetwork, Lease, LeaseAttributes, Subnets
from pyflannel.network.parsing import DECODER
from pyflannel.planning.desired import Keys
from pyflannel.planning.judging import no_hosts, nowhere, own_addresses
from pyflannel.planning.spread import metric_at

__all__ = ["Usual", "UsualPlan", "usual_plans"]

_LONGEST: Final = 2048
"""Characters of a text that may be usual."""

_IGNORED: Final = frozenset({"NodeID", "TwinOf", "Machine"})
"""What may stand in any lease and changes no plan."""

_MAC: Final = re.compile("[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}")
_ZERO_MAC: Final = bytes(6)
_METRIC: Final = Struct("=I")
_ADDRESS_FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
_decode = DECODER.raw_decode

_REMOTES: Final[dict[int, tuple[Any, Any]]] = {
    4: (IPv4Address("203.0.113.77"), IPv4Address("198.51.100.78")),
    6: (IPv6Address("2001:db8:4d::77"), IPv6Address("2001:db8:4e::78")),
}
"""The public addresses of the two leases that are made up: for documentation (RFC 5737, RFC 3849)."""

_MACS: Final = {4: ("02:00:5e:4d:53:77", "02:00:5e:4e:53:78"), 6: ("02:00:5e:4d:54:79", "02:00:5e:4e:54:7a")}


class UsualPlan(NamedTuple):
    """A plan, its keys, and the subnets that it is for: IP version, length and leading bits of each."""

    plan: bytes
    keys: Keys
    subnets: tuple[tuple[int, int, int], ...]


class _Family:
    """What one IP version's half of a usual lease is held against."""

    def __init__(self, family: FamilyConfig[Any], node: Node, usual: UsualData) -> None:
        whole, underlay = family.network, node.underlay
        version = self.version = whole.version
        self.bits: Final[int] = whole.max_prefixlen
        self.length = family.subnet_len
        self.suffix = f"-{self.length}"
        self.host = self.bits - self.length
        self.spare = self.bits - whole.prefixlen
        self.leading = int(whole.network_address) >> self.spare
        subnet = node.subnets.of(version)
        self.shift = self.bits - min(self.length, subnet.prefixlen) if subnet is not None else self.bits
        self.own = int(subnet.network_address) >> self.shift if subnet is not None else -1
        public, local = underlay.public(version), underlay.local(version)
        besides = (address for address in underlay.also_own if address.version == version)
        taken = [public, local, *besides, *(address for address, _ in no_hosts(node, version))]
        self.nobodies = frozenset(int(address) for address in taken if address is not None)
        self.nowhere = nowhere(version)
        covers = any(address is not None and address in whole for address in own_addresses(underlay))
        least, most = (family.subnet_min, family.subnet_max) if covers else (whole, whole)
        self.first, self.last = int(least.network_address), int(most.broadcast_address)
        self.said = dict(usual.said)
        self.mac = usual.mac
        self.apart = frozenset(map(_packed, usual.apart))
        self.public_name = "PublicIP" if version == 4 else "PublicIPv6"
        self.data_name = "BackendData" if version == 4 else "BackendV6Data"
        self.af = _ADDRESS_FAMILIES[version]

    def subnet(self, text: str) -> bytes | None:
        """The address of a subnet, as it stands in a lease's key."""
        if not text.endswith(self.suffix) or ("." in text and self.version == 6):
            return None
        name = text[: -len(self.suffix)]
        packed = inet_pton(self.af, name)
        number = int.from_bytes(packed, "big")
        usual = (
            inet_ntop(self.af, packed) == name
            and self.first <= number <= self.last
            and not number & ((1 << self.host) - 1)
            and number >> self.shift != self.own
        )
        return packed if usual else None

    def public(self, text: Any) -> bytes | None:
        """A public address that a node can have."""
        if type(text) is not str:
            return None
        packed = inet_pton(self.af, text)
        if self.version == 6 and inet_ntop(AF_INET6, packed) != text:
            return None
        number = int.from_bytes(packed, "big")
        if number in self.nobodies or number >> self.spare == self.leading:
            return None
        for first, last, _ in self.nowhere:
            if first <= number <= last:
                return None
        return packed

    def free(self, node: Node) -> list[IPNetwork]:
        """Two subnets of others, if there are so many; the last ones."""
        family = node.network.family(self.version)
        assert family is not None
        last = (family.subnet(index) for index in range(family.size - 1, -1, -1))
        return list(islice((each for each in last if int(each.network_address) >> self.shift != self.own), 2))

    def values(self, subnet: bytes, public: bytes, mac: bytes) -> tuple[bytes, bytes, bytes, bytes]:
        """What stands in a plan and is another for each lease; the last is the metric of its IPv4 route."""
        return subnet, public, mac, _METRIC.pack(metric_at(int.from_bytes(subnet, "big") >> self.host))

    def mac_of(self, data: Any) -> bytes | None:
        """The MAC address that usual data has."""
        said = self.said
        if type(data) is not dict or len(data) != len(said) + 1:
            return None
        mac = data.get(self.mac)
        if type(mac) is not str or not _MAC.fullmatch(mac):
            return None
        for name, value in said.items():
            told = data.get(name)
            if type(told) is not type(value) or told != value:
                return None
        packed = _packed(mac)
        return None if packed[0] & 1 or packed == _ZERO_MAC or packed in self.apart else packed


class Usual:
    """What is usual in one network, and the plans that follow.

    :param plan: one of them, with its ``keys``.
    :param values: what stands in it, as :meth:`_Family.values` has it.
    """

    def __init__(self, name: str, families: Sequence[_Family], plan: bytes, keys: Keys, values: list[bytes]) -> None:
        self._name, self._families = name, families
        self._names = _IGNORED | {"PublicIP", "PublicIPv6", "BackendType"} | {each.data_name for each in families}
        unused = {4: "PublicIP", 6: "PublicIPv6"}
        for family in families:
            del unused[family.version]
        self._unused = tuple(unused.values())
        self._constant: list[bytes] = []
        places = []
        for piece in _taken_apart(plan):
            if piece not in values:
                self._constant.append(piece)
            places.append(values.index(piece) if piece in values else len(values) + len(self._constant) - 1)
        self._pick = itemgetter(*places)
        self._placed, self._strays = _places(plan, keys.placed), _places(plan, keys.strays)

    def plan(self, key: str, value: str) -> UsualPlan | None:
        """The plan for a lease, if it is a usual one."""
        try:
            document = self._document(value)
            return None if document is None else self._plan(key.split("&"), document)
        except (OSError, ValueError, RecursionError):
            return None  # what is wrong with it is for others to say

    def _document(self, value: str) -> dict[str, Any] | None:
        """A lease's text, if there is nothing unusual about it as a whole."""
        document, end = _decode(value) if len(value) <= _LONGEST else (None, 0)
        if type(document) is not dict or end != len(value) or not self._names.issuperset(document):
            return None
        if document.get("BackendType") != self._name:
            return None
        for name in self._unused:
            if document.get(name) is not None:
                return None
        for name in ("NodeID", "TwinOf"):
            said = document.get(name)
            if said is not None and (type(said) is not str or len(said) > MAX_NODE_ID):
                return None
        return document

    def _plan(self, texts: list[str], document: dict[str, Any]) -> UsualPlan | None:
        families = self._families
        if len(texts) != len(families):
            return None
        values: list[bytes] = []
        subnets = []
        for family, text in zip(families, texts, strict=True):
            subnet = family.subnet(text)
            public = family.public(document.get(family.public_name))
            mac = family.mac_of(document.get(family.data_name))
            if subnet is None or public is None or mac is None:
                return None
            values += family.values(subnet, public, mac)
            subnets.append((family.version, family.length, int.from_bytes(subnet, "big") >> family.host))
        return self.made(values, tuple(subnets))

    def made(self, values: list[bytes], subnets: tuple[tuple[int, int, int], ...] = ()) -> UsualPlan:
        """The plan in which these values stand."""
        plan = b"".join(self._pick(values + self._constant))
        return UsualPlan(
            plan, Keys([plan[each] for each in self._placed], [plan[each] for each in self._strays]), subnets
        )


def usual_plans(
    name: str, node: Node, usual: Mapping[int, UsualData], planned: Callable[[Lease], Plan]
) -> Usual | None:
    """What is usual for the backend ``name`` on ``node``, by IP version; ``None`` if there is nothing of the kind.

    :param planned: its plan for a lease, examined.
    """
    versions = node.network.versions
    if not versions or any(version not in usual for version in versions):
        return None
    families = [_Family(family, node, usual[family.network.version]) for family in node.network.families]
    examples = _examples(name, node, families)
    plans = [planned(lease) for lease, _ in examples]
    found = [
        (plan, Keys.of(plan, lease.subnets), values)
        for plan, (lease, values) in zip(plans, examples, strict=True)
        if isinstance(plan, bytes)
    ]
    if len(found) < 2:
        return None
    (plan, keys, values), (other, other_keys, other_values) = found
    made = Usual(name, families, plan, keys, values)
    return made if made.made(other_values) == UsualPlan(other, other_keys, ()) else None


def _examples(name: str, node: Node, families: Sequence[_Family]) -> list[tuple[Lease, list[bytes]]]:
    """Two leases that are made up, and what of them stands in their plans; none in too small a network."""
    free = [each.free(node) for each in families]
    if any(len(subnets) < 2 for subnets in free):
        return []
    examples = []
    for number in (0, 1):
        data: dict[int, Any] = {}
        values: list[bytes] = []
        for each, subnets in zip(families, free, strict=True):
            mac, public = _MACS[each.version][number], _REMOTES[each.version][number]
            data[each.version] = {**each.said, each.mac: mac}
            values += each.values(subnets[number].network_address.packed, public.packed, _packed(mac))
        ours: dict[int, Any] = {each.version: subnets[number] for each, subnets in zip(families, free, strict=True)}
        publics = {version: _REMOTES[version][number] for version in ours}
        attributes = LeaseAttributes(publics.get(4), publics.get(6), name, data.get(4), data.get(6))
        examples.append((Lease(Subnets(ours.get(4), ours.get(6)), attributes), values))
    return examples


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _taken_apart(plan: bytes) -> Iterator[bytes]:
    """A plan in pieces: each address and metric by itself, and what lies between."""
    for part in parts(plan):
        form = part[0]
        if form in (ROUTE4, ROUTE6):
            end = 5 if form == ROUTE4 else 17
            yield from (part[:1], part[1:end], part[end : end + 1], part[end + 1 : end + 5], part[end + 5 : end + 7])
            yield from (part[end + 7 : -1], part[-1:])
        elif form in (FDB4, FDB6):
            yield from (part[:3], part[3:9], part[9:])
        else:
            yield from (part[:3], part[3:-6], part[-6:])


def _places(plan: bytes, keys: Sequence[object]) -> list[slice]:
    """Where the keys of its parts stand in a plan."""
    found, start = [], 0
    for part in parts(plan):
        key = part_index(part)
        if key in keys:
            found.append(slice(start + 1, start + 1 + len(key)))
        start += len(part)
    return found
