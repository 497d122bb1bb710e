"""The lab without daemons: it stands, it is shut off from the world, and its tools tell the truth."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Interface, IPv6Interface

import pytest

from pyflannel.errors import ConfigError, DaemonError
from pyflannel.lab import CommandError, ContainerNetwork, Lab, Node

pytestmark = pytest.mark.root


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab(nodes=3, containers=2, routed=1) as lab:
        yield lab


def give_subnet(node: Node, number: int, mtu: int = 1450) -> None:
    node.attach_containers(
        ContainerNetwork(mtu, IPv4Interface(f"10.244.{number}.1/24"), IPv6Interface(f"fd00:0:0:{number}::1/64"))
    )


def route_between(one: Node, other: Node) -> None:
    """What a host-gw daemon would do."""
    for node, peer in ((one, other), (other, one)):
        assert peer.network is not None
        assert peer.network.ipv4 is not None
        assert peer.network.ipv6 is not None
        node.ip(
            [
                f"route replace {peer.network.ipv4.network} via {peer.ipv4.ip}",
                f"route replace {peer.network.ipv6.network} via {peer.ipv6.ip}",
            ]
        )


@pytest.fixture
def pair(lab: Lab) -> tuple[Node, Node]:
    """Two nodes whose containers reach each other."""
    one, other, _ = lab.nodes
    give_subnet(one, 1)
    give_subnet(other, 2)
    route_between(one, other)
    return one, other


def test_nodes_reach_each_other_and_the_router(lab: Lab) -> None:
    for node in lab.nodes:
        for peer in (*lab.nodes, lab.switch):
            addresses = (
                (peer.ipv4, peer.ipv6) if isinstance(peer, Node) else (node.host.router_ipv4, node.host.router_ipv6)
            )
            for address in addresses:
                node.run(["ping", "-c1", "-W5", str(address).partition("/")[0]])


def test_the_default_route_names_the_underlay_interface(lab: Lab) -> None:
    for node in lab.nodes:
        (route,) = json.loads(node.run(["ip", "-j", "route", "show", "default"]).stdout)
        assert (route["dev"], route["gateway"]) == ("eth0", str(node.host.router_ipv4))


def test_the_switch_filters_what_it_routes_and_no_frame(lab: Lab) -> None:
    wall = "table inet wall { chain c { type filter hook forward priority 0; policy drop; }; }"
    lab.switch.run(["nft", "-f", "-"], input=wall)
    one, neighbour, behind_the_router = lab.nodes
    for address in (neighbour.ipv4, neighbour.ipv6):
        one.run(["ping", "-c1", "-W5", str(address.ip)])
    assert one.run(["ping", "-c1", "-W1", str(behind_the_router.ipv4.ip)], check=False).returncode == 1


def test_there_is_no_way_out(lab: Lab, untouched: None) -> None:
    assert json.loads(lab.switch.run(["ip", "-j", "route", "show", "default"]).stdout) == []
    for machine in (*lab.nodes, lab.switch):
        links = {link["ifname"] for link in json.loads(machine.run(["ip", "-j", "link"]).stdout)}
        if machine is lab.switch:
            assert links == {"lo", "br1", "br2", *(node.name for node in lab.nodes)}
        else:
            assert links == {"lo", "eth0"}
    assert lab.switch.run(["ip", "route", "get", "203.0.113.1"], check=False).returncode != 0


def test_the_outside_is_not_touched(untouched: None) -> None:
    with Lab(nodes=2, containers=1, routed=1) as lab:
        for number, node in enumerate(lab.nodes):
            give_subnet(node, number)


def test_containers_reach_each_other_in_both_families(lab: Lab, pair: tuple[Node, Node]) -> None:
    containers = [container for node in pair for container in node.containers]
    matrix = lab.reachability(containers)
    assert matrix.failed == ()
    assert len(matrix.pairs) == 2 * 4 * 3
    assert matrix.complete


def test_an_unreachable_pair_is_marked_as_failed(lab: Lab, pair: tuple[Node, Node]) -> None:
    one, other = pair
    one.ip([f"route delete {other.network.ipv6.network}"])  # type: ignore[union-attr]
    containers = [one.containers[0], other.containers[0]]
    matrix = lab.reachability(containers, timeout=0.6)
    names = {(one.containers[0].name, other.containers[0].name), (other.containers[0].name, one.containers[0].name)}
    assert {(pair.source, pair.target) for pair in matrix.failed} == names
    assert {pair.version for pair in matrix.failed} == {6}
    assert not matrix.complete


def test_containers_have_the_mtu_of_their_network(lab: Lab) -> None:
    node = lab.nodes[0]
    give_subnet(node, 1, mtu=1412)
    for machine, interface in ((node, "cni0"), (node.containers[0], "eth0")):
        assert json.loads(machine.run(["ip", "-j", "link", "show", interface]).stdout)[0]["mtu"] == 1412


def test_containers_of_an_ipv4_network_may_have_less_than_ipv6_needs(lab: Lab) -> None:
    """As with most backends on the smallest underlay that a lab takes."""
    for number, node in enumerate(lab.nodes, 1):
        node.attach_containers(ContainerNetwork(1230, IPv4Interface(f"10.244.{number}.1/24")))
    assert lab.reachability(lab.nodes[0].containers).complete


def test_containers_can_move_to_another_subnet(lab: Lab) -> None:
    node = lab.nodes[0]
    give_subnet(node, 1)
    give_subnet(node, 9)
    assert [str(address) for address in node.containers[1].addresses] == ["10.244.9.3/24", "fd00:0:0:9::3/64"]
    assert lab.reachability(node.containers).complete


def test_a_subnet_that_is_too_small_is_refused_before_anything_is_built(lab: Lab) -> None:
    with pytest.raises(ConfigError, match="no room"):
        lab.nodes[0].attach_containers(ContainerNetwork(1450, IPv4Interface("10.244.1.1/30")))
    assert lab.nodes[0].network is None


def test_a_pulled_cable_loses_pings_until_it_is_back(lab: Lab, pair: tuple[Node, Node]) -> None:
    one, other = pair
    with one.containers[0].ping(other.containers[0].address(), interval=0.02) as ping:
        ping.wait_replies(3)
        one.unplug()
        link = json.loads(one.run(["ip", "-j", "link", "show", "eth0"]).stdout)[0]
        assert link["operstate"] != "UP"
        # What a real host does when its cable is back: the routes through it are still there.
        one.plug()
        route_between(one, other)
        ping.wait_replies(3)
    loss = ping.stop()
    assert loss.lost + loss.received == loss.sent
    assert loss.duplicates == 0
    assert loss.received >= 6


def test_pings_into_the_void_are_all_lost(lab: Lab) -> None:
    ping = lab.nodes[0].ping("192.0.2.99", interval=0.02)
    lab.nodes[0].run(["ping", "-c5", "-i0.02", "-W5", "192.0.2.2"])
    loss = ping.stop()
    assert loss.sent > 0
    assert (loss.received, loss.lost, loss.longest_gap) == (0, loss.sent, loss.sent)


@pytest.mark.parametrize("version", [4, 6])
def test_uninterrupted_pings_lose_nothing(lab: Lab, pair: tuple[Node, Node], version: int) -> None:
    with pair[0].containers[0].ping(pair[1].containers[0].address(version), interval=0.01) as ping:
        ping.wait_replies(20)
    loss = ping.stop()
    assert (loss.lost, loss.duplicates, loss.longest_gap) == (0, 0, 0)
    assert loss.sent >= 20


@pytest.mark.parametrize("version", [4, 6])
def test_throughput_counts_what_arrives(lab: Lab, pair: tuple[Node, Node], version: int) -> None:
    result = lab.throughput(pair[0].containers[0], pair[1].containers[0], version=version, seconds=0.2)
    assert result.bytes > 0
    assert result.bits_per_second > 0


def test_throughput_to_nowhere_is_an_error(lab: Lab) -> None:
    give_subnet(lab.nodes[0], 1)
    give_subnet(lab.nodes[1], 2)
    lab.nodes[0].ip(["route add unreachable 10.244.2.0/24"])
    with pytest.raises(CommandError, match="source"):
        lab.throughput(lab.nodes[0].containers[0], lab.nodes[1].containers[0], seconds=0.1)


def test_a_capture_holds_the_packets_that_passed(lab: Lab) -> None:
    one, other, _ = lab.nodes
    with one.capture() as capture:
        one.run(["ping", "-c2", "-i0.05", "-W5", str(other.ipv4.ip)])
    echoes = [frame for frame in capture.stop() if frame[12:14] == b"\x08\x00" and frame[23] == 1]
    assert len(echoes) == 4
    assert capture.path.read_bytes()[:4] == (0xA1B2C3D4).to_bytes(4, "little") or capture.path.stat().st_size


def test_a_capture_of_no_interface_is_an_error(lab: Lab) -> None:
    with pytest.raises(CommandError, match="nope0"):
        lab.nodes[0].capture("nope0")


def test_underlay_address_and_mtu_change(lab: Lab) -> None:
    node, peer, _ = lab.nodes
    node.set_address(IPv4Interface("192.0.2.77/24"))
    node.set_address(IPv6Interface("2001:db8::77/64"))
    node.set_mtu(1400)
    for address in ("192.0.2.77", "2001:db8::77"):
        peer.run(["ping", "-c1", "-W5", address])
    assert peer.run(["ping", "-c1", "-W1", "192.0.2.1"], check=False).returncode != 0
    node.run(["ping", "-c1", "-W5", "198.51.100.3"])  # through the default route
    assert json.loads(node.run(["ip", "-j", "link", "show", "eth0"]).stdout)[0]["mtu"] == 1400


def test_commands_that_fail_or_hang_are_errors_with_their_words(lab: Lab) -> None:
    with pytest.raises(CommandError, match=r"n1: sh -c echo oops >&2; exit 3: exit status 3: oops"):
        lab.nodes[0].run(["sh", "-c", "echo oops >&2; exit 3"])
    with pytest.raises(CommandError, match="no end within"):
        lab.nodes[0].run(["sleep", "100"], timeout=0.1)
    assert lab.nodes[0].run(["sh", "-c", "exit 3"], check=False).returncode == 3
    assert lab.nodes[0].run(["cat"], input="given").stdout == "given"


def test_processes_are_paused_resumed_stopped_and_killed(lab: Lab) -> None:
    node = lab.nodes[0]
    process = node.start(["sleep", "1000"])
    process.pause()
    assert process.running
    process.resume()
    assert process.stop() == -15
    process = node.start(["sleep", "1000"])
    process.pause()
    process.kill()
    assert process.returncode == -9
    process = node.start(["sh", "-c", "trap '' TERM; echo; exec sleep 1000"], stdout=subprocess.PIPE)
    with process.proxy:
        assert process.proxy.stdout is not None
        process.proxy.stdout.readline()
        assert process.stop(timeout=0.1) == -9


def test_the_shell_hint_leads_into_the_node(lab: Lab) -> None:
    words = [*lab.nodes[1].shell_hint.split()[:-1], "ip", "-br", "-4", "address", "show", "eth0"]
    assert "192.0.2.2/24" in subprocess.run(words, capture_output=True, text=True, check=True).stdout


def test_servers_are_on_the_underlay(lab: Lab) -> None:
    server = lab.add_server("store")
    for node in lab.nodes:
        node.run(["ping", "-c1", "-W5", str(server.ipv4.ip)])


def test_a_node_without_a_daemon_says_so(lab: Lab) -> None:
    with pytest.raises(DaemonError, match="n1: no daemon"):
        _ = lab.nodes[0].daemon
