"""Which interface is this node's underlay: looked at again whenever interfaces or addresses change.

Containers come and go all the time, so two looks have a pause between them. What is missing is looked for until it is
there. Where the store has addresses that an operator chose for this node, the underlay is the interface with those.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from pyflannel.errors import KernelError, UnderlayError
from pyflannel.network.lease import IPAddress, IPNetwork
from pyflannel.network.underlay import Inventory, Selection, Underlay, keep_or_choose
from pyflannel.settings.settings import Settings

__all__ = ["UnderlayWatch"]

log = logging.getLogger(__name__)

PAUSE: Final = 1.0
"""Seconds between two looks while interfaces keep changing."""

CHECK_INTERVAL: Final = 1.0
"""Seconds between two tries at an underlay that is missing."""


class UnderlayWatch:
    """See the module's docstring.

    :param now: when it begins; the first look is due at once.
    """

    def __init__(self, settings: Settings, read_inventory: Callable[[], Inventory], now: float) -> None:
        self._settings, self._read_inventory = settings, read_inventory
        self.found: Underlay | None = None
        self.trouble = ""
        self.chosen: tuple[IPAddress, ...] = ()
        """The addresses that an operator chose for this node."""
        self.advertised: frozenset[str] = frozenset()
        """Links that have had routes by a router's advertisement."""
        self.due: float | None = now
        self._seen = now - PAUSE

    def look_soon(self, now: float) -> None:
        """Interfaces have changed."""
        if self.due is None:
            self.due = max(now, self._seen + PAUSE)

    def look(self, now: float, own_subnets: Callable[[], Sequence[IPNetwork]]) -> Underlay | None:
        """See what there is now.

        :param own_subnets: where this node's containers have their addresses.
        :returns: the underlay, if it is another one than before.
        """
        self._seen, self.due = now, None
        try:
            inventory = self._read_inventory()
            self.advertised |= inventory.advertised
            current = self.found if all(map(self._is_public, self.chosen)) else None
            found = keep_or_choose(inventory, self._selection, current, own_subnets())
        except (UnderlayError, KernelError) as error:
            self.due = now + CHECK_INTERVAL
            self.trouble = str(error)
            return None
        self.trouble = ""
        before, self.found = self.found, found
        if found == before:  # what else there is may differ
            return None
        same = before is not None and replace(found, routes=before.routes) == before  # only who is on the link differs
        log.log(
            logging.INFO if before is None else logging.DEBUG if same else logging.WARNING,
            "underlay: %s %s, MTU %d: %s",
            found.interface,
            found.public_ipv4 or found.public_ipv6,
            found.mtu,
            found.why,
        )
        return found

    @property
    def _selection(self) -> Selection:
        settings = self._settings
        chosen: dict[int, Any] = {address.version: address for address in self.chosen}
        return Selection(
            settings.iface,
            settings.iface_regex,
            settings.iface_can_reach,
            chosen.get(4, settings.public_ip),
            chosen.get(6, settings.public_ipv6),
        )

    def _is_public(self, address: IPAddress) -> bool:
        return self.found is not None and self.found.public(address.version) == address
