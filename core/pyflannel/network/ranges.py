"""Which lease holds which addresses, answering "who overlaps this?" without looking at every lease.

Nearly all subnets have one length, so a look-up per length in use is enough, and a bisection where subnets are longer
than the one that is asked for. Subnets are kept as numbers, which are small and quick to look up.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator

from pyflannel.network.lease import IPNetwork, Subnets

__all__ = ["Ranges"]


class Ranges:
    """See the module's docstring. A subnet has one holder; the last that was added."""

    def __init__(self) -> None:
        self._holders: dict[tuple[int, int], dict[int, str]] = {}
        """IP version and prefix length to: the prefix's leading bits to the lease's key."""
        self._ordered: dict[tuple[int, int], list[int]] = {}
        """The same leading bits in order, for lengths that were asked for by a shorter one."""

    def add(self, subnets: Subnets, key: str) -> None:
        """Note that the lease ``key`` holds ``subnets``."""
        for subnet in subnets.each:
            self.add_leading(subnet.version, subnet.prefixlen, _leading(subnet, subnet.prefixlen), key)

    def add_leading(self, version: int, prefixlen: int, leading: int, key: str) -> None:
        """The same for one subnet, by its leading bits."""
        length = (version, prefixlen)
        holders = self._holders.get(length)
        if holders is None:
            holders = self._holders[length] = {}
        if self._ordered and length in self._ordered and leading not in holders:
            insort(self._ordered[length], leading)
        holders[leading] = key

    def remove(self, subnets: Subnets) -> None:
        """Nobody holds ``subnets`` any more."""
        for subnet in subnets.each:
            length, leading = (subnet.version, subnet.prefixlen), _leading(subnet, subnet.prefixlen)
            if self._holders.get(length, {}).pop(leading, None) is not None and length in self._ordered:
                ordered = self._ordered[length]
                del ordered[bisect_left(ordered, leading)]

    def holder(self, subnet: IPNetwork) -> str | None:
        """The key of the lease that holds just this subnet."""
        return self._holders.get((subnet.version, subnet.prefixlen), {}).get(_leading(subnet, subnet.prefixlen))

    def at(self, version: int, address: int) -> str | None:
        """The key of a lease that holds this address, which is a number."""
        bits = 32 if version == 4 else 128
        for (family, length), holders in self._holders.items():
            holder = holders.get(address >> (bits - length)) if family == version else None
            if holder is not None:
                return holder
        return None

    def overlapping(self, subnets: Subnets) -> set[str]:
        """The keys of leases that hold any address of ``subnets``."""
        found: set[str] = set()
        for subnet in subnets.each:
            found.update(self.overlapping_leading(subnet.version, subnet.prefixlen, _leading(subnet, subnet.prefixlen)))
        return found

    def overlapping_leading(self, version: int, prefixlen: int, leading: int) -> Iterator[str]:
        """The same for one subnet, by its leading bits; a lease may come more than once."""
        for (family, length), holders in self._holders.items():
            if family != version:
                continue
            if length <= prefixlen:
                holder = holders.get(leading >> (prefixlen - length))
                if holder is not None:
                    yield holder
            else:
                for within in self._within(version, length, leading << (length - prefixlen), length - prefixlen):
                    yield holders[within]

    def _within(self, version: int, length: int, first: int, bits: int) -> list[int]:
        """The leading bits of the held subnets of a length, from ``first`` on as many as ``bits`` can tell apart."""
        ordered = self._ordered.get((version, length))
        if ordered is None:
            ordered = self._ordered[version, length] = sorted(self._holders[version, length])
        begin = bisect_left(ordered, first)
        return ordered[begin : bisect_left(ordered, first + (1 << bits), begin)]


def _leading(subnet: IPNetwork, length: int) -> int:
    return int(subnet.network_address) >> (subnet.max_prefixlen - length)
