"""The planner of wireguard: options, leases in both directions, and what the kernel should hold."""

from __future__ import annotations

import json
import os
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from pyflannel.backend import (
    JSON,
    Address,
    Endpoint,
    GenericInfo,
    Lease,
    LeaseAttributes,
    Link,
    Node,
    Route,
    Secret,
    Subnets,
    WireguardDevice,
    WireguardPeer,
    parse_options,
)
from pyflannel.errors import ConfigError, PeerRejected
from pyflannel.network.document import NetworkConfig
from pyflannel.network.underlay import Underlay
from pyflannel.testing.backends import BackendPlanning
from pyflannel_backends import wireguard
from pyflannel_backends.shut import SHUT
from pyflannel_backends.wireguard import WireguardBackend, WireguardOptions, keys
from pyflannel_backends.wireguard.dataplane import rows

PSK = b64encode(bytes(range(1, 33))).decode()
KEY = "PxAJ+mM7QYmDSmq0Qd8DmsGVmJBjH5Yd0SNZUEO9Ul0="
BOTH = ("192.0.2.1", "2001:db8::1")


class TestKernelPlanning(BackendPlanning):
    """The conformance kit on the kernel's implementation, whatever this machine's kernel has."""

    backend = WireguardBackend
    variants = (
        {"Implementation": "kernel"},
        {"Implementation": "kernel", "Mode": "auto", "PSK": PSK, "PersistentKeepaliveInterval": 25},
        {"Implementation": "kernel", "MTU": 1480},
    )


def backend(**options: JSON) -> WireguardBackend:
    parsed, unknown = parse_options(WireguardOptions, {"Implementation": "kernel", **options})
    assert not unknown
    return WireguardBackend(parsed)


def network(versions: tuple[int, ...] = (4,)) -> NetworkConfig:
    document: dict[str, JSON] = {"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard"}}
    if 6 in versions:
        document |= {"EnableIPv6": True, "IPv6Network": "fd00:5::/48"}
    if 4 not in versions:
        document["EnableIPv4"] = False
    return NetworkConfig.from_json(json.dumps(document))


def node(state: Path, versions: tuple[int, ...] = (4,), **public: Any) -> Node:
    """A node that has joined: it has a key."""
    keys.load_or_create(keys.key_path(state))
    ipv4, ipv6 = IPv4Address(BOTH[0]), IPv6Address(BOTH[1])
    underlay = Underlay("eth0", 1500, ipv4, ipv6, public.get("ipv4", ipv4), public.get("ipv6", ipv6), ())
    return Node("node-1", network(versions), underlay, subnets(1, versions), state)


def subnets(number: int, versions: tuple[int, ...] = (4,)) -> Subnets:
    return Subnets(
        ip_network(f"10.5.{number}.0/24") if 4 in versions else None,  # type: ignore[arg-type]
        ip_network(f"fd00:5:0:{number}::/64") if 6 in versions else None,  # type: ignore[arg-type]
    )


def lease(number: int = 2, versions: tuple[int, ...] = (4,), **changes: Any) -> Lease:
    """As flanneld writes it."""
    value: dict[str, JSON] = {"PublicIP": f"192.0.2.{number}", "PublicIPv6": None, "BackendType": "wireguard"}
    value["BackendData"] = {"PublicKey": KEY} if 4 in versions else None
    if 6 in versions:
        value |= {"PublicIPv6": f"2001:db8::{number}", "BackendV6Data": {"PublicKey": KEY}}
    return Lease.from_record(subnets(number, versions).key, json.dumps({**value, **changes}))


def peers(plan: Any) -> dict[str, WireguardPeer]:
    return {item.link: item for item in plan if isinstance(item, WireguardPeer)}


# options


def test_the_defaults_are_flannel_s() -> None:
    options = WireguardOptions()
    assert (options.listen_port, options.listen_port_v6, options.psk, options.mode) == (51820, 51821, "", "separate")
    assert (options.keepalive, options.mtu, options.implementation) == (0, None, "auto")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"Mode": "both"}, "Backend.Mode"),
        ({"Implementation": "rust"}, "Backend.Implementation"),
        ({"PSK": "secret"}, "Backend.PSK"),
        ({"PSK": PSK[:-2] + "9="}, "Backend.PSK"),
        ({"PSK": PSK, "PSKFile": "/etc/psk"}, "PSK and a PSKFile"),
        ({"PSKFile": "psk"}, "Backend.PSKFile is 'psk'"),
        ({"PSKFile": "/nonexistent/psk"}, "WireGuard PSK file /nonexistent/psk: there is none"),
    ],
)
def test_wrong_options_are_refused_by_name(options: Mapping[str, JSON], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        backend(**options)


def test_the_psk_may_be_in_a_file_of_the_node_s_own(tmp_path: Path) -> None:
    path = tmp_path / "psk"
    path.write_text(PSK + "\n")
    path.chmod(0o600)
    made = backend(PSKFile=str(path))
    assert made.psk == Secret(bytes(range(1, 33)))
    (peer,) = peers(made.plan_peer(node(tmp_path), lease())).values()
    assert peer.preshared_key == made.psk
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="mode 0640 lets others use the key"):
        backend(PSKFile=str(path))


def test_a_psk_in_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "psk"
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="is not a regular file"):
        backend(PSKFile=str(path))


@pytest.mark.parametrize("content", ["", PSK[:-2], PSK * 2])
def test_a_psk_file_without_a_psk_is_named_and_not_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "psk"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="no key in it") as caught:
        backend(PSKFile=str(path))
    assert PSK[:10] not in str(caught.value)


def test_the_psk_is_shown_nowhere(tmp_path: Path) -> None:
    made = backend(PSK=PSK)
    for wrong in ({"PSK": PSK[:-3]}, {"PSK": [PSK]}):
        with pytest.raises(ConfigError) as caught:
            backend(**wrong)
        assert PSK[:20] not in str(caught.value)
    document = NetworkConfig.from_json(
        json.dumps({"Network": "10.5.0.0/16", "Backend": {"Type": "wireguard", "PSK": PSK}})
    )
    shown = f"{made.options} {made.options!r} {document!r} {made.plan_peer(node(tmp_path), lease())!r}"
    assert PSK[:10] not in shown
    assert "hidden" in shown


# which implementation


@pytest.mark.parametrize(("there", "expected"), [(True, "kernel"), (False, "userspace")])
def test_auto_takes_the_kernel_s_where_it_is(monkeypatch: pytest.MonkeyPatch, there: bool, expected: str) -> None:
    monkeypatch.delenv("WIREGUARD_IMPLEMENTATION", raising=False)
    asked = []

    def family(name: str) -> bool:
        asked.append(name)
        return there

    monkeypatch.setattr(wireguard, "has_generic_netlink", family)
    wireguard._kernel_has_wireguard.cache_clear()
    try:
        assert backend(Implementation="auto").implementation == expected
        assert backend(Implementation="auto").implementation == expected
        assert asked == ["wireguard"], "asked once"
        for forced in ("kernel", "userspace"):
            assert backend(Implementation=forced).implementation == forced
    finally:
        wireguard._kernel_has_wireguard.cache_clear()


def test_a_node_may_decide_where_the_document_leaves_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for named in ("kernel", "userspace"):
        monkeypatch.setenv("WIREGUARD_IMPLEMENTATION", named)
        assert backend(Implementation="auto").implementation == named
        assert backend(Implementation="userspace").implementation == "userspace"
    monkeypatch.setenv("WIREGUARD_IMPLEMENTATION", "rust")
    with pytest.raises(ConfigError, match="WIREGUARD_IMPLEMENTATION is 'rust'"):
        backend(Implementation="auto")


def test_what_is_told_about_it(tmp_path: Path) -> None:
    told = backend().describe(node(tmp_path))
    assert told == {"implementation": "kernel", "public_key": keys.identity(tmp_path / keys.FILE_NAME).public_key}


# leases


def test_what_is_published_is_what_flanneld_reads(tmp_path: Path) -> None:
    public = keys.load_or_create(tmp_path / keys.FILE_NAME).public_key
    for versions in ((4,), (6,), (4, 6)):
        published = backend().publish(node(tmp_path, versions))
        assert published.data == ({"PublicKey": public, "Port": 51820} if 4 in versions else None)
        assert published.v6_data == ({"PublicKey": public, "Port": 51821} if 6 in versions else None)
    published = backend(Mode="auto", ListenPort=7).publish(node(tmp_path, (4, 6)))
    assert published.data == published.v6_data == {"PublicKey": public, "Port": 7}


@pytest.mark.parametrize(
    "data",
    [
        None,
        "text",
        {},
        {"PublicKey": 5},
        {"PublicKey": ""},
        {"PublicKey": "A" * 43 + "="},
        {"PublicKey": KEY[:-1]},
        {"PublicKey": KEY + "\n"},
        {"PublicKey": "!" + KEY[1:]},
    ],
)
def test_a_lease_without_a_usable_key_is_rejected(tmp_path: Path, data: JSON) -> None:
    with pytest.raises(PeerRejected, match="BackendData"):
        backend().plan_peer(node(tmp_path), lease(BackendData=data))


@pytest.mark.parametrize("port", ["51820", -1, 65536, 51820.0, True, [], {}])
def test_a_lease_with_an_impossible_port_is_rejected(tmp_path: Path, port: JSON) -> None:
    with pytest.raises(PeerRejected, match=r"BackendData\.Port is .*, expected a UDP port"):
        backend().plan_peer(node(tmp_path), lease(BackendData={"PublicKey": KEY, "Port": port}))


@pytest.mark.parametrize("data", [{}, {"Port": None}, {"Port": 0}])
def test_a_peer_that_says_no_port_has_ours(tmp_path: Path, data: dict[str, JSON]) -> None:
    found = peers(backend(ListenPort=7).plan_peer(node(tmp_path), lease(BackendData={"PublicKey": KEY, **data})))
    assert [peer.endpoint for peer in found.values()] == [Endpoint(IPv4Address("192.0.2.2"), 7)]


@pytest.mark.parametrize(
    ("mode", "versions", "ports"),
    [
        ("separate", (4, 6), {"flannel-wg": 7, "flannel-wg-v6": 8}),
        ("separate", (6,), {"flannel-wg-v6": 8}),
        ("auto", (4, 6), {"flannel-wg": 7}),
        ("ipv6", (4, 6), {"flannel-wg": 7}),
        ("ipv6", (6,), {"flannel-wg": 51820}),
    ],
)
def test_a_peer_is_sent_to_at_the_port_of_its_lease(
    tmp_path: Path, mode: str, versions: tuple[int, ...], ports: dict[str, int]
) -> None:
    """flanneld says the port of IPv6's own device also where it has none."""
    said = {"BackendData": {"PublicKey": KEY, "Port": 7}} if 4 in versions else {}
    theirs = lease(2, versions, **said, BackendV6Data={"PublicKey": KEY, "port": 8})
    found = peers(backend(Mode=mode).plan_peer(node(tmp_path, versions), theirs))
    assert {link: peer.endpoint.port for link, peer in found.items() if peer.endpoint is not None} == ports


def test_a_lease_with_our_own_key_is_rejected(tmp_path: Path) -> None:
    here = node(tmp_path)
    own = backend().publish(here).data
    with pytest.raises(PeerRejected, match="own"):
        backend().plan_peer(here, lease(BackendData=own))


@pytest.mark.parametrize("address", ["255.255.255.255", "224.0.0.1", "127.0.0.1", "0.0.0.0"])
def test_a_lease_with_an_impossible_address_is_rejected(tmp_path: Path, address: str) -> None:
    with pytest.raises(PeerRejected, match="PublicIP"):
        backend().plan_peer(node(tmp_path), lease(PublicIP=address))


# plans


@pytest.mark.parametrize("implementation", ["kernel", "userspace"])
def test_planning_makes_no_key(tmp_path: Path, implementation: str) -> None:
    """So that doctor can plan without leaving a trace. And what this node lacks is not laid to its peers' leases."""
    here = replace(node(tmp_path), state_dir=tmp_path / "other")
    with pytest.raises(ConfigError, match="none yet"):
        backend(Implementation=implementation).plan_node(here)
    assert not (tmp_path / "other").exists()


def test_a_device_for_each_family(tmp_path: Path) -> None:
    here = node(tmp_path, (4, 6))
    plan = set(backend(ListenPort=7, ListenPortV6=8).plan_node(here))
    secret = keys.identity(tmp_path / keys.FILE_NAME).private_key
    for name, port, inner in (("flannel-wg7", 7, "10.5.1.0/32"), ("flannel-w68", 8, "fd00:5:0:1::/128")):
        assert Link(name, GenericInfo("wireguard"), 1420) in plan
        assert WireguardDevice(name, secret, port) in plan
        assert Address(name, ip_interface(inner)) in plan
    for network, device in ((ip_network("10.5.0.0/16"), "flannel-wg7"), (ip_network("fd00:5::/48"), "flannel-w68")):
        assert {Route(network, device), Route(network, None, metric=SHUT)} <= plan


@pytest.mark.parametrize("mode", ["auto", "ipv4", "ipv6"])
def test_one_device_for_both_families(tmp_path: Path, mode: str) -> None:
    made, here = backend(Mode=mode), node(tmp_path, (4, 6))
    links = [item for item in made.plan_node(here) if isinstance(item, Link)]
    assert [link.name for link in links] == ["flannel-wg"]
    found = peers(made.plan_peer(here, lease(2, (4, 6))))
    assert set(found) == {"flannel-wg"}
    assert found["flannel-wg"].allowed_ips == (ip_network("10.5.2.0/24"), ip_network("fd00:5:0:2::/64"))
    expected = "2001:db8::2" if mode == "ipv6" else "192.0.2.2"
    assert found["flannel-wg"].endpoint == Endpoint(
        IPv6Address(expected) if mode == "ipv6" else IPv4Address(expected), 51820
    )


def test_peers_in_separate_mode(tmp_path: Path) -> None:
    found = peers(backend(PSK=PSK, PersistentKeepaliveInterval=25).plan_peer(node(tmp_path, (4, 6)), lease(2, (4, 6))))
    psk = Secret(bytes(range(1, 33)))
    assert found == {
        "flannel-wg": WireguardPeer(
            "flannel-wg", KEY, (ip_network("10.5.2.0/24"),), Endpoint(IPv4Address("192.0.2.2"), 51820), psk, 25
        ),
        "flannel-wg-v6": WireguardPeer(
            "flannel-wg-v6", KEY, (ip_network("fd00:5:0:2::/64"),), Endpoint(IPv6Address("2001:db8::2"), 51821), psk, 25
        ),
    }


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        (("8.8.8.8", "2600::2"), ("192.0.2.1", "2600::1"), "8.8.8.8"),
        (("10.0.0.2", "2600::2"), ("192.0.2.1", "2600::1"), "2600::2"),
        (("10.0.0.2", "2600::2"), ("192.0.2.1", "fd00::1"), "10.0.0.2"),
        (("10.0.0.2", "fd00::2"), ("192.0.2.1", "2600::1"), "10.0.0.2"),
    ],
)
def test_auto_chooses_the_address_as_flannel_does(
    tmp_path: Path, theirs: tuple[str, str], ours: tuple[str, str], expected: str
) -> None:
    here = node(tmp_path, (4, 6), ipv4=IPv4Address(ours[0]), ipv6=IPv6Address(ours[1]))
    plan = backend(Mode="auto").plan_peer(here, lease(2, (4, 6), PublicIP=theirs[0], PublicIPv6=theirs[1]))
    endpoint = peers(plan)["flannel-wg"].endpoint
    assert endpoint is not None
    assert str(endpoint.address) == expected


def test_a_mode_needs_its_family_in_the_network(tmp_path: Path) -> None:
    """Leases carry the addresses of the families in use only, as flannel's do."""
    with pytest.raises(PeerRejected, match="PublicIPv6"):
        backend(Mode="ipv6").plan_peer(node(tmp_path, (4, 6)), lease())
    with pytest.raises(ConfigError, match="EnableIPv6"):
        backend(Mode="ipv6").plan_node(node(tmp_path))
    with pytest.raises(ConfigError, match="EnableIPv4"):
        backend(Mode="ipv4").plan_node(node(tmp_path, (6,)))


def test_the_mtu_is_flannel_s(tmp_path: Path) -> None:
    underlay = node(tmp_path).underlay
    assert backend().mtu(underlay) == 1420
    assert backend(MTU=9000).mtu(underlay) == 8920
    assert backend().mtu(replace(underlay, mtu=1280)) == 1200


def test_the_plan_for_a_peer_is_for_its_families_only(tmp_path: Path) -> None:
    found = peers(backend().plan_peer(node(tmp_path, (4, 6)), lease(2, (4,))))
    assert set(found) == {"flannel-wg"}
    attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.9"), backend_type="wireguard")
    with pytest.raises(PeerRejected):
        backend().plan_peer(node(tmp_path), Lease(subnets(9), attributes))


# userspace


def test_userspace_plans_a_tun_device_and_no_peers(tmp_path: Path) -> None:
    made, here = backend(Implementation="userspace"), node(tmp_path)
    plan = set(made.plan_node(here))
    (link,) = [item for item in plan if isinstance(item, Link)]
    assert (link.name, link.info.kind, link.mtu) == ("flannel-wg", "tun", 1420)
    network = ip_network("10.5.0.0/16")
    assert {Route(network, "flannel-wg"), Route(network, None, metric=SHUT)} <= plan
    assert not any(isinstance(item, WireguardDevice) for item in plan)
    assert not list(made.plan_peer(here, lease()))
    with pytest.raises(PeerRejected):
        made.plan_peer(here, lease(BackendData=None))
    assert [peer.public_key for peer in made.reach(here, lease())] == [KEY]


@pytest.mark.parametrize("mode", ["separate", "auto"])
def test_a_worker_s_row_of_ipv4_is_the_same_with_ipv6_and_without(tmp_path: Path, mode: str) -> None:
    """Else its session would end because another family goes."""
    both, one = (4, 6), (4,)
    made = backend(Implementation="userspace", Mode=mode)
    with_ipv6 = rows(made, node(tmp_path, both), lease(2, both), made.device(4))
    without = list(rows(made, node(tmp_path, one), lease(2, one), made.device(4)))
    assert [row for row in with_ipv6 if ":" not in row[0]] == without
