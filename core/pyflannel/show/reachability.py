"""Which peers answer, asked only while somebody looks at the status page.

That the kernel holds what a peer needs says nothing about the peer. So a look at the page asks all peers at once, in a
thread that ends with the answers; the page that started it shows what the last one found. A look costs a few packets
per peer, at most every :data:`PERIOD` seconds however many people look, and nothing when nobody does.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from typing import Final

from pyflannel.errors import KernelError
from pyflannel.network.lease import IPAddress
from pyflannel.show.status import PeerState, Status
from pyflannel.small.ping import echo_all, knock_all

__all__ = ["Reachability", "RoundTrips", "ask"]

log = logging.getLogger(__name__)

PERIOD: Final = 4.0
MAX_PEERS: Final = 200
_TIMEOUT: Final = 1.0


@dataclass(frozen=True, slots=True)
class RoundTrips:
    """What came back: round-trip times in seconds over the overlay and below it, ``None`` if nothing did.

    ``expected``: something should have answered over the overlay, since its devices have addresses.
    """

    overlay: float | None
    underlay: float | None
    expected: bool

    @property
    def good(self) -> bool:
        """Whether nothing that should have answered was silent."""
        return self.overlay is not None or (self.underlay is not None and not self.expected)

    def __str__(self) -> str:
        if self.overlay is not None:
            return f"answers in {self.overlay * 1000:.2f} ms"
        if self.underlay is None:
            return "does not answer"
        return "the node answers, the overlay does not" if self.expected else "the node answers"


class Reachability:
    """What is known of the peers; for one thread."""

    def __init__(self) -> None:
        self._answers: Mapping[str, RoundTrips] = {}
        self._asked = -PERIOD
        self._asking: threading.Thread | None = None

    def look(self, status: Status) -> Mapping[str, RoundTrips]:
        """The last answers by the peers' keys, and ask anew if they are old."""
        busy = self._asking is not None and self._asking.is_alive()
        if not busy and time.monotonic() - self._asked >= PERIOD:
            self._asked = time.monotonic()
            self._asking = threading.Thread(target=self._ask, args=(status,), name="reachability", daemon=True)
            self._asking.start()
        return self._answers

    def _ask(self, status: Status) -> None:
        try:
            self._answers = ask(status)
        except OSError as error:  # out of descriptors: the page does without
            log.warning("can't ask which peers answer: %s", error.strerror)


def ask(status: Status) -> dict[str, RoundTrips]:
    """Ask the peers that are in use, the first :data:`MAX_PEERS` of them. Takes up to two seconds."""
    peers = [peer for peer in status.peers if peer.state is not PeerState.SKIPPED][:MAX_PEERS]
    inside = {peer.key: _inside(peer.subnets) for peer in peers}
    outside = {peer.key: _addresses([peer.public_ip, peer.public_ipv6]) for peer in peers}
    everybody = {address for group in (inside, outside) for some in group.values() for address in some}
    times = _times(everybody)
    expected = status.lease is not None and _has_device(status.lease.subnets)

    def quickest(addresses: Sequence[IPAddress]) -> float | None:
        return min((times[address] for address in addresses if address in times), default=None)

    return {peer.key: RoundTrips(quickest(inside[peer.key]), quickest(outside[peer.key]), expected) for peer in peers}


def _inside(subnets: Sequence[str]) -> list[IPAddress]:
    """Where somebody may answer in a subnet: its overlay device, and its container bridge."""
    networks = map(ip_network, subnets)
    return [network.network_address + offset for network in networks for offset in (0, 1)]


def _addresses(texts: Sequence[str | None]) -> list[IPAddress]:
    return [ip_address(text) for text in texts if text]


def _times(addresses: set[IPAddress]) -> dict[IPAddress, float]:
    try:
        return echo_all(addresses, _TIMEOUT)
    except KernelError:  # as the unit's user, where net.ipv4.ping_group_range does not allow it
        return knock_all(addresses, _TIMEOUT)


def _has_device(subnets: Sequence[str]) -> bool:
    """Whether the backend gives its devices their subnets' first address; ours then has it."""
    for subnet in map(ip_network, subnets):
        family = socket.AF_INET if subnet.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            try:
                channel.bind((str(subnet.network_address), 0))
            except OSError:
                continue
            return True
    return False
