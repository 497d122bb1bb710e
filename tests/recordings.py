"""What flanneld left in the kernel (tests/golden), as our own values."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

from pyflannel.kernel.model import Address, FdbEntry, KernelObject, Link, Neighbour, Route, VxlanInfo
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import Lease

GOLDEN = Path(__file__).parent / "golden"

BETTER_DOCUMENTS = {
    *("no-backend", "min>max", "vni-big", "vni-neg", "mtu-0", "mtu-small", "udp-port-str", "wg"),
    *("bogus-type", "space-type", "backend-null", "backend-empty", "type-empty", "type-null"),
}
"""Refused or read in another way on purpose; docs/reference/network-config.md says why."""


def network(name: str) -> NetworkConfig:
    return NetworkConfig.from_json((GOLDEN / name / "config.json").read_text())


def leases(name: str) -> list[Lease]:
    lines = (GOLDEN / name / "leases.txt").read_text().split("\n")
    pairs = zip(lines[0::2], lines[1::2], strict=False)
    return [Lease.from_record(key.rpartition("/")[2], value) for key, value in pairs if key]


def _json(name: str, file: str) -> list[dict[str, Any]]:
    documents = (GOLDEN / name / file).read_text()
    items: list[dict[str, Any]] = json.loads(documents)
    return items


def neighbours(name: str) -> set[KernelObject]:
    return {Neighbour(item["dev"], ip_address(item["dst"]), item["lladdr"]) for item in _json(name, "neighbours.json")}


def fdb(name: str) -> set[KernelObject]:
    return {FdbEntry(item["ifname"], item["mac"], ip_address(item["dst"])) for item in _json(name, "fdb.json")}


def routes(name: str) -> set[KernelObject]:
    """The routes flanneld made: protocol boot, but for the default route that the recording's set-up made."""
    found: set[KernelObject] = set()
    for item in _json(name, "routes.json") + _json(name, "routes6.json"):
        if item["protocol"] == "boot" and item["dst"] != "default":
            gateway = ip_address(item["gateway"]) if "gateway" in item else None
            found.add(Route(ip_network(item["dst"]), item["dev"], gateway, onlink="onlink" in item["flags"]))
    return found


def addresses(name: str) -> set[KernelObject]:
    return {
        Address(link["ifname"], ip_interface(f"{item['local']}/{item['prefixlen']}"))
        for link in _json(name, "addresses.json")
        for item in link["addr_info"]
        if item["scope"] == "global"
    }


def vxlan_links(name: str) -> set[KernelObject]:
    found: set[KernelObject] = set()
    for item in _json(name, "links.json"):
        data = item["linkinfo"]["info_data"]
        local = ip_address(data.get("local") or data["local6"])
        info = VxlanInfo(data["id"], data["port"], local, data["link"], data.get("gbp", False), data["learning"])
        found.add(Link(item["ifname"], info, item["mtu"], item["address"]))
    return found
