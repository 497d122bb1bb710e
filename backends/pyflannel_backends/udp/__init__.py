"""udp: containers' packets in bare UDP datagrams, moved by a process of our own.

For networks and kernels where vxlan can't be had. Each node has one TUN device; the whole overlay network is routed
into it. A worker process (:mod:`.worker`) reads packets there, looks up which peer holds the destination and sends each
packet as the payload of one UDP datagram, exactly as flannel's backend of this name does. How the worker lives, routes
and is fast is shared with every data plane of our own: :mod:`pyflannel_backends.userspace`.

This module is the planner.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import TYPE_CHECKING, Final

from pyflannel.backend import (
    Address,
    Backend,
    Capabilities,
    DataPlane,
    DesiredState,
    Lease,
    Link,
    Node,
    Route,
    Sysctl,
    Underlay,
    forwarding,
    option,
)
from pyflannel.errors import ConfigError
from pyflannel_backends.peer_address import public_address
from pyflannel_backends.userspace import leaves_a_cpu, tun_info

if TYPE_CHECKING:
    from pyflannel_backends.userspace.control import Row
    from pyflannel_backends.userspace.dataplane import UserspaceDataPlane

    from .worker import UdpConfig

__all__ = ["DEVICE", "OVERHEAD", "UdpBackend", "UdpOptions"]

DEVICE: Final = "flannel0"
PORT: Final = 8285
OVERHEAD: Final = 28
"""Bytes that an outer IPv4 header (20) and a UDP header (8) add."""


@dataclass(frozen=True, slots=True)
class UdpOptions:
    """The keys of ``Backend`` in the network document; all but ``Port`` are ours.

    ``Workers`` and ``Offload`` concern a node alone, but no queue of a device ends without what waits in it: they are
    changed along with the port, so that another device is there before the former one goes.
    """

    port: int = option("Port", PORT, "UDP port of all nodes", minimum=1, maximum=65535)
    offload: bool = option("Offload", True, "use the kernel's segmentation offloads; needs numpy")
    workers: int | None = option(
        "Workers",
        None,
        "processes that move packets; by default one, and more from four cores on",
        minimum=1,
        maximum=64,
    )
    realtime: bool = option(
        "Realtime",
        True,
        "packets go before programs that they would wait for; needs CAP_SYS_NICE, and a CPU that no worker has",
        local=True,
    )
    kernel_path: bool = option(
        "KernelPath",
        True,
        "lone packets pass the workers by, within the kernel; needs Linux 6.6, the extension and CAP_BPF",
        local=True,
    )
    any_source_port: bool = option(
        "AnySourcePort", False, "accept peers whose packets don't come from Port, as behind some NAT"
    )


class UdpBackend(Backend[UdpOptions]):
    """Containers' packets in UDP, as flannel's backend of this name sends them."""

    name = "udp"
    Options = UdpOptions
    capabilities = Capabilities(ipv4=True, ipv6=False, untyped_leases=True)
    _plane: UserspaceDataPlane | None = None

    def describe(self, node: Node) -> Mapping[str, str]:
        """What the workers have to be fast with."""
        return {**_means(self.options.offload), "kernel_path": self._kernel_path()}

    def _kernel_path(self) -> str:
        """Whether lone packets pass the workers by, for people; and if not, why."""
        if not self.options.kernel_path:
            return "no: switched off by KernelPath"
        if self.options.any_source_port:
            return "no: not with AnySourcePort"
        told = [] if self._plane is None else [status for status in self._plane.statuses() if status]
        if not told:
            return "not known yet"
        troubles = [status.get("kernel_path", "the workers have no fast path") for status in told]
        return next((f"no: {trouble}" for trouble in troubles if trouble), "yes")

    @property
    def tunnelled(self) -> bool:
        """Always."""
        return True

    @property
    def device(self) -> str:
        """The TUN device's name: flannel's, on the usual port. With another one a network can change its port."""
        return DEVICE if self.options.port == PORT else f"flannel{self.options.port}"

    def mtu(self, underlay: Underlay) -> int:
        return underlay.mtu - OVERHEAD

    def plan_node(self, node: Node) -> DesiredState:
        """The TUN device with the subnet's network address, and the whole network behind it."""
        network, subnet = node.network.ipv4, node.subnets.ipv4
        if network is None or subnet is None:
            return DesiredState()
        return DesiredState(
            [
                forwarding(4),
                Link(self.device, tun_info(offload=self.options.offload), self.mtu(node.underlay)),
                # The worker's ICMP errors come from this node's own address, which the kernel takes for a forgery
                # otherwise. What peers send is checked by the worker and never has such a source.
                Sysctl(f"net/ipv4/conf/{self.device}/accept_local", "1"),
                Address(self.device, ip_interface((subnet.network_address, 32))),
                Route(network.network, self.device),
            ]
        )

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """Nothing: the worker's table holds the peers.

        :raises PeerRejected: its public address can't be sent to.
        """
        public_address(peer, 4)
        return DesiredState()

    def start(self, node: Node) -> DataPlane:
        """Take over the worker that an earlier daemon left behind, or start one.

        :raises ConfigError: the underlay has no IPv4 address, or this node no IPv4 subnet.
        """
        from pyflannel_backends.userspace.dataplane import UserspaceDataPlane, WorkerKind

        name = self.name if self.device == DEVICE else f"{self.name}{self.options.port}"
        kind = WorkerKind(name, f"{__name__}.worker", self.worker_config(node), _rows)
        self._plane = UserspaceDataPlane(kind, node.state_dir, self._workers)
        return self._plane

    @property
    def _workers(self) -> int:
        return self.options.workers or _default_workers()

    def worker_config(self, node: Node) -> UdpConfig:
        """What a worker on ``node`` has to know."""
        from .worker import UdpConfig

        if node.underlay.ipv4 is None:
            raise ConfigError(
                f"backend udp: interface {node.underlay.interface} has no IPv4 address; choose another one with --iface"
            )
        if node.subnets.ipv4 is None:
            raise ConfigError("backend udp: this node has no IPv4 subnet; set EnableIPv4 in the network config")
        return UdpConfig(
            device=self.device,
            address=str(node.underlay.ipv4),
            port=self.options.port,
            mtu=self.mtu(node.underlay),
            own=[str(node.subnets.ipv4)],
            interface=node.underlay.interface,
            kernel_path=self.options.kernel_path,
            offload=self.options.offload,
            realtime=self.options.realtime and leaves_a_cpu(self._workers),
            any_source_port=self.options.any_source_port,
        )


def _rows(peer: Lease) -> Iterable[Row]:
    return [(str(subnet), str(peer.attributes.public_ip)) for subnet in peer.subnets.each if subnet.version == 4]


@functools.cache
def _means(offload: bool) -> Mapping[str, str]:
    from pyflannel_backends.userspace.fastpath import described, load_fast_path

    numpy = importlib.util.find_spec("numpy") is not None
    batches = "off" if not offload else "yes" if numpy else "no: numpy is not installed"
    return {"offload": batches, "fast_path": described(load_fast_path())}


def _default_workers() -> int:
    return max(1, min(4, len(os.sched_getaffinity(0)) // 2))
