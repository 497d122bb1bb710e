"""Leases and their text: flanneld's recordings come back byte for byte, and nothing hostile gets past the gate."""

from __future__ import annotations

import json
import sys
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import MalformedError
from pyflannel.network import lease as leases
from pyflannel.network.lease import IPNetwork, Lease, LeaseAttributes, Subnets, lies_in, meets

GOLDEN = Path(__file__).parents[2] / "golden"
PREFIX = "/coreos.com/network/subnets/"


def recorded() -> list[Any]:
    records = []
    for path in sorted(GOLDEN.glob("*/leases.txt")):
        lines = [line for line in path.read_text().splitlines() if line]
        records += [
            pytest.param(key.removeprefix(PREFIX), value, id=f"{path.parent.name} {key.removeprefix(PREFIX)}")
            for key, value in zip(lines[::2], lines[1::2], strict=True)
        ]
    assert len(records) >= 20
    return records


@pytest.mark.parametrize(("key", "value"), recorded())
def test_recorded_leases_come_back_byte_for_byte(key: str, value: str) -> None:
    lease = Lease.from_record(key, value)
    assert lease.key == key
    assert lease.attributes.to_json() == value
    assert lease.attributes.public_ip is not None
    assert lease.attributes.node_id is None


IPV4_SUBNETS = st.builds(
    lambda length, number: IPv4Network((number >> (32 - length) << (32 - length), length)),
    st.integers(1, 32),
    st.integers(0, 2**32 - 1),
)
IPV6_SUBNETS = st.builds(
    lambda length, number: IPv6Network((number >> (128 - length) << (128 - length), length)),
    st.integers(1, 128),
    st.integers(0, 2**128 - 1),
)
SUBNETS = (
    st.builds(Subnets, IPV4_SUBNETS, st.none())
    | st.builds(Subnets, st.none(), IPV6_SUBNETS)
    | st.builds(Subnets, IPV4_SUBNETS, IPV6_SUBNETS)
)


@given(SUBNETS)
def test_keys_round_trip(subnets: Subnets) -> None:
    assert Subnets.from_key(subnets.key) == subnets


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("172.16.68.0-24", "172.16.68.0/24"),
        ("172.16.68.0-24&fd00:10:0:1::-64", "172.16.68.0/24 fd00:10:0:1::/64"),
        ("fd00:10:0:1::-64", "fd00:10:0:1::/64"),
    ],
)
def test_the_three_forms_of_a_key(key: str, text: str) -> None:
    assert str(Subnets.from_key(key)) == text
    assert Subnets.from_key(key).key == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        "-",
        "&",
        "config",
        "172.16.68.0",
        "172.16.68.0/24",
        "172.16.68.0-",
        "172.16.68.0--24",
        "172.16.68.0-33",
        "172.16.68.0-+24",
        "172.16.68.0-²",
        "172.16.68.0-" + "9" * 5000,
        "172.16.68.1-24",
        "172.16.68-24",
        "0172.16.68.0-24",
        "172.16.68.256-24",
        "172.16.68.0-24&",
        "&fd00::-64",
        "fd00::-64&172.16.68.0-24",
        "172.16.68.0-24&172.16.69.0-24",
        "172.16.68.0-24&fd00::-64&fd01::-64",
        "fd00::1-64",
        "fd00::-129",
        "fe80::%eth0-64",
        "fe80::%25-64",
        "../../etc/passwd-24",
        "172.16.68.0-24\n",
        "172.16.68.0-24\x00",
    ],
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(MalformedError, match="lease key"):
        Subnets.from_key(key)


@given(st.text(max_size=60) | st.text("0123456789abcdef:.-&/%", max_size=60))
def test_any_key_is_read_or_refused(key: str) -> None:
    try:
        subnets = Subnets.from_key(key)
    except MalformedError:
        return
    assert Subnets.from_key(subnets.key) == subnets


def test_a_lease_without_subnets_does_not_exist() -> None:
    with pytest.raises(MalformedError):
        Subnets()


@given(SUBNETS, SUBNETS)
def test_overlap_is_symmetric_and_by_family(one: Subnets, other: Subnets) -> None:
    expected = any(
        max(int(a.network_address), int(b.network_address)) <= min(int(a.broadcast_address), int(b.broadcast_address))
        for a in one.each
        for b in other.each
        if a.version == b.version
    )
    assert one.overlaps(other) is expected
    assert other.overlaps(one) is expected
    assert one.overlaps(one)


@given(
    IPV4_SUBNETS | IPV6_SUBNETS,
    st.integers(0, 8),
    IPV4_SUBNETS | IPV6_SUBNETS,
)
def test_a_network_lies_in_each_one_around_it_and_meets_what_ipaddress_says(
    network: IPNetwork, shorter: int, other: IPNetwork
) -> None:
    around = network.supernet(prefixlen_diff=min(shorter, network.prefixlen))
    assert lies_in(network, around)
    assert lies_in(around, network) is (around == network)
    assert meets(around, network)
    assert meets(network, around)
    for one, two in ((network, other), (around, other), (other, around)):
        assert meets(one, two) is one.overlaps(two)
        assert lies_in(one, two) is (one.overlaps(two) and one.prefixlen >= two.prefixlen)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
KNOWN = {"publicip", "publicipv6", "backendtype", "backenddata", "backendv6data", "nodeid"}
ATTRIBUTES = st.builds(
    LeaseAttributes,
    public_ip=st.none() | st.ip_addresses(v=4),
    public_ipv6=st.none() | st.ip_addresses(v=6),
    backend_type=st.none() | st.text(min_size=1),
    backend_data=JSON_VALUES,
    backend_v6_data=JSON_VALUES,
    node_id=st.none() | st.text(min_size=1),
    extra=st.dictionaries(st.text().filter(lambda name: name.lower() not in KNOWN), JSON_VALUES, max_size=4),
)


@given(ATTRIBUTES)
def test_attributes_round_trip_with_unknown_fields(attributes: LeaseAttributes) -> None:
    text = attributes.to_json()
    assert "\n" not in text
    assert LeaseAttributes.from_json(text) == attributes


def test_fields_match_without_regard_to_case_and_unknown_ones_keep_theirs() -> None:
    attributes = LeaseAttributes.from_json(
        '{"publicip":"192.0.2.1","BACKENDTYPE":"vxlan","nodeId":"n1","Newer":{"A":[1]}}'
    )
    assert attributes.public_ip == IPv4Address("192.0.2.1")
    assert attributes.backend_type == "vxlan"
    assert attributes.node_id == "n1"
    assert attributes.extra == {"Newer": {"A": [1]}}
    assert json.loads(attributes.to_json())["Newer"] == {"A": [1]}


def test_empty_strings_mean_absent() -> None:
    attributes = LeaseAttributes.from_json('{"PublicIP":"","BackendType":"","NodeID":""}')
    assert attributes == LeaseAttributes()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "JSON"),
        ("{", "JSON"),
        ("[]", "object"),
        ("null", "object"),
        ('"x"', "object"),
        ("[" * 30_000, "JSON"),
        ("[" * 100_000, "more than 32768 characters"),
        ('{"PublicIP":1}', "PublicIP"),
        ('{"PublicIP":["192.0.2.1"]}', "PublicIP"),
        ('{"PublicIP":"2001:db8::1"}', "2001:db8::1"),
        ('{"PublicIP":"192.0.2.1/24"}', "192.0.2.1/24"),
        ('{"PublicIPv6":"192.0.2.1"}', "192.0.2.1"),
        ('{"PublicIPv6":"fe80::1%eth0"}', "scope"),
        ('{"BackendType":7}', "BackendType"),
        ('{"NodeID":{}}', "NodeID"),
    ],
)
def test_what_is_no_lease_is_refused_and_says_why(text: str, word: str) -> None:
    with pytest.raises(MalformedError, match=r"^lease value") as caught:
        LeaseAttributes.from_json(text)
    assert word in str(caught.value)


@given(
    st.text()
    | JSON_VALUES.map(json.dumps)
    | st.dictionaries(st.sampled_from(sorted(KNOWN)), JSON_VALUES).map(json.dumps)
)
def test_any_value_is_read_or_refused(text: str) -> None:
    try:
        attributes = LeaseAttributes.from_json(text)
    except MalformedError:
        return
    assert LeaseAttributes.from_json(attributes.to_json()) == attributes


A4, B4 = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
A6, B6 = IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (LeaseAttributes(A4, node_id="n"), LeaseAttributes(B4, node_id="n"), True),
        (LeaseAttributes(A4, node_id="n"), LeaseAttributes(A4, node_id="m"), False),
        (LeaseAttributes(A4, node_id="n"), LeaseAttributes(A4), True),
        (LeaseAttributes(A4, A6), LeaseAttributes(B4, A6), False),
        (LeaseAttributes(A4, A6), LeaseAttributes(None, A6), True),
        (LeaseAttributes(None, A6), LeaseAttributes(None, B6), False),
        (LeaseAttributes(), LeaseAttributes(), False),
    ],
)
def test_same_node(one: LeaseAttributes, other: LeaseAttributes, same: bool) -> None:
    assert one.same_node(other) is same
    assert other.same_node(one) is same


def test_with_attributes_keeps_the_subnets() -> None:
    lease = Lease.from_record("10.0.1.0-24", '{"PublicIP":"192.0.2.1"}')
    moved = lease.with_attributes(LeaseAttributes(B4))
    assert moved.subnets == lease.subnets
    assert moved.attributes.public_ip == B4


@pytest.mark.parametrize(
    "key",
    [
        "10.244.07.0-24",
        "10.244.7.0-024",
        "FD00:10::-64",
        "fd00:0010::-64",
        "fd00:10:0:0::-64",
        "10.244.7.0-24&FD00::-64",
        "10.244.7.0-24&::-0",
        "0.0.0.0-0",
        "10.244.7.0-24&",
        "&fd00::-64",
    ],
)
def test_a_subnet_has_one_spelling(key: str) -> None:
    with pytest.raises(MalformedError):
        Subnets.from_key(key)


@given(
    st.from_regex(r"(10|0|255|256|1)(\.(0|1|5|00|255|256)){2,4}(-|/|--|&)(0|8|16|24|31|32|33|024| 8)?", fullmatch=True)
    | st.text("0123456789.-&: \0", max_size=20)
)
def test_what_is_read_quickly_is_what_is_read_slowly(key: str) -> None:
    plain = leases._plain_ipv4(key)
    try:
        slow = Subnets(leases._ipv4_from_key(key))
    except ValueError:
        assert plain is None
    else:
        assert plain == (slow.ipv4 if slow.key == key else None)


def test_a_key_longer_than_any_is_cut_in_its_error() -> None:
    with pytest.raises(MalformedError) as caught:
        Subnets.from_key("1" * 1_000_000)
    assert len(str(caught.value)) < 500


def nested(depth: int) -> list[object]:
    value: list[object] = []
    for _ in range(depth):
        value = [value]
    return value


def test_unknown_attributes_are_written_back_within_bounds() -> None:
    given = {"PublicIP": "192.0.2.1", "New": {"a": [1, 2]}, "Deep": nested(300), "Large": "x" * 20_000, "Small": 1}
    attributes = LeaseAttributes.from_json(json.dumps(given))
    assert dict(attributes.extra) == {"New": {"a": [1, 2]}, "Small": 1}
    assert len(attributes.to_json()) < 200


@pytest.mark.parametrize("name", ["BackendType", "NodeID", "PublicIP", "PublicIPv6"])
def test_long_names_are_refused_and_cut(name: str) -> None:
    with pytest.raises(MalformedError) as caught:
        LeaseAttributes.from_json(json.dumps({name: "x" * 20_000}))
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("name", ["X", "BackendData", "Machine"])
def test_what_is_no_json_is_refused_as_flanneld_refuses_it(name: str, constant: str) -> None:
    with pytest.raises(MalformedError, match=f"not JSON: {constant}"):
        LeaseAttributes.from_json(f'{{"PublicIP":"192.0.2.9","{name}":{constant}}}')


@pytest.mark.parametrize("number", ["1e400", "-1e999"])
def test_a_number_that_is_too_large_is_written_back_as_json(number: str) -> None:
    """flanneld passes over a key that it does not know, whatever its number, but reads nothing that is no JSON."""
    attributes = LeaseAttributes.from_json(f'{{"PublicIP":"192.0.2.9","BackendData":[{number}],"X":{number}}}')
    written = json.loads(attributes.to_json(), parse_constant=pytest.fail)
    assert abs(written["X"]) == abs(written["BackendData"][0]) == sys.float_info.max
