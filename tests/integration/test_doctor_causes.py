"""Doctor names the cause: what went wrong on somebody's nodes, one by one, under daemons that run.

One lab serves all; each leaves it as it found it. Where nothing is wrong, doctor has nothing to say.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest
from tests.integration.asking import until
from tests.integration.overlay import overlay

from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

NETWORK = "10.244.0.0/16"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with overlay("vxlan", nodes=2) as lab:
        yield lab


def findings(node: Node, *words: str) -> list[dict[str, str]]:
    """What doctor finds when it is told no more than where the daemon is."""
    where = ["--run-dir", str(node.daemon.run_directory)]
    done = node.run(pyflannel_command("doctor", "--json", *words, *where), check=False, timeout=90)
    # What the store says on the way is its own affair.
    assert all("file store: " in line for line in done.stderr.splitlines()), done.stderr
    assert done.stdout.isascii()
    found: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return found


def trouble(node: Node, *words: str) -> dict[str, list[dict[str, str]]]:
    told: dict[str, list[dict[str, str]]] = {}
    for finding in findings(node, *(words or ("--no-probes",))):
        if finding["verdict"] in ("warn", "fail"):
            told.setdefault(finding["check"], []).append(finding)
    return told


def subnets(lab: Lab) -> Path:
    return lab.outside(lab.nodes[0].directory).parent / "store" / "subnets"


def peer(lab: Lab) -> str:
    (text,) = lab.nodes[1].daemon.status()["lease"]["subnets"]
    return str(text)


@dataclass(frozen=True)
class Row:
    """Something that is done to a node, and what doctor must say of it.

    :param do: shell commands in the node; ``{peer}`` is the other node's subnet, ``{half}`` its second half,
        ``{address}`` an address of it.
    :param check: the finding that must fail or warn; empty: nothing may.
    :param says: what its message must hold; ``fix`` its command. ``probe`` are words for doctor to probe peers by.
    """

    do: str
    undo: str
    check: str = ""
    says: str = ""
    fix: str = ""
    probe: tuple[str, ...] = ()


TUN = "ip link add tun7 type veth peer name tun8; ip link set tun7 up; ip link set tun8 up"
"""A device of somebody else's."""

ROWS = {
    "a VPN's two halves": Row(
        f"{TUN}; ip route add 0.0.0.0/1 dev tun7; ip route add 128.0.0.0/1 dev tun7",
        "ip link delete tun7",
    ),
    "a virtual address": Row("ip addr add 192.0.2.200/32 dev eth0", "ip addr delete 192.0.2.200/32 dev eth0"),
    "another default route": Row(
        TUN + "; ip route add default dev tun7 metric 50",
        "ip link delete tun7",
    ),
    "a bridge that does not forward": Row(
        "echo 0 >/proc/sys/net/ipv4/conf/cni0/forwarding",
        "echo 1 >/proc/sys/net/ipv4/conf/cni0/forwarding",
        "IPv4 forwarding",
        "net.ipv4.conf.cni0.forwarding is 0",
        "sysctl -w net.ipv4.conf.cni0.forwarding=1",
    ),
    "a foreign route inside a peer's subnet": Row(
        TUN + "; ip route add {half} dev tun7",
        "ip link delete tun7",
        "routes of others",
        "{half} dev tun7",
        "ip route delete {half} dev tun7",
    ),
    "a foreign route that takes all of a peer's subnet": Row(
        TUN + "; ip route add {near} dev tun7",
        "ip link delete tun7",
        "peer overlay",
        "by tun7",
        "ip route get",
        ("--peer", "10.244."),
    ),
    "the subnet was given to another node while this one was off": Row(
        "ip addr add {inside} dev cni0",
        "ip addr delete {inside} dev cni0",
        "routes of others",
        "cni0 has {address}",
        "ip link delete cni0",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_what_happens_on_a_node_is_named(lab: Lab, name: str) -> None:
    node, row = lab.nodes[0], ROWS[name]
    theirs = ip_network(peer(lab))
    near, half = theirs.subnets()
    address = theirs.network_address + 99
    words = {"peer": theirs, "half": half, "near": near, "address": address, "inside": f"{address}/{theirs.prefixlen}"}
    try:
        node.run(["sh", "-ec", row.do.format(**words)])
        if not row.check:
            assert trouble(node) == {}
        else:
            until(lambda: row.check in trouble(node, *row.probe), "it is seen")
            told = trouble(node, *row.probe)[row.check]
            assert any(
                row.says.format(**words) in finding["message"] and row.fix.format(**words) in finding["fix"]
                for finding in told
            ), told
            if "cni0" in row.says:
                assert "ip route delete" not in json.dumps(trouble(node)), "the bridge's own route stays"
    finally:
        node.run(["sh", "-c", row.undo.format(**words)])
    until(lambda: trouble(node) == {}, "all is well again")


LEASES: dict[str, tuple[str, dict[str, str], str]] = {
    "the link's broadcast address": ("10.244.250.0-24", {"PublicIP": "192.0.2.255"}, "no address that a node can have"),
    "an address of nowhere": ("10.244.250.0-24", {"PublicIP": "0.1.2.3"}, "no address that a node can have"),
    "this node's address": ("10.244.250.0-24", {"PublicIP": "192.0.2.1"}, "is this node's own"),
    "half a megabyte": ("10.244.250.0-24", {"PublicIP": "192.0.2.9", "X": "x" * 520_000}, "more than 32768 characters"),
    "an alias": ("10.244.250.0-024", {"PublicIP": "192.0.2.9"}, "another spelling of 10.244.250.0-24"),
    "a name with an escape": ("10.244.250.0-24%1B", {"PublicIP": "192.0.2.9"}, "lease key"),
    "another type": ("10.244.250.0-24", {"PublicIP": "192.0.2.9", "BackendType": "udp"}, "BackendType is 'udp'"),
    "outside": ("10.9.9.0-24", {"PublicIP": "192.0.2.9"}, "lies outside the network"),
}


@pytest.mark.parametrize("name", LEASES)
def test_a_lease_that_can_t_be_used_is_named_with_the_reason(lab: Lab, name: str) -> None:
    key, document, reason = LEASES[name]
    path = subnets(lab) / f"{key}.json"
    path.write_text(json.dumps({"BackendType": "vxlan", **document}))
    try:
        (finding,) = trouble(lab.nodes[0])["leases"]
        assert reason in finding["message"]
    finally:
        path.unlink()
    until(lambda: trouble(lab.nodes[0]) == {}, "all is well again")


DOCUMENTS: dict[str, tuple[dict[str, object], str]] = {
    "an MTU that no packet has": ({"Backend": {"Type": "vxlan", "MTU": 2**40}}, "MTU"),
    "no network": ({"Network": "10.244.0.0/33"}, "Network"),
    "a backend that is not there": ({"Backend": {"Type": "nothing"}}, "nothing"),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_network_config_that_can_t_be_used_is_named(lab: Lab, name: str) -> None:
    changes, says = DOCUMENTS[name]
    path = subnets(lab).parent / "config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), **changes}))
    try:
        (finding,) = trouble(lab.nodes[0])["network config"]
        assert says in finding["message"]
    finally:
        path.write_text(before)
    until(lambda: trouble(lab.nodes[0]) == {}, "all is well again")


def test_a_link_to_the_kernel_s_log_is_no_trouble(lab: Lab) -> None:
    path = subnets(lab) / "10.244.250.0-24.json"
    path.symlink_to("/proc/kmsg")
    try:
        assert trouble(lab.nodes[0]) == {}
    finally:
        path.unlink()


def test_it_says_why_this_underlay_and_what_would_have_been_next(lab: Lab) -> None:
    node = lab.nodes[0]
    flags = node.daemon.options.arguments
    add = "ip link add eth7 type veth peer name cable8; ip link set cable8 up; ip link set eth7 up"
    node.run(["sh", "-ec", f"{add}; ip addr add 198.51.100.77/24 dev eth7"])
    try:
        node.daemon.stop()
        node.start_daemon(lab.file_store, "vxlan", NETWORK, (*flags, "--iface-regex", "^eth"))
        node.daemon.wait_ready(peers=1)
        (finding,) = [finding for finding in findings(node, "--no-probes") if finding["check"] == "underlay"]
        assert "--iface eth0" in finding["message"]
        assert "would have been next: eth7: its name matches --iface-regex ^eth" in finding["message"]
        shown = node.run(pyflannel_command("status", "--run-dir", str(node.daemon.run_directory))).stdout
        assert "would have been next: eth7: its name matches --iface-regex ^eth" in shown
    finally:
        node.run(["ip", "link", "delete", "eth7"])
        node.daemon.stop()
        node.start_daemon(lab.file_store, "vxlan", NETWORK, flags)
        node.daemon.wait_ready(peers=1)
