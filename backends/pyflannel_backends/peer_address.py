"""Where a peer is reached, for backends that send to it themselves."""

from __future__ import annotations

from pyflannel.backend import IPAddress, Lease, PeerRejected

__all__ = ["public_address"]


def public_address(peer: Lease, version: int) -> IPAddress:
    """The public address of this IP version.

    :raises PeerRejected: the lease has none, or one that is not a host's.
    """
    address = peer.attributes.public(version)
    name = "PublicIP" if version == 4 else "PublicIPv6"
    if address is None:
        raise PeerRejected(f"the lease has no {name}, by which its node would be reached")
    if address.is_multicast or address.is_unspecified or address.is_loopback or int(address) == 0xFFFFFFFF:
        raise PeerRejected(f"{name} {address} is not the address of a host")
    return address
