"""A backend that takes what one of ours needs, of the device or of the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from pyflannel.backend import (
    Backend,
    DataPlane,
    DesiredState,
    GenericInfo,
    KernelObject,
    Lease,
    Link,
    LinkInfo,
    Node,
    Published,
    Route,
    Secret,
    Subnets,
    Sysctl,
    Underlay,
    VxlanInfo,
    WireguardDevice,
    option,
)
from pyflannel_backends.userspace import tun_info

DEVICE = "taker0"

MTU = 1400


@dataclass(frozen=True)
class Options:
    takes: str = option("Takes", "nothing", "what it takes")


class Mover(DataPlane):
    """Moves nothing."""

    def put(self, peer: Lease) -> None:
        """Nobody gets there."""

    def remove(self, subnets: Subnets) -> None:
        """Nor got there before."""

    def check(self) -> Mapping[str, str]:
        """All are served."""
        return {}

    def stop(self) -> None:
        """There is nothing to stop."""


class Taking(Backend[Options]):
    """One device, with the whole network behind it."""

    api_version = 1
    name = "taking"
    Options = Options

    def mtu(self, underlay: Underlay) -> int:
        """Less than the underlay's."""
        return MTU

    def plan_node(self, node: Node) -> DesiredState:
        """See the module's docstring."""
        return DesiredState(self._planned(node))

    def publish(self, node: Node) -> Published:
        """Nothing, or not even that."""
        if self.options.takes == "no part":
            raise RuntimeError("no tool for it here")
        return Published()

    def _planned(self, node: Node) -> Iterator[KernelObject]:
        assert node.network.ipv4 is not None
        if self.options.takes == "no part":
            raise RuntimeError("nothing is known of this node")
        local = node.underlay.ipv4 or ip_address("192.0.2.1")
        devices: dict[str, tuple[str, LinkInfo]] = {
            "device": ("flannel-wg", GenericInfo("dummy")),
            "vxlan device": ("flannel.1", GenericInfo("dummy")),
            "number": (DEVICE, VxlanInfo(1, 8472, local, node.underlay.interface)),
            "same number": (DEVICE, GenericInfo("vxlan", None, (("IFLA_VXLAN_ID", 1), ("IFLA_VXLAN_PORT", 8472)))),
            "other vxlan": (DEVICE, GenericInfo("vxlan", None, (("IFLA_VXLAN_ID", 7), ("IFLA_VXLAN_PORT", 8472)))),
            "vxlan port": (
                DEVICE,
                GenericInfo("vxlan", None, (("IFLA_VXLAN_COLLECT_METADATA", 1), ("IFLA_VXLAN_PORT", 8472))),
            ),
            "tunnel": (DEVICE, GenericInfo("ipip", None, (("IFLA_IPIP_LOCAL", str(local)),))),
            "port": (DEVICE, GenericInfo("wireguard")),
            "packets": ("flannel0", tun_info(offload=True)),
            "twin": (DEVICE, GenericInfo("veth", None, (("VETH_INFO_PEER", (("IFLA_IFNAME", "flannel-wg"),)),))),
        }
        name, info = devices.get(self.options.takes, (DEVICE, GenericInfo("dummy")))
        yield Link(name, info, MTU)
        yield Route(node.network.ipv4.network, name)
        if self.options.takes == "port":
            yield WireguardDevice(name, Secret(bytes(range(32))), 51820)
        if self.options.takes == "parameter":
            yield Sysctl("net/ipv4/ip_forward", "0")

    def start(self, node: Node) -> DataPlane | None:
        """Who moves the packets, if that is anybody."""
        return Mover()
