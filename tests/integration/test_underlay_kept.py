"""Nothing that is added beside it moves or cuts a working underlay, as a real daemon without ``--iface`` sees it.

What is added is drawn: interfaces of several kinds, addresses inside and outside the underlay's prefix, routes for
everything and for its halves, rules. None of it is ours, and none of it takes the way between the nodes away: what does
that cuts every program off, and is no question of choosing. Pings between containers run all the while.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.integration.asking import PATIENCE, until

from pyflannel.lab import Lab, Node

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

ROUNDS = 12
"""Things that are added one after the other, and then taken away again in another order."""


@dataclass(frozen=True)
class Addition:
    """Something of somebody else's: shell commands that add it, and what takes it away again."""

    add: str
    remove: str


KINDS = {
    "veth": "veth peer name {name}p",
    "dummy": "dummy",
    "bridge": "bridge",
    "vlan": "vlan id {number}",
    "macvlan": "macvlan mode bridge",
    "ipip": "ipip remote 198.51.100.9 local 198.51.100.8",
}
"""Of these, what the kernel lacks is passed over."""


def additions(draw: random.Random, node: Node) -> Iterator[Addition]:
    """As many as there are addresses. Names, numbers, addresses and metrics differ, whatever is drawn twice."""
    kinds = [kind for kind in KINDS if supported(node, kind)]
    hosts = range(60, 190)
    insides, outsides = (draw.sample(hosts, len(hosts)) for _ in range(2))
    for number in range(100, 100 + len(hosts)):
        name = f"x{number}"
        kind = draw.choice(kinds)
        on = "link eth0 " if kind in ("vlan", "macvlan") else ""
        made = f"ip link add {on}name {name} type {KINDS[kind].format(name=name, number=number)}; ip link set {name} up"
        gone = f"ip link delete {name}"
        metric = draw.choice([1, 200, 500]) + number - 100
        inside, outside = f"192.0.2.{insides.pop()}", f"198.51.100.{outsides.pop()}"
        family, default = draw.choice([("", "203.0.113.0/24"), ("-6 ", "2001:db8:9::/64")])
        yield draw.choice(
            [
                Addition(f"{made}; ip addr add {outside}/24 dev {name}", gone),
                Addition(f"{made}; ip addr add {inside}/32 dev {name}", gone),
                Addition(
                    f"{made}; ip addr add {outside}/24 dev {name}; ip addr add 2001:db8:{number:x}::1/64 dev {name}",
                    gone,
                ),
                Addition(f"{made}; ip {family}route add default dev {name} metric {metric}", gone),
                Addition(f"{made}; {halves('0.0.0.0/1', '128.0.0.0/1', name, number)}", gone),
                Addition(f"{made}; {halves('::/1', '8000::/1', name, number)}", gone),
                Addition(f"{made}; ip {family}route add {default} dev {name} metric {number}", gone),
                Addition(f"ip addr add {inside}/32 dev eth0", f"ip addr delete {inside}/32 dev eth0"),
                Addition(f"ip addr add {inside}/24 dev eth0", f"ip addr delete {inside}/24 dev eth0"),
                Addition(f"ip addr add {outside}/24 dev eth0", f"ip addr delete {outside}/24 dev eth0"),
                Addition(
                    f"ip addr add 2001:db8::{number:x}/128 dev eth0 preferred_lft 0 nodad",
                    f"ip addr delete 2001:db8::{number:x}/128 dev eth0",
                ),
                Addition(f"ip addr add {inside}/32 dev lo", f"ip addr delete {inside}/32 dev lo"),
                Addition(
                    f"{made}; ip route add default dev {name} table {number}; "
                    f"ip rule add to 203.0.113.0/24 lookup {number} priority {number}",
                    f"ip rule delete priority {number}; {gone}",
                ),
                Addition(
                    f"{made}; ip route add default dev {name} table {number}; "
                    f"ip rule add from {outside} lookup {number} priority {number}",
                    f"ip rule delete priority {number}; {gone}",
                ),
            ]
        )


def halves(low: str, high: str, name: str, metric: int) -> str:
    """A VPN's way of taking everything."""
    return "; ".join(f"ip route add {half} dev {name} metric {metric}" for half in (low, high))


def supported(node: Node, kind: str) -> bool:
    on = "link eth0 " if kind in ("vlan", "macvlan") else ""
    words = KINDS[kind].format(name="tried", number=99)
    script = f"ip link add {on}name tried type {words} && ip link delete tried"
    return not node.run(["sh", "-c", script], check=False).returncode


def underlay(node: Node) -> dict[str, Any]:
    found: dict[str, Any] = node.daemon.status()["underlay"]
    return {name: value for name, value in found.items() if name != "others"}


def test_a_working_underlay_is_never_cut() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    with Lab(nodes=2) as lab:
        for node in lab.nodes:
            words = ("--ipv6-network", "fd00:10::/48")
            node.start_daemon(lab.file_store, "vxlan", "10.244.0.0/16", words, interface=None)
        for node in lab.nodes:
            node.daemon.wait_ready(peers=1)
            node.attach_containers()
        node = lab.nodes[0]
        until(lambda: lab.reachability().complete, "everybody reaches everybody")
        before = underlay(node)
        assert before["why"] == "the default route 0.0.0.0/0 leads through it"
        assert node.daemon.status()["underlay"]["others"] == []
        one, two = lab.containers
        pings = [one.ping(two.address(version), interval=0.02) for version in (4, 6)]
        pings += [two.ping(one.address(version), interval=0.02) for version in (4, 6)]
        drawn = additions(draw, node)
        added = [next(drawn) for _ in range(ROUNDS)]
        for each in added:
            print(each.add)
            node.run(["sh", "-c", each.add])
            assert underlay(node) == before, each.add
        # By another default route one sees that all before it was looked at.
        node.run(["sh", "-ec", "ip link add y1 type veth peer name y2; ip link set y1 up; ip link set y2 up"])
        node.run(["sh", "-ec", "ip route add default dev y1 metric 150"])
        until(lambda: any("y1: " in text for text in node.daemon.status()["underlay"]["others"]), "it was seen")
        assert underlay(node) == before
        assert node.daemon.status()["state"] == "ready", node.daemon.status()["message"]
        for each in draw.sample(added, len(added)):
            node.run(["sh", "-c", each.remove])
        node.run(["ip", "link", "delete", "y1"])
        until(lambda: node.daemon.status()["underlay"]["others"] == [], "all is gone")
        assert underlay(node) == before
        for ping in pings:
            ping.wait_replies(10, PATIENCE)
        assert [ping.stop().lost for ping in pings] == [0] * 4
        assert node.daemon.log().count("underlay: ") == 1, "it was chosen once"
