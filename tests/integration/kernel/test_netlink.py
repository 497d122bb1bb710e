"""What only a real kernel can show: its tools' view of what we wrote, its limits, and its namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Network, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from tests.integration.kernel.conftest import NamespaceWorld
from tests.integration.kernel.objects import Family
from tests.starving import without_descriptors

from pyflannel.errors import KernelError
from pyflannel.kernel import wire
from pyflannel.kernel.model import (
    Address,
    FdbEntry,
    GenericInfo,
    KernelObject,
    Key,
    Kind,
    Link,
    Neighbour,
    Route,
    Sysctl,
    TunInfo,
    VxlanInfo,
)
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.netns import call_in
from pyflannel.kernel.port import Scope, Write
from pyflannel.kernel.rtsocket import NotificationSocket

pytestmark = pytest.mark.root

GOLDEN = Path(__file__).parents[2] / "golden"
VXLAN = Link("flannel.1", VxlanInfo(1, 8472, ip_address("192.0.2.1"), "eth0"), 1450, "02:00:00:00:01:01")
VXLAN6 = Link("flannel-v6.1", VxlanInfo(1, 8472, ip_address("2001:db8::1"), "eth0"), 1430, "02:00:00:00:01:02")


def golden(name: str) -> Any:
    return json.loads((GOLDEN / "vxlan-dualstack" / f"{name}.json").read_text())


@pytest.mark.parametrize("link", [VXLAN, VXLAN6], ids=["ipv4", "ipv6"])
def test_the_device_is_like_flannelds(namespace: Any, link: Link) -> None:
    """In what the recording's iproute2 (6.1) prints; in what a newer one prints beyond, like iproute2's own device."""
    assert namespace.write(link) == {}
    (ours,) = namespace.json("link", "show", link.name)
    (theirs,) = [row for row in golden("links") if row["ifname"] == link.name]
    local = str(link.info.local)  # type: ignore[union-attr]
    namespace.ip("link", "add", "vx0", "type", "vxlan", "id", "2", "local", local, "dev", "eth0", "dstport", "8472")
    (plain,) = namespace.json("link", "show", "vx0")
    assert ours["ifalias"] == "pyflannel"
    for own in ("ifindex", "address", "ifalias", "txqlen"):
        for row in (ours, theirs, plain):
            row.pop(own, None)
    assert ours == _laid_over(plain, theirs)


def _laid_over(row: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """``upper``, and from ``row`` the fields that it lacks, at every level."""
    return row | {key: _laid_over(row[key], at) if isinstance(at, dict) else at for key, at in upper.items()}


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        (GenericInfo("macvlan", "eth0", (("IFLA_MACVLAN_MODE", "no-such-mode"),)), "IFLA_MACVLAN_MODE"),
        (GenericInfo("macvlan", "eth0", (("IFLA_NO_SUCH_THING", 1),)), "IFLA_NO_SUCH_THING"),
        (GenericInfo("macvlan"), "can't create link mv0 type macvlan"),
        (GenericInfo("nosuchkind"), "no nosuchkind devices"),
    ],
    ids=str,
)
def test_a_device_that_can_not_be_is_refused_with_the_reason(namespace: Any, info: GenericInfo, reason: str) -> None:
    link = Link("mv0", info, 1500)
    namespace.scope = Scope(frozenset({"mv0"}), frozenset(), {"mv0": link})
    (error,) = namespace.write(link).values()
    assert reason in str(error)
    assert namespace.dump() == {}


@pytest.mark.parametrize("version", [4, 6])
def test_entries_are_like_flannelds(namespace: Any, version: int) -> None:
    """The same words from ``ip`` and ``bridge``, but for the protocol number that marks our routes."""
    name = "flannel.1" if version == 4 else "flannel-v6.1"
    routes = "routes" if version == 4 else "routes6"
    (route,) = [row for row in golden(routes) if row["dev"] == name and row["protocol"] == "boot"]
    (neighbour,) = [row for row in golden("neighbours") if row["dev"] == name]
    (fdb,) = [row for row in golden("fdb") if row["ifname"] == name]
    wanted = [
        VXLAN if version == 4 else VXLAN6,
        Route(ip_network(route["dst"]), name, ip_address(route["gateway"]), onlink=True),
        Neighbour(name, ip_address(neighbour["dst"]), neighbour["lladdr"]),
        FdbEntry(name, fdb["mac"], ip_address(fdb["dst"])),
    ]
    assert namespace.write(*wanted) == {}
    (ours,) = namespace.json(f"-{version}", "route", "show", "proto", "241")
    assert ours | {"protocol": "boot"} == route
    (ours,) = namespace.json(f"-{version}", "neighbour", "show", "dev", name, "nud", "permanent")
    assert ours | {"dev": name} == neighbour
    assert fdb in json.loads(namespace.bridge("-j", "fdb", "show", "dev", name)) or fdb in [
        row | {"ifname": name} for row in json.loads(namespace.bridge("-j", "fdb", "show", "dev", name))
    ]


@pytest.mark.parametrize("version", [4, 6])
def test_the_address_is_like_flannelds(namespace: Any, version: int) -> None:
    link = VXLAN if version == 4 else VXLAN6
    (theirs,) = [
        info
        for row in golden("addresses")
        if row["ifname"] == link.name
        for info in row["addr_info"]
        if info["scope"] == "global"
    ]
    address = Address(link.name, ip_interface(f"{theirs['local']}/{theirs['prefixlen']}"))
    assert namespace.write(link, address) == {}
    rows = namespace.json("address", "show", "dev", link.name)
    (ours,) = [info for info in rows[0]["addr_info"] if info["local"] == theirs["local"]]
    ours.pop("nodad", None)  # usable at once
    assert ours == theirs


def test_a_permanent_neighbour_that_turns_stale_is_told_as_gone(namespace: Any) -> None:
    ours = Neighbour(VXLAN.name, ip_address("10.2.0.0"), "02:00:00:00:02:02")
    namespace.write(VXLAN, ours)
    namespace.quiet()
    namespace.ip("neighbour", "change", "10.2.0.0", "lladdr", ours.mac, "dev", ours.link, "nud", "stale")
    told = namespace.until(lambda notice: ours.key in notice.changes)
    assert told.changes[ours.key] is None
    assert ours.key not in namespace.dump()
    assert namespace.write(ours) == {}
    assert namespace.dump()[ours.key] == ours


def test_a_second_way_added_to_an_ipv6_route_is_put_right(namespace: Any) -> None:
    ours = Route(ip_network("fd00:2::/64"), "eth0", ip_address("2001:db8::2"))
    namespace.write(ours)
    namespace.quiet()
    namespace.ip("-6", "route", "append", "fd00:2::/64", "via", "2001:db8::3", "dev", "eth0", "proto", "241")
    assert namespace.until(lambda notice: notice.resync).resync
    assert namespace.dump()[ours.key] != ours
    assert namespace.write(ours) == {}
    assert namespace.dump()[ours.key] == ours


def test_a_second_route_of_ours_under_one_key_is_removed(namespace: Any) -> None:
    ours = Route(ip_network("10.2.0.0/24"), "eth0", ip_address("192.0.2.2"))
    namespace.write(ours)
    namespace.ip("route", "append", "10.2.0.0/24", "via", "192.0.2.3", "dev", "eth0", "proto", "241")
    detour = replace(ours, gateway=ip_address("192.0.2.4"))
    assert namespace.write(detour) == {}
    assert [row["gateway"] for row in namespace.json("route", "show", "10.2.0.0/24")] == ["192.0.2.4"]


def test_a_foreign_route_in_front_of_ours_is_not_hit_by_a_replacement(namespace: Any) -> None:
    ours = Route(ip_network("10.2.0.0/24"), "eth0", ip_address("192.0.2.2"))
    namespace.write(ours)
    namespace.ip("route", "prepend", "10.2.0.0/24", "via", "192.0.2.3", "dev", "eth0", "proto", "static")
    before = namespace.json("route", "show", "10.2.0.0/24")
    detour = replace(ours, gateway=ip_address("192.0.2.4"))
    assert "192.0.2.3" in str(namespace.write(detour)[ours.key])
    assert namespace.json("route", "show", "10.2.0.0/24") == before
    assert namespace.port.apply([Write(ours, None)]) == {}
    assert [row["gateway"] for row in namespace.json("route", "show", "10.2.0.0/24")] == ["192.0.2.3"]


def test_a_route_like_ours_with_another_gateway_or_of_somebody_else_is_not_deleted(namespace: Any) -> None:
    namespace.ip("route", "add", "10.2.0.0/24", "via", "192.0.2.2", "dev", "eth0", "proto", "static")
    namespace.ip("route", "add", "10.3.0.0/24", "via", "192.0.2.3", "dev", "eth0", "proto", "241")
    before = namespace.json("route", "show")
    for subnet in ("10.2.0.0/24", "10.3.0.0/24"):
        assert namespace.port.apply([Write(Route(ip_network(subnet), "eth0", ip_address("192.0.2.2")), None)]) == {}
    assert namespace.json("route", "show") == before


_DUPLICATES = {
    "a next hop of its own": ["nexthop add id 7 via 192.0.2.2 dev eth0", "route add 10.2.0.0/24 nhid 7 proto 241"],
    "another next hop of its own": [
        "nexthop add id 7 via 192.0.2.3 dev eth0",
        "route add 10.2.0.0/24 nhid 7 proto 241",
    ],
    "several ways": ["route add 10.2.0.0/24 proto 241 nexthop via 192.0.2.2 dev eth0 nexthop via 192.0.2.3 dev eth0"],
    "a kind of service": ["route add 10.2.0.0/24 tos 0x10 via 192.0.2.2 dev eth0 proto 241"],
    "a next hop and a metric": [
        "nexthop add id 7 via 192.0.2.2 dev eth0",
        "route add 10.2.0.0/24 nhid 7 proto 241 metric 3",
    ],
    "nothing else": ["route add 10.2.0.0/24 via 192.0.2.2 dev eth0 proto 241"],
    "nothing else, and gone again": [
        "route add 10.2.0.0/24 via 192.0.2.2 dev eth0 proto 241",
        "route delete 10.2.0.0/24 via 192.0.2.2 dev eth0 proto 241 metric 0",
    ],
}


@pytest.mark.parametrize("lines", _DUPLICATES.values(), ids=_DUPLICATES)
@pytest.mark.parametrize("told", [0, 1], ids=["by its id alone", "with its way"])
def test_what_goes_is_what_was_added_and_not_our_route_beside_it(namespace: Any, lines: list[str], told: int) -> None:
    """Metric 0 in a request stands for any, and one that says a way finds no route with a next hop of its own."""
    namespace.outside("sysctl", "-qw", f"net.ipv4.nexthop_compat_mode={told}")
    ours = Route(ip_network("10.2.0.0/24"), "eth0", ip_address("192.0.2.2"), metric=1132)
    namespace.write(ours)
    namespace.quiet()
    before = namespace.json("route", "show", "10.2.0.0/24")
    heard: dict[Key, KernelObject | None] = {}
    for line in lines:
        namespace.ip(*line.split())
        heard |= namespace.quiet().changes
    (added,) = {item for item in heard.values() if item is not None} or {replace(ours, metric=None)}
    assert added.key != ours.key
    assert namespace.port.apply([Write(added, None)]) == {}
    assert namespace.json("route", "show", "10.2.0.0/24") == before


def test_routes_of_other_tables_are_ours_by_their_mark_alone(namespace: Any) -> None:
    """A leftover of ours is swept wherever it is; what looks like flanneld's is its own only in the main table."""
    words = ["via", "192.0.2.2", "dev", "eth0", "onlink", "table", "100"]
    namespace.scope = Scope(frozenset({"eth0"}))
    namespace.ip("route", "add", "10.2.0.0/24", *words, "proto", "241")
    namespace.ip("route", "add", "10.3.0.0/24", *words, "proto", "3")
    found = [item for item in namespace.dump().values() if isinstance(item, Route)]
    assert [(str(item.destination), item.table) for item in found] == [("10.2.0.0/24", 100)]
    assert namespace.port.apply([Write(item, None) for item in found]) == {}
    assert "10.3.0.0/24" in namespace.ip("route", "show", "table", "100")
    assert "10.2.0.0/24" not in namespace.ip("route", "show", "table", "100")


def test_lost_notifications_ask_for_a_dump(namespace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second port writes more than the first one's small buffer holds."""
    namespace.write(VXLAN)
    monkeypatch.setattr("pyflannel.kernel.rtsocket.BUFFER", 1 << 14)
    deaf = NetlinkPort(Path("/run/netns") / namespace.name)
    try:
        deaf.dump(namespace.scope)
        deaf.poll()
        routes = [
            Route(IPv4Network((0x0A000000 + (number << 8), 24)), VXLAN.name, ip_address("192.0.2.9"), onlink=True)
            for number in range(500)
        ]
        assert namespace.port.apply([Write(None, route) for route in routes]) == {}
        told = deaf.poll()
        assert told.resync
        assert "eth0" in told.interfaces
        found = deaf.dump(namespace.scope)
        assert all(route.key in found for route in routes)
        assert not deaf.poll().resync
    finally:
        deaf.close()


def test_own_writes_never_fill_a_small_buffer(namespace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyflannel.kernel.rtsocket.BUFFER", 1 << 14)
    port = NetlinkPort(Path("/run/netns") / namespace.name)
    try:
        namespace.write(VXLAN)
        port.dump(namespace.scope)
        port.poll()
        entries = [
            FdbEntry(VXLAN.name, f"02:00:00:00:{number >> 8:02x}:{number & 255:02x}", ip_address("192.0.2.9"))
            for number in range(500)
        ]
        assert port.apply([Write(None, entry) for entry in entries]) == {}
        assert not port.poll().resync
    finally:
        port.close()


def test_the_callers_namespace_stays_as_it_was(netns: str) -> None:
    before = os.readlink("/proc/thread-self/ns/net")
    port = NetlinkPort(Path("/run/netns") / netns)
    try:
        assert os.readlink("/proc/thread-self/ns/net") == before
    finally:
        port.close()


def test_a_namespace_that_is_not_there() -> None:
    with pytest.raises(KernelError, match="/run/netns/pyflannel-nowhere"):
        NetlinkPort(Path("/run/netns/pyflannel-nowhere"))


def test_a_device_name_with_a_dot_in_a_sysctl(namespace: Any) -> None:
    namespace.write(VXLAN)
    path = "net/ipv4/conf/flannel.1/rp_filter"
    scope = replace(namespace.scope, sysctls=frozenset({path}))
    found = namespace.port.dump(scope)
    key = (Kind.SYSCTL, path, None)
    wanted = replace(found[key], value="2")
    namespace.quiet()
    assert namespace.port.apply([Write(found[key], wanted)]) == {}
    assert namespace.port.dump(scope)[key] == wanted
    namespace.put(replace(wanted, value="1"))
    told = namespace.until(lambda notice: key in notice.changes)
    assert told.changes[key] == replace(wanted, value="1")


def test_a_sysctl_of_a_device_that_is_not_ours_is_told(namespace: Any) -> None:
    wanted = Sysctl("net/ipv4/conf/lo/forwarding", "1")
    scope = replace(namespace.scope, sysctls=frozenset({wanted.path}))
    namespace.put(wanted)
    assert namespace.port.dump(scope)[wanted.key] == wanted
    namespace.put(replace(wanted, value="0"))
    told = namespace.until(lambda notice: wanted.key in notice.changes)
    assert told.changes[wanted.key] == replace(wanted, value="0")


@pytest.mark.parametrize("path", ["net/ipv4/conf/flannel.1/accept_local", "net/ipv6/conf/flannel.1/accept_ra"])
def test_a_sysctl_of_which_the_kernel_does_not_tell(namespace: Any, path: str) -> None:
    namespace.write(VXLAN)
    scope = replace(namespace.scope, sysctls=frozenset({path, "net/ipv4/ip_forward"}))
    found = namespace.port.dump(scope)
    before = found[Kind.SYSCTL, path, None]
    other = replace(before, value="0" if before.value == "1" else "1")
    namespace.put(other)
    told = namespace.until(lambda notice: before.key in notice.changes)
    assert told.changes == {before.key: other}


WITHOUT_RIGHT = """
import os, sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from pyflannel.kernel.model import Route
from pyflannel.kernel.netlink import NetlinkPort
from pyflannel.kernel.port import Write
port = NetlinkPort(Path(sys.argv[1]))
os.setresuid(65534, 65534, 65534)
route = Route(ip_network("10.2.0.0/24"), "eth0", ip_address("192.0.2.2"))
print(port.apply([Write(None, route)])[route.key])
"""


def test_without_the_right_every_key_says_so(namespace: Any) -> None:
    """A process without CAP_NET_ADMIN may read and not write."""
    command = [sys.executable, "-c", WITHOUT_RIGHT, f"/run/netns/{namespace.name}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "CAP_NET_ADMIN" in done.stdout


def test_a_kernel_that_does_not_select_is_read_the_same(namespace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before Linux 4.20 dumps hold everything there is."""
    other = replace(VXLAN, name="other5", info=VxlanInfo(5, 8472, ip_address("192.0.2.1"), "eth0"), marked=False)
    namespace.put(other)
    namespace.put(FdbEntry("other5", "02:00:00:00:00:09", ip_address("192.0.2.9")))
    namespace.put(Route(ip_network("10.9.0.0/24"), "eth0", ip_address("192.0.2.9")))
    ours: list[KernelObject] = [
        VXLAN,
        Address(VXLAN.name, ip_interface("10.1.0.0/32")),
        Neighbour(VXLAN.name, ip_address("10.2.0.0"), "02:00:00:00:02:02"),
        FdbEntry(VXLAN.name, "02:00:00:00:02:02", ip_address("192.0.2.2")),
        Route(ip_network("10.2.0.0/24"), VXLAN.name, ip_address("10.2.0.0"), onlink=True),
    ]
    namespace.write(*ours)
    before = namespace.dump()
    assert {item.key for item in ours} == {key for key in before if key[0] is not Kind.SYSCTL}
    monkeypatch.setattr(namespace.port._request, "strict", False)
    assert namespace.dump() == before


def test_a_mark_that_was_removed_is_told_and_set_again(namespace: Any) -> None:
    namespace.write(VXLAN)
    namespace.quiet()
    namespace.ip("link", "set", VXLAN.name, "alias", "")
    told = namespace.until(lambda notice: VXLAN.key in notice.changes)
    assert told.changes[VXLAN.key] == replace(VXLAN, marked=False)
    assert namespace.write(VXLAN) == {}
    assert namespace.dump()[VXLAN.key] == VXLAN


def test_a_queue_that_was_cut_is_told_and_grows_again(namespace: Any) -> None:
    device = Link("flannel0", TunInfo(queue_length=1000), 1472)
    namespace.become([device])
    namespace.ip("link", "set", "flannel0", "txqueuelen", "10")
    told = namespace.until(lambda notice: device.key in notice.changes)
    assert told.changes[device.key] == replace(device, info=TunInfo(queue_length=10))
    namespace.become([device])
    (shown,) = namespace.json("link", "show", "flannel0")
    assert shown["txqlen"] == 1000


def test_a_device_of_ours_that_was_renamed_is_still_ours(namespace: Any) -> None:
    namespace.write(VXLAN)
    namespace.quiet()
    namespace.ip("link", "set", VXLAN.name, "name", "moved0")
    told = namespace.until(lambda notice: VXLAN.key in notice.changes)
    assert told.changes[VXLAN.key] is None
    assert told.resync
    assert {VXLAN.name, "moved0"} <= told.interfaces
    moved = replace(VXLAN, name="moved0")
    assert namespace.dump()[moved.key] == moved
    assert namespace.port.apply([Write(moved, None), Write(None, VXLAN)]) == {}
    assert namespace.dump()[VXLAN.key] == VXLAN


def test_an_entry_with_a_port_of_its_own_is_put_right(namespace: Any) -> None:
    ours = FdbEntry(VXLAN.name, "02:00:00:00:02:02", ip_address("192.0.2.2"))
    namespace.write(VXLAN)
    words = ["dst", "192.0.2.2", "port", "9999", "self", "permanent"]
    namespace.bridge("fdb", "add", ours.mac, "dev", ours.link, *words)
    assert namespace.dump()[ours.key] != ours
    assert namespace.write(ours) == {}
    assert namespace.dump()[ours.key] == ours


@pytest.mark.parametrize("version", [4, 6])
def test_the_kernel_does_not_even_queue_what_we_did_ourselves(namespace: Any, version: int) -> None:
    """A start of thousands of peers would read all of it; what others do is told as ever."""
    link = VXLAN if version == 4 else VXLAN6
    subnet = ip_network("10.7.3.0/24" if version == 4 else "fd00:7:3::/64")
    wanted: list[KernelObject] = [
        Neighbour(link.name, subnet.network_address, "02:00:00:00:07:03"),
        Route(subnet, link.name, subnet.network_address, onlink=True, metric=3),
    ]
    assert namespace.write(link) == {}
    namespace.dump()
    assert namespace.port.apply([Write(None, item) for item in wanted]) == {}
    heard = {
        message[0] for datagram in namespace.port._notified.read() if datagram for message in wire.messages(datagram)
    }
    assert heard.isdisjoint({wire.RTM_NEWROUTE, wire.RTM_NEWNEIGH})
    for item in wanted:
        namespace.remove(item)
    told = namespace.until(lambda told: {item.key for item in wanted} <= told.changes.keys())
    assert [told.changes[item.key] for item in wanted] == [None, None]


def test_an_old_route_goes_after_the_new_one_to_its_destination_is_there(namespace: Any) -> None:
    destination, gateway = ip_network("10.5.3.0/24"), ip_address("192.0.2.9")
    old, new = Route(destination, "eth0", gateway), Route(destination, "eth0", gateway, metric=7)
    assert namespace.write(old) == {}
    told = call_in(Path("/run/netns") / namespace.name, lambda: NotificationSocket((7,)))  # RTNLGRP_IPV4_ROUTE
    try:
        assert namespace.port.apply([Write(old, None), Write(None, new)]) == {}
        kinds = [message[0] for datagram in told.read() if datagram for message in wire.messages(datagram)]
    finally:
        told.close()
    assert kinds == [wire.RTM_NEWROUTE, wire.RTM_DELROUTE]
    assert namespace.port.poll().resync, "had it been gone already, the new one would be"
    assert {key for key in namespace.dump() if key[0] is Kind.ROUTE} == {new.key}


def test_what_is_there_can_be_read_without_a_descriptor_to_spare() -> None:
    """All sockets stand, and a file that can't be opened keeps nothing else from being read; it has not gone either."""
    port, scope = NetlinkPort(), Scope(sysctls=frozenset({"net/ipv4/ip_forward"}))
    try:
        before = port.dump(scope)
        assert [item for item in before.values() if isinstance(item, Sysctl)]
        with without_descriptors():
            assert port.dump(scope) == before
    finally:
        port.close()


def test_a_lack_of_descriptors_is_not_laid_to_a_filter_of_calls_or_a_name(netns: str) -> None:
    for where in (None, Path("/run/netns") / netns):
        with without_descriptors(), pytest.raises(KernelError, match="LimitNOFILE") as refused:
            NetlinkPort(where)
        assert "RestrictAddressFamilies" not in str(refused.value)
        assert "ip netns" not in str(refused.value)


@pytest.mark.parametrize(
    "change", [("protodown", "on"), ("type", "vxlan", "ttl", "1"), ("type", "vxlan", "df", "set")], ids=" ".join
)
def test_a_way_to_silence_a_device_is_told_and_put_right(namespace: NamespaceWorld, change: tuple[str, ...]) -> None:
    """Its carrier, and what a router on the way may drop."""
    plan: list[Link | Address] = [Family(4).link, Family(4).address]
    namespace.become(plan)
    namespace.quiet()
    namespace.ip("link", "set", "flannel.1", *change)
    namespace.until(lambda notice: notice.changes.get(plan[0].key, plan[0]) != plan[0])
    assert namespace.become(plan) > 0
    found = namespace.dump()
    assert [found[item.key] for item in plan] == plan
    assert namespace.become(plan) == 0
    assert " ttl 1 " not in namespace.ip("-d", "link", "show", "flannel.1")


def test_an_address_that_somebody_gave_a_peer_is_another_one(namespace: Any) -> None:
    """Of several with the same address, each other end counts, also none at all."""
    ours, kept = Address(VXLAN.name, ip_interface("10.1.0.0/32")), Address(VXLAN.name, ip_interface("10.1.9.1/24"))
    assert namespace.write(VXLAN, ours, kept) == {}
    before = namespace.dump()
    for local, peer in (("10.1.9.1", "10.1.9.2"), ("10.1.9.1", "10.1.8.3/24"), ("10.1.0.0", "10.1.9.4")):
        namespace.ip("address", "add", local, "peer", peer, "dev", VXLAN.name)
    namespace.ip("address", "add", "10.1.0.0", "peer", "0.0.0.0", "dev", VXLAN.name)
    strays = [item for key, item in namespace.dump().items() if key not in before and isinstance(item, Address)]
    assert {str(item.peer) for item in strays} == {"10.1.9.2", "10.1.8.3", "10.1.9.4", "0.0.0.0"}
    assert namespace.port.apply([Write(stray, None) for stray in strays]) == {}
    assert namespace.dump() == before
    (link,) = namespace.json("address", "show", "dev", VXLAN.name)
    there = [(row["local"], row["prefixlen"]) for row in link["addr_info"] if row["family"] == "inet"]
    assert there == [("10.1.0.0", 32), ("10.1.9.1", 24)]


@pytest.mark.parametrize("stray", ["fd00:1::/64", "fd00:1:: peer fd00:1::9"])
def test_an_ipv6_address_of_ours_comes_back_from_under_somebodys_of_another_length(namespace: Any, stray: str) -> None:
    """The kernel has an address once: it takes ours for a change of that one, so that both go with that one."""
    ours = Address(VXLAN.name, ip_interface("fd00:1::/128"))
    plan = [VXLAN, ours]
    assert namespace.become(plan) > 0
    namespace.ip("address", "delete", "fd00:1::/128", "dev", VXLAN.name)
    namespace.ip("address", "add", *stray.split(), "dev", VXLAN.name, "nodad")
    assert namespace.become(plan) > 0
    assert namespace.port.poll().resync, "what is there has to be looked at again"
    namespace.become(plan)
    (link,) = namespace.json("-6", "address", "show", "dev", VXLAN.name, "scope", "global")
    there = [(row["local"], row["prefixlen"]) for row in link["addr_info"] if "local" in row]
    assert there == [("fd00:1::", 128)]
