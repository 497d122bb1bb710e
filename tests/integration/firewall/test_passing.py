"""Real packets past real drops, and rules that are back within a second: the daemon in a lab.

Each foreign firewall is loaded while the daemon stands still, so that the test sees that it does drop; then the daemon
goes on, and the packets must pass. The rulesets are cut down from what the programs named make on Debian 12.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence

import pytest
from tests.waiting import until

from pyflannel.firewall.sync import find_tools
from pyflannel.lab import Lab, Node
from pyflannel.lab.daemon import pyflannel_command

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

NETWORK = {"Network": "10.244.0.0/16", "EnableIPv6": True, "IPv6Network": "fd00:10::/48", "Backend": {"Type": "vxlan"}}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    tools = find_tools()
    if tools.nft is None or set(tools.iptables) != {"nft", "legacy"}:
        pytest.skip("needs nft and both kinds of iptables")
    with Lab(nodes=2) as lab:
        config = lab.new_file("network")
        lab.outside(config).write_text(json.dumps(NETWORK))
        outside = lab.add_server("outside")
        for node in lab.nodes:
            arguments = ["--net-config-path", str(config), "--ip-masq", "--iptables-resync", "1"]
            node.start_daemon(lab.file_store, "vxlan", None, arguments)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
            node.attach_containers()
        assert outside is lab.servers[0]
        yield lab
        for node in lab.nodes:
            print(node.name, node.daemon.log(), sep="\n")


def sh(node: Node, script: str) -> str:
    return node.run(["sh", "-ec", script]).stdout


def passing(lab: Lab, version: int) -> bool:
    """Whether a ping goes from the first container to the second."""
    one, two = lab.containers
    return not one.run(["ping", "-c", "1", "-W", "1", two.address(version)], check=False).returncode


def named(node: Node) -> list[bool]:
    """Of each foreign chain that drops, as the daemon's status has it: whether we get past it."""
    return [bool(drop["passed"]) for drop in node.daemon.status()["firewall"]["drops"]]


FOREIGN = {
    "Docker, nft": "for p in iptables ip6tables; do $p-nft -P FORWARD DROP; $p-nft -N DOCKER-USER; "
    "$p-nft -A FORWARD -j DOCKER-USER; $p-nft -A DOCKER-USER -j RETURN; done",
    "Docker, legacy": "for p in iptables ip6tables; do $p-legacy -P FORWARD DROP; done",
    "Docker 28": "for p in iptables ip6tables; do $p-nft -P FORWARD DROP; $p-nft -N DOCKER-FORWARD; $p-nft -N DOCKER; "
    "$p-nft -A DOCKER ! -i cni0 -o cni0 -j DROP; $p-nft -A DOCKER-FORWARD -o cni0 -j DOCKER; "
    "$p-nft -I FORWARD -j DOCKER-FORWARD; done",
    "ufw": "for p in iptables ip6tables; do $p-nft -P FORWARD DROP; $p-nft -N ufw-reject-forward; "
    "$p-nft -A ufw-reject-forward -j REJECT; $p-nft -A FORWARD -j ufw-reject-forward; done",
    "firewalld": """
        nft add table inet firewalld
        nft add chain inet firewalld zones
        nft add chain inet firewalld zone_public
        nft add chain inet firewalld filter_FORWARD '{ type filter hook forward priority filter + 10; }'
        nft add rule inet firewalld filter_FORWARD ct state '{ established, related }' accept
        nft add rule inet firewalld filter_FORWARD ct state invalid drop
        nft add rule inet firewalld filter_FORWARD jump zones
        nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited
        nft add rule inet firewalld zones goto zone_public
        nft add rule inet firewalld zone_public reject with icmpx admin-prohibited
    """,
    "a policy of nftables": "nft add table inet site; "
    "nft add chain inet site f '{ type filter hook forward priority -1; policy drop; }'",
    "three at once": "for p in iptables ip6tables; do $p-legacy -P FORWARD DROP; $p-nft -P FORWARD DROP; done; "
    "nft add table inet site; nft add chain inet site f '{ type filter hook forward priority 3; policy drop; }'",
}
CLEAR = (
    "for p in iptables ip6tables; do $p-legacy -P FORWARD ACCEPT; for t in filter nat; do "
    "$p-legacy -t $t -F; $p-legacy -t $t -X; done; done; nft flush ruleset"
)


def start_bare(node: Node) -> None:
    """Start the daemon anew on a host without rules: an iptables port stays once chosen."""
    node.daemon.stop()
    sh(node, CLEAR)
    node.daemon.start()
    until(lambda: sh(node, "nft list ruleset").count("masquerade fully-random") == 4)


@pytest.fixture
def node(lab: Lab) -> Iterator[Node]:
    """The first node, which gets the foreign firewall."""
    node = lab.nodes[0]
    yield node
    if node.daemon.running:
        node.daemon.resume()
    else:
        node.daemon.start()
    sh(node, CLEAR)
    until(lambda: passing(lab, 4) and passing(lab, 6))


@pytest.mark.parametrize("script", FOREIGN.values(), ids=FOREIGN.keys())
def test_packets_pass_where_others_drop(lab: Lab, node: Node, script: str) -> None:
    node.daemon.pause()
    sh(node, f"{CLEAR}; {script}")
    assert not passing(lab, 4)
    assert not passing(lab, 6)
    node.daemon.resume()
    until(
        lambda: passing(lab, 4) and passing(lab, 6),
        lambda: (node.daemon.status()["firewall"], sh(node, "nft list ruleset")),
    )
    until(lambda: named(node) == [True] * len(named(node)) != [])
    until(lambda: bool(node.daemon.status()["firewall"]["in_place"]))
    assert node.daemon.status()["state"] == "ready"


def test_a_drop_of_somebody_s_own_still_holds(lab: Lab, node: Node) -> None:
    one, two = (container.address() for container in lab.containers)
    node.daemon.pause()
    sh(node, CLEAR)
    sh(
        node,
        f"iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -i eth9 -j DROP; "
        f"nft insert rule ip filter FORWARD ip saddr {one} ip daddr {two} icmp type echo-request drop",
    )
    node.daemon.resume()
    until(lambda: node.daemon.status()["firewall"]["port"] == "iptables-nft" and passing(lab, 6))
    until(lambda: "FLANNEL-FWD" in sh(node, "iptables-nft -S FORWARD"))
    assert not passing(lab, 4)
    assert not lab.containers[1].run(["ping", "-c", "1", "-W", "3", one], check=False).returncode


REMOVED = {
    "a rule": "nft delete rule ip flannel-ipv4 postrtg handle "
    "$(nft -a list table ip flannel-ipv4 | sed -n 's/.*# handle //p' | sed -n 4p)",
    "our table": "nft delete table ip flannel-ipv4",
    "everything": "nft flush ruleset",
    "everything, by a file": "printf 'flush ruleset\\ntable inet theirs {\\n}\\n' | nft -f -",
}


@pytest.mark.parametrize("script", REMOVED.values(), ids=REMOVED.keys())
def test_rules_come_back_by_notification(lab: Lab, node: Node, script: str) -> None:
    start_bare(node)
    sh(node, script)
    until(lambda: sh(node, "nft list ruleset").count("flanneld masq") == 12)


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_iptables_rules_come_back_after_a_restore_by_somebody_else(lab: Lab, node: Node, kind: str) -> None:
    theirs = "*filter\n:FORWARD DROP [0:0]\n-A FORWARD -s 198.51.100.9/32 -j DROP\nCOMMIT\n"
    for _ in range(2):
        node.run([f"iptables-{kind}-restore"], input=theirs)
        until(lambda: "-j FLANNEL-FWD" in sh(node, f"iptables-{kind} -S FORWARD"))
        assert "-A FORWARD -s 198.51.100.9/32 -j DROP" in sh(node, f"iptables-{kind} -S FORWARD")
        until(lambda: passing(lab, 4))
    sh(node, f"iptables-{kind} -F FORWARD")
    until(lambda: "-j FLANNEL-FWD" in sh(node, f"iptables-{kind} -S FORWARD"))


def pinged_from(frames: Sequence[bytes]) -> set[bytes]:
    """The source addresses of the echo requests among Ethernet frames."""
    return {frame[26:30] for frame in frames if frame[12:14] == b"\x08\x00" and frame[23] == 1 and frame[34] == 8}


def test_masquerade_is_for_the_outside_only(lab: Lab, node: Node) -> None:
    """The addresses that a container's packets come from, as their receiver sees them."""
    outside, other = lab.servers[0], lab.nodes[1]
    one, two = lab.containers
    start_bare(node)
    node.daemon.wait_ready(peers=1)
    with outside.capture() as seen:
        one.run(["ping", "-c", "2", "-W", "3", str(outside.ipv4.ip)])
    assert pinged_from(seen.stop()) == {socket.inet_aton(str(node.ipv4.ip))}
    with two.capture() as seen:
        one.run(["ping", "-c", "2", "-W", "3", two.address()])
    assert pinged_from(seen.stop()) == {socket.inet_aton(one.address())}
    assert other is two.node


def test_cleanup_removes_the_rules_and_nothing_else(lab: Lab, node: Node) -> None:
    start_bare(node)  # what is made next is theirs: a chain of ours that others use would stay, and keep its comment
    sh(node, "iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -s 198.51.100.9/32 -j DROP")
    until(lambda: "FLANNEL-POSTRTG" in sh(node, "iptables-nft -t nat -S POSTROUTING"))
    node.daemon.stop()
    run, state = node.daemon.run_directory, node.daemon.state_directory
    words = [*pyflannel_command(), "cleanup", "--run-dir", str(run), "--state-dir", str(state)]
    told = node.run([*words, "--dry-run"]).stdout
    assert "would remove firewall rules in iptables-nft, IPv4" in told
    assert node.run(words).stdout == told.replace("would remove", "removed")
    rules = sh(node, "iptables-nft-save; ip6tables-nft-save; nft list ruleset")
    assert "flannel" not in rules.lower()
    assert "POSTROUTING" not in rules
    assert "-A FORWARD -s 198.51.100.9/32 -j DROP" in rules
