"""The network document: every default and every rule, in both families, and what an error says."""

from __future__ import annotations

import json
import sys
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.recordings import BETTER_DOCUMENTS, GOLDEN

from pyflannel.backend import parse_options
from pyflannel.errors import ConfigError, ExitCode, PluginError
from pyflannel.network.document import FamilyConfig, NetworkConfig, with_backend
from pyflannel.network.lease import Subnets
from pyflannel.plugins import load_backend
from pyflannel_backends.vxlan import VxlanBackend


def parse(**document: Any) -> NetworkConfig:
    return NetworkConfig.from_json(json.dumps(document))


def v4(**document: Any) -> FamilyConfig[IPv4Network]:
    family = parse(**document).ipv4
    assert family is not None
    return family


def v6(**document: Any) -> FamilyConfig[IPv6Network]:
    family = parse(EnableIPv4=False, EnableIPv6=True, **document).ipv6
    assert family is not None
    return family


@pytest.mark.parametrize(
    ("network", "length"),
    [("10.0.0.0/8", 24), ("10.0.0.0/22", 24), ("10.0.0.0/23", 25), ("10.0.0.0/24", 26), ("10.0.0.0/28", 30)],
)
def test_ipv4_length_defaults(network: str, length: int) -> None:
    assert v4(Network=network).subnet_len == length


@pytest.mark.parametrize(
    ("network", "length"), [("fd00::/48", 64), ("fd00::/62", 64), ("fd00::/63", 65), ("fd00::/124", 126)]
)
def test_ipv6_length_defaults(network: str, length: int) -> None:
    assert v6(IPv6Network=network).subnet_len == length


def test_range_defaults_to_second_and_last_subnet() -> None:
    family = v4(Network="10.244.0.0/16")
    assert (family.subnet_min, family.subnet_max) == (IPv4Network("10.244.1.0/24"), IPv4Network("10.244.255.0/24"))
    assert family.size == 255
    family6 = v6(IPv6Network="fd00:10::/56")
    assert (family6.subnet_min, family6.subnet_max) == (
        IPv6Network("fd00:10:0:1::/64"),
        IPv6Network("fd00:10:0:ff::/64"),
    )
    assert family6.size == 255


def test_given_range_is_kept() -> None:
    family = v4(Network="172.16.0.0/12", SubnetLen=24, SubnetMin="172.16.16.0", SubnetMax="172.31.247.0")
    assert family.subnet_min == IPv4Network("172.16.16.0/24")
    assert family.subnet_max == IPv4Network("172.31.247.0/24")
    one = v6(IPv6Network="fd00::/48", IPv6SubnetMin="fd00:0:0:7::", IPv6SubnetMax="fd00:0:0:7::")
    assert one.size == 1
    assert one.subnet(0) == IPv6Network("fd00:0:0:7::/64")


def test_families_and_backend_default() -> None:
    plain = parse(Network="10.0.0.0/16")
    assert plain.ipv6 is None
    assert plain.backend_type == "vxlan"
    assert plain.backend_options == {}
    assert not plain.enable_nftables
    both = parse(Network="10.0.0.0/16", EnableIPv6=True, IPv6Network="fd00::/48", EnableNFTables=True)
    assert both.families == (both.ipv4, both.ipv6)
    assert both.enable_nftables


def test_a_family_that_is_off_need_not_make_sense_but_must_be_readable() -> None:
    off = parse(EnableIPv4=False, Network="10.0.0.0/30", SubnetLen=3, EnableIPv6=True, IPv6Network="fd00::/48")
    assert off.ipv4 is None
    for junk in ({"IPv6Network": "nonsense"}, {"IPv6SubnetLen": "x"}, {"IPv6SubnetMin": 5}):
        with pytest.raises(ConfigError, match=next(iter(junk))):
            parse(Network="10.0.0.0/16", **junk)


VECTORS = json.loads((GOLDEN / "config-0.28.10.json").read_text())


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_a_document_means_what_it_means_to_flanneld(vector: dict[str, Any]) -> None:
    theirs = vector["flanneld"]
    try:
        config = NetworkConfig.from_json(vector["document"])
        kind = load_backend(config.backend_type)
        options, _ = parse_options(kind.Options, config.backend_options)
    except (ConfigError, PluginError):
        assert theirs.get("refused") or vector["name"] in BETTER_DOCUMENTS
        return
    assert not theirs.get("refused")
    ours = {
        f"ipv{family.network.version}": (
            f"{family.network} len {family.subnet_len} "
            f"{family.subnet_min.network_address}..{family.subnet_max.network_address}"
        )
        for family in config.families
    }
    assert ours == {key: theirs[key] for key in ("ipv4", "ipv6") if key in theirs}
    assert config.enable_nftables == theirs["nftables"]
    if vector["name"] not in BETTER_DOCUMENTS:
        assert config.backend_type == theirs["type"].lower()
    if "vxlan" in theirs and isinstance(options, VxlanBackend.Options):
        words = theirs["vxlan"].split()
        assert words[:2] == ["vni", str(options.vni)]
        assert (options.port or 8472) == (int(words[3]) or 8472)
        assert words[8:] == ["dr", str(options.direct_routing).lower()]


@pytest.mark.parametrize(
    ("types", "runs"),
    [
        ([], "vxlan"),
        ([None], "udp"),
        (["host-gw"], "host-gw"),
        (["vxlan", "vxlan", None], "vxlan"),
        (["vxlan", None, None], "udp"),
    ],
)
def test_a_document_without_a_backend_follows_the_nodes(types: list[str | None], runs: str) -> None:
    config = parse(Network="10.0.0.0/16").following(types)
    assert config.backend_type == runs
    assert "names no backend" in config.assumption
    named = parse(Network="10.0.0.0/16", Backend={"Type": "ipip"}).following(types)
    assert (named.backend_type, named.assumption) == ("ipip", "")


def test_a_mapped_address_and_an_unspecified_one() -> None:
    family = v4(Network="10.0.0.0/16", SubnetMin="::ffff:10.0.8.0", SubnetMax="::ffff:0.0.0.0")
    assert (str(family.subnet_min), str(family.subnet_max)) == ("10.0.8.0/24", "10.0.255.0/24")


def test_host_bits_are_dropped_and_null_and_zero_mean_absent() -> None:
    family = v4(Network="10.244.1.7/16", SubnetLen=0, SubnetMin="0.0.0.0", EnableIPv4=None, IPv6SubnetMin=None)
    assert family.network == IPv4Network("10.244.0.0/16")
    assert family.subnet_len == 24
    assert family.subnet_min == IPv4Network("10.244.1.0/24")


@pytest.mark.parametrize(
    ("keys", "network", "vni"),
    [
        ('"Network": "10.1.0.0/16", "Network": "10.2.0.0/16"', "10.2.0.0/16", 1),
        ('"Network": "10.1.0.0/16", "network": "10.2.0.0/16", "Network": "10.3.0.0/16"', "10.3.0.0/16", 1),
        ('"NETWORK": "10.1.0.0/16", "EnableIPv6": false, "enableipv6": null', "10.1.0.0/16", 1),
        ('"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "VNI": 5, "vni": 7, "VNI": null}', "10.1.0.0/16", 7),
        ('"Network": "10.1.0.0/16", "Backend": 5, "backend": {"type": "vxlan", "Type": null}', "10.1.0.0/16", 1),
    ],
)
def test_of_a_key_that_is_there_twice_the_last_one_counts(keys: str, network: str, vni: int) -> None:
    """And null changes nothing, as to Go's decoder."""
    read = NetworkConfig.from_json(f"{{{keys}}}")
    assert read.ipv4 is not None
    assert (str(read.ipv4.network), read.ipv6, read.backend_type) == (network, None, "vxlan")
    assert parse_options(load_backend("vxlan").Options, read.backend_options)[0].vni == vni


@pytest.mark.parametrize("later", ["null", "{}"])
def test_a_backend_is_replaced_as_a_whole(later: str) -> None:
    with pytest.raises(ConfigError, match="Backend"):
        NetworkConfig.from_json(f'{{"Network": "10.1.0.0/16", "Backend": {{"Type": "vxlan"}}, "backend": {later}}}')


def test_a_family_that_is_off_may_be_written_in_the_other_s_addresses() -> None:
    """flanneld reads an IPv4 text as an IPv6 one."""
    unused = {"IPv6Network": "10.244.0.0/16", "IPv6SubnetMin": "0.0.0.0", "IPv6SubnetMax": "10.0.0.1"}
    assert NetworkConfig.from_json(json.dumps({"Network": "10.1.0.0/16", **unused})).ipv6 is None
    with pytest.raises(ConfigError, match="IPv6Network"):
        NetworkConfig.from_json(json.dumps({"Network": "10.1.0.0/16", "EnableIPv6": True, **unused}))


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "it is empty"), (" \n", "it is empty"), ('\ufeff{"Network": "10.1.0.0/16"}', "byte order mark")],
)
def test_what_an_editor_leaves_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        NetworkConfig.from_json(text)


def test_a_number_of_thousands_of_digits_is_refused_in_words_of_ours() -> None:
    with pytest.raises(ConfigError, match="not valid JSON: a number of 5000 digits"):
        NetworkConfig.from_json(f'{{"Network": "10.1.0.0/16", "X": {"9" * 5000}}}')


def test_a_document_that_gets_a_backend_stays_json() -> None:
    text = with_backend('{"Network": "10.1.0.0/16", "X": 1e400}', "udp")
    assert json.loads(text, parse_constant=pytest.fail)["Backend"] == {"Type": "udp"}


CASES = st.sampled_from([str.upper, str.lower, str.swapcase, str])
FULL = {
    "Network": "10.0.0.0/16",
    "SubnetLen": 25,
    "SubnetMin": "10.0.4.0",
    "SubnetMax": "10.0.9.128",
    "EnableIPv4": True,
    "EnableIPv6": True,
    "IPv6Network": "fd00::/56",
    "IPv6SubnetLen": 65,
    "IPv6SubnetMin": "fd00:0:0:4::",
    "IPv6SubnetMax": "fd00:0:0:9::",
    "EnableNFTables": True,
    "Backend": {"Type": "host-gw", "VNI": 7},
}


@given(st.lists(CASES, min_size=len(FULL), max_size=len(FULL)))
def test_keys_match_without_regard_to_case(cases: list[Any]) -> None:
    document = {case(key): value for case, (key, value) in zip(cases, FULL.items(), strict=True)}
    config = parse(**document)
    assert config == parse(**FULL)
    assert config.unknown_keys == ()
    assert config.ipv4 is not None
    assert config.ipv4.subnet_len == 25


def test_backend_type_matches_without_regard_to_case_and_is_no_option() -> None:
    config = parse(Network="10.0.0.0/16", backend={"type": "udp", "Port": 8285})
    assert config.backend_type == "udp"
    assert config.backend_options == {"Port": 8285}


def test_unknown_keys_are_reported_not_refused() -> None:
    assert parse(Network="10.0.0.0/16", Comment="x", Newer=1).unknown_keys == ("Comment", "Newer")


V6 = {"EnableIPv4": False, "EnableIPv6": True}


@pytest.mark.parametrize(
    ("document", "key", "value", "rule"),
    [
        ({}, "Network", "missing", "EnableIPv4"),
        ({"Netwrok": "10.0.0.0/16"}, "Network", "missing", "is 'Netwrok' a typo?"),
        ({"Network": 5}, "Network", "5", "CIDR"),
        ({"Network": "10.0.0.0"}, "Network", "10.0.0.0", "CIDR"),
        ({"Network": "10.0.0.0/33"}, "Network", "10.0.0.0/33", "CIDR"),
        ({"Network": "10.0.0.0/255.255.0.0"}, "Network", "255.255.0.0", "CIDR"),
        ({"Network": "fd00::/48"}, "Network", "fd00::/48", "IPv4"),
        ({"Network": "10.0.0.0/29"}, "Network", "10.0.0.0/29", "/28"),
        ({"Network": "10.0.0.0/16", "SubnetLen": 17}, "SubnetLen", "17", "between 18"),
        ({"Network": "10.0.0.0/16", "SubnetLen": 31}, "SubnetLen", "31", "and 30"),
        ({"Network": "10.0.0.0/16", "SubnetLen": -1}, "SubnetLen", "-1", "0 or more"),
        ({"Network": "10.0.0.0/16", "SubnetMin": None}, "SubnetMin", "null", "IPv4 address"),
        ({"Network": "10.0.0.0/16", "IPv6Network": None}, "IPv6Network", "null", "leave the key out"),
        ({"Network": "10.0.0.0/16", "IPv6SubnetLen": -1}, "IPv6SubnetLen", "-1", "0 or more"),
        ({"Network": "10.0.0.0/16", "IPv6SubnetLen": 1 << 64}, "IPv6SubnetLen", str(1 << 64), "0 or more"),
        ({"Network": "10.0.0.0/16", "SubnetLen": "24"}, "SubnetLen", '"24"', "whole number"),
        ({"Network": "10.0.0.0/16", "SubnetLen": 24.5}, "SubnetLen", "24.5", "whole number"),
        ({"Network": "10.0.0.0/16", "SubnetLen": True}, "SubnetLen", "true", "whole number"),
        ({"Network": "10.0.0.0/16", "SubnetMin": "10.1.0.0"}, "SubnetMin", "10.1.0.0", "outside"),
        ({"Network": "10.0.0.0/16", "SubnetMin": "10.0.3.1"}, "SubnetMin", "10.0.3.1", "first address of a /24"),
        ({"Network": "10.0.0.0/16", "SubnetMin": "fd00::"}, "SubnetMin", "fd00::", "IPv4 address"),
        ({"Network": "10.0.0.0/16", "SubnetMin": 3}, "SubnetMin", "3", "IPv4 address"),
        ({"Network": "10.0.0.0/16", "SubnetMax": "10.1.0.0"}, "SubnetMax", "10.1.0.0", "outside"),
        ({"Network": "10.0.0.0/16", "SubnetMax": "10.0.3.1"}, "SubnetMax", "10.0.3.1", "first address of a /24"),
        (
            {"Network": "10.0.0.0/16", "SubnetMin": "10.0.9.0", "SubnetMax": "10.0.8.0"},
            "SubnetMin",
            "10.0.9.0",
            "SubnetMax",
        ),
        ({"EnableIPv4": False}, "EnableIPv4", "false", "at least one"),
        ({"Network": "10.0.0.0/16", "EnableIPv4": "yes"}, "EnableIPv4", '"yes"', "true or false"),
        ({"Network": "10.0.0.0/16", "EnableIPv6": 1}, "EnableIPv6", "1", "true or false"),
        ({"Network": "10.0.0.0/16", "EnableNFTables": "x"}, "EnableNFTables", '"x"', "true or false"),
        ({"Network": "10.0.0.0/16", "EnableIPv6": True}, "IPv6Network", "missing", "EnableIPv6"),
        ({**V6, "IPv6Network": "10.0.0.0/16"}, "IPv6Network", "10.0.0.0/16", "IPv6"),
        ({**V6, "IPv6Network": "fe80::%eth0/48"}, "IPv6Network", "%eth0", "CIDR"),
        ({**V6, "IPv6Network": "fd00::/125"}, "IPv6Network", "fd00::/125", "/124"),
        ({**V6, "IPv6Network": "fd00::/48", "IPv6SubnetLen": 49}, "IPv6SubnetLen", "49", "between 50"),
        ({**V6, "IPv6Network": "fd00::/48", "IPv6SubnetLen": 127}, "IPv6SubnetLen", "127", "and 126"),
        ({**V6, "IPv6Network": "fd00::/48", "IPv6SubnetMin": "fd01::"}, "IPv6SubnetMin", "fd01::", "outside"),
        ({**V6, "IPv6Network": "fd00::/48", "IPv6SubnetMin": "fd00::1"}, "IPv6SubnetMin", "fd00::1", "a /64"),
        ({**V6, "IPv6Network": "fd00::/48", "IPv6SubnetMin": "fd00::%e"}, "IPv6SubnetMin", "fd00::%e", "address"),
        ({**V6, "IPv6Network": "fd00::/48", "IPv6SubnetMax": "fd01::"}, "IPv6SubnetMax", "fd01::", "outside"),
        ({"Network": "10.0.0.0/16", "Backend": "vxlan"}, "Backend", '"vxlan"', "object"),
        ({"Network": "10.0.0.0/16", "Backend": {"Type": 1}}, "Backend.Type", "1", "name of a backend"),
        ({"Network": "10.0.0.0/16", "Backend": {"Type": ""}}, "Backend.Type", '""', "name of a backend"),
    ],
)
def test_a_violation_names_source_key_value_and_rule(document: Any, key: str, value: str, rule: str) -> None:
    with pytest.raises(ConfigError) as caught:
        NetworkConfig.from_json(json.dumps(document), "net-conf.json")
    message = str(caught.value)
    assert message.startswith(f"net-conf.json: {key} is ")
    assert value in message
    assert rule in message
    assert caught.value.exit_code is ExitCode.CONFIG


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null", "7", "{'Network': 1}", "[" * 100_000])
def test_what_is_no_json_object_is_a_config_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^here: "):
        NetworkConfig.from_json(text, "here")


@pytest.mark.parametrize("key", ["Network", "SubnetLen", "EnableIPv6", "Unknown"])
def test_brackets_inside_one_another_are_refused_however_many_python_can_read(key: str) -> None:
    """It reads more of them than it can write into an error."""

    def refusal(brackets: int) -> str:
        try:
            NetworkConfig.from_json(f'{{"Network": "10.5.0.0/16", "{key}": {"[" * brackets}{"]" * brackets}}}', "here")
        except ConfigError as error:
            return str(error)
        return ""

    assert refusal(100) == "here: it is nested more than 100 deep, which no network config needs"
    assert all(refusal(brackets) for brackets in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit() + 50))
    assert "nested" not in refusal(99)


ADDRESSES = ["10.0.0.0", "10.0.4.0", "10.255.0.0", "fd00::", "fd00:0:0:1::", "::", "0.0.0.0", "fe80::%eth0", "x"]
SCALARS = (
    st.none() | st.booleans() | st.integers(-1, 130) | st.floats() | st.text(max_size=3) | st.sampled_from(ADDRESSES)
)
NETWORKS = st.builds("{}/{}".format, st.sampled_from(ADDRESSES), st.integers(0, 130))
VALUES = SCALARS | NETWORKS | st.dictionaries(st.just("Type"), SCALARS, max_size=1)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FULL, VALUES)))
def test_any_document_is_read_or_refused(document: dict[str, Any]) -> None:
    try:
        config = parse(**document)
    except ConfigError:
        return
    for family in config.families:
        assert family.subnet_min.subnet_of(family.network)  # type: ignore[arg-type]
        assert family.subnet_max.subnet_of(family.network)  # type: ignore[arg-type]
        assert family.network.prefixlen + 2 <= family.subnet_len <= family.network.max_prefixlen - 2


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """Valid documents with every key of a family given or left out."""
    document: dict[str, Any] = {}
    families = draw(st.sampled_from(["4", "6", "46"]))
    document["EnableIPv4"] = "4" in families
    document["EnableIPv6"] = "6" in families
    for version, prefix, bits, longest in (("4", "", 32, 28), ("6", "IPv6", 128, 124)):
        if version not in families:
            continue
        length = draw(st.integers(1, longest))
        base = draw(st.integers(0, (1 << length) - 1)) << (bits - length)
        network = IPv6Network((base, length)) if version == "6" else IPv4Network((base, length))
        subnet_len = draw(st.integers(length + 2, bits - 2))
        count = 1 << (subnet_len - length)
        low, high = sorted((draw(st.integers(0, count - 1)), draw(st.integers(0, count - 1))))
        document[f"{prefix}Network"] = str(network)
        document[f"{prefix}SubnetLen"] = subnet_len
        document[f"{prefix}SubnetMin"] = str(network[low << (bits - subnet_len)])
        document[f"{prefix}SubnetMax"] = str(network[high << (bits - subnet_len)])
    return document


@given(documents())
def test_valid_documents_come_back(document: dict[str, Any]) -> None:
    assume(not {"0.0.0.0", "::"} & {str(value) for value in document.values()})  # which mean "not given"
    config = parse(**document)
    for family, prefix in ((config.ipv4, ""), (config.ipv6, "IPv6")):
        if family is None:
            assert not document[f"Enable{prefix or 'IPv4'}"]
            continue
        assert str(family.network) == document[f"{prefix}Network"]
        assert family.subnet_len == document[f"{prefix}SubnetLen"]
        assert str(family.subnet_min.network_address) == document[f"{prefix}SubnetMin"]
        assert str(family.subnet_max.network_address) == document[f"{prefix}SubnetMax"]
        assert family.subnet(0) == family.subnet_min
        assert family.subnet(family.size - 1) == family.subnet_max
        with pytest.raises(IndexError):
            family.subnet(family.size)
        for number in {0, family.size // 2, family.size - 1}:
            numbers = family.index_range(family.subnet(number))
            assert (numbers.start, numbers.stop) == (number, number + 1)
            assert family.fits(family.subnet(number))


def test_fits_and_contains() -> None:
    dual = parse(Network="10.0.0.0/16", EnableIPv6=True, IPv6Network="fd00::/48")
    good = Subnets(IPv4Network("10.0.7.0/24"), IPv6Network("fd00:0:0:7::/64"))
    assert dual.fits(good)
    assert dual.contains(good)
    only4 = Subnets(IPv4Network("10.0.7.0/24"))
    assert not dual.fits(only4)
    assert not dual.contains(only4)
    first = Subnets(IPv4Network("10.0.0.0/24"), IPv6Network("fd00:0:0:7::/64"))
    assert not dual.fits(first), "the first subnet is not leasable by default"
    assert dual.contains(first)
    longer = Subnets(IPv4Network("10.0.7.0/25"), IPv6Network("fd00:0:0:7::/64"))
    assert not dual.fits(longer)
    assert dual.contains(longer)
    outside = Subnets(IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))
    assert not dual.contains(outside)


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in GOLDEN.glob("*/config.json")))
def test_recorded_documents_and_leases_agree(folder: str) -> None:
    config = NetworkConfig.from_json((GOLDEN / folder / "config.json").read_text())
    assert config.unknown_keys == ()
    keys = [
        line.rpartition("/")[2] for line in (GOLDEN / folder / "leases.txt").read_text().splitlines() if line[:1] == "/"
    ]
    assert keys
    assert all(config.fits(Subnets.from_key(key)) for key in keys)


@pytest.mark.parametrize(
    ("network", "whose"),
    [
        ("127.0.0.0/16", "loopback"),
        ("224.0.0.0/4", "multicast"),
        ("239.1.0.0/16", "multicast"),
        ("fe80::/10", "link-local"),
        ("fe80:0:0:1::/64", "link-local"),
        ("ff0e::/16", "multicast"),
        ("::ffff:0:0/96", "IPv4's own"),
        ("::ffff:10.244.0.0/112", "IPv4's own"),
    ],
)
def test_a_network_to_which_nothing_is_routed_is_refused(network: str, whose: str) -> None:
    six = ":" in network
    key = "IPv6Network" if six else "Network"
    with pytest.raises(
        ConfigError, match=f"^network config: {key} is .*: {whose} addresses, to which nothing is routed"
    ):
        parse(**{"EnableIPv4": not six, "EnableIPv6": six, key: network})
    unused = parse(
        **{"EnableIPv4": six, "EnableIPv6": not six, "Network": "10.0.0.0/8", "IPv6Network": "fd00::/48", key: network}
    )
    assert unused.versions == ((4,) if six else (6,))


@pytest.mark.parametrize("network", ["0.0.0.0/1", "128.0.0.0/1", "169.254.0.0/16", "240.0.0.0/8", "::/64", "fe00::/8"])
def test_a_network_that_only_holds_such_addresses_among_others_or_is_merely_reserved_is_taken(network: str) -> None:
    six = ":" in network
    assert parse(
        **{"EnableIPv4": not six, "EnableIPv6": six, "IPv6Network" if six else "Network": network}
    ).versions == ((6,) if six else (4,))


@pytest.mark.parametrize("mtu", [-1, 65536, 2**32 + 100, 2**40])
@pytest.mark.parametrize("key", ["MTU", "mtu"])
def test_an_mtu_that_no_packet_can_have_is_refused_whatever_the_backend(key: str, mtu: int) -> None:
    with pytest.raises(ConfigError, match=f"network config: Backend.MTU is {mtu}: must be between 0 and 65535"):
        NetworkConfig.from_json(f'{{"Network": "10.5.0.0/16", "Backend": {{"Type": "third", "{key}": {mtu}}}}}')
