"""wireguard: containers' packets encrypted and authenticated, in WireGuard's protocol.

Every node has a key pair; its lease says the public key, so the store is where the nodes learn whom to trust. For each
peer the kernel holds one entry: the public key, where the node is reached first, and which source addresses it may
speak for, which are just those of its lease. The whole network is routed into the device, which picks the peer by the
destination.

Two implementations speak this protocol: the kernel's, and one of our own in userspace for kernels that lack it. Both
are the same to peers, and there is no third way: a packet that can't be encrypted is not sent, and while the device is
missing a blackhole route holds the packets back.

This module is the planner; :mod:`.keys` keeps the private key.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_interface
from typing import ClassVar, Final

from pyflannel.backend import (
    JSON,
    Address,
    Backend,
    Capabilities,
    DataPlane,
    DesiredState,
    Endpoint,
    GenericInfo,
    IPAddress,
    KernelObject,
    Lease,
    Link,
    Node,
    Outcome,
    PeerRejected,
    Published,
    Route,
    Secret,
    Sysctl,
    Underlay,
    WireguardDevice,
    WireguardPeer,
    forwarding,
    has_generic_netlink,
    option,
)
from pyflannel.errors import ConfigError
from pyflannel_backends.peer_address import public_address
from pyflannel_backends.secret_file import pre_shared_key_path
from pyflannel_backends.shut import shut
from pyflannel_backends.userspace import tun_info
from pyflannel_backends.userspace.fastpath import described, load_transport

from . import keys

__all__ = ["DEVICE", "DEVICE_V6", "OVERHEAD", "WireguardBackend", "WireguardOptions"]

DEVICE: Final = "flannel-wg"
DEVICE_V6: Final = "flannel-wg-v6"
"""The device for IPv6 packets in mode ``separate``."""

PORT: Final = 51820
PORT_V6: Final = 51821

OVERHEAD: Final = 80
"""Bytes that are added at most: outer IPv6 header (40), UDP (8), WireGuard's header (16) and tag (16)."""

ROTATE_KEY: Final = "rotate-key"

MODES: Final = ("separate", "auto", "ipv4", "ipv6")
IMPLEMENTATIONS: Final = ("auto", "kernel", "userspace")
IMPLEMENTATION_VARIABLE: Final = "WIREGUARD_IMPLEMENTATION"
"""Environment variable for one node, beside flannel's ``WIREGUARD_KEY_FILE``."""


@dataclass(frozen=True, slots=True)
class WireguardOptions:
    """The keys of ``Backend`` in the network document; all but ``PSKFile`` and ``Implementation`` are flannel's."""

    listen_port: int = option("ListenPort", PORT, "UDP port of all nodes", minimum=1, maximum=65535)
    listen_port_v6: int = option(
        "ListenPortV6", PORT_V6, "UDP port of the device for IPv6 in mode separate", minimum=1, maximum=65535
    )
    psk: str = option("PSK", "", "a key that all nodes share besides their own, as 'wg genpsk' prints it", secret=True)
    psk_file: str = option("PSKFile", "", "the same, from a file of every node's own: the store never has it")
    mtu: int | None = option(
        "MTU",
        None,
        "largest underlay packet to use, instead of the interface's",
        minimum=576,
        maximum=65535,
        local=True,
    )
    mode: str = option(
        "Mode",
        "separate",
        "separate: a device for each address family; auto, ipv4, ipv6: one device, and peers are reached by the "
        "address that is likely to work, by IPv4, by IPv6",
    )
    keepalive: int = option(
        "PersistentKeepaliveInterval",
        0,
        "seconds between keepalives to every peer; 0: none",
        minimum=0,
        maximum=65535,
        local=True,
    )
    implementation: str = option(
        "Implementation", "auto", "kernel: WireGuard of the kernel; userspace: our own; auto: the kernel's if it has it"
    )

    def __post_init__(self) -> None:
        _check_choice("Mode", self.mode, MODES)
        _check_choice("Implementation", self.implementation, IMPLEMENTATIONS)
        if pre_shared_key_path(self.psk, self.psk_file) is None and self.psk and keys.decode(self.psk) is None:
            raise ConfigError(
                "network config: Backend.PSK is not a key: must be 44 characters as 'wg genpsk' prints them"
            )


class WireguardBackend(Backend[WireguardOptions]):
    """Containers' packets in WireGuard, as flannel's backend of this name sends them."""

    name = "wireguard"
    Options = WireguardOptions
    capabilities = Capabilities(ipv4=True, ipv6=True, encrypts=True)
    actions: ClassVar[Mapping[str, str]] = {
        ROTATE_KEY: "Give this node a new key pair. Traffic goes on; peers learn the new key from the store."
    }

    def __init__(self, options: WireguardOptions) -> None:
        super().__init__(options)
        self.psk = _psk(options)
        self.implementation = _choose(options.implementation)

    def describe(self, node: Node) -> Mapping[str, str]:
        """Which implementation runs, under which key, and in userspace whether it has what makes it fast."""
        found = {"implementation": self.implementation, "public_key": self._identity(node).public_key}
        if self.implementation == "userspace":
            found["fast_path"] = described(load_transport())
        return found

    @property
    def tunnelled(self) -> bool:
        """Always: what comes in elsewhere is not from a peer, whoever it says it is."""
        return True

    def mtu(self, underlay: Underlay) -> int:
        """The same over IPv4 and IPv6, so that a roaming peer never meets a smaller one."""
        return (self.options.mtu or underlay.mtu) - OVERHEAD

    def _identity(self, node: Node) -> keys.KeyPair:
        return keys.identity(keys.key_path(node.state_dir))

    def publish(self, node: Node) -> Published:
        """Our public key and port, for each family in use. Makes the private one if there is none.

        :raises ConfigError: the key file can't be made or used.
        """
        key = keys.load_or_create(keys.key_path(node.state_dir)).public_key
        data = {
            version: {"PublicKey": key, "Port": self.port(version)}
            for version in (4, 6)
            if node.subnets.of(version) is not None
        }
        return Published(data.get(4), data.get(6))

    def plan_node(self, node: Node) -> DesiredState:
        """The devices with our key, each with the subnet's network address, and the whole network behind them.

        :raises ConfigError: this implementation can't carry the network, or there is no key that can be used, which
            peers' plans need, too: no lease of theirs is at fault then.
        """
        wanted = {"ipv4": 4, "ipv6": 6}.get(self.options.mode)
        if wanted is not None and wanted not in node.network.versions:
            raise ConfigError(
                f"network config: Backend.Mode is {self.options.mode!r}, but EnableIPv{wanted} is false: leases say "
                f"the addresses of the families in use only; set EnableIPv{wanted} to true, or Mode to separate"
            )
        return DesiredState(item for version in node.network.versions for item in self._own(node, version))

    def _own(self, node: Node, version: int) -> Iterator[KernelObject]:
        subnet, network = node.subnets.of(version), node.network.family(version)
        if subnet is None or network is None:
            return
        device, mtu, own = self.device(version), self.mtu(node.underlay), self._identity(node)
        yield forwarding(version)
        if self.implementation == "kernel":
            yield Link(device, GenericInfo("wireguard"), mtu)
            yield WireguardDevice(device, own.private_key, self.port(version))
        else:
            yield Link(device, tun_info(offload=True), mtu)
            # The worker's ICMP errors come from this node's own address, which the kernel takes for a forgery
            # otherwise. What peers send is checked by the worker and never has such a source.
            yield Sysctl(f"net/ipv4/conf/{device}/accept_local", "1")
        yield Address(device, ip_interface(f"{subnet.network_address}/{subnet.max_prefixlen}"))
        yield Sysctl(f"net/ipv6/conf/{device}/accept_ra", "0", optional=True)
        yield Route(network.network, device)
        yield shut(network.network)

    def act(self, action: str, node: Node) -> Outcome:
        """``rotate-key``: a new key file in the place of the old one, which the workers have taken when this returns.

        :raises ConfigError: the file can't be read or written, or a worker does not take it.
        """
        if action != ROTATE_KEY:
            return super().act(action, node)
        path = keys.key_path(node.state_dir)
        new = keys.KeyPair.new()
        old = keys.exchange(path, new)
        return Outcome(f"the public key of this node is {new.public_key} now", lambda: keys.replace(path, old))

    def device(self, version: int) -> str:
        """The name of the device that carries packets of IP version 4 or 6.

        Flannel's, on the usual port. Another port gives it another name: so a network can change to another port or
        preshared key by way of two devices.
        """
        separate, port = version == 6 and self.options.mode == "separate", self.port(version)
        name, usual, stem = (DEVICE_V6, PORT_V6, "flannel-w6") if separate else (DEVICE, PORT, DEVICE)
        return name if port == usual else f"{stem}{port}"

    def port(self, version: int) -> int:
        """The UDP port of that device, here and on every node whose lease names none."""
        separate = version == 6 and self.options.mode == "separate"
        return self.options.listen_port_v6 if separate else self.options.listen_port

    def plan_peer(self, node: Node, peer: Lease) -> DesiredState:
        """The peer, on one device or on two; in userspace nothing, for the worker's table holds the peers.

        :raises PeerRejected: it has no usable key or port, or no address that it can be reached by.
        """
        reachable = list(self.reach(node, peer))
        return DesiredState(reachable if self.implementation == "kernel" else ())

    def reach(self, node: Node, peer: Lease) -> Iterator[WireguardPeer]:
        """A peer's lease, as the entry that each of our devices needs for it.

        :raises PeerRejected: see :meth:`plan_peer`.
        """
        versions = [version for version in node.network.versions if peer.subnets.of(version) is not None]
        if self.options.mode == "separate":
            for version in versions:
                yield self._peer(node, peer, [version], public_address(peer, version))
        elif versions:
            yield self._peer(node, peer, versions, self._endpoint(node, peer))

    def _peer(self, node: Node, peer: Lease, versions: list[int], address: IPAddress) -> WireguardPeer:
        key = _public_key(peer, versions[-1])
        if key == self._identity(node).public_key:
            raise PeerRejected(f"PublicKey {key} is this node's own: two nodes must not share a key file")
        subnets = tuple(subnet for subnet in peer.subnets.each if subnet.version in versions)
        endpoint = Endpoint(address, self._peer_port(peer, versions))
        return WireguardPeer(self.device(versions[-1]), key, subnets, endpoint, self.psk, self.options.keepalive)

    def _peer_port(self, peer: Lease, versions: list[int]) -> int:
        """Where a peer listens, whose network config may be an earlier or a later one than ours.

        flanneld says ``ListenPort`` of IPv4 and ``ListenPortV6`` of IPv6 in every mode, and where one device serves
        both families it listens at the former alone.
        """
        said = None if self.options.mode != "separate" and versions[0] == 6 else _port(peer, versions[0])
        return said or self.port(versions[-1])

    def _endpoint(self, node: Node, peer: Lease) -> IPAddress:
        """Which address of a peer to use where one device serves both families."""
        if self.options.mode != "auto":
            return public_address(peer, 4 if self.options.mode == "ipv4" else 6)
        ipv4, ipv6 = peer.attributes.public_ip, peer.attributes.public_ipv6
        if ipv4 is None or ipv6 is None:
            return public_address(peer, 4 if ipv6 is None else 6)
        # As flannel decides it: IPv4 reaches nearly everywhere, IPv6 only where both ends have global addresses.
        ours_v4, ours_v6 = node.underlay.public_ipv4, node.underlay.public_ipv6
        if not ipv4.is_private and ours_v4 is not None:
            return ipv4
        both_global = ours_v6 is not None and not ipv6.is_private and not ours_v6.is_private
        return ipv6 if both_global else ipv4

    def start(self, node: Node) -> DataPlane | None:
        """In userspace, take over the workers that an earlier daemon left behind, or start them.

        :raises ConfigError: the underlay has no address to receive at.
        """
        if self.implementation == "kernel":
            return None
        from .dataplane import WireguardDataPlane

        return WireguardDataPlane(self, node)


def _choose(wanted: str) -> str:
    """The implementation: where the network document leaves it open, the node's environment may decide.

    :raises ConfigError: the environment names none.
    """
    if wanted != "auto":
        return wanted
    named = os.environ.get(IMPLEMENTATION_VARIABLE, "auto")
    if named not in IMPLEMENTATIONS:
        raise ConfigError(f"{IMPLEMENTATION_VARIABLE} is {named!r}: must be one of {', '.join(IMPLEMENTATIONS)}")
    if named != "auto":
        return named
    return "kernel" if _kernel_has_wireguard() else "userspace"


@lru_cache(maxsize=1)
def _kernel_has_wireguard() -> bool:
    return has_generic_netlink("wireguard")


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"network config: Backend.{key} is {value!r}: must be one of {', '.join(choices)}")


def _psk(options: WireguardOptions) -> Secret | None:
    path = pre_shared_key_path(options.psk, options.psk_file)
    if path is not None:
        return keys.load_psk(path)
    key = keys.decode(options.psk)
    return None if key is None else Secret(key)


def _public_key(peer: Lease, version: int) -> str:
    name, data = _data(peer, version)
    if not isinstance(data, dict):
        raise PeerRejected(f"{name} is {_shortened(data)}, expected an object with PublicKey")
    key = _field(data, "publickey")
    if not isinstance(key, str) or keys.decode(key) is None:
        raise PeerRejected(f"{name}.PublicKey is {_shortened(key)}, expected 44 characters of base64")
    return key


def _port(peer: Lease, version: int) -> int | None:
    """The port that a lease says; ``None`` or 0 if it does not, as those of flanneld before 0.26.6."""
    name, data = _data(peer, version)
    if not isinstance(data, dict):
        return None
    port = _field(data, "port")
    if port is not None and not (type(port) is int and 0 <= port <= 0xFFFF):
        raise PeerRejected(f"{name}.Port is {_shortened(port)}, expected a UDP port")
    return port


def _data(peer: Lease, version: int) -> tuple[str, JSON]:
    """What a lease has of a family, and its name there."""
    return "BackendData" if version == 4 else "BackendV6Data", peer.attributes.data(version)


def _field(data: Mapping[str, JSON], name: str) -> JSON:
    """As Go reads it, for which the case of a name does not count."""
    return next((value for field, value in data.items() if str(field).lower() == name), None)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
