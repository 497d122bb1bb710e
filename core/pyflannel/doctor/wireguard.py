"""Whether WireGuard's peers have shaken hands, as the kernel tells it: that is whether keys and addresses are right."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Final

from pyflannel.doctor.facts import Facts
from pyflannel.doctor.finding import Finding, passed, skipped, warned
from pyflannel.errors import KernelError
from pyflannel.kernel.model import WireguardDevice, WireguardPeer

__all__ = ["handshakes", "judge"]

_SHOWN: Final = 5
_CHECK: Final = "handshakes"


def handshakes(facts: Facts) -> Iterator[Finding]:
    """When each peer shook hands last; nothing where the kernel's WireGuard is not in use."""
    wanted = facts.overlay.desired.values() if facts.overlay is not None else ()
    for device in [item for item in wanted if isinstance(item, WireguardDevice)]:
        peers = [item for item in wanted if isinstance(item, WireguardPeer) and item.link == device.link]
        try:
            last = _read(device.link)
        except (KernelError, OSError) as error:
            yield skipped(_CHECK, f"{device.link} can't be read: {error}")
            continue
        yield from judge(device.link, peers, last, time.time())


def _read(link: str) -> dict[str, float]:
    """Public key to the time of the last handshake, 0 for never."""
    from pyflannel.kernel.rtsocket import NETLINK_GENERIC, RequestSocket
    from pyflannel.kernel.wireguard import Wireguard

    kernel = Wireguard(lambda: RequestSocket(NETLINK_GENERIC))
    try:
        return {row.public_key: row.last_handshake for row in kernel.rows(socket.if_nametoindex(link))[1]}
    finally:
        kernel.close()


def judge(link: str, peers: list[WireguardPeer], last: dict[str, float], now: float) -> Iterator[Finding]:
    """What the times mean.

    :param last: public key to the time of the last handshake, 0 for never.
    """
    if not peers:
        yield skipped(_CHECK, f"{link} has no peers")
        return
    times = {peer: last.get(peer.public_key, 0.0) for peer in peers}
    never = [peer for peer, when in times.items() if not when]
    if never:
        shown = ", ".join(f"{peer.endpoint} ({' '.join(map(str, peer.allowed_ips))})" for peer in never[:_SHOWN])
        more = f" and {len(never) - _SHOWN} more" if len(never) > _SHOWN else ""
        yield warned(
            _CHECK,
            f"{link}: {len(never)} of {len(peers)} peers have never shaken hands: {shown}{more}",
            "if packets were sent there, none got through: the UDP port is blocked, the peer has another key than its "
            "lease says, or another PSK",
            f"wg show {link}",
        )
    else:
        oldest = max(now - when for when in times.values())
        yield passed(_CHECK, f"{link}: all {len(peers)} peers, the longest ago {oldest:.0f} s")
