"""Probes of each peer: is it there, does the overlay reach it, how large may packets be, do checksums survive?

Probing and judging are apart: :func:`probe` sends packets and returns a :class:`Reach`, :func:`judge` says what that
means. What can't be told from here is not guessed: ``docs/doctor.md`` lists what each probe can and can't see.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyflannel.doctor.facts import Facts
from pyflannel.doctor.finding import Finding, failed, passed, skipped, warned
from pyflannel.kernel.model import Address, Link
from pyflannel.network.lease import IPAddress
from pyflannel.small.ping import echo, knock_tcp, knock_udp, largest_echo

__all__ = ["Reach", "Target", "checksum_errors", "judge", "probe", "probe_peers", "targets"]

SMALLEST: Final = {4: 576, 6: 1280}
"""Bytes that every path must carry (RFC 791, RFC 8200); the search for the largest packet begins here."""

_WORKERS: Final = 16


@dataclass(frozen=True, slots=True)
class Target:
    """One peer in one address family.

    :param underlay: its public address.
    :param device: the address its overlay device has, if its backend gives it one (the subnet's own, ``.0``).
    :param gateway: the address its container bridge has, if there is one (the subnet's first, ``.1``).
    :param mtu: the largest packet that the overlay should carry; ``underlay_mtu`` the same below it. Bytes.
    :param interface: the device through which packets to it enter the overlay.
    """

    name: str
    underlay: IPAddress
    device: IPAddress | None
    gateway: IPAddress
    mtu: int
    underlay_mtu: int
    interface: str


@dataclass(frozen=True, slots=True)
class Reach:
    """What came back from a peer.

    :param underlay: what its public address answers: ``ping``, ``knock`` (a refused connection), or nothing.
    :param overlay: the round-trip time over the overlay in seconds, ``None`` if nothing came back.
    :param through: the overlay address that answered.
    :param largest: the largest packet that came through whole; ``underlay_largest`` the same below.
    :param checksummed: whether UDP with a checksum arrives, over the overlay if that answers at all, else at the
        public address; ``unchecked`` the same without a checksum.
    :param astray: where the kernel sends what should go into the overlay, if that is elsewhere: by a device, nowhere.
    :param no_way: the same of packets to the node itself, if they go nowhere.

    ``None`` stands for what was not tried.
    """

    underlay: str = ""
    overlay: float | None = None
    through: IPAddress | None = None
    gateway: bool = False
    largest: int | None = None
    underlay_largest: int | None = None
    checksummed: bool | None = None
    unchecked: bool | None = None
    astray: str = ""
    no_way: str = ""


def targets(facts: Facts) -> Iterator[Target]:
    """The peers that this node uses, as the store and the backend's plan give them."""
    overlay, mtu = facts.overlay, facts.mtu
    if overlay is None or mtu is None:
        return
    for key, peer in sorted(overlay.peers.items()):
        lease = overlay.lease(key)
        if peer.reason or lease is None:
            continue
        for version in overlay.node.network.versions:
            subnet, public = lease.subnets.of(version), lease.attributes.public(version)
            if subnet is None or public is None:
                continue
            mine = overlay.node.subnets.of(version)
            has_device = mine is not None and any(
                isinstance(item, Address) and item.interface.ip == mine.network_address for item in overlay.own_objects
            )
            yield Target(
                f"{subnet} at {public}",
                public,
                subnet.network_address if has_device else None,
                subnet.network_address + 1,
                min([mtu, *(link.mtu for link in _devices(facts, version))]),
                overlay.node.underlay.mtu,
                next((link.name for link in _devices(facts, version)), overlay.node.underlay.interface),
            )


def _devices(facts: Facts, version: int) -> list[Link]:
    """The overlay's devices for one family; their MTU may be smaller than what containers are told."""
    names = {
        item.link
        for item in (facts.overlay.own_objects if facts.overlay is not None else ())
        if isinstance(item, Address) and item.interface.version == version
    }
    return [link for link in facts.links if link.name in names]


def probe_peers(found: Sequence[Target]) -> list[Reach]:
    """Probe them side by side, in the same order."""
    with ThreadPoolExecutor(_WORKERS) as pool:
        return list(pool.map(probe, found))


def probe(target: Target) -> Reach:
    """Send all that there is to send to one peer; some ten packets when all is well."""
    version = target.underlay.version
    below = "ping" if echo(target.underlay) is not None else ""
    if not below and (knock_tcp(target.underlay) or knock_udp(target.underlay)):
        below = "knock"
    largest_below = None
    if below == "ping":
        largest_below = _largest(target.underlay, target.underlay_mtu)
    times = {address: echo(address) for address in (target.device, target.gateway) if address is not None}
    through = next((address for address, seconds in times.items() if seconds is not None), None)
    if through is None:
        return Reach(
            underlay=below,
            underlay_largest=largest_below,
            checksummed=knock_udp(target.underlay) if below else None,
            unchecked=knock_udp(target.underlay, checksum=False) if below and version == 4 else None,
        )
    return Reach(
        underlay=below,
        overlay=times[through],
        through=through,
        gateway=times[target.gateway] is not None,
        largest=_largest(through, target.mtu),
        underlay_largest=largest_below,
        checksummed=knock_udp(through),
        unchecked=knock_udp(through, checksum=False) if version == 4 else None,
    )


def _largest(address: IPAddress, expected: int) -> int:
    if echo(address, expected, timeout=1.0, whole=True) is not None:
        return expected
    smallest = SMALLEST[address.version]
    if echo(address, smallest, timeout=1.0, whole=True) is None:
        return 0
    return largest_echo(address, smallest, expected)


# What it means -------------------------------------------------------------------------------------------------------


def judge(target: Target, reach: Reach, interface: str, port: int | None) -> Iterator[Finding]:
    """The findings about one peer.

    :param interface: the underlay's; ``port`` is the backend's UDP port, if it has one. Both are for the commands.
    """
    yield _underlay(target, reach)
    if reach.overlay is None:
        yield _unreachable(target, reach, interface, port)
        if reach.unchecked and not reach.checksummed:
            yield _unfinished(target, interface)
        return
    milliseconds = f"{reach.overlay * 1000:.2f} ms"
    note = "" if reach.gateway or reach.through != target.device else "; no container bridge there"
    yield passed("peer overlay", f"{target.name}: {reach.through} answers in {milliseconds}{note}")
    yield from _sizes(target, reach)
    yield from _checksums(target, reach)


def _underlay(target: Target, reach: Reach) -> Finding:
    if reach.underlay == "ping":
        return passed("peer underlay", f"{target.name}: answers a ping")
    if reach.underlay == "knock":
        return passed("peer underlay", f"{target.name}: is there, but does not answer pings")
    if reach.overlay is not None:
        return passed("peer underlay", f"{target.name}: answers nothing itself, but the overlay behind it does")
    if reach.no_way:
        return failed(
            "peer underlay",
            f"{target.name}: this node sends packets to {target.underlay} {reach.no_way}",
            "a foreign route or policy rule on this node stops them, or there is no route to that node",
            f"ip route get {target.underlay}; ip route; ip rule   # shows it",
        )
    return failed(
        "peer underlay",
        f"{target.name}: no answer to pings, TCP or UDP",
        "the node is down, its address has changed, or the network between does not carry packets",
        f"ip route get {target.underlay}; traceroute {target.underlay}",
    )


def _unreachable(target: Target, reach: Reach, interface: str, port: int | None) -> Finding:
    asked = " and ".join(str(address) for address in (target.device, target.gateway) if address is not None)
    if reach.astray:
        return failed(
            "peer overlay",
            f"{target.name}: this node sends packets to {target.gateway} {reach.astray}",
            "a foreign route or policy rule on this node takes them away from the overlay",
            f"ip route get {target.gateway}; ip rule   # shows it; see also 'routes of others'",
        )
    if target.device is None:
        return warned(
            "peer overlay",
            f"{target.name}: {asked} does not answer",
            "either that node has no container bridge yet, or it does not forward, or a router between the nodes drops "
            "the overlay's addresses",
            f"ip route get {target.gateway}; tcpdump -ni {interface} host {target.underlay}",
        )
    if not reach.underlay:
        meaning = "nothing reaches that node, so neither does the overlay"
        return failed("peer overlay", f"{target.name}: {asked} don't answer", meaning, f"ping {target.underlay}")
    blocked = f"UDP port {port} is" if port is not None else "the overlay's packets are"
    watch = f"tcpdump -ni {interface} udp port {port}" if port is not None else f"tcpdump -ni {interface}"
    return failed(
        "peer overlay",
        f"{target.name}: {asked} don't answer, though the node does",
        f"{blocked} blocked on the way or by a firewall of either node, or that node's daemon does not know this one",
        f"{watch} and host {target.underlay}   # on both nodes",
    )


def _sizes(target: Target, reach: Reach) -> Iterator[Finding]:
    if reach.largest is None:
        return
    if reach.largest < target.mtu:
        meaning = "connections are made, and hang as soon as full packets flow; something on the way has a smaller MTU"
        if reach.largest:
            found = f"{reach.largest} bytes get through, {target.mtu} should"
            smaller = target.underlay_mtu - target.mtu + reach.largest
            fix = f"pyflannel config set   # with Backend.MTU {smaller}, or raise the path's MTU"
        else:
            found = f"not even {SMALLEST[target.underlay.version]} bytes get through whole, {target.mtu} should"
            fix = f"tracepath -n {target.underlay}   # raise the path's MTU where it ends; nothing smaller would do"
        yield failed("peer packet size", f"{target.name}: {found}", meaning, fix)
    elif reach.underlay_largest is not None and 0 < reach.underlay_largest < target.underlay_mtu:
        yield warned(
            "peer packet size",
            f"{target.name}: {target.mtu} bytes get through, but the underlay's path carries only "
            f"{reach.underlay_largest} of {target.underlay_mtu} whole",
            "the overlay's packets are fragmented on the way: that is slow, and fails where fragments are dropped",
            f"pyflannel config set   # with Backend.MTU {reach.underlay_largest}",
        )
    else:
        yield passed("peer packet size", f"{target.name}: {reach.largest} bytes get through")


def _checksums(target: Target, reach: Reach) -> Iterator[Finding]:
    if reach.checksummed:
        yield passed("peer UDP checksum", f"{target.name}: UDP arrives intact")
    elif reach.unchecked:
        yield _unfinished(target, target.interface)
    else:
        text = f"{target.name}: no answer to UDP with or without a checksum"
        if reach.unchecked is None:
            text = f"{target.name}: no answer to UDP; without a checksum IPv6 has none"
        yield skipped("peer UDP checksum", f"{text}; a firewall drops it, or the errors that would tell")


def _unfinished(target: Target, interface: str) -> Finding:
    return failed(
        "peer UDP checksum",
        f"{target.name}: UDP arrives without a checksum, and is dropped with one",
        "a network card, a driver or something on the way leaves the checksums of packets unfinished: pings may work, "
        "TCP and UDP don't",
        f"ethtool -K {interface} tx-checksum-ip-generic off",
    )


def checksum_errors(path: Path = Path("/proc/net/snmp")) -> int | None:
    """UDP packets with a wrong checksum that this node's kernel has dropped (``InCsumErrors``), encapsulated ones, too.

    ``None`` where the kernel does not count them.
    """
    rows = [line.split() for line in path.read_text(encoding="ascii").splitlines() if line.startswith("Udp:")]
    return int(dict(zip(*rows, strict=True)).get("InCsumErrors", -1)) if len(rows) == 2 else None
