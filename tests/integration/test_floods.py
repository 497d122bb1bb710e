"""More at once than anybody would send on purpose: the daemon loses nothing that matters, and goes on as before."""

from __future__ import annotations

import functools
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import IPv6Address, ip_network

import pytest
from tests.integration.asking import until
from tests.integration.overlay import overlay

from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

ROUTES = 20_000
REPAIRS = 200


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with overlay("vxlan", nodes=2, ipv6="fd00:10::/48") as lab:
        yield lab


@pytest.fixture(autouse=True)
def runs_again(lab: Lab) -> Iterator[None]:
    yield
    for node in lab.nodes:
        if not node.daemon.running:
            node.daemon.start()
        node.daemon.resume()
        node.daemon.wait_ready(peers=1)


def objects(node: Node) -> str:
    """Our routes, neighbours and forwarding entries, as iproute2 prints them."""
    commands = (
        "ip route show proto 241",
        "ip -6 route show proto 241",
        "ip neigh show dev flannel.1 nud permanent",
        "ip -6 neigh show dev flannel-v6.1 nud permanent",
        "bridge fdb show dev flannel.1",
        "bridge fdb show dev flannel-v6.1",
    )
    return node.run(["sh", "-ec", "; ".join(commands)]).stdout


def foreign(verb: str) -> str:
    first = IPv6Address("2001:db8:7::")
    return "\n".join(f"route {verb} blackhole {first + number}/128" for number in range(ROUTES))


@pytest.mark.parametrize("asleep", [True, False], ids=["more than the socket holds", "as fast as they are read"])
def test_what_is_taken_away_under_a_burst_of_others_routes_comes_back(lab: Lab, asleep: bool) -> None:
    node = lab.nodes[0]
    before = objects(node)
    peer = ip_network(str(lab.nodes[1].daemon.status()["lease"]["subnets"][0]))
    for verb in ("add", "delete"):
        if asleep:
            node.daemon.pause()
        node.run(["ip", "-6", "-batch", "-"], input=f"{foreign(verb)}\n", timeout=120)
        node.ip([f"route delete {peer}", f"neigh delete {peer.network_address} dev flannel.1"])
        assert asleep <= (objects(node) != before)
        node.daemon.resume()
        until(lambda: objects(node) == before, lambda: objects(node))
    until(lambda: node.daemon.status()["state"] == "ready", lambda: node.daemon.status()["message"])
    assert lab.reachability().complete


def test_what_is_changed_back_again_and_again_is_logged_a_few_times_and_then_counted(lab: Lab) -> None:
    node = lab.nodes[0]
    before = node.daemon.status()["repaired"]
    already = node.daemon.log().count("repaired what")
    changes = 0
    while node.daemon.status()["repaired"] < before + REPAIRS:
        node.run(["sh", "-ec", "for i in $(seq 50); do sysctl -qw net.ipv4.ip_forward=0; done"])
        changes += 50
        assert changes < 100 * REPAIRS, "they are put right"
    until(lambda: "times more in" in node.daemon.log(), "the others are counted")
    assert node.daemon.log().count("repaired what") - already < REPAIRS / 4
    until(lambda: node.daemon.status()["state"] == "ready", lambda: node.daemon.status()["message"])
    assert node.run(["sysctl", "-n", "net.ipv4.ip_forward"]).stdout.strip() == "1"


def test_hundreds_of_clients_that_say_and_read_nothing_keep_nobody_from_an_answer(lab: Lab) -> None:
    node = lab.nodes[0]
    directory = os.open(lab.outside(node.daemon.run_directory), os.O_RDONLY | os.O_DIRECTORY)
    with ExitStack() as held:
        held.callback(os.close, directory)
        names = [name for name in os.listdir(directory) if name.endswith(".sock")]
        assert "status.sock" in names
        for number in range(300):
            client = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.settimeout(5.0)
            until(functools.partial(_let_in, client, directory, names[number % len(names)]))
            if number % 50 == 0:
                assert node.daemon.status()["state"] == "ready"
        assert node.daemon.status()["state"] == "ready"


def _let_in(client: socket.socket, directory: int, name: str) -> bool:
    """Whether there was room in the listener's queue."""
    try:
        client.connect(f"/proc/self/fd/{directory}/{name}")
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("last", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_many_signals_at_once_end_in_order(lab: Lab, last: signal.Signals) -> None:
    node = lab.nodes[0]
    before = objects(node)
    said = len(node.daemon.log())
    for _ in range(20):
        for number in (signal.SIGHUP, last, signal.SIGHUP):
            node.daemon.process.signal(number)
    assert node.daemon.process.wait(60) == 0
    assert "Traceback" not in node.daemon.log()[said:]
    assert objects(node) == before
    assert lab.reachability().complete
