"""ipsec without a kernel and without charon: options, what the kernel should hold, and what charon is told."""

from __future__ import annotations

import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from pyflannel.backend import (
    JSON,
    XFRM_INTERFACES,
    Address,
    GenericInfo,
    Lease,
    LeaseAttributes,
    Link,
    NetworkConfig,
    Node,
    Route,
    Subnets,
    Sysctl,
    Underlay,
    XfrmPolicy,
    forwarding,
    parse_options,
)
from pyflannel.errors import ConfigError, PeerRejected
from pyflannel.planning.clashes import clash
from pyflannel.testing.backends import BackendPlanning
from pyflannel_backends.ipsec import DEVICE, IF_ID, IpsecBackend, IpsecOptions
from pyflannel_backends.ipsec.connections import Tunnel, connecting, established, troubles
from pyflannel_backends.ipsec.dataplane import pause_after
from pyflannel_backends.shut import SHUT

PSK = "0123456789abcdef" * 6
UNDERLAY = Underlay(
    interface="eth0",
    mtu=1500,
    ipv4=IPv4Address("192.0.2.1"),
    ipv6=IPv6Address("2001:db8::1"),
    public_ipv4=IPv4Address("192.0.2.1"),
    public_ipv6=IPv6Address("2001:db8::1"),
)
NETWORK = NetworkConfig.from_json(
    '{"Network": "10.244.0.0/16", "EnableIPv6": true, "IPv6Network": "fd00::/48", "Backend": {"Type": "ipsec"}}'
)
SUBNETS = Subnets(IPv4Network("10.244.1.0/24"), IPv6Network("fd00:0:0:1::/64"))
NODE = Node("node-1", NETWORK, UNDERLAY, SUBNETS)


class TestPlanning(BackendPlanning):
    backend = "ipsec"
    variants = ({"PSK": PSK}, {"PSK": PSK, "UDPEncap": True, "ESPProposal": "aes256-sha512-modp4096"})


def backend(**options: JSON) -> IpsecBackend:
    parsed, unknown = parse_options(IpsecOptions, {"PSK": PSK, **options})
    assert not unknown
    return IpsecBackend(parsed)


def peer(number: int = 2) -> Lease:
    subnets = Subnets(IPv4Network(f"10.244.{number}.0/24"), IPv6Network(f"fd00:0:0:{number}::/64"))
    public = IPv4Address(f"192.0.2.{number}"), IPv6Address(f"2001:db8::{number}")
    return Lease(subnets, LeaseAttributes(*public, backend_type="ipsec"))


def tunnel(version: int, **options: JSON) -> Tunnel:
    (found,) = (each for each in backend(**options).tunnels(NODE, peer()) if each.own.version == version)
    return found


def test_a_node_has_an_interface_and_the_network_behind_it_or_nowhere() -> None:
    assert set(backend().plan_node(NODE)) == {
        Link(DEVICE, GenericInfo("xfrm", data=(("IFLA_XFRM_IF_ID", IF_ID),)), 1500 - 97),
        Sysctl(f"net/ipv6/conf/{DEVICE}/accept_ra", "0"),
        Address(DEVICE, ip_interface("10.244.1.0/32")),
        Address(DEVICE, ip_interface("fd00:0:0:1::/128")),
        Route(ip_network("10.244.0.0/16"), DEVICE),
        Route(ip_network("10.244.0.0/16"), None, metric=SHUT),
        Route(ip_network("fd00::/48"), DEVICE),
        Route(ip_network("fd00::/48"), None, metric=SHUT),
        forwarding(4),
        forwarding(6),
    }


def test_a_peer_has_three_policies_in_each_family() -> None:
    v4 = IPv4Network("10.244.1.0/24"), IPv4Network("10.244.2.0/24"), IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
    v6 = SUBNETS.ipv6, IPv6Network("fd00:0:0:2::/64"), IPv6Address("2001:db8::1"), IPv6Address("2001:db8::2")
    wanted: set[Any] = set()
    for own, theirs, here, there in (v4, v6):
        assert own is not None
        wanted |= {
            XfrmPolicy(own, theirs, "out", IF_ID, here, there, 11),
            XfrmPolicy(theirs, own, "in", IF_ID, there, here, 11),
            XfrmPolicy(theirs, own, "fwd", IF_ID, there, here, 11),
        }
    assert set(backend().plan_peer(NODE, peer())) == wanted
    assert IF_ID in XFRM_INTERFACES


@pytest.mark.parametrize("version", [4, 6])
def test_a_peer_without_an_address_of_the_family_is_rejected(version: int) -> None:
    missing: dict[str, Any] = {"public_ip": None} if version == 4 else {"public_ipv6": None}
    lease = peer()
    lease = replace(lease, attributes=replace(lease.attributes, **missing))
    with pytest.raises(PeerRejected, match=f"no PublicIP{'v6' if version == 6 else ''}, "):
        backend().plan_peer(NODE, lease)


@pytest.mark.parametrize("address", ["224.0.0.1", "0.0.0.0", "127.0.0.1", "255.255.255.255"])
def test_a_peer_that_is_no_host_is_rejected(address: str) -> None:
    lease = peer()
    lease = replace(lease, attributes=replace(lease.attributes, public_ip=IPv4Address(address)))
    with pytest.raises(PeerRejected, match="not the address of a host"):
        backend().plan_peer(NODE, lease)


@pytest.mark.parametrize(
    ("options", "overhead"),
    [
        ({}, 77),
        ({"UDPEncap": True}, 85),
        ({"ESPProposal": "aes256-sha512-modp2048"}, 93),
        ({"ESPProposal": "aes256-sha384-modp2048", "UDPEncap": True}, 93),
    ],
)
@pytest.mark.parametrize("version", [4, 6])
def test_mtu(options: dict[str, JSON], overhead: int, version: int) -> None:
    underlay = replace(UNDERLAY, ipv6=None) if version == 4 else UNDERLAY
    assert backend(**options).mtu(underlay) == 1500 - overhead - (20 if version == 6 else 0)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"PSK": ""}, "no PSK and no PSKFile"),
        ({"PSK": "x" * 95}, "PSK has 95 bytes: must have between 96"),
        ({"PSK": "x" * 4097}, "PSK has 4097 bytes"),
        ({"PSKFile": "/etc/key"}, "a PSK and a PSKFile"),
        ({"PSK": "", "PSKFile": "key"}, "must be an absolute path"),
        ({"PSK": "", "PSKFile": "/nowhere/key"}, "there is none"),
        ({"ESPProposal": ""}, "ESPProposal is ''"),
        ({"ESPProposal": "aes128gcm16 sha256"}, "with hyphens between them"),
    ],
)
def test_bad_options(options: dict[str, JSON], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as caught:
        backend(**options)
    assert "x" * 20 not in str(caught.value)


@pytest.mark.parametrize(("mode", "works"), [(0o600, True), (0o640, False), (0o604, False)])
def test_a_psk_in_a_file_is_nobody_else_s_to_read(tmp_path: Path, mode: int, works: bool) -> None:
    path = tmp_path / "psk"
    path.write_text(f"{PSK}\n")
    path.chmod(mode)
    if works:
        assert backend(PSK="", PSKFile=str(path)).psk.reveal() == PSK.encode()
    else:
        with pytest.raises(ConfigError, match="others may read"):
            backend(PSK="", PSKFile=str(path))


def test_a_psk_in_a_pipe_keeps_nobody_waiting(tmp_path: Path) -> None:
    path = tmp_path / "psk"
    os.mkfifo(path, 0o600)
    with pytest.raises(ConfigError, match="is not a regular file"):
        backend(PSK="", PSKFile=str(path))


def test_the_psk_shows_nowhere() -> None:
    made = backend()
    assert PSK not in repr(made.options) + repr(made.psk) + str(dict(made.describe(NODE)))


@pytest.mark.parametrize("version", [4, 6])
def test_charon_is_told_what_flannel_tells_it(version: int) -> None:
    ((name, said),) = tunnel(version).connection.items()
    ends = (("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2"))[version == 6]
    nets = (("10.244.1.0/24", "10.244.2.0/24"), ("fd00:0:0:1::/64", "fd00:0:0:2::/64"))[version == 6]
    assert (said["local_addrs"], said["remote_addrs"]) == ([ends[0]], [ends[1]])
    assert (said["version"], said["proposals"], said["encap"]) == ("2", ["aes256-sha256-modp4096"], "no")
    ((child, its),) = said["children"].items()
    assert child == name
    assert (its["local_ts"], its["remote_ts"]) == ([nets[0]], [nets[1]])
    assert (its["mode"], its["policies"], its["reqid"]) == ("tunnel", "no", "11")
    assert its["esp_proposals"] == ["aes128gcm16-sha256-prfsha256-ecp256"]
    assert its["if_id_in"] == its["if_id_out"] == str(IF_ID)
    assert tunnel(version, UDPEncap=True).connection[name]["encap"] == "yes"


def test_just_one_of_two_nodes_begins() -> None:
    one = tunnel(4)
    other = replace(one, local=one.remote, remote=one.local)
    assert [one.begins, other.begins] == [True, False]


HERE, FORMER = b"192.0.2.1", b"192.0.2.7"


def test_what_charon_says_of_its_tunnels() -> None:
    installed = {"c-1": {"name": b"c", "state": b"INSTALLED"}}
    answers: list[dict[str, Any]] = [
        {"a": {"state": b"ESTABLISHED", "local-host": HERE, "remote-host": b"192.0.2.2", "child-sas": installed}},
        {"a": {"state": b"ESTABLISHED", "local-host": FORMER, "remote-host": b"192.0.2.2", "child-sas": installed}},
        {"a": {"state": b"CONNECTING", "remote-host": b"192.0.2.3", "child-sas": {}}},
        {"b": {"state": b"ESTABLISHED", "remote-host": b"192.0.2.4", "child-sas": {"d": {"state": b"REKEYED"}}}},
        {"e": {"state": b"CONNECTING", "remote-host": b"192.0.2.5"}},
    ]
    assert established(answers) == {("a", "192.0.2.1", "192.0.2.2"), ("a", "192.0.2.7", "192.0.2.2")}
    assert connecting(answers) == {"a", "e"}


SAID = """\
2026-11-28 16:00:01 11[IKE] <pyflannel-10.244.2.0/24|1> initiating IKE_SA pyflannel-10.244.2.0/24[1] to 192.0.2.2
2026-11-28 16:00:02 06[IKE] <2> 192.0.2.3 is initiating an IKE_SA
{line}
2026-11-28 16:00:03 09[ENC] <pyflannel-10.244.2.0/24|1> parsed INFORMATIONAL response 2 [ ]
"""
AT = "2026-11-28 16:00:02 12"
NAMED = "<pyflannel-10.244.2.0/24|1> "

TROUBLES = {
    f"{AT}[IKE] {NAMED}received AUTHENTICATION_FAILED notify error": "another preshared key",
    f"{AT}[IKE] {NAMED}tried 1 shared key for '192.0.2.2' - '192.0.2.1', but MAC mismatched": "another preshared key",
    f"{AT}[IKE] {NAMED}retransmit 2 of request with message ID 0": "do UDP ports 500 and 4500 pass",
    f"{AT}[IKE] {NAMED}giving up after 4 retransmits": "do UDP ports 500 and 4500 pass",
    f"{AT}[IKE] {NAMED}received NO_PROPOSAL_CHOSEN notify error": "the same ESPProposal",
    f"{AT}[IKE] {NAMED}received TS_UNACCEPTABLE notify, no CHILD_SA built": "it does not know our subnet",
    f"{AT}[KNL] {NAMED}unable to add SAD entry with SPI c0ffee (FAILED)": "the modules esp4 and esp6",
}


@pytest.mark.parametrize(("line", "why"), TROUBLES.items())
def test_what_charon_says_of_a_peer_is_understood(line: str, why: str) -> None:
    assert troubles(SAID.format(line="")) == {}
    ((name, told),) = troubles(SAID.format(line=line)).items()
    assert name == "pyflannel-10.244.2.0/24"
    assert why in told


def test_a_slow_look_postpones_the_next_one_by_seconds_and_not_by_minutes() -> None:
    assert pause_after(0.0, at_ease=True) > pause_after(0.0, at_ease=False) > 0
    assert pause_after(0.4, at_ease=False) == 20 * 0.4, "thousands of tunnels cost a twentieth of a processor"
    assert pause_after(8.0, at_ease=False) == pause_after(80.0, at_ease=True) == 10.0, "a kernel tests its algorithms"


@pytest.mark.parametrize("changed", [{"PSK": PSK[::-1]}, {"UDPEncap": True}, {"ESPProposal": "aes256-sha512-modp4096"}])
def test_a_running_network_does_not_change_to_other_options(changed: dict[str, JSON]) -> None:
    """One charon can't have both, and two can't have one port."""
    one, other = (backend(**options) for options in ({}, changed))
    refused = clash(one, other, one.plan_node(NODE), other.plan_node(NODE))
    assert "backend ipsec moves the packets of one device by one process" in refused
    assert "go by way of another backend" in refused
