"""A close look at a node: its kernel against a plan made anew, what others have in it, and what it says of itself.

What a kernel should hold is planned from what the store's own side tells, not from what the daemon knows. What somebody
else has is planted before the first daemon starts, and read as text with the system's own programs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import closing
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.chaos.record import Look

from pyflannel.backend import Node as Place
from pyflannel.backend import Underlay, UnderlayRoute, parse_options
from pyflannel.errors import MalformedError, PyflannelError
from pyflannel.kernel.model import OWNER, FdbEntry, KernelObject, Key, Neighbour, Route, Sysctl
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.port import Scope, Write
from pyflannel.lab import Node
from pyflannel.lab.daemon import peers_in
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON, Subnets
from pyflannel.planning.overlay import Overlay
from pyflannel.plugins import load_backend
from pyflannel.store import CONFIG_KEY

if TYPE_CHECKING:
    from tests.chaos.cluster import Cluster, Member

__all__ = ["TABLES", "break_kernel", "closely", "foreign", "hostile", "plant", "wipe"]

TABLES: Final = (("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6"))
"""The firewall's tables that are ours."""

_PLANTED: Final = """
link add other0 type veth peer name other1
link set other0 up
link set other1 up
address add 203.0.113.1/25 dev other0
address add 2001:db8:f::1/64 dev other0 nodad
route add 203.0.113.128/25 via 203.0.113.2 dev other0
route add 2001:db8:f0::/48 via 2001:db8:f::2 dev other0
route add 203.0.113.128/25 via 203.0.113.3 dev other0 table 123
rule add from 203.0.113.77 lookup 123 priority 3210
neighbour add 203.0.113.9 lladdr 02:00:00:00:00:09 nud permanent dev other0
link add other.7 type vxlan id 7 dstport 4799 local 203.0.113.1 nolearning
link set other.7 up
"""

_PLANTED_RULES: Final = """
table ip other {
    chain in { type filter hook input priority 5; tcp dport 9 counter drop; }
}
table ip6 other {
    chain in { type filter hook input priority 5; tcp dport 9 counter drop; }
}
"""

_FOREIGN: Final = """
ip -o address show dev other0 scope global
ip route show dev other0; ip -6 route show dev other0 | grep -v fe80
ip route show table 123; ip rule show priority 3210
ip neighbour show dev other0 nud permanent
bridge fdb show dev other.7
nft -s list table ip other; nft -s list table ip6 other
"""


def plant(node: Node) -> None:
    """Put into a node's kernel what is not ours, a bit of everything."""
    node.ip(_PLANTED.strip().splitlines())
    node.run(["bridge", "fdb", "add", "02:00:00:00:00:07", "dev", "other.7", "dst", "203.0.113.7", "permanent"])
    node.run(["nft", "-f", "-"], input=_PLANTED_RULES)


def foreign(node: Node) -> str:
    """What was planted, as it is now."""
    return node.run(["sh", "-c", _FOREIGN], check=False).stdout


def wipe(node: Node) -> None:
    """Take out of a kernel what is ours, as a new machine's has nothing of it."""
    script = [f"for d in $(ip -o link show | awk '/alias {OWNER}/ {{print $2}}' | cut -d: -f1 | cut -d@ -f1)"]
    script += ["do ip link delete $d; done", "ip route flush proto 241; ip -6 route flush proto 241"]
    script += [f"nft delete table {family} {name} || true" for family, name in TABLES]
    node.run(["sh", "-c", "\n".join(script)], check=False)


def ours(netns: Path) -> list[KernelObject]:
    """What of a kernel is ours."""
    with closing(NetlinkPort(netns)) as port:
        return [item for item in port.dump(Scope()).values() if not isinstance(item, Sysctl)]


def break_kernel(netns: Path, rng: random.Random) -> list[str]:
    """Delete some of what is ours; what it was."""
    with closing(NetlinkPort(netns)) as port:
        found = sorted((item for item in port.dump(Scope()).values() if not isinstance(item, Sysctl)), key=str)
        chosen = rng.sample(found, min(len(found), rng.choice((1, 1, 2, 5, 20))))
        port.apply([Write(item, None) for item in chosen])
    return [str(item) for item in chosen]


# Hostile leases


def hostile(netns: Path, name: str, now: float, document: Mapping[str, JSON]) -> Iterator[Look]:
    """What a kernel holds of ours that must never be there."""
    networks = [ip_network(str(document[key])) for key in ("Network", "IPv6Network") if key in document]
    try:
        found = ours(netns)
    except PyflannelError:
        return
    for item in found:
        wrong = _wrong(item, networks)
        if wrong:
            yield Look(now, name, "hostile", f"{item} is in its kernel: {wrong}")


def _wrong(item: KernelObject, networks: list[Any]) -> str:
    if isinstance(item, Route):
        inside = [one for one in networks if one.version == item.destination.version]
        if not any(item.destination.subnet_of(one) and item.destination != one for one in inside):
            return "" if _is_own_network(item, networks) else "it is outside the network"
        return "" if item.gateway is None else _nobodys(item.gateway)
    if isinstance(item, FdbEntry):
        return _nobodys(item.remote)
    if isinstance(item, Neighbour) and isinstance(item.mac, str):
        return "it is a group's address" if int(item.mac[:2], 16) & 1 else ""
    return ""


def _is_own_network(item: Route, networks: list[Any]) -> bool:
    """Whether it is the route to the whole network that a backend has on a device of its own."""
    return item.destination in networks and item.gateway is None


def _nobodys(address: Any) -> str:
    special = address.is_loopback or address.is_multicast or address.is_link_local
    return f"{address} is nobody's address" if special else ""


# At rest


def closely(cluster: Cluster, member: Member) -> Iterator[tuple[str, str]]:
    """What is wrong with a node that nothing has befallen for the promised time: promise and what."""
    status = next((found for _ in range(4) if (found := cluster.ask(member)) is not None), None)
    if status is None:
        yield "quiet", "it says nothing"
        return
    yield from _status(cluster, member, status)
    if status["lease"] is not None:
        yield from _kernel(cluster, member, status)
    now = foreign(member.node)
    if now != member.foreign:
        before, after = set(member.foreign.splitlines()), set(now.splitlines())
        yield "foreign", f"{sorted(before - after)} became {sorted(after - before)}"


def _status(cluster: Cluster, member: Member, status: Mapping[str, JSON]) -> Iterator[tuple[str, str]]:
    if status["state"] != "ready":
        yield "quiet", f"it is {status['state']}: {status['message']}"
    served = {peer["key"] for peer in peers_in(status, "ok")}
    others = {other.key for other in cluster.members if other.joined and other is not member}
    if others - served:
        reasons = [f"{peer['key']} {peer['state']}: {peer['reason']}" for peer in status["peers"]]
        yield "quiet", f"it does not serve {sorted(others - served)} ({'; '.join(reasons)})"
    failed = [item for item in status["objects"]["list"] if item["state"] != "done"]
    if failed:
        yield "quiet", f"{len(failed)} objects are not done, the first: {failed[0]}"
    if not status["firewall"]["in_place"] or status["firewall"]["errors"]:
        yield "quiet", f"the firewall: {status['firewall']}"


def _kernel(cluster: Cluster, member: Member, status: Mapping[str, JSON]) -> Iterator[tuple[str, str]]:
    try:
        overlay = _plan(cluster, member, status)
    except PyflannelError as error:
        yield "drift", f"there is no plan: {error}"
        return
    with closing(NetlinkPort(member.netns)) as port:
        found = port.dump(Scope.of(overlay.desired.values()), overlay.desired)
    yield from _compare(overlay.desired, found)
    rules = _rules(member.node)
    if member.firewall[0] != status["lease"]["key"]:
        member.firewall = str(status["lease"]["key"]), rules
    missing = [
        name for _, name in TABLES[: len(cluster.versions)] if f"table ip{'6' * ('6' in name)} {name}" not in rules
    ]
    if missing and overlay.entrances:  # else there is nothing to keep out
        yield "drift", f"the firewall's tables {missing} are missing"
    elif member.firewall[1] != rules:
        yield "drift", f"the firewall's rules were {member.firewall[1]} and are {rules}"


def _plan(cluster: Cluster, member: Member, status: Mapping[str, JSON]) -> Overlay:
    network = NetworkConfig.from_json(cluster.table[CONFIG_KEY])
    kind = load_backend(network.backend_type)
    backend = kind(parse_options(kind.Options, network.backend_options)[0])
    subnets = network.used(Subnets.from_key(str(status["lease"]["key"])))
    state = cluster.lab.outside(member.node.daemon.state_directory)
    place = Place(str(status["node_id"]), network, _underlay(member.node, status["underlay"]), subnets, state)
    overlay = Overlay(backend, place)
    for key, value in sorted(cluster.leases.items()):
        overlay.put(key, value)
    return overlay


def _underlay(node: Node, told: Mapping[str, JSON]) -> Underlay:
    addresses: dict[str, Any] = {
        name: ip_address(str(told[name])) if told[name] else None
        for name in ("ipv4", "ipv6", "public_ipv4", "public_ipv6")
    }
    segment = node.host.segment
    routes = (
        UnderlayRoute(segment.ipv4),
        UnderlayRoute(segment.ipv6),
        UnderlayRoute(ip_network("0.0.0.0/0"), node.host.router_ipv4),
        UnderlayRoute(ip_network("::/0"), node.host.router_ipv6),
    )
    return Underlay(str(told["interface"]), int(told["mtu"]), **addresses, routes=routes)


def _compare(desired: Mapping[Key, KernelObject], found: Mapping[Key, KernelObject]) -> Iterator[tuple[str, str]]:
    for key, item in desired.items():
        there = found.get(key)
        if there != item and not (isinstance(item, Sysctl) and item.optional):
            yield "drift", f"{item} is missing in its kernel" + (f", which has {there}" if there is not None else "")
    for key, item in found.items():
        if key not in desired and not isinstance(item, Sysctl):
            yield "drift", f"{item} should not be in its kernel"


def _rules(node: Node) -> str:
    words = "; ".join(f"nft -s list table {family} {name}" for family, name in TABLES)
    return node.run(["sh", "-c", words], check=False).stdout


def lease_value(value: str) -> Mapping[str, JSON]:
    """A lease's text as a document; empty if it is none."""
    try:
        document = json.loads(value)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def subnets_of(key: str) -> Subnets | None:
    """A key's subnets, if it has any."""
    try:
        return Subnets.from_key(key)
    except MalformedError:
        return None
