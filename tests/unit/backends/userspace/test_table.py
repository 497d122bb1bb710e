"""Longest-prefix lookup, against a search through all peers."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from pyflannel_backends.userspace.table import Peer, PeerTable

SUBNETS = st.builds(
    lambda base, length: IPv4Network((base >> (32 - length) << (32 - length), length)),
    st.integers(0x0A050000, 0x0A05FFFF),
    st.integers(14, 32),
)


@given(
    st.lists(st.tuples(SUBNETS, st.integers(1, 9))),
    st.lists(st.integers(0, 50)),
    st.lists(st.integers(0x0A04FF00, 0x0A060100), max_size=20),
)
def test_lookup_is_the_longest_prefix_of_what_is_there(
    peers: list[tuple[IPv4Network, int]], removals: list[int], addresses: list[int]
) -> None:
    table = PeerTable()
    held: dict[IPv4Network, int] = {}
    for subnet, number in peers:
        table.put(Peer(subnet, f"192.0.2.{number}"))
        held[subnet] = number
    for index in removals:
        if index < len(peers):
            table.remove(peers[index][0])
            held.pop(peers[index][0], None)
    assert len(table) == len(held)
    assert {peer.subnet for peer in table} == set(held)
    for number in range(1, 10):
        assert table.is_peer(f"192.0.2.{number}") == (number in held.values())
    for address in [*addresses, *(int(subnet.network_address) for subnet, _ in peers)]:
        around = [subnet for subnet in held if IPv4Address(address) in subnet]
        found = table.lookup(address.to_bytes(4, "big"))
        expected = max(around, key=lambda subnet: subnet.prefixlen, default=None)
        assert (found and found.subnet) == expected
        if found is not None and expected is not None:
            assert found.id == f"192.0.2.{held[expected]}"


def test_families_do_not_mix() -> None:
    table = PeerTable([ip_network("10.5.1.0/24"), ip_network("fd00:5:1::/64")])
    table.put(Peer(IPv6Network("::/0"), "192.0.2.6"))
    assert table.lookup(bytes(4)) is None
    assert table.lookup(bytes(16)) is not None
    table.put(Peer(IPv4Network("0.0.0.0/0"), "192.0.2.4"))
    found = table.lookup(bytes(4))
    assert found is not None
    assert found.id == "192.0.2.4"
    own = ["10.5.1.0", "10.5.1.255", "fd00:5:1::9"]
    foreign = ["10.5.0.255", "10.5.2.0", "fd00:5:2::9", "::"]
    assert all(table.is_own(ip_address(address).packed) for address in own)
    assert not any(table.is_own(ip_address(address).packed) for address in foreign)
