"""What becomes of packets that come with an MPLS label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyflannel.kernel.model.checks import ADDRESS_RULE, check_flags, check_link, check_number, is_address, refuse
from pyflannel.kernel.model.encapsulations import MOST_LABEL, MOST_LABELS, is_label
from pyflannel.kernel.model.keys import Key, Kind
from pyflannel.network.lease import IPAddress

__all__ = ["MplsRoute"]

FIRST_LABEL: Final = 16
"""The ones below have a meaning of their own (RFC 3032, 2.1)."""


@dataclass(frozen=True, slots=True)
class MplsRoute:
    """What becomes of packets that come with an MPLS label (RFC 3031; ``ip-route(8)``, family mpls): the other end of a
    route with an :class:`MplsEncapsulation`.

    The label is taken off. A packet that has no other one is then what it was before, and is sent to ``link``: to
    ``lo`` it comes back as if it had just arrived, and is routed by its own destination. Labels are taken from a link
    only if its parameter ``net/mpls/conf/LINK/input`` is 1: plan it for the links of which peers' packets come, mostly
    the underlay's (:func:`~pyflannel.backend.mpls_input`). The kernel's table of labels grows to what is planned.

    :param label: the outermost label of the packets, of 16 to 1048575; the others are reserved.
    :param link: where packets are sent: a link of ours, ``lo``, or the underlay's.
    :param gateway: to whom, of either version; ``None``: where the link leads to by itself.
    :param labels: put on in the place of the one that was taken off, the outermost first; empty: none.
    :param plain: only ever actual when false: there is something else about it, as a second way.
    """

    label: int
    link: str
    gateway: IPAddress | None = None
    labels: tuple[int, ...] = ()
    plain: bool = True

    def __post_init__(self) -> None:
        check_number(self, "label", MOST_LABEL, FIRST_LABEL)
        check_link(self, "link")
        if self.gateway is not None and not is_address(self.gateway):
            raise refuse(self, "gateway", f"{ADDRESS_RULE}, or None")
        if type(self.labels) is not tuple or len(self.labels) > MOST_LABELS or not all(map(is_label, self.labels)):
            raise refuse(self, "labels", f"must be a tuple of at most {MOST_LABELS} labels, without 3 (implicit)")
        check_flags(self, "plain")

    def __str__(self) -> str:
        words = ["mpls route", str(self.label)]
        words += ["as", "/".join(map(str, self.labels))] if self.labels else []
        if self.gateway is not None:
            words += ["via", "inet" if self.gateway.version == 4 else "inet6", str(self.gateway)]
        return " ".join([*words, "dev", self.link, *([] if self.plain else ["and more"])])

    @property
    def key(self) -> Key:
        """By label."""
        return (Kind.MPLS_ROUTE, self.label, None)
