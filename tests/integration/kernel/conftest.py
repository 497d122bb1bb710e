"""The two kernels that the suite runs on, each with an underlay ``eth0``, and what others do to them."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

import pytest
from tests import iproute
from tests.integration.kernel.objects import Family

from pyflannel.errors import KernelError
from pyflannel.kernel.model import (
    ROUTE_PROTOCOL,
    Address,
    FdbEntry,
    ForeignInfo,
    GenericInfo,
    KernelObject,
    Key,
    Kind,
    Link,
    MplsRoute,
    Neighbour,
    Qdisc,
    Route,
    Rule,
    Sysctl,
    VxlanInfo,
    XfrmPolicy,
)
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.port import KernelPort, Notice, Scope, Write
from pyflannel.kernel.twin import FOREIGN_PROTOCOL, TwinPort

UNDERLAY = (Address("eth0", ip_interface("192.0.2.1/24")), Address("eth0", ip_interface("2001:db8::1/64")))
PATIENCE = 10.0


class World:
    """A kernel, the port under test, and what somebody else does to that kernel."""

    port: KernelPort
    scope = Scope(
        links=frozenset({"flannel.1", "flannel-v6.1", "flannel0"}),
        sysctls=frozenset({"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}),
    )

    def put(self, item: KernelObject, protocol: int = FOREIGN_PROTOCOL) -> None:
        raise NotImplementedError

    def remove(self, item: KernelObject) -> None:
        raise NotImplementedError

    def set_link(self, name: str, **changes: Any) -> None:
        """Somebody changes some of: up, mtu, mac, master (empty: none), group."""
        raise NotImplementedError

    def append_remote(self, entry: FdbEntry) -> None:
        raise NotImplementedError

    def rules(self, version: int) -> list[tuple[str, int]]:
        """Text and protocol number of every rule that somebody added, whoever's it is."""
        raise NotImplementedError

    def routes(self, version: int) -> set[tuple[str, str | None, int]]:
        """Destination, device and protocol of every route there is, whoever's it is."""
        raise NotImplementedError

    def dump(self) -> dict[Key, KernelObject]:
        return self.port.dump(self.scope)

    def write(self, *wanted: KernelObject) -> Mapping[Key, KernelError]:
        """Create or change objects, as a tracker would after a dump."""
        actual = self.dump()
        return self.port.apply([Write(actual.get(item.key), item) for item in wanted if actual.get(item.key) != item])

    def become(self, wanted: Iterable[KernelObject]) -> int:
        """Make the kernel hold just ``wanted``; links first, like the tracker. How many writes that took."""
        goal = {item.key: item for item in wanted}
        done = 0
        for links in (True, False):
            actual = self.dump()
            keys = [
                key
                for key in actual.keys() | goal.keys()
                if (key[0] is Kind.LINK) is links and key[0] is not Kind.SYSCTL
            ]
            writes = [Write(actual.get(key), goal.get(key)) for key in keys if actual.get(key) != goal.get(key)]
            assert self.port.apply(writes) == {}
            done += len(writes)
        return done

    def until(self, condition: Callable[[Notice], bool]) -> Notice:
        """All that is told until the condition holds for it."""
        told = Notice()
        deadline = time.monotonic() + PATIENCE
        while not condition(told):
            left = deadline - time.monotonic()
            assert left > 0, f"not told: {told}"
            if select.select([self.port], [], [], left)[0]:
                notice = self.port.poll()
                told.changes.update(notice.changes)
                told.interfaces |= notice.interfaces
                told.resync |= notice.resync
        return told

    def quiet(self) -> Notice:
        """Whatever has been told already."""
        return self.port.poll()


class TwinWorld(World):
    def __init__(self) -> None:
        self.twin = TwinPort(
            [Link("eth0", ForeignInfo("veth"), 1500, "02:00:00:00:00:aa")],
            UNDERLAY,
            {"net/ipv4/ip_forward": "0", "net/ipv6/conf/all/forwarding": "0"},
        )
        self.port = self.twin

    def put(self, item: KernelObject, protocol: int = FOREIGN_PROTOCOL) -> None:
        self.twin.put(item, protocol)

    def remove(self, item: KernelObject) -> None:
        self.twin.remove(item.key)

    def set_link(self, name: str, **changes: Any) -> None:
        self.twin.set_link(name, **changes)

    def append_remote(self, entry: FdbEntry) -> None:
        self.twin.append_remote(entry)

    def rules(self, version: int) -> list[tuple[str, int]]:
        there = ((rule, protocol) for (_, protocol), rule in self.twin.rules.items() if rule.version == version)
        return sorted((self.said(rule), protocol) for rule, protocol in there)

    @staticmethod
    def said(rule: Rule) -> str:
        return f"{rule.priority} {'not ' * rule.inverted}from {rule.source or 'all'} to {rule.destination or 'all'}"

    def routes(self, version: int) -> set[tuple[str, str | None, int]]:
        return {
            (str(entry.route.destination), entry.route.link, entry.protocol)
            for entry in self.twin.routes.values()
            if entry.route.destination.version == version
        }


def address_words(item: Address) -> list[str]:
    """As ip-address(8) has them."""
    if item.peer is None:
        return [str(item.interface), "dev", item.link]
    return [str(item.interface.ip), "peer", f"{item.peer}/{item.interface.network.prefixlen}", "dev", item.link]


class NamespaceWorld(World):
    def __init__(self, name: str) -> None:
        self.name = name
        self.ip("link", "add", "eth0", "type", "veth", "peer", "name", "wire0")
        for address in UNDERLAY:
            nodad = ["nodad"] if address.interface.version == 6 else []
            self.ip("address", "add", str(address.interface), "dev", "eth0", *nodad)
        self.ip("link", "set", "wire0", "up")
        self.ip("link", "set", "eth0", "up")
        self.port = NetlinkPort(Path("/run/netns") / name)

    def ip(self, *words: str) -> str:
        return run("ip", "-n", self.name, *words)

    def outside(self, *words: str) -> str:
        """What a program says in the namespace."""
        return run("ip", "netns", "exec", self.name, *words)

    def bridge(self, *words: str) -> str:
        return run("bridge", "-n", self.name, *words)

    def tc(self, *words: str) -> str:
        return run("tc", "-n", self.name, *words)

    def json(self, *words: str) -> Any:
        return iproute.parse(self.ip("-j", "-d", *words))

    def put(self, item: KernelObject, protocol: int = FOREIGN_PROTOCOL) -> None:
        if isinstance(item, Link):
            self._put_link(item)
        elif isinstance(item, Sysctl):
            run("ip", "netns", "exec", self.name, "sh", "-c", f"echo {item.value} > /proc/sys/{item.path}")
        elif isinstance(item, Address):
            self.ip("address", "replace", *address_words(item))
        elif isinstance(item, Neighbour):
            words = ["lladdr", str(item.mac), "dev", item.link, "nud", "permanent"]
            self.ip("neighbour", "replace", str(item.address), *words)
        elif isinstance(item, FdbEntry):
            words = ["dst", str(item.remote)] + (["port", str(item.port)] if item.port else [])
            words += ["vni", str(item.vni)] if item.vni is not None else []
            self.bridge("fdb", "replace", item.mac, "dev", item.link, *words, "self", "permanent")
        elif isinstance(item, Rule):
            self.ip(f"-{item.version}", "rule", "add", *rule_words(item), "protocol", str(protocol))
        elif isinstance(item, Qdisc):
            self.tc("qdisc", "replace", "dev", item.link, "root", "handle", "7:", item.kind, *options(item))
        elif isinstance(item, XfrmPolicy):
            self.ip("xfrm", "policy", "update", *policy_words(item))
        elif isinstance(item, MplsRoute):
            self.ip("-f", "mpls", "route", "replace", *label_words(item), "proto", str(protocol))
        else:
            assert isinstance(item, Route)
            self.ip(f"-{item.destination.version}", "route", "replace", *route_words(item), "proto", str(protocol))

    def _put_link(self, item: Link) -> None:
        if isinstance(item.info, VxlanInfo):
            info = item.info
            words = ["id", str(info.vni), "dev", info.underlay, "local", str(info.local), "dstport", str(info.port)]
            words += ["learning" if info.learning else "nolearning"]
        else:
            words = []
        lower = []
        if isinstance(item.info, GenericInfo):
            lower = ["link", item.info.underlay] if item.info.underlay else []
            words = [
                word for name, value in item.info.data for word in (str(name).rpartition("_")[2].lower(), str(value))
            ]
            words = ["peer", "name", item.info.other_end] if item.info.other_end else words
        self.ip("link", "add", *lower, "name", item.name, "type", item.info.kind, *words)
        self.ip("link", "set", item.name, "mtu", str(item.mtu), *(["address", item.mac] if item.mac else []))
        if item.up:
            self.ip("link", "set", item.name, "up")

    def remove(self, item: KernelObject) -> None:
        if isinstance(item, Link):
            self.ip("link", "delete", item.name)
        elif isinstance(item, Address):
            self.ip("address", "delete", *address_words(item))
        elif isinstance(item, Neighbour):
            self.ip("neighbour", "delete", str(item.address), "dev", item.link)
        elif isinstance(item, FdbEntry):
            self.bridge("fdb", "delete", item.mac, "dev", item.link, "self")
        elif isinstance(item, Rule):
            self.ip(f"-{item.version}", "rule", "delete", *rule_words(item), "protocol", str(ROUTE_PROTOCOL))
        elif isinstance(item, Qdisc):
            self.tc("qdisc", "delete", "dev", item.link, "root")
        elif isinstance(item, XfrmPolicy):
            self.ip("xfrm", "policy", "delete", *policy_words(item, selector_only=True))
        elif isinstance(item, MplsRoute):
            self.ip("-f", "mpls", "route", "delete", str(item.label))
        else:
            assert isinstance(item, Route)
            self.ip(f"-{item.destination.version}", "route", "delete", *route_words(item))

    def set_link(self, name: str, **changes: Any) -> None:
        words = []
        for what, value in changes.items():
            if what == "up":
                words += ["up" if value else "down"]
            elif what == "master" and not value:
                words += ["nomaster"]
            else:
                words += ["address" if what == "mac" else what, str(value)]
        self.ip("link", "set", name, *words)

    def append_remote(self, entry: FdbEntry) -> None:
        self.bridge("fdb", "append", entry.mac, "dev", entry.link, "dst", str(entry.remote), "self", "permanent")

    def rules(self, version: int) -> list[tuple[str, int]]:
        def end(row: Any, name: str) -> str:
            address = row.get(name, "all")
            return f"{address}/{row.get(f'{name}len', 32 if version == 4 else 128)}" if address != "all" else address

        return sorted(
            (
                f"{row['priority']} {'not ' * ('not' in row)}from {end(row, 'src')} to {end(row, 'dst')}",
                int(row["protocol"]),
            )
            for row in self.json("-N", f"-{version}", "rule", "show")
            if row["protocol"] != "2"
        )

    def routes(self, version: int) -> set[tuple[str, str | None, int]]:
        names = {"static": 4, "kernel": 2, "boot": 3}
        return {
            (
                row["dst"] if "/" in row["dst"] else f"{row['dst']}/{32 if version == 4 else 128}",
                row.get("dev"),
                protocol,
            )
            for row in self.json(f"-{version}", "route", "show")
            if (protocol := names.get(row["protocol"]) or int(row["protocol"])) != 2
        }


def policy_words(policy: XfrmPolicy, selector_only: bool = False) -> list[str]:
    words = ["src", str(policy.source), "dst", str(policy.destination), "dir", policy.direction]
    words += ["if_id", hex(policy.if_id)]
    if selector_only:
        return words
    ends = ["src", str(policy.tunnel_source), "dst", str(policy.tunnel_destination)]
    words += ["priority", str(policy.priority), "tmpl", *ends, "proto", "esp", "reqid", str(policy.reqid)]
    return [*words, "mode", "tunnel"]


def label_words(route: MplsRoute) -> list[str]:
    return str(route).removeprefix("mpls route ").split()


def route_words(route: Route) -> list[str]:
    words = [route.effective_type, str(route.destination)]
    words += ["encap", *str(route.encapsulation).split()] if route.encapsulation else []
    words += ["via", str(route.gateway)] if route.gateway else []
    words += ["dev", route.link] if route.link else []
    words += ["metric", str(route.metric)] if route.metric is not None else []
    words += ["table", str(route.table)]
    words += [word for name, value in route.metrics for word in (name, str(value))]
    return [*words, "onlink"] if route.onlink else words


def rule_words(rule: Rule) -> list[str]:
    """What ``ip rule add`` is told."""
    words = ["not"] if rule.inverted else []
    words += ["from", str(rule.source or "all"), "to", str(rule.destination or "all")]
    words += ["fwmark", f"{rule.mark}/{rule.mask}"] if rule.mark is not None else []
    words += ["iif", rule.iif] if rule.iif else []
    words += ["oif", rule.oif] if rule.oif else []
    words += ["priority", str(rule.priority)]
    words += ["table", str(rule.table)] if rule.action == "lookup" else [rule.action]
    length = rule.suppress_prefixlength
    return words + (["suppress_prefixlength", str(length)] if length is not None else [])


def options(item: Qdisc) -> list[str]:
    return [word for name, value in item.options for word in (name, str(value))]


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout


@pytest.fixture
def netns() -> Iterator[str]:
    """The name of a fresh network namespace."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and iproute2 for a network namespace of its own")
    name = f"pyflannel-{uuid.uuid4().hex[:8]}"
    run("ip", "netns", "add", name)
    try:
        yield name
    finally:
        run("ip", "netns", "delete", name)


@pytest.fixture
def namespace(netns: str) -> Iterator[NamespaceWorld]:
    """A real kernel."""
    world = NamespaceWorld(netns)
    try:
        yield world
    finally:
        world.port.close()


@pytest.fixture(params=["twin", pytest.param("netlink", marks=pytest.mark.root)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Each of the two kernels in turn."""
    if request.param == "netlink":
        yield request.getfixturevalue("namespace")
        return
    twin = TwinWorld()
    yield twin
    twin.port.close()


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)
