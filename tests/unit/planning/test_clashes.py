"""What two backends can't both have is found in their plans, whoever made them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.sites import installed

from pyflannel.backend import GenericInfo, KernelObject, Link, VxlanInfo
from pyflannel.daemon.wiring import make_backend
from pyflannel.errors import PluginError
from pyflannel.network.document import NetworkConfig
from pyflannel.network.lease import JSON
from pyflannel.planning.clashes import clashing
from pyflannel.planning.rehearsal import obstacle
from pyflannel.planning.transition import Side

SITE = Path(__file__).parents[2] / "plugins" / "site"
KERNEL = {"Type": "wireguard", "Implementation": "kernel"}
USERSPACE = {"Type": "wireguard", "Implementation": "userspace"}


@pytest.fixture(scope="module", autouse=True)
def _installed() -> Iterator[None]:
    with installed(SITE):
        yield


def side(backend: JSON) -> Side:
    network = NetworkConfig.from_json(json.dumps({"Network": "10.5.0.0/16", "Backend": backend}))
    return Side(make_backend(network), network)


@pytest.mark.parametrize(
    ("ours", "takes", "says"),
    [
        (KERNEL, "device", "both settings make a device flannel-wg"),
        (USERSPACE, "device", "both settings make a device flannel-wg"),
        (KERNEL, "twin", "both need the name flannel-wg"),
        (KERNEL, "port", "both need UDP port 51820"),
        (KERNEL, "number", ""),
        ({"Type": "vxlan"}, "vxlan device", "both settings make a device flannel.1"),
        ({"Type": "vxlan"}, "number", "both need VXLAN number 1 on UDP port 8472"),
        ({"Type": "vxlan"}, "same number", "both need VXLAN number 1 on UDP port 8472"),
        ({"Type": "vxlan"}, "vxlan port", "both need UDP port 8472"),
        ({"Type": "vxlan"}, "other vxlan", ""),
        ({"Type": "vxlan"}, "parameter", "need the same thing in two ways"),
        ({"Type": "udp"}, "packets", "use one device, whose packets only one of them can move"),
        ({"Type": "ipip"}, "tunnel", "both need the one ipip tunnel"),
        ({"Type": "ipip"}, "nothing", ""),
    ],
    ids=lambda it: it["Type"] if isinstance(it, dict) else it,
)
def test_a_third_party_s_backend_and_ours(ours: dict[str, str], takes: str, says: str, tmp_path: Path) -> None:
    """Either way round."""
    sides = side(ours), side({"Type": "taking", "Takes": takes})
    for number, (former, following) in enumerate((sides, sides[::-1])):
        directory = tmp_path / str(number)
        directory.mkdir()
        found = obstacle(former, following, directory)
        assert says in found
        assert bool(found) is bool(says)


def test_a_backend_that_plans_for_no_sample_is_not_judged_by_it(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="'taking' failed in publish"):
        obstacle(side({"Type": "vxlan"}), side({"Type": "taking", "Takes": "no part"}), tmp_path)


@pytest.mark.parametrize(
    "plan",
    [
        [Link("wire0", GenericInfo("veth", None, (("VETH_INFO_PEER", (("IFLA_IFNAME", "wire1"),)),)), 1500)],
        [Link("there", VxlanInfo(1, 8472, IPv4Address("192.0.2.1"), "eth0"), 1450)],
        [Link("many", GenericInfo("ip6gre"), 1450)],
    ],
)
def test_a_plan_is_at_peace_with_itself(plan: list[KernelObject]) -> None:
    both = [*plan, Link("wire1", GenericInfo("veth"), 1500)]
    assert clashing(both, both) == clashing(both[::-1], both) == ""
