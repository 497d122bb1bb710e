"""What a lab looks like, as values: segments, hosts, and the iproute2 lines that build them.

::

    192.0.2.0/24, 2001:db8::/64         switch         198.51.100.0/24, 2001:db8:1::/64
    n1 (.1) -- n2 (.2) -- ... -- br1 == router == br2 -- ... -- the last ``routed`` nodes

The switch namespace has a bridge per segment and is the router between them (host number 254) and every node's default
gateway, though it has no way out itself. Node number *i* has host number *i*, in whichever segment it is. Pure: the
functions return text for ``ip -batch`` and for the shell, :mod:`pyflannel.lab.lab` runs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from typing import Final

from pyflannel.errors import ConfigError

__all__ = ["BRIDGE", "MAX_PER_SEGMENT", "SEGMENTS", "SWITCH", "UPLINK", "Host", "Segment", "plan_hosts"]

SWITCH: Final = "switch"
"""The name of the switch's namespace."""

UPLINK: Final = "eth0"
"""The underlay interface of every host, and the only one of a container."""

BRIDGE: Final = "cni0"
"""The bridge of a node that its containers hang on."""

_IPV6_MINIMUM_MTU: Final = 1280

MAX_PER_SEGMENT: Final = 200

_ROUTER = 254
_FIRST_SERVER = MAX_PER_SEGMENT + 1
_MAX_SERVERS = _ROUTER - _FIRST_SERVER


@dataclass(frozen=True, slots=True)
class Segment:
    """One underlay Ethernet: a bridge in the switch, and the addresses on it."""

    bridge: str
    ipv4: IPv4Network
    ipv6: IPv6Network

    def ipv4_of(self, number: int) -> IPv4Interface:
        """The IPv4 address of a host number, with the segment's prefix length."""
        return IPv4Interface((self.ipv4[number], self.ipv4.prefixlen))

    def ipv6_of(self, number: int) -> IPv6Interface:
        """The IPv6 address of a host number, with the segment's prefix length."""
        return IPv6Interface((self.ipv6[number], self.ipv6.prefixlen))

    @property
    def router_ipv4(self) -> IPv4Interface:
        """The switch's own address, the segment's way to the other one."""
        return self.ipv4_of(_ROUTER)

    @property
    def router_ipv6(self) -> IPv6Interface:
        """The switch's own IPv6 address."""
        return self.ipv6_of(_ROUTER)


SEGMENTS: Final = (
    Segment("br1", IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8::/64")),
    Segment("br2", IPv4Network("198.51.100.0/24"), IPv6Network("2001:db8:1::/64")),
)
"""The underlay's segments; networks that RFC 5737 and RFC 3849 set apart for documentation."""


@dataclass(frozen=True, slots=True)
class Host:
    """One machine on the underlay: a namespace with an ``eth0``. ``mtu`` in bytes."""

    name: str
    segment: Segment
    number: int
    mtu: int = 1500

    @property
    def ipv4(self) -> IPv4Interface:
        """Its underlay address."""
        return self.segment.ipv4_of(self.number)

    @property
    def ipv6(self) -> IPv6Interface:
        """Its IPv6 underlay address."""
        return self.segment.ipv6_of(self.number)

    @property
    def router_ipv4(self) -> IPv4Address:
        """Its default gateway."""
        return self.segment.router_ipv4.ip

    @property
    def router_ipv6(self) -> IPv6Address:
        """Its IPv6 default gateway."""
        return self.segment.router_ipv6.ip


def plan_hosts(nodes: int, routed: int = 0, mtu: int = 1500) -> tuple[Host, ...]:
    """Nodes ``n1`` ... ``n<nodes>``; the last ``routed``, and those that the first segment can't hold, in the second.

    :raises ConfigError: more nodes than both segments hold, or numbers that make no sense.
    """
    if not 1 <= nodes <= MAX_PER_SEGMENT * len(SEGMENTS):
        raise ConfigError(f"a lab of {nodes} nodes: must be 1 to {MAX_PER_SEGMENT * len(SEGMENTS)}")
    if not 0 <= routed <= min(nodes, MAX_PER_SEGMENT):
        raise ConfigError(f"{routed} of {nodes} nodes behind the router: must be 0 to {min(nodes, MAX_PER_SEGMENT)}")
    if not _IPV6_MINIMUM_MTU <= mtu <= 65535:
        raise ConfigError(f"underlay MTU {mtu}: must be {_IPV6_MINIMUM_MTU} (IPv6's minimum) to 65535")
    first = nodes - max(routed, nodes - MAX_PER_SEGMENT)
    return tuple(
        Host(f"n{number}", SEGMENTS[number > first], (number - 1) % MAX_PER_SEGMENT + 1, mtu)
        for number in range(1, nodes + 1)
    )


def plan_server(name: str, index: int) -> Host:
    """A further host of the first segment, for a store's server; ``index`` counts from 0."""
    if not 0 <= index < _MAX_SERVERS:
        raise ConfigError(f"a lab has room for {_MAX_SERVERS} servers")
    return Host(name, SEGMENTS[0], _FIRST_SERVER + index)


def create_namespaces(names: Iterable[str]) -> Iterator[str]:
    """Lines for ``ip -batch`` that create named network namespaces."""
    return (f"netns add {name}" for name in names)


def connect_hosts(hosts: Iterable[Host]) -> Iterator[str]:
    """Lines for ``ip -batch``: a cable from each host to the switch, whose end has the host's name."""
    for host in hosts:
        yield (
            f"link add {host.name} netns {SWITCH} mtu {host.mtu} type veth "
            f"peer name {UPLINK} netns {host.name} mtu {host.mtu}"
        )


def configure_switch() -> Iterator[str]:
    """Lines for ``ip -batch`` inside the switch: the bridges and its own addresses."""
    yield "link set lo up"
    for segment in SEGMENTS:
        yield f"link add {segment.bridge} type bridge forward_delay 0 mcast_snooping 0"
        yield from _link_up(segment.bridge, _ROUTER)
        yield f"address add {segment.router_ipv4} dev {segment.bridge}"
        yield f"address add {segment.router_ipv6} dev {segment.bridge} nodad"


def plug_in(hosts: Iterable[Host]) -> Iterator[str]:
    """Lines for ``ip -batch`` inside the switch: each host's cable onto its segment's bridge."""
    return (f"link set {host.name} master {host.segment.bridge} up" for host in hosts)


def configure_host(host: Host) -> Iterator[str]:
    """Lines for ``ip -batch`` inside a host: addresses and default routes."""
    yield "link set lo up"
    yield from _link_up(UPLINK, host.number)
    yield f"address add {host.ipv4} dev {UPLINK}"
    yield f"address add {host.ipv6} dev {UPLINK} nodad"
    yield f"route add default via {host.router_ipv4} dev {UPLINK}"
    yield f"route add default via {host.router_ipv6} dev {UPLINK}"


FORWARDING: Final = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")
"""What routers, and hosts with containers, have switched on."""

PROMOTE_SECONDARIES: Final = ("net/ipv4/conf/all/promote_secondaries",)
"""As systemd sets it: removing an interface's first address keeps its others."""


def enable_sysctls(names: Iterable[str]) -> Iterator[str]:
    """Shell lines that set sysctls of the current network namespace to 1."""
    return (f"echo 1 >/proc/sys/{name}" for name in names)


def configure_forwarding() -> Iterator[str]:
    """Shell lines that make the current network namespace a router between its bridges, which filter no frames."""
    yield from enable_sysctls(FORWARDING)
    for tables in ("iptables", "ip6tables", "arptables"):
        sysctl = f"/proc/sys/net/bridge/bridge-nf-call-{tables}"
        yield f"[ ! -e {sysctl} ] || echo 0 >{sysctl}"


@dataclass(frozen=True, slots=True)
class ContainerNetwork:
    """What the containers of a node are given: the node's own address in each leased subnet, and the MTU in bytes."""

    mtu: int
    ipv4: IPv4Interface | None = None
    ipv6: IPv6Interface | None = None

    @property
    def gateways(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The node's addresses, IPv4 first."""
        return tuple(address for address in (self.ipv4, self.ipv6) if address is not None)

    def container(self, index: int) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The addresses of container ``index``, counted from 0: those behind the gateway's.

        :raises ConfigError: the subnet has no room.
        """
        addresses = []
        for gateway in self.gateways:
            address = gateway + 1 + index
            usable = gateway.network.num_addresses - (gateway.version == 4)  # IPv4's last one is for broadcast
            if int(address) - int(gateway.network.network_address) >= usable:
                raise ConfigError(f"subnet {gateway.network} has no room for {index + 1} containers and their gateway")
            addresses.append(type(gateway)((address.ip, gateway.network.prefixlen)))
        return tuple(addresses)


def configure_bridge(network: ContainerNetwork, ports: Iterable[str]) -> Iterator[str]:
    """Lines for ``ip -batch`` inside a node: the containers' bridge, with the cables named ``ports`` on it."""
    yield f"link add {BRIDGE} mtu {network.mtu} type bridge forward_delay 0 mcast_snooping 0"
    yield from _link_up(BRIDGE, 1, network.mtu)
    for gateway in network.gateways:
        yield f"address add {gateway} dev {BRIDGE}{_nodad(gateway)}"
    for port in ports:
        yield f"link set {port} master {BRIDGE} up"


def configure_container(network: ContainerNetwork, index: int) -> Iterator[str]:
    """Lines for ``ip -batch`` inside container ``index``: addresses, and the way out through the node."""
    yield "link set lo up"
    yield from _link_up(UPLINK, index + 2, network.mtu)
    for address, gateway in zip(network.container(index), network.gateways, strict=True):
        yield f"address add {address} dev {UPLINK}{_nodad(address)}"
        yield f"route add default via {gateway.ip} dev {UPLINK}"


def _link_up(interface: str, number: int, mtu: int = _IPV6_MINIMUM_MTU) -> Iterator[str]:
    """Bring ``interface`` up with a link-local address that can be used at once.

    The kernel's own choice would be tentative for a second or two (RFC 4862, 5.4), and until then the interface can't
    resolve neighbours for packets that it forwards. Below IPv6's smallest ``mtu`` an interface has no IPv6 at all.
    """
    if mtu < _IPV6_MINIMUM_MTU:
        yield f"link set {interface} up"
        return
    yield f"link set {interface} addrgenmode none up"
    yield f"address add fe80::{number:x}/64 dev {interface} nodad"


def _nodad(address: IPv4Interface | IPv6Interface) -> str:
    return " nodad" if address.version == 6 else ""
