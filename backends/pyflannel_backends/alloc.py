"""alloc: leases and nothing else. For whoever wants subnets handed out, and moves the packets in a way of their own.

As flannel's backend of this name: no device, no route, no lease data, and no ``BackendType`` in the lease.
"""

from __future__ import annotations

from pyflannel.backend import Backend, Capabilities, NoOptions, Underlay


class AllocBackend(Backend[NoOptions]):
    """A subnet for each node; the kernel stays as it is."""

    name = "alloc"
    capabilities = Capabilities(ipv4=True, ipv6=True, untyped_leases=True)

    def mtu(self, underlay: Underlay) -> int:
        """The underlay's: nothing is added to a packet."""
        return underlay.mtu
