"""What somebody does to the overlay's devices from outside, one by one, under daemons that run.

Three labs serve all: vxlan, whose device the kernel makes; udp, whose device is a program's; and host-gw, which has
no device but the underlay's. Each test leaves them as it found them. The table in docs/doctor.md has all that is done
here, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from tests import iproute
from tests.integration.asking import until
from tests.integration.examining import Doctor
from tests.integration.overlay import overlay

from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

PAGE = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")

DEVICES: Final = {"vxlan": ("flannel.1", "flannel-v6.1"), "udp": ("flannel0",), "host-gw": ("eth0",)}
"""What packets of the overlay leave by."""

SWITCHES: Final = (
    "ipv4/ip_forward",
    "ipv6/conf/all/forwarding",
    *(
        f"{family}/conf/{device}/{name}"
        for family, name in (("ipv4", "forwarding"), ("ipv6", "forwarding"), ("ipv6", "disable_ipv6"))
        for device in ("flannel.1", "flannel-v6.1", "flannel0", "eth0")
    ),
)

FACTS: Final = (
    *("flags", "mtu", "address", "ifalias", "master", "linkinfo", "proto_down"),
    *("qdisc", "group", "promiscuity"),
)
"""Of a device, as ip(8) names them. Its operational state is not among them: vxlan's may be unknown or up."""

SHOWN: Final = {
    "link": "ip -j -d address show dev",
    "neighbours": "ip -j neigh show nud permanent dev",
    "entries": "bridge -j fdb show dev",
}

REPAIRED: Final = "repaired"
LEFT: Final = "left alone"
REFUSED: Final = "the kernel refuses"
PASSED: Final = "our accepts come before it"
TAKEN: Final = "`status`: the VNI is taken"
NONE: Final = "-"
"""Not there: such a network has no such thing."""


@dataclass(frozen=True)
class Row:
    """Something that is done, and what follows on each backend.

    :param do: shell commands on the node. ``{device}`` is the backend's device, ``{sysctl}`` the same as sysctl(8)
        writes it, ``{peer}`` what our route to the other node leads to, ``{neighbour}`` that node's device.
    :param undo: what takes back what is left alone.
    :param expected: by backend; ``doctor: CHECK`` is left alone, and doctor's finding names it.
    :param cut: the backends whose containers don't reach each other then.
    """

    do: str
    vxlan: str
    udp: str
    host_gw: str
    undo: str = ":"
    cut: tuple[str, ...] = ()

    def expected(self, backend: str) -> str:
        return str(getattr(self, backend.replace("-", "_")))


AWAY = (
    "unshare -n sleep 600 >/dev/null 2>&1 & echo $! > /run/lab/away; "
    "until [ $(readlink /proc/$!/ns/net) != $(readlink /proc/self/ns/net) ]; do :; done; ip link set {device} netns $!"
)

LOST_WITH_UPLINK = (
    "ip addr add fe80::1/64 dev eth0 nodad; ip route add default via 192.0.2.254; "
    "ip -6 route add default via 2001:db8::fe"
)
"""What whoever looks after a node's own interface gives back to it; the kernel makes the first elsewhere."""

ROWS = {
    "deleted": Row("ip link delete {device}", REPAIRED, REPAIRED, NONE),
    "renamed": Row("ip link set {device} down; ip link set {device} name other0", REPAIRED, REPAIRED, NONE),
    "set down": Row("ip link set {device} down", REPAIRED, REPAIRED, NONE),
    "set down and up": Row(
        "sysctl -qw net.ipv6.conf.{sysctl}.keep_addr_on_down=1; ip link set {device} down; ip link set {device} up; "
        f"[ {{device}} != eth0 ] || {{{{ {LOST_WITH_UPLINK}; }}}}",
        REPAIRED,
        REPAIRED,
        REPAIRED,
    ),
    "`protodown`": Row("ip link set {device} protodown on", REPAIRED, REFUSED, NONE),
    "another MTU": Row("ip link set {device} mtu 1300", REPAIRED, REPAIRED, NONE),
    "another MAC": Row("ip link set {device} address 02:00:00:00:00:99", REPAIRED, REFUSED, NONE),
    "another alias": Row("ip link set {device} alias mine", REPAIRED, REPAIRED, NONE),
    "its alias taken": Row("ip link set {device} alias ''", REPAIRED, REPAIRED, NONE),
    "`learning` switched on": Row("ip link set {device} type vxlan learning", REPAIRED, NONE, NONE),
    "another `local` address": Row("ip link set {device} type vxlan local 192.0.2.200", REPAIRED, NONE, NONE),
    "a `remote`": Row("ip link set {device} type vxlan remote 192.0.2.99", REPAIRED, NONE, NONE),
    "a `ttl`": Row("ip link set {device} type vxlan ttl 9", REPAIRED, NONE, NONE),
    "ARP switched off": Row(
        "ip link set {device} arp off; ip neigh flush dev {device}",
        LEFT,
        NONE,
        "doctor: peer underlay",
        "ip link set {device} arp on",
        ("host-gw",),
    ),
    "ARP switched on": Row("ip link set {device} arp on", NONE, LEFT, NONE, "ip link set {device} arp off"),
    "a neighbour deleted": Row("ip neigh delete {neighbour} dev {device}", REPAIRED, NONE, NONE),
    "a forwarding entry deleted": Row(
        "bridge fdb delete $(bridge fdb show dev {device} | cut -d' ' -f1 | head -1) dev {device}", REPAIRED, NONE, NONE
    ),
    "put into a bridge": Row(
        "ip link add br9 type bridge; ip link set br9 up; ip link set {device} master br9",
        REPAIRED,
        REFUSED,
        NONE,
        "ip link delete br9",
    ),
    "an address added": Row("ip addr add 10.244.255.1/32 dev {device}", REPAIRED, REPAIRED, NONE),
    "an address with a peer added": Row(
        "ip addr add 10.244.255.1 peer 10.244.255.2 dev {device}", REPAIRED, REPAIRED, NONE
    ),
    "its address deleted": Row("ip addr flush dev {device} scope global", REPAIRED, REPAIRED, NONE),
    "a route deleted": Row("ip route flush proto 241", REPAIRED, REPAIRED, REPAIRED),
    "an IPv6 route deleted": Row("ip -6 route flush proto 241", REPAIRED, NONE, REPAIRED),
    "a route changed": Row("ip route replace {peer} via 192.0.2.99 dev eth0 proto 241", REPAIRED, REPAIRED, REPAIRED),
    "`forwarding` off": Row("sysctl -qw net.ipv4.conf.{sysctl}.forwarding=0", REPAIRED, REPAIRED, REPAIRED),
    "`forwarding` of the underlay's device off": Row(
        "sysctl -qw net.ipv4.conf.eth0.forwarding=0", LEFT, LEFT, NONE, "sysctl -qw net.ipv4.conf.eth0.forwarding=1"
    ),
    "IPv6 `forwarding` off": Row(
        "sysctl -qw net.ipv6.conf.{sysctl}.forwarding=0",
        LEFT,
        NONE,
        LEFT,
        "sysctl -qw net.ipv6.conf.{sysctl}.forwarding=1",
    ),
    "`ip_forward` off": Row("sysctl -qw net.ipv4.ip_forward=0", REPAIRED, REPAIRED, REPAIRED),
    "IPv6 `all/forwarding` off": Row("sysctl -qw net.ipv6.conf.all.forwarding=0", REPAIRED, NONE, REPAIRED),
    "firewall rules flushed": Row("nft flush ruleset", REPAIRED, REPAIRED, REPAIRED),
    "a chain that drops what is forwarded": Row(
        "nft 'add table ip x; add chain ip x y {{ type filter hook forward priority 0; policy drop; }}'",
        PASSED,
        PASSED,
        PASSED,
        "nft delete table ip x",
    ),
    "moved to another network namespace": Row(AWAY, TAKEN, REPAIRED, NONE, "kill $(cat /run/lab/away)"),
    "a root queueing discipline": Row(
        "tc qdisc replace dev {device} root pfifo limit 500",
        "doctor: device filters",
        "doctor: device filters",
        LEFT,
        "tc qdisc delete dev {device} root",
    ),
    "a chain of nftables for that device": Row(
        "nft 'add table netdev x; add chain netdev x y {{ type filter hook ingress device {device} priority 0; }}'",
        "doctor: device filters",
        "doctor: device filters",
        LEFT,
        "nft delete table netdev x",
    ),
    "promiscuity": Row("ip link set {device} promisc on", LEFT, LEFT, LEFT, "ip link set {device} promisc off"),
    "`multicast` off": Row("ip link set {device} multicast off", LEFT, LEFT, LEFT, "ip link set {device} multicast on"),
    "another group": Row("ip link set {device} group 5", LEFT, LEFT, LEFT, "ip link set {device} group default"),
    "strict `rp_filter`": Row(
        "sysctl -qw net.ipv4.conf.{sysctl}.rp_filter=1",
        "doctor: rp_filter",
        "doctor: rp_filter",
        "doctor: rp_filter",
        "sysctl -qw net.ipv4.conf.{sysctl}.rp_filter=0",
    ),
}


# The labs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def lab(backend: str) -> Iterator[Lab]:
    with overlay(backend, nodes=2, ipv6=None if backend == "udp" else "fd00:10::/48") as lab:
        yield lab


@pytest.fixture(scope="module")
def doctor(lab: Lab) -> Iterator[Doctor]:
    with Doctor(lab.nodes[0]) as doctor:
        yield doctor


def state(node: Node, backend: str) -> dict[str, Any]:
    """All that matters of the kernel's overlay, without what differs from device to device (indices, lifetimes)."""
    shown = [(what, command) for what, command in SHOWN.items() if what == "link" or backend != "host-gw"]
    commands = {
        **{f"{what} {device}": f"{command} {device}" for device in DEVICES[backend] for what, command in shown},
        "route": "ip -j route show proto 241",
        "IPv6 route": "ip -j -6 route show proto 241",
        "switch": f"cd /proc/sys/net; grep -s . {' '.join(SWITCHES)}",
        "firewall": "nft -s list ruleset",
    }
    said = node.run(
        ["sh", "-c", "".join(f"({command}); echo; echo END;" for command in commands.values())], check=False
    )
    found: dict[str, Any] = {}
    for name, text in zip(commands, said.stdout.split("\nEND\n"), strict=False):
        kind, _, device = name.partition(" ")
        if kind == "link":
            for link in iproute.parse(text):
                found |= {f"{device}'s {fact}": link.get(fact) for fact in FACTS}
                addresses = (f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if "local" in each)
                found[f"{device}'s addresses"] = sorted(each for each in addresses if not each.startswith("fe80"))
        elif text.strip().startswith("["):
            found[name] = sorted(iproute.parse(text), key=str)
        else:
            found[name] = [line for line in text.splitlines() if line]
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {name: (one.get(name), other.get(name)) for name in {**one, **other} if one.get(name) != other.get(name)}


CASES = [(backend, name) for backend in DEVICES for name, row in ROWS.items() if row.expected(backend) != NONE]


@pytest.mark.parametrize(("backend", "name"), CASES, indirect=["backend"], scope="module")
def test_what_is_done_to_a_device(lab: Lab, doctor: Doctor, backend: str, name: str) -> None:
    node, row = lab.nodes[0], ROWS[name]
    expected = row.expected(backend)
    device = DEVICES[backend][0]
    words = {"device": device, "sysctl": device.replace(".", "/"), "peer": leased(lab.nodes[1])}
    words["neighbour"] = words["peer"].partition("/")[0]
    before = state(node, backend)
    done = node.run(["sh", "-ec", row.do.format(**words)], check=False)
    try:
        assert (done.returncode != 0) == (expected == REFUSED), done.stderr
        if expected == REPAIRED:
            until(lambda: state(node, backend) == before, lambda: differences(before, state(node, backend)))
        elif expected.startswith("doctor: "):
            check = expected.removeprefix("doctor: ")
            probes = ("--json",) if check.startswith("peer ") else ()
            until(lambda: check in doctor.trouble(*probes), lambda: f"{check} is named: {doctor.trouble(*probes)}")
        elif expected == TAKEN:
            until(lambda: "VNI" in node.daemon.status()["message"], lambda: node.daemon.status()["message"])
        if expected in (REPAIRED, LEFT):
            until(lambda: doctor.trouble() == {}, lambda: f"nothing is wrong: {doctor.trouble()}")
        if expected != TAKEN:
            until(lambda: lab.reachability().complete is not (backend in row.cut), f"cut: {row.cut}")
        if expected == LEFT:
            assert state(node, backend) != before, "it is still there"
    finally:
        node.run(["sh", "-c", row.undo.format(**words)], check=False)
    until(lambda: state(node, backend) == before, lambda: differences(before, state(node, backend)))
    if row.cut or expected == TAKEN:
        until(lambda: lab.reachability().complete, "they reach each other again")


def leased(node: Node) -> str:
    """An IPv4 subnet."""
    return str(node.daemon.status()["lease"]["subnets"][0])


def test_the_documentation_has_what_is_done() -> None:
    table = PAGE.partition("## What others can do to a device")[2].partition("\n## ")[0]
    rows = (line.strip("| ").split("|") for line in table.splitlines() if line.count("|") == 5)
    cells = [tuple(cell.strip() for cell in row) for row in rows]
    assert cells[0] == ("what is done", *DEVICES)
    assert cells[2:] == [(name, *(row.expected(backend) for backend in DEVICES)) for name, row in ROWS.items()]
