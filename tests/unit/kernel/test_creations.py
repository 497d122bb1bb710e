"""What is made from packed plans' bytes is what the encoders make of their objects, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.kernel import wire
from pyflannel.kernel.creations import Creations
from pyflannel.kernel.model import FdbEntry, KernelObject, Kind, Neighbour, Route
from pyflannel.kernel.packed import PACKED_KINDS, pack

INDEXES = {"flannel.1": 4, "flannel-v6.1": 5, "eth0": 1 << 20}
"""Of the links on which entries can be made; there is another one on which they can't."""

links = st.sampled_from([*INDEXES, "gone"])
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":")) | st.sampled_from(
    ["00:00:00:00:00:00", "01:00:5e:00:00:01", "02:00:00:00:00:01"]
)
ipv4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ipv6 = st.integers(0, 2**128 - 1).map(IPv6Address)


@st.composite
def routes(draw: st.DrawFn) -> Route:
    net: Any = draw(
        st.builds(IPv4Network, st.tuples(ipv4, st.integers(0, 32)), st.just(False))
        | st.builds(IPv6Network, st.tuples(ipv6, st.integers(0, 128)), st.just(False))
    )
    gateway: Any = draw(st.just(net.network_address) | (ipv4 if net.version == 4 else ipv6))
    metric = draw(st.none() | st.sampled_from([0, 1, 1024, 4096]) | st.integers(0, 2**32 - 1))
    return Route(net, draw(links), gateway, draw(st.booleans()), metric=metric)


objects: st.SearchStrategy[KernelObject] = (
    routes() | st.builds(Neighbour, links, ipv4 | ipv6, macs) | st.builds(FdbEntry, links, macs, ipv4 | ipv6)
)


def encoded(item: KernelObject) -> bytes:
    """As one object is created where nothing is."""
    flags = wire.NLM_F_CREATE | wire.NLM_F_REPLACE
    if isinstance(item, Neighbour):
        return wire.encode_neighbour(wire.RTM_NEWNEIGH, item, INDEXES[item.link], flags)
    if isinstance(item, FdbEntry):
        return wire.encode_fdb(wire.RTM_NEWNEIGH, item, INDEXES[item.link], flags)
    assert isinstance(item, Route)
    assert item.link is not None
    create = wire.NLM_F_CREATE | wire.NLM_F_EXCL
    return wire.encode_route(wire.RTM_NEWROUTE, item, INDEXES[item.link], create)


@given(st.lists(st.lists(objects, min_size=1, max_size=4), max_size=6))
def test_each_object_is_made_once_and_as_it_would_be_by_itself(planned: list[list[KernelObject]]) -> None:
    pairs = [(plan, objects) for objects in planned if isinstance(plan := pack(objects), bytes)]
    made = Creations((plan for plan, _ in pairs), lambda name, kind: INDEXES.get(name))
    items = [item for _, objects in pairs for item in objects]
    for kind in PACKED_KINDS:
        of_kind = [usual(item) for item in items if item.key[0] is kind]
        direct = [made.item(kind, number) for number in range(len(made.messages[kind]))]
        assert made.messages[kind] == list(map(encoded, direct))
        assert sorted(map(str, (*direct, *made.others[kind]))) == sorted(map(str, of_kind))


def usual(item: KernelObject) -> KernelObject:
    """As an equal one is unpacked: the metric that a route has anyway is not named."""
    if not isinstance(item, Route):
        return item
    default = 0 if item.destination.version == 4 else 1024
    return replace(item, metric=None) if item.metric in (None, default) else item


def test_what_a_peer_needs_goes_without_objects() -> None:
    """Of what vxlan plans, nothing is left to be encoded one by one."""
    four, six = IPv4Network("10.1.2.0/24"), IPv6Network("fd00:1::/64")
    plan = pack(
        [
            Neighbour("flannel.1", four.network_address, "02:00:00:00:00:07"),
            FdbEntry("flannel.1", "02:00:00:00:00:07", IPv4Address("192.0.2.7")),
            Route(four, "flannel.1", four.network_address, onlink=True, metric=259),
            Neighbour("flannel-v6.1", six.network_address, "02:00:00:00:00:08"),
            FdbEntry("flannel-v6.1", "02:00:00:00:00:08", IPv6Address("2001:db8::7")),
            Route(six, "flannel-v6.1", six.network_address, onlink=True),
        ]
    )
    assert isinstance(plan, bytes)
    made = Creations([plan], lambda name, kind: INDEXES[name])
    assert {kind: len(messages) for kind, messages in made.messages.items()} == dict.fromkeys(PACKED_KINDS, 2)
    assert not any(made.others.values())


def test_a_flooded_address_takes_more_than_one_message() -> None:
    for mac in ("00:00:00:00:00:00", "01:00:5e:00:00:01"):
        entry = FdbEntry("flannel.1", mac, IPv4Address("192.0.2.7"))
        plan = pack([entry])
        assert isinstance(plan, bytes)
        made = Creations([plan], lambda name, kind: INDEXES[name])
        assert (made.messages[Kind.FDB], made.others[Kind.FDB]) == ([], [entry])
