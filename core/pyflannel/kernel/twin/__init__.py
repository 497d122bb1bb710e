"""A kernel in memory that behaves, and fails, like the real one: for tests of whatever works on a kernel port.

It keeps the rules that matter to a reconciler. Routes need a link that is up and a gateway that can be reached. A
link that goes takes its addresses, neighbours, forwarding entries and routes along, and a veth its other end; what was
part of it stays and is part of none. One that is set down loses its
routes, neighbours and IPv6 addresses; a changed MAC costs the neighbours; the last IPv4 address of a link that goes
takes the IPv4 neighbours and routes along. Of the routes nothing is said but that a new dump is needed. Foreign routes
and devices are never replaced. A WireGuard peer takes its allowed-ips from whoever had them, learns endpoints
(``roam``) and vanishes without a word: :meth:`TwinPort.poll` reports that as if it had read the peers again. The suite
in ``tests/integration/kernel`` runs on the twin and on a real kernel.

Besides the port there is what *others* do to the kernel (``put``, ``remove``, ``set_link``, ``append_remote``), which
is notified like on the real one, and there are switches for what goes wrong::

    eth0 = Link("eth0", ForeignInfo("veth"), 1500)
    twin = TwinPort([eth0], addresses=[Address("eth0", ip_interface("192.0.2.1/24"))])
    twin.fail_next(Kind.ROUTE, errno.ENOBUFS)   # the next write of a route is refused
    twin.lose_notifications()                   # what was not polled is lost; the next notice asks for a resync
    twin.keeps[link.key] = other                # what is written as link becomes another, as where a kernel rounds
    twin.interrupt_dumps(1)                     # the next dump fails: the tables change too fast
    twin.dead = "no netlink here"               # every call fails until it is set to None again
"""

from __future__ import annotations

from pyflannel.kernel.twin.port import TwinPort
from pyflannel.kernel.twin.tables import FOREIGN_PROTOCOL

__all__ = ["FOREIGN_PROTOCOL", "TwinPort"]
